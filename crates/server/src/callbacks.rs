//! Tells whoever asked for it how a task ended.
//!
//! The messages are rows of the state, made with the end they tell of. This looks which are due,
//! sends them and has the outcome applied. It keeps nothing: a server that is killed in between
//! sends the same message again, under the same name.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::http_types::TaskEnded;
use bytes::Bytes;
use egress::{Ask, Body, Failure, Url};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use model::{DeliveryId, TaskState, Time};
use sha2::Sha256;
use state::{Command, Delivery, Project, RowKey, Signing, State, Task, WorkCommand};
use tokio::sync::mpsc;

use crate::Server;
use crate::apply::ApplyError;
use crate::server::next_event;

/// Messages that are being sent at once.
pub const MAX_SENDING: usize = 32;
/// Those of one project, so that one whose receiver is slow leaves room for others.
const MAX_SENDING_OF_ONE: usize = 4;
/// How long one try may take.
pub const SEND_LIMIT: Duration = Duration::from_secs(15);
/// The pause after the state could not be asked.
const PAUSE: Duration = Duration::from_secs(1);
/// However quiet it is, this often is looked.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);

const DELIVERY: HeaderName = HeaderName::from_static("shore-delivery");
const SIGNATURE: HeaderName = HeaderName::from_static("shore-signature");

/// The value of `shore-signature`: when it was signed, in seconds, and for each secret the HMAC-SHA256
/// of `SECONDS.BODY`, in hex.
pub fn signature(secrets: &[&str], at: Time, body: &[u8]) -> String {
    let seconds = at.0 / 1_000;
    let mut text = format!("t={seconds}");
    for secret in secrets {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
            .expect("an HMAC takes a key of any length");
        mac.update(format!("{seconds}.").as_bytes());
        mac.update(body);
        // Writing to a String cannot fail.
        write!(text, ",v1={}", hex::encode(mac.finalize().into_bytes())).unwrap_or_default();
    }
    text
}

