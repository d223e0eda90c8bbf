//! What a router counts, for Prometheus: on a listener of its own, apart from the traffic.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::Tasks;
use runtime::metrics::{Metrics, Value};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::{Router, Stats};

/// Connections that ask for metrics at once.
const MAX_SCRAPES: usize = 16;
/// How long one may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Router {
    /// What it did so far and does now, in numbers.
    pub fn metrics(&self) -> Metrics {
        let mut all = Metrics::default();
        let stats = self.stats();
        let answers = self.answers();
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        #[expect(clippy::cast_precision_loss, reason = "53 bits are enough to watch it grow")]
        let samples = classes.into_iter().zip(answers.classes).map(|(class, count)| {
            (vec![("class", class.to_owned())], Value::Counter(count as f64))
        });
        all.many("shore_router_requests_total", "Requests by class of status.", samples);
        let help = "From the head of a request to the head of its response.";
        all.one("shore_router_request_seconds", help, Value::Histogram(answers.took));
        counters(&mut all, &stats);
        all.gauge("shore_router_connections", "Client connections.", stats.connections);
        all.gauge("shore_router_requests_active", "Requests being served.", stats.active);
        all.gauge("shore_router_tunnels", "Upgraded connections.", stats.tunnels);
        let help = "The generation of the route table that is served.";
        all.gauge("shore_router_table_generation", help, self.generation());
        all.process();
        all
    }

    /// Answers whoever asks for metrics until `tasks` are asked to stop.
    pub fn serve_metrics(&self, listener: TcpListener, tasks: &Tasks) {
        let (router, own) = (self.clone(), tasks.clone());
        tasks.spawn_ok("router metrics", async move { accept(&router, &listener, &own).await });
    }
}

fn counters(all: &mut Metrics, stats: &Stats) {
    let counters = [
        ("shore_router_bad_requests_total", "Malformed requests (400).", stats.bad_requests),
        ("shore_router_unknown_hosts_total", "Hosts without a route (404).", stats.unknown_hosts),
        ("shore_router_no_targets_total", "Hosts without an instance (503).", stats.no_targets),
        ("shore_router_upstream_errors_total", "Instances failed (502).", stats.upstream_errors),
        ("shore_router_upstream_timeouts_total", "Too slow (504).", stats.upstream_timeouts),
        ("shore_router_retries_total", "Requests tried again.", stats.retries),
        (
            "shore_router_upstream_connections_total",
            "Connections opened to instances.",
            stats.upstream_connections,
        ),
        (
            "shore_router_refused_connections_total",
            "Client connections beyond the limit.",
            stats.too_many_connections,
        ),
        (
            "shore_router_timed_out_connections_total",
            "Client connections that took too long.",
            stats.timed_out_connections,
        ),
    ];
    for (name, help, value) in counters {
        all.counter(name, help, value);
    }
}

async fn accept(router: &Router, listener: &TcpListener, tasks: &Tasks) {
    let slots = Arc::new(Semaphore::new(MAX_SCRAPES));
    let stop = tasks.stop().clone();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match stop.or_stop(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                runtime::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, stop) = (router.clone(), stop.clone());
        tasks.spawn_ok("router metrics", async move {
            let service = service_fn(move |request| {
                let answer = answer(&router, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(ASK_LIMIT);
            // One that breaks off is its own affair.
            drop(stop.or_stop(http.serve_connection(TokioIo::new(stream), service)).await);
            drop(slot);
        });
    }
}

fn answer(router: &Router, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let found = request.uri().path() == "/metrics";
    let text = if found { router.metrics().text() } else { "See /metrics.\n".to_owned() };
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    if !found {
        *answer.status_mut() = StatusCode::NOT_FOUND;
    }
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
