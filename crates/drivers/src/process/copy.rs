//! Tar streams into and out of a container's root.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::io::SyncIoBridge;

use super::Inner;
use crate::archive::{self, Limits, Rights, Summary};
use crate::driver::Input;
use crate::error::{DriverError, Result};
use crate::spec::{Handle, Mount};
use crate::supervised::stream_out;

impl Inner {
    pub(super) async fn copy_in(
        self: &Arc<Self>,
        handle: &Handle,
        path: &str,
        tar: Input,
        limits: Limits,
    ) -> Result<Summary> {
        let (inner, handle, path) = (Arc::clone(self), handle.clone(), path.to_owned());
        let tar = SyncIoBridge::new(tar);
        let unpack = move || {
            let mounts = inner.mounts(&handle)?;
            let (root, rest) = inner.open(&handle, &path, &mounts)?;
            let dir = archive::open_below(root.as_fd(), &rest, true)?;
            let inside = mounts.iter().filter_map(|mount| below(&mount.target, &path));
            let kept: Vec<PathBuf> = inside.map(|it| it.trim_start_matches('/').into()).collect();
            archive::unpack_around(tar, dir.as_fd(), limits, &kept)
        };
        self.kept.tasks.blocking(unpack).await
    }

    pub(super) async fn copy_out(self: &Arc<Self>, handle: &Handle, path: &str) -> Result<Input> {
        let (inner, handle, path) = (Arc::clone(self), handle.clone(), path.to_owned());
        let open = move || inner.open(&handle, &path, &inner.mounts(&handle)?);
        let (root, path) = self.kept.tasks.blocking(open).await?;
        stream_out(&self.kept.tasks, root, &path, Rights::All).await
    }

    /// What is mounted in a container, each a link.
    fn mounts(&self, handle: &Handle) -> Result<Vec<Mount>> {
        let mut mounts = self.kept.dirs.meta(handle)?.mounts;
        mounts.retain(|mount| {
            let link = fs::read_link(self.kept.dirs.host_path(handle, &mount.target));
            // What runs inside may have put something else there.
            link.is_ok_and(|to| to == mount.source)
        });
        Ok(mounts)
    }

    /// The directory of the machine that a path of a container lies in, and the path below it: the
    /// root, or what is mounted there. No other link is followed.
    fn open(&self, handle: &Handle, path: &str, mounts: &[Mount]) -> Result<(OwnedFd, String)> {
        let inside = mounts.iter().filter_map(|mount| Some((mount, below(path, &mount.target)?)));
        if let Some((mount, rest)) = inside.max_by_key(|(mount, _)| mount.target.len()) {
            return Ok((archive::open_root(&mount.source)?, rest));
        }
        Ok((self.open_root(handle)?, path.to_owned()))
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

/// The rest of a path that is `target` or below it.
fn below(path: &str, target: &str) -> Option<String> {
    let path = Path::new("/").join(path);
    let rest = path.strip_prefix(Path::new("/").join(target)).ok()?;
    rest.to_str().map(|rest| format!("/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_is_below_a_mount() {
        let rest = |path| below(path, "/data");
        assert_eq!(rest("/data").as_deref(), Some("/"));
        assert_eq!(rest("data/").as_deref(), Some("/"));
        assert_eq!(rest("//data/./a/b").as_deref(), Some("/a/b"));
        assert_eq!((rest("/database"), rest("/"), rest("/a/../data")), (None, None, None));
        // Refused by whoever opens it.
        assert_eq!(rest("/data/../etc").as_deref(), Some("/../etc"));
    }
}
