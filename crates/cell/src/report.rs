//! What the server is told about work, said again after every reconnect.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use api::proto::Report;
use api::proto::cell_up::Message;
use bytes::Bytes;
use model::{InstanceReport, TaskReport};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::link::Link;
use crate::work::Key;

/// What the server has to know, however often the connection breaks.
#[derive(Debug, Default)]
struct Standing {
    started: Option<Bytes>,
    ready: Option<Bytes>,
    /// The last report of all; nothing else matters after it.
    end: Option<Bytes>,
}

/// Reports on one piece of work.
#[derive(Debug)]
pub(crate) struct Reporter {
    key: Key,
    link: Link,
    /// Locked while sending, so that a repetition cannot overtake news.
    standing: Mutex<Standing>,
    ended: AtomicBool,
}

fn render(report: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(report).expect("reports are plain structures"))
}

impl Reporter {
    pub(crate) fn new(key: Key, link: Link) -> Self {
        Self { key, link, standing: Mutex::default(), ended: AtomicBool::new(false) }
    }

    async fn send(&self, report_json: Bytes) {
        let report = Report { work: Some(self.key.work()), report_json };
        self.link.send(Message::Report(report)).await;
    }

    /// Asks to start a task. Never repeated: a new connection needs a new claim.
    pub(crate) async fn claim(&self) {
        self.send(render(&TaskReport::Claim)).await;
    }

    pub(crate) async fn started(&self, address: SocketAddr) {
        let report = render(&InstanceReport::Started { address });
        let mut standing = self.standing.lock().await;
        standing.started = Some(report.clone());
        self.send(report).await;
    }

    pub(crate) async fn ready(&self, ready: bool) {
        let report = render(&InstanceReport::Ready { ready });
        let mut standing = self.standing.lock().await;
        standing.ready = Some(report.clone());
        self.send(report).await;
    }

    /// The last word.
    pub(crate) async fn end(&self, report: &impl Serialize) {
        let report = render(report);
        self.ended.store(true, Ordering::SeqCst);
        let mut standing = self.standing.lock().await;
        *standing = Standing { end: Some(report.clone()), ..Standing::default() };
        self.send(report).await;
    }

    /// Whether the last word was said.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Says everything that still matters to a server that may not have heard it.
    pub(crate) async fn repeat(&self) {
        let standing = self.standing.lock().await;
        for report in [&standing.started, &standing.ready, &standing.end].into_iter().flatten() {
            self.send(report.clone()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_the_servers_shape() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let reason = || "why".to_owned();
        let table = [
            (render(&TaskReport::Claim), r#"{"report":"claim"}"#),
            (
                render(&TaskReport::Reject { reason: reason() }),
                r#"{"report":"reject","reason":"why"}"#,
            ),
            (
                render(&TaskReport::Succeeded { result: None, artifact: None }),
                r#"{"report":"succeeded","result":null}"#,
            ),
            (
                render(&TaskReport::Succeeded { result: Some("x".into()), artifact: None }),
                r#"{"report":"succeeded","result":"x"}"#,
            ),
            (
                render(&TaskReport::Failed { reason: reason(), detail: None }),
                r#"{"report":"failed","reason":"why"}"#,
            ),
            (render(&TaskReport::Cancelled), r#"{"report":"cancelled"}"#),
            (
                render(&InstanceReport::Reject { reason: reason() }),
                r#"{"report":"reject","reason":"why"}"#,
            ),
            (
                render(&InstanceReport::Started { address }),
                r#"{"report":"started","address":"127.0.0.1:80"}"#,
            ),
            (render(&InstanceReport::Ready { ready: true }), r#"{"report":"ready","ready":true}"#),
            (
                render(&InstanceReport::Crashed {
                    reason: reason(),
                    never_healthy: true,
                    detail: None,
                }),
                r#"{"report":"crashed","reason":"why","never_healthy":true}"#,
            ),
            (render(&InstanceReport::Gone), r#"{"report":"gone"}"#),
        ];
        for (rendered, wanted) in table {
            assert_eq!(std::str::from_utf8(&rendered).expect("text"), wanted);
        }
    }
}
