//! How fast bytes come, at least: who is slow must not keep a turn from others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::blob::Pieces;
use crate::error::Failure;
use crate::health::Length;
use crate::limits::{MIN_PACE_BYTES, PACE_PERIOD};

/// Counts the bytes of a transfer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    bytes: AtomicU64,
    /// Whether all have come. What the other side does then has limits of its own.
    over: AtomicBool,
}

impl Pace {
    /// The same bytes, counted.
    pub(crate) fn count(&self, pieces: Pieces) -> Pieces {
        self.0.over.store(false, Ordering::Relaxed);
        let (bytes, over) = (Arc::clone(&self.0), Arc::clone(&self.0));
        let counted = pieces.inspect_ok(move |piece| {
            bytes.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        });
        let end = futures_util::stream::poll_fn(move |_| {
            over.over.store(true, Ordering::Relaxed);
            std::task::Poll::Ready(None)
        });
        counted.chain(end).boxed()
    }

    /// Does what takes the counted bytes, as long as enough of them come.
    pub(crate) fn keep<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> impl Future<Output = Result<T, Failure>> {
        // Transfers are large futures.
        let work = Box::pin(work);
        async move {
            tokio::select! {
                done = work => done,
                failure = self.slow() => Err(failure),
            }
        }
    }

    async fn slow(&self) -> Failure {
        let mut before = 0;
        loop {
            runtime::sleep(PACE_PERIOD).await;
            let bytes = self.0.bytes.load(Ordering::Relaxed);
            if bytes - before < MIN_PACE_BYTES && !self.0.over.load(Ordering::Relaxed) {
                let (least, period) = (MIN_PACE_BYTES >> 10, Length(PACE_PERIOD));
                return Failure::new(format!(
                    "it is too slow: {} bytes in {period}, and at least {least} KiB are needed",
                    bytes - before
                ));
            }
            before = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    /// Takes pieces that come once in a while, each time as many bytes, then waits for an answer.
    async fn take((bytes, every): (usize, Duration), answer: Duration) -> Result<u64, Failure> {
        let pieces = futures_util::stream::iter(0..100).then(move |_| async move {
            runtime::sleep(every).await;
            Ok(Bytes::from(vec![0; bytes]))
        });
        let pace = Pace::default();
        let mut counted = pace.count(pieces.boxed());
        let work = async {
            let mut taken = 0;
            while let Some(piece) = counted.next().await {
                taken += piece?.len() as u64;
            }
            runtime::sleep(answer).await;
            Ok(taken)
        };
        pace.keep(work).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_byte_now_and_then_is_given_up() {
        let slow = take((1, Duration::from_secs(20)), Duration::ZERO).await;
        let reason = slow.expect_err("is slow").reason;
        assert!(reason.starts_with("it is too slow: "), "{reason}");
        let taken = take((64 << 10, Duration::from_secs(20)), PACE_PERIOD * 3).await;
        assert_eq!(taken.expect("is fast enough, and then waits"), 100 * (64 << 10));
    }
}