/// Sends what is due until the server stops.
pub(crate) async fn run(server: Server) {
    let stop = server.tasks().stop().clone();
    let (done, mut ended) = mpsc::channel(MAX_SENDING);
    let mut events = server.subscribe();
    let mut busy = BTreeSet::new();
    while !stop.is_stopped() {
        let wait = match begin(&server, &mut busy, &done).await {
            Ok(next) => next.map_or(LONGEST_SLEEP, |at| at.since(server.now()).min(LONGEST_SLEEP)),
            Err(_) => PAUSE,
        };
        let news = async {
            while let Ok(event) = next_event(&mut events).await {
                let about = |key: &RowKey| matches!(key, RowKey::Delivery(_));
                if event.rows.is_empty() || event.rows.iter().any(about) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.stopped() => return,
            Some(id) = ended.recv() => {
                busy.remove(&id);
            }
            () = news => {}
            () = runtime::sleep(wait) => {}
        }
    }
}

/// Begins to send what is due; when the next message is.
async fn begin(
    server: &Server,
    busy: &mut BTreeSet<DeliveryId>,
    done: &mpsc::Sender<DeliveryId>,
) -> Result<Option<Time>, ApplyError> {
    let (now, known) = (server.now(), busy.clone());
    let look = move |state: &State| {
        let due = state.deliveries_due(now, MAX_SENDING_OF_ONE, &known);
        (due, state.next_delivery(now))
    };
    let (due, next) = server.read(look).await?;
    for row in due.into_iter().take(MAX_SENDING.saturating_sub(busy.len())) {
        busy.insert(row.id);
        let (server, done) = (server.clone(), done.clone());
        let tasks = server.tasks().clone();
        tasks.spawn_ok("callback", async move {
            let stop = server.tasks().stop().clone();
            if stop.or_stop(Box::pin(deliver(&server, &row))).await.is_some() {
                // The one who asks ends with the server only.
                done.send(row.id).await.unwrap_or_default();
            }
        });
    }
    Ok(next)
}

/// Tries once, and says what became of it.
async fn deliver(server: &Server, row: &Delivery) {
    let sent = match runtime::timeout(SEND_LIMIT, send(server, row)).await {
        Some(sent) => sent,
        None => Err(Failed::later(format!("no answer within {} s", SEND_LIMIT.as_secs()))),
    };
    let (id, attempts) = (row.id, row.attempts);
    server.meters().callbacks[usize::from(sent.is_err())].fetch_add(1, Ordering::Relaxed);
    let command = match sent {
        Ok(()) => WorkCommand::Delivered { id, attempts },
        Err(Failed { reason, give_up }) => {
            tracing::info!(delivery = %id, attempts, reason, "a callback was not taken");
            WorkCommand::NotDelivered { id, attempts, reason, give_up }
        }
    };
    if let Err(ApplyError::Unavailable(_)) = server.apply(Command::Work(command)).await {
        // It is sent again: whoever gets it knows it by its name.
        runtime::sleep(PAUSE).await;
    }
}

struct Failed {
    reason: String,
    give_up: bool,
}

impl Failed {
    fn later(reason: impl std::fmt::Display) -> Self {
        Self { reason: reason.to_string(), give_up: false }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::later(failure.reason)
    }
}

async fn send(server: &Server, row: &Delivery) -> Result<(), Failed> {
    let url = Url::parse(&row.url)?;
    let (id, project) = (row.task, row.project);
    let body = server.read(move |state| told(state, state.get::<Task>(id)?)).await;
    let body = body.map_err(Failed::later)?;
    let body = body.ok_or_else(|| Failed {
        reason: "the task or its project is gone".to_owned(),
        give_up: true,
    })?;
    let body = Bytes::from(serde_json::to_vec(&body).map_err(Failed::later)?);
    let signing = server.signing(project, false).await.map_err(Failed::later)?;
    let headers = headers(server.now(), row.id, &signing, &body)?;
    let content = || Ok(full(body.clone()));
    let length = Some(body.len() as u64);
    let ask = Ask { method: Method::POST, headers, body: &content, length };
    let status = server.web().once(&url, &ask).await?.status();
    let reason = format!("it answered {}", status.as_u16());
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::GONE => Err(Failed { reason, give_up: true }),
        status if status.is_redirection() => {
            Err(Failed::later(format!("{reason}, and redirects are not followed")))
        }
        _ => Err(Failed::later(reason)),
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn headers(
    now: Time,
    id: DeliveryId,
    signing: &Arc<Signing>,
    body: &[u8],
) -> Result<Vec<(HeaderName, HeaderValue)>, Failed> {
    let before = signing.before.as_ref().map(|it| it.secret.0.as_str());
    let secrets: Vec<&str> = [signing.secret.0.as_str()].into_iter().chain(before).collect();
    let value = |text: String| HeaderValue::try_from(text).map_err(Failed::later);
    Ok(vec![
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (DELIVERY, value(id.to_string())?),
        (SIGNATURE, value(signature(&secrets, now, body))?),
    ])
}

/// What is told of a task that has ended.
fn told(state: &State, row: &Task) -> Option<TaskEnded> {
    let project = state.get::<Project>(row.project?)?.name.clone();
    let (reason, result, artifact) = match &row.state {
        TaskState::Succeeded { result, artifact } => (None, result.clone(), *artifact),
        TaskState::Failed { reason, .. } => (Some(reason.clone()), None, None),
        TaskState::Cancelled { reason } => (reason.clone(), None, None),
        TaskState::Pending { .. } | TaskState::Offered { .. } | TaskState::Running { .. } => {
            return None;
        }
    };
    Some(TaskEnded {
        task: row.id,
        attempts: state.attempts_up_to(row),
        project,
        state: row.state.name().to_owned(),
        failed: !matches!(row.state, TaskState::Succeeded { .. }),
        reason,
        result,
        artifact,
        annotation: row.spec.annotation.clone(),
        created_at: row.created_at,
        ended_at: row.ended_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_can_be_checked_with_openssl() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        let expected = "b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163";
        let signed = signature(&["secret"], Time(1_700_000_000_999), b"{}");
        assert_eq!(signed, format!("t=1700000000,v1={expected}"));
        let both = signature(&["new", "secret"], Time(1_700_000_000_000), b"{}");
        assert_eq!(both.matches(",v1=").count(), 2);
        assert!(both.ends_with(expected), "{both}");
    }
}
