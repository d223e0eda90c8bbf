//! A container's files, seen from the machine.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio_util::io::SyncIoBridge;

use super::{Inner, disk};
use crate::archive::{self, Limits, Summary};
use crate::driver::{Input, Stats};
use crate::error::{Context as _, DriverError, Result};
use crate::proc::Id;
use crate::spec::Handle;
use crate::supervised::{stream_out, tree};

/// Where the machine sees a container's root, with everything mounted in it.
pub(super) fn root_of(init: Id) -> PathBuf {
    format!("/proc/{}/root", init.pid).into()
}

impl Inner {
    /// Opens the root of a container. What is opened belongs to it: it still ran after that.
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
        let (root, owner) = self.open_root(handle)?;
        let tar = SyncIoBridge::new(tar);
        let path = path.to_owned();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own, for it acts as the container's root and nothing else may.
        let work = move || {
            let unpacked = act_as(owner)
                .context(|| "act as the container's root".to_owned())
                .and_then(|()| archive::open_below(root.as_fd(), &path, true))
                .and_then(|dir| archive::unpack(tar, dir.as_fd(), limits));
            // Nobody minds when who asked went away.
            drop(sender.send(unpacked));
        };
        let thread = runtime::spawn_thread("copy in", work);
        thread.context(|| "start a thread".to_owned())?;
        receiver.await.unwrap_or_else(|_| {
            Err(DriverError::io("copy in", io::Error::other("the thread ended early")))
        })
    }

    pub(super) fn copy_out(&self, handle: &Handle, path: &str) -> Result<Input> {
        let (root, _) = self.open_root(handle)?;
        let source = archive::Source::open(root.as_fd(), path)?;
        Ok(stream_out(&self.kept.tasks, source))
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
                Some(Err(_)) | None => {
                    inner.kept.disk.get(&handle, || tree::disk_bytes(&container.join("own/upper")))
                }
            };
            stats
        };
        Ok(self.kept.tasks.blocking(measure).await)
    }
}

/// Makes this thread, and only it, a container's root: what it makes belongs to that.
#[expect(unsafe_code, reason = "the library's way changes all threads of the process")]
fn act_as(owner: u32) -> io::Result<()> {
    if owner == 0 {
        return Ok(());
    }
    let capabilities = rustix::thread::capabilities(None)?;
    // SAFETY: system calls that change this thread's credentials and touch no memory.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, owner);
        libc::syscall(libc::SYS_setfsuid, owner);
        // It never fails but says who it was before; this asks without changing anything.
        (libc::syscall(libc::SYS_setfsgid, -1), libc::syscall(libc::SYS_setfsuid, -1))
    };
    if now != (owner.into(), owner.into()) {
        return Err(io::Error::other("the kernel refuses"));
    }
    // The kernel took these away with user 0. Only what reads and writes the container's files.
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::CHOWN;
    let effective = capabilities.effective.intersection(files);
    let sets = CapabilitySets { effective, ..capabilities };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}
