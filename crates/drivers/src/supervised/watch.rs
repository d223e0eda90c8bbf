//! One inotify descriptor for all directories a driver waits on: waiting costs nothing.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::{Stop, Tasks};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How often to look when the kernel reports changes, in case it ever dropped one.
const SAFETY_NET: Duration = Duration::from_secs(5);
/// How often to look when the kernel does not.
const FALLBACK: Duration = Duration::from_millis(100);
const EVENT_BUFFER_BYTES: usize = 4096;

/// Reports changes in directories.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Option<Arc<Shared>>,
    stop: Stop,
}

#[derive(Debug)]
struct Shared {
    fd: AsyncFd<OwnedFd>,
    watches: Mutex<BTreeMap<i32, watch::Sender<()>>>,
}

/// Changes in one directory, from when it was made.
#[derive(Debug)]
pub(crate) struct Subscription {
    source: Option<(Arc<Shared>, i32, watch::Receiver<()>)>,
}

impl Watcher {
    /// Starts watching. Without inotify, subscriptions fall back to looking now and then.
    pub(crate) fn new(tasks: &Tasks) -> Self {
        let stop = tasks.stop().child();
        let shared = match open() {
            Ok(fd) => Some(Arc::new(Shared { fd, watches: Mutex::default() })),
            Err(error) => {
                tracing::warn!(%error, "inotify is not available: output is polled");
                None
            }
        };
        if let Some(shared) = shared.clone() {
            let stop = stop.clone();
            tasks.spawn_ok("driver watcher", async move {
                stop.or_stop(shared.run()).await;
                shared.lock().clear();
            });
        }
        Self { shared, stop }
    }

    /// Watches a directory.
    pub(crate) fn subscribe(&self, dir: &Path) -> Subscription {
        let source = self.shared.as_ref().and_then(|shared| {
            let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
            let mut watches = shared.lock();
            let number = inotify::add_watch(shared.fd.get_ref(), dir, flags).ok()?;
            let sender = watches.entry(number).or_insert_with(|| watch::channel(()).0);
            Some((Arc::clone(shared), number, sender.subscribe()))
        });
        Subscription { source }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    until_readable(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?)
}

/// Lets a task wait until a descriptor can be read.
pub(crate) fn until_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    until(fd, Interest::READABLE)
}

/// Lets a task wait until a descriptor can be read or written.
#[expect(unsafe_code, reason = "the runtime has no safe way to watch a descriptor")]
pub(crate) fn until(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same, for as long as the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, watch::Sender<()>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) {
        while let Ok(mut ready) = self.fd.readable().await {
            match self.dispatch() {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot read file system events: output is polled");
                    return;
                }
            }
        }
    }

    /// Passes on one bufferful of events.
    fn dispatch(&self) -> rustix::io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER_BYTES];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            let event = reader.next()?;
            let mut watches = self.lock();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                watches.values().for_each(|sender| sender.send_modify(|()| {}));
            } else if event.events().contains(ReadFlags::IGNORED) {
                watches.remove(&event.wd());
            } else if let Some(sender) = watches.get(&event.wd()) {
                sender.send_replace(());
            }
            drop(watches);
            if reader.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

impl Subscription {
    /// Waits for a change since the last call, or for the time to look anyway.
    pub(crate) async fn changed(&mut self) {
        let Some((_, _, receiver)) = &mut self.source else {
            return runtime::sleep(FALLBACK).await;
        };
        if let Some(Err(_)) = runtime::timeout(SAFETY_NET, receiver.changed()).await {
            self.release();
            runtime::sleep(FALLBACK).await;
        }
    }

    fn release(&mut self) {
        let Some((shared, number, receiver)) = self.source.take() else { return };
        let mut watches = shared.lock();
        drop(receiver);
        if watches.get(&number).is_some_and(|sender| sender.receiver_count() == 0) {
            watches.remove(&number);
            if let Err(error) = inotify::remove_watch(shared.fd.get_ref(), number) {
                tracing::debug!(%error, "the watched directory is gone");
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.release();
    }
}
