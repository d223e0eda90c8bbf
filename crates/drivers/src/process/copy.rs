//! Tar streams into and out of a container's root.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio_util::io::SyncIoBridge;

use super::Inner;
use crate::archive::{self, Limits, Summary};
use crate::driver::Input;
use crate::error::{DriverError, Result};
use crate::spec::Handle;
use crate::supervised::stream_out;

impl Inner {
    pub(super) async fn copy_in(
        &self,
        handle: &Handle,
        path: &str,
        tar: Input,
        limits: Limits,
    ) -> Result<Summary> {
        let root = self.open_root(handle)?;
        let dir = archive::open_below(root.as_fd(), path, true)?;
        let tar = SyncIoBridge::new(tar);
        self.kept.tasks.blocking(move || archive::unpack(tar, dir.as_fd(), limits)).await
    }

    pub(super) fn copy_out(&self, handle: &Handle, path: &str) -> Result<Input> {
        let root = self.open_root(handle)?;
        let source = archive::Source::open(root.as_fd(), path)?;
        Ok(stream_out(&self.kept.tasks, source))
    }

    fn open_root(&self, handle: &Handle) -> Result<OwnedFd> {
        let root = archive::open_root(&self.kept.dirs.root(handle));
        root.map_err(|error| match error {
            DriverError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                DriverError::NotFound { what: "container", name: handle.to_string() }
            }
            other => other,
        })
    }
}
