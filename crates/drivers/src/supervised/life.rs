//! Waiting for a process to end, or for it to write.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::io::unix::AsyncFd;

use super::dirs;
use super::watch::{Subscription, Watcher, until_readable};
use crate::driver::Exit;
use crate::shim::{EXIT_FILE, Processes};

/// The life of one process, seen through its directory and its supervisor.
#[derive(Debug)]
pub(crate) struct Life {
    dir: PathBuf,
    changes: Subscription,
    /// The supervisor, while it runs.
    supervisor: Option<AsyncFd<OwnedFd>>,
}

impl Life {
    pub(crate) fn watch(
        watcher: &Watcher,
        dir: &Path,
        started: Option<&Processes>,
    ) -> io::Result<Self> {
        let changes = watcher.subscribe(dir);
        let supervisor = match started {
            Some(started) => started.supervisor.open()?,
            None => None,
        };
        let supervisor = supervisor.map(until_readable).transpose()?;
        Ok(Self { dir: dir.to_owned(), changes, supervisor })
    }

    /// Whether nothing will be written any more.
    pub(crate) fn is_over(&self) -> bool {
        self.supervisor.is_none() || self.dir.join(EXIT_FILE).exists()
    }

    /// Waits until something may have changed.
    pub(crate) async fn changed(&mut self) {
        let Some(supervisor) = &self.supervisor else { return };
        tokio::select! {
            () = self.changes.changed() => {}
            _ = supervisor.readable() => self.supervisor = None,
        }
    }

    /// Waits for the end.
    pub(crate) async fn exit(mut self) -> Exit {
        loop {
            // A supervisor that is gone writes nothing after this look.
            let gone = self.supervisor.is_none();
            if let Some(ended) = dirs::ended(&self.dir) {
                return ended.exit;
            }
            if gone {
                return Exit::LOST;
            }
            self.changed().await;
        }
    }

    /// Waits until the supervisor itself is gone.
    pub(crate) async fn supervisor_gone(self) {
        if let Some(supervisor) = self.supervisor {
            drop(supervisor.readable().await);
        }
    }
}
