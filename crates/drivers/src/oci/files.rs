//! A container's files, seen from the machine.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Inner, disk, slots};
use crate::archive::{self, Limits, Rights, Summary};
use crate::driver::{Input, Stats};
use crate::error::{DriverError, Result};
use crate::proc::Id;
use crate::spec::{Handle, User};
use crate::supervised::{stream_out, tree, unpack_as};

/// Where the machine sees a container's root, with everything mounted in it.
pub(super) fn root_of(init: Id) -> PathBuf {
    format!("/proc/{}/root", init.pid).into()
}

impl Inner {
    /// Opens the root of a container, and which user of the machine its user 0 is. What is opened
    /// belongs to it: it still ran after that.
    fn open_root(&self, handle: &Handle) -> Result<(OwnedFd, u32)> {
        let (place, init) = self.running(handle)?;
        let root = archive::open_root(&root_of(init))?;
        if !init.runs() {
            return Err(DriverError::NotFound { what: "container", name: handle.to_string() });
        }
        Ok((root, place.first_user))
    }

    pub(super) async fn copy_in(
        &self,
        handle: &Handle,
        path: &str,
        tar: Input,
        limits: Limits,
    ) -> Result<Summary> {
        let inside = self.kept.dirs.meta(handle)?.user.unwrap_or(User::ROOT);
        if inside.uid >= slots::USERS || inside.gid >= slots::USERS {
            return Err(DriverError::invalid("user", "it is out of range"));
        }
        let (root, first) = self.open_root(handle)?;
        let owner = User { uid: first + inside.uid, gid: first + inside.gid };
        unpack_as(owner, root, path, (tar, limits)).await
    }

    pub(super) async fn copy_out(&self, handle: &Handle, path: &str) -> Result<Input> {
        let (root, first) = self.open_root(handle)?;
        // Without users of its own, its root is the machine's.
        let rights = match first {
            0 => Rights::All,
            first => Rights::Of(first..first.saturating_add(slots::USERS)),
        };
        stream_out(&self.kept.tasks, root, path, rights).await
    }

    pub(super) async fn stats(self: &Arc<Self>, handle: &Handle) -> Result<Stats> {
        self.kept.dirs.meta(handle)?;
        let (inner, handle) = (Arc::clone(self), handle.clone());
        let measure = move || {
            let mut stats = inner.group(&handle).stats();
            let container = inner.kept.dirs.container(&handle);
            let own = inner.running(&handle).ok().filter(|(place, _)| place.own_disk);
            stats.disk_bytes = match own.map(|(_, init)| disk::used(&root_of(init))) {
                Some(Ok(bytes)) => bytes,
                Some(Err(_)) | None => inner
                    .kept
                    .disk
                    .get(&handle, || tree::disk_bytes_in_use(&container.join("own/upper"))),
            };
            stats
        };
        Ok(self.kept.tasks.blocking(measure).await)
    }
}
