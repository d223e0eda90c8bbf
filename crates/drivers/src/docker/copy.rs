//! Tar streams into and out of a container's root.
//!
//! Both go through the root of the first process, so they see what processes of the container see,
//! with its mounts. No symbolic link is followed on the way.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Inner;
use super::container::Place;
use crate::archive::{self, Limits, Rights, Summary};
use crate::driver::Input;
use crate::error::{DriverError, Result};
use crate::spec::{Handle, User};
use crate::supervised::{stream_out, unpack_as};

impl Inner {
    pub(super) async fn copy_in(
        self: &Arc<Self>,
        handle: &Handle,
        path: &str,
        tar: Input,
        limits: Limits,
    ) -> Result<Summary> {
        let owner = self.kept.dirs.meta(handle)?.user.unwrap_or(User::ROOT);
        let root = open_root(handle, &self.up(handle).await?)?;
        unpack_as(owner, root, path, (tar, limits)).await
    }

    pub(super) async fn copy_out(self: &Arc<Self>, handle: &Handle, path: &str) -> Result<Input> {
        let root = open_root(handle, &self.up(handle).await?)?;
        stream_out(&self.kept.tasks, root, path, Rights::All).await
    }
}

fn open_root(handle: &Handle, place: &Place) -> Result<OwnedFd> {
    let root = archive::open_root(format!("/proc/{}/root", place.first.pid).as_ref());
    // Only now its number cannot have been another process's when it was opened.
    if place.first.runs() {
        root
    } else {
        Err(DriverError::NotFound { what: "container", name: handle.to_string() })
    }
}
