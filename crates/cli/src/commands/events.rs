//! `shore events`: what changes, as it happens.

use std::time::Duration;

use api::http_types::{Change, Revision};
use api::{Client, ClientError};
use futures_util::StreamExt as _;
use runtime::{Backoff, Random};

use super::Shell;
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
    let word = |key: &str| change.body.as_ref()?.get(key)?.as_str().map(str::to_owned);
    let place = [&change.project, &change.app].map(|name| name.as_ref().map(ToString::to_string));
    let place: Vec<String> = place.into_iter().flatten().collect();
    let state = word("state").unwrap_or_else(|| change.op.clone());
    let parts = [
        Some(change.revision.to_string()),
        Some(change.kind.clone()),
        Some(change.id.clone()),
        (!place.is_empty()).then(|| place.join("/")),
        word("name"),
        Some(state),
        word("reason"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}
