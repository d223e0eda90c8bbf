//! `shore events`: what changes, as it happens.

use std::time::Duration;

use api::http_types::{Change, Revision};
use api::{Client, ClientError};
use futures_util::StreamExt as _;
use runtime::{Backoff, Random};

use super::{Shell, cells};
use crate::args::EventsArgs;
use crate::error::{CliError, Result};

pub(super) async fn events(shell: &Shell, args: EventsArgs) -> Result<()> {
    let client = shell.client()?;
    let mut path = format!("/v1/events?follow={}", args.follow);
    let kinds = args.kinds.join(",");
    let kinds = (!kinds.is_empty()).then_some(kinds);
    let given = [
        ("project", args.project.map(|name| name.to_string())),
        ("app", args.app.map(|name| name.to_string())),
        ("kind", kinds),
        ("after", args.after.map(|revision| revision.to_string())),
        // Without a place to begin, what there is is shown, or what comes.
        ("recent", (args.after.is_none() && !args.follow).then(|| "true".to_owned())),
    ];
    for (key, value) in given {
        path += &value.map_or_else(String::new, |value| format!("&{key}={value}"));
    }
    let random = Random::system();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut at = None;
    loop {
        match once(shell, &client, &path, &mut at).await {
            Ok(true) => return Ok(()),
            Ok(false) if !args.follow => return Ok(()),
            Ok(false) => {}
            // Whoever follows goes on where it was once the server is back.
            Err(error) if args.follow && at.is_some() && error.is_transient() => {
                shell.output.say(&format!("{error}: trying again"));
            }
            Err(error) => return Err(CliError::from(error)),
        }
        runtime::sleep(backoff.next_delay(&random)).await;
    }
}

/// Shows changes until the stream ends; whether that is the end.
async fn once(
    shell: &Shell,
    client: &Client,
    path: &str,
    at: &mut Option<String>,
) -> std::result::Result<bool, ClientError> {
    let mut events = Box::pin(client.events(path, at.as_deref()).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        match event.name.as_str() {
            "change" => {
                if let Ok(change) = serde_json::from_str::<Change>(&event.data) {
                    shell.output.value(&change, || text(&change));
                }
            }
            "ready" => {
                if let Ok(ready) = serde_json::from_str::<Revision>(&event.data) {
                    at.get_or_insert_with(|| ready.revision.to_string());
                }
            }
            "resync" => shell.output.say("changes were missed: look at everything again"),
            "end" => return Ok(true),
            _ => {}
        }
        *at = event.id.or_else(|| at.take());
    }
    Ok(false)
}

/// What a change is, in one line.
fn text(change: &Change) -> String {
    let body = change.body.clone().unwrap_or_default();
    let word = |at: &str| body.pointer(at)?.as_str().map(str::to_owned);
    let place = [&change.project, &change.app].map(|name| name.as_ref().map(ToString::to_string));
    let place: Vec<String> = place.into_iter().flatten().collect();
    let index = body.get("index").and_then(serde_json::Value::as_u64);
    let name = match (change.kind.as_str(), word("/process"), index) {
        ("instance", Some(process), Some(index)) => Some(format!("{process}.{index}")),
        ("cell", ..) => word("/spec/name"),
        _ => word("/name"),
    };
    let state = match change.kind.as_str() {
        _ if change.op == "delete" => "gone".to_owned(),
        "cell" => serde_json::from_value(body.clone())
            .map_or_else(|_| "changed".to_owned(), |cell| cells::state(&cell)),
        "instance" => instance(&body),
        _ => word("/state").unwrap_or_else(|| "changed".to_owned()),
    };
    let parts = [
        Some(change.at.to_string()),
        Some(change.revision.to_string()),
        Some(change.kind.clone()),
        (!place.is_empty()).then(|| place.join("/")),
        Some(name.unwrap_or_else(|| change.id.clone())),
        Some(state),
        word("/reason"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

/// What an instance does, and where.
fn instance(body: &serde_json::Value) -> String {
    let text = |key: &str| body.get(key).and_then(serde_json::Value::as_str);
    let ready = body.get("ready").and_then(serde_json::Value::as_bool).unwrap_or_default();
    let state = text("state").unwrap_or("changed");
    let requests = match state {
        "running" if ready => ", takes requests",
        "running" => ", not ready",
        _ => "",
    };
    let cell = text("cell_name").map_or_else(String::new, |cell| format!("  on {cell}"));
    format!("{state}{requests}{cell}")
}

#[cfg(test)]
mod tests {
    use model::Time;
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_for_people() {
        let change = |kind: &str, op: &str, body| {
            let (project, app) = ("shop".parse().ok(), "web".parse().ok());
            let (kind, op) = (kind.to_owned(), op.to_owned());
            let (at, id) = (Time(0), "x_1".to_owned());
            text(&Change { revision: 7, at, kind, id, op, project, app, body })
        };
        let ready = |ready: bool| {
            json!({
                "process": "web", "index": 0, "state": "running", "ready": ready, "cell_name": "a",
            })
        };
        let lines = [
            change("instance", "put", Some(ready(false))),
            change("instance", "put", Some(ready(true))),
            change("instance", "delete", None),
            change("job", "put", Some(json!({ "state": "failed", "reason": "no room" }))),
            change("app", "put", Some(json!({ "name": "web" }))),
        ];
        assert_eq!(
            lines,
            [
                "1970-01-01T00:00:00.000Z  7  instance  shop/web  web.0  running, not ready  on a",
                "1970-01-01T00:00:00.000Z  7  instance  shop/web  web.0  running, takes requests  on a",
                "1970-01-01T00:00:00.000Z  7  instance  shop/web  x_1  gone",
                "1970-01-01T00:00:00.000Z  7  job  shop/web  x_1  failed  no room",
                "1970-01-01T00:00:00.000Z  7  app  shop/web  web  changed",
            ]
        );
    }
}
