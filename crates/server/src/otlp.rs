//! Pushes metrics to an OpenTelemetry collector, as OTLP over HTTP in JSON. The operator names the
//! collector, so no guard stands before it.

use std::time::Duration;

use bytes::Bytes;
use egress::{Ask, Body, Guard, Network, Url, Web};
use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use model::Time;
use runtime::metrics::{BOUNDS, Labels, Metric, Metrics, Value};
use serde_json::{Value as Json, json};

use crate::Server;

/// How often metrics are pushed.
pub const OTLP_EVERY: Duration = Duration::from_secs(15);
/// How long one push may take.
const OTLP_LIMIT: Duration = Duration::from_secs(10);
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`
const CUMULATIVE: u32 = 2;

/// Pushes until the server stops.
pub(crate) async fn run(server: Server, url: Url) {
    let anywhere = ["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse::<Network>().ok());
    let web = Web::new(Guard::new(anywhere.collect()), server.tasks().clone());
    let stop = server.tasks().stop().clone();
    let began = server.now();
    let mut failing = false;
    while stop.or_stop(runtime::sleep(OTLP_EVERY)).await.is_some() {
        let Ok(metrics) = server.metrics().await else { continue };
        let body = document(&metrics, began, server.now()).to_string();
        let pushed = runtime::timeout(OTLP_LIMIT, Box::pin(push(&web, &url, body.into()))).await;
        let pushed = pushed.unwrap_or_else(|| Err("no answer in time".to_owned()));
        match pushed {
            Ok(()) => failing = false,
            // Once for each time that it breaks.
            Err(reason) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%url, reason, "metrics cannot be pushed");
            }
            Err(_) => {}
        }
    }
}

async fn push(web: &Web, url: &Url, body: Bytes) -> Result<(), String> {
    let content = || -> std::io::Result<Body> {
        Ok(Full::new(body.clone()).map_err(|never| match never {}).boxed_unsync())
    };
    let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let length = Some(body.len() as u64);
    let ask = Ask { method: Method::POST, headers, body: &content, length };
    let answer = web.once(url, &ask).await.map_err(|failure| failure.reason)?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answered {}", status.as_u16())) }
}

/// An `ExportMetricsServiceRequest`. Numbers of 64 bits are text in JSON.
fn document(metrics: &Metrics, began: Time, now: Time) -> Json {
    let nanos = |at: Time| (u128::from(at.0) * 1_000_000).to_string();
    let times = (nanos(began), nanos(now));
    let all: Vec<Json> = metrics.0.iter().map(|metric| one(metric, &times)).collect();
    json!({ "resourceMetrics": [{
        "resource": { "attributes": attributes(&vec![
            ("service.name", "shore-server".to_owned()),
            ("service.version", api::VERSION.to_owned()),
        ]) },
        "scopeMetrics": [{ "scope": { "name": "shore" }, "metrics": all }]
    }] })
}

fn attributes(labels: &Labels) -> Vec<Json> {
    let one =
        |(key, value): &(&str, String)| json!({ "key": key, "value": { "stringValue": value } });
    labels.iter().map(one).collect()
}

fn one(metric: &Metric, (began, now): &(String, String)) -> Json {
    let points = metric.samples.iter().map(|(labels, value)| {
        let mut point = json!({
            "attributes": attributes(labels), "startTimeUnixNano": began, "timeUnixNano": now
        });
        match value {
            Value::Counter(value) | Value::Gauge(value) => point["asDouble"] = json!(value),
            Value::Histogram(buckets) => {
                let counts = buckets.counts.iter().map(ToString::to_string);
                point["count"] = json!(buckets.count().to_string());
                point["sum"] = json!(buckets.sum);
                point["bucketCounts"] = counts.collect();
                point["explicitBounds"] = json!(BOUNDS);
            }
        }
        point
    });
    let points: Vec<Json> = points.collect();
    let data = match metric.samples.first() {
        Some((_, Value::Counter(_))) => (
            "sum",
            json!({ "dataPoints": points, "isMonotonic": true,
                "aggregationTemporality": CUMULATIVE }),
        ),
        Some((_, Value::Histogram(_))) => {
            ("histogram", json!({ "dataPoints": points, "aggregationTemporality": CUMULATIVE }))
        }
        Some((_, Value::Gauge(_))) | None => ("gauge", json!({ "dataPoints": points })),
    };
    json!({ "name": metric.name, "description": metric.help, (data.0): data.1 })
}

#[cfg(test)]
mod tests {
    use runtime::metrics::Histogram;

    use super::*;

    #[test]
    fn the_document_is_what_collectors_take() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(2));
        let mut metrics = Metrics::default();
        metrics.counter("a_total", "So many.", 3);
        metrics.many("b", "Some.", [(vec![("k", "v".to_owned())], Value::Gauge(1.5))]);
        metrics.one("c", "So long.", Value::Histogram(histogram.read()));
        let all = document(&metrics, Time(1), Time(2));
        let all = &all["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
        assert_eq!(all[0]["sum"]["isMonotonic"], true);
        assert_eq!(all[0]["sum"]["dataPoints"][0]["asDouble"], 3.0);
        assert_eq!(all[0]["sum"]["dataPoints"][0]["timeUnixNano"], "2000000");
        let gauge = &all[1]["gauge"]["dataPoints"][0];
        assert_eq!(gauge["attributes"][0], json!({"key": "k", "value": {"stringValue": "v"}}));
        let long = &all[2]["histogram"]["dataPoints"][0];
        assert_eq!((&long["count"], &long["bucketCounts"][2]), (&json!("1"), &json!("1")));
        let buckets = long["bucketCounts"].as_array().map(Vec::len);
        assert_eq!(buckets, long["explicitBounds"].as_array().map(|bounds| bounds.len() + 1));
    }
}
