//! The connection to the server as everybody in the agent sees it: there, or not.

use std::time::{Duration, Instant};

use api::proto::cell_up::Message;
use api::proto::{CellLog, CellUp};
use tokio::sync::{mpsc, watch};

use crate::limits::UNREACHABLE_LIMIT;

/// One connection. What waits in its queue when it breaks is lost; whoever said it says it again.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) up: mpsc::Sender<CellUp>,
    /// Log lines. Whatever is in `up` goes first, so that news and signs of life never wait for
    /// somebody who writes much; those who write take turns.
    pub(crate) logs: mpsc::Sender<CellUp>,
}

impl Connection {
    /// Sends a message; it is lost if the connection breaks.
    pub(crate) async fn send(&self, message: Message) {
        // A connection that broke is as good as none.
        drop(self.up.send(CellUp { message: Some(message) }).await);
    }

    /// The same for lines.
    pub(crate) async fn log(&self, log: CellLog) {
        drop(self.logs.send(CellUp { message: Some(Message::Log(log)) }).await);
    }
}

/// Sends to the server while there is a connection.
#[derive(Debug, Clone)]
pub(crate) struct Link(pub(crate) watch::Receiver<Option<Connection>>);

impl Link {
    /// Sends a message if there is a connection; what is sent may still be lost with it.
    pub(crate) async fn send(&self, message: Message) {
        if let Some(connection) = self.current() {
            connection.send(message).await;
        }
    }

    pub(crate) fn current(&self) -> Option<Connection> {
        self.0.borrow().clone()
    }

    /// Waits until a connection came or went since the last call.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Since when the server is out of reach.
#[derive(Debug, Default)]
pub(crate) struct Fence(watch::Sender<Option<Instant>>);

impl Fence {
    pub(crate) fn connected(&self) {
        self.0.send_replace(None);
    }

    pub(crate) fn lost(&self, now: Instant) {
        self.0.send_if_modified(|lost| lost.replace(lost.unwrap_or(now)).is_none());
    }

    /// Whether the server may have given this cell up.
    pub(crate) fn is_closed(&self, now: Instant) -> bool {
        let lost = *self.0.borrow();
        lost.is_some_and(|lost| now.duration_since(lost) >= UNREACHABLE_LIMIT)
    }

    /// Waits until the server was out of reach for so long without a break.
    pub(crate) async fn closed_for(&self, limit: Duration) {
        let mut lost = self.0.subscribe();
        loop {
            let since = *lost.borrow_and_update();
            let end = async {
                match since {
                    Some(since) => runtime::sleep_until(since + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                // The fence is as old as the agent.
                changed = lost.changed() => changed.unwrap_or_default(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::mono_now;

    #[test]
    fn the_fence_closes_before_the_lease_ends() {
        let (fence, now) = (Fence::default(), mono_now());
        assert!(!fence.is_closed(now));
        fence.lost(now);
        fence.lost(now + UNREACHABLE_LIMIT);
        assert!(!fence.is_closed(now + UNREACHABLE_LIMIT / 2));
        assert!(fence.is_closed(now + UNREACHABLE_LIMIT));
        fence.connected();
        assert!(!fence.is_closed(now + UNREACHABLE_LIMIT));
    }

    #[tokio::test]
    async fn only_one_long_absence_counts() {
        let (fence, limit) = (Fence::default(), Duration::from_millis(60));
        let begin = mono_now();
        let ((), ()) = tokio::join!(fence.closed_for(limit), async {
            fence.lost(begin);
            runtime::sleep(limit / 2).await;
            fence.connected();
            runtime::sleep(limit).await;
            fence.lost(mono_now());
        });
        assert!(mono_now() - begin >= limit * 5 / 2);
    }
}
