//! Room on the disk that a cell's directory is on: what the cell uses of it besides containers, and
//! what has to stay free.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use drivers::Input;
use rustix::fs::{StatVfs, statvfs};
use tokio::io::{AsyncRead, ReadBuf};

use crate::caches;
use crate::layers;
use crate::limits::{
    CACHED_BUILD_BYTES, CACHED_LAYER_BYTES, DISK_PARTS, MAX_CACHE_BYTES, RESERVE_BYTES, SPOOL_BYTES,
};

/// What a cell uses its disk for besides containers, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Unpacked image layers that are kept for later.
    pub layers: u64,
    /// Caches that are kept for later.
    pub caches: u64,
    /// One cache. Work whose cache grows beyond that is ended.
    pub cache: u64,
    /// What waits on its way into or out of containers.
    pub spool: u64,
    /// What stays free. When less is free, nothing is spooled, unpacked or cached.
    pub reserve: u64,
}

impl DiskUse {
    /// The usual of a disk with this many bytes.
    pub fn of(total: u64) -> Self {
        let part = |most: u64| most.min(total / DISK_PARTS.0);
        Self {
            layers: part(CACHED_LAYER_BYTES),
            caches: part(CACHED_BUILD_BYTES),
            cache: MAX_CACHE_BYTES.min(total / DISK_PARTS.1),
            spool: part(SPOOL_BYTES),
            reserve: part(RESERVE_BYTES),
        }
    }

    /// The usual of the disk that `dir` is on.
    pub fn of_disk(dir: &Path) -> Self {
        let total = |sizes: StatVfs| sizes.f_blocks.saturating_mul(sizes.f_frsize);
        Self::of(statvfs(dir).map_or(0, total))
    }

    /// How much of the free room in `dir` it will still take.
    fn to_come(self, dir: &Path) -> u64 {
        let layers = self.layers.saturating_sub(layers::noted_bytes(&dir.join("layers")));
        let caches = self.caches.saturating_sub(caches::noted_bytes(&dir.join("caches")));
        layers.saturating_add(caches).saturating_add(self.spool).saturating_add(self.reserve)
    }
}

/// Bytes of free disk for containers: what the cell itself will need is left out, but half of what
/// is free at most.
pub(crate) fn for_containers(dir: &Path) -> u64 {
    let free = free(dir).unwrap_or(0);
    free - DiskUse::of_disk(dir).to_come(dir).min(free / 2)
}

fn free(dir: &Path) -> io::Result<u64> {
    let sizes = statvfs(dir)?;
    Ok(sizes.f_bavail.saturating_mul(sizes.f_frsize))
}

/// The sum of the numbers in a directory's files whose names end like this.
pub(crate) fn sum_of_files(dir: &Path, extension: Option<&str>) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let files = files.filter(|file| file.extension() == extension.map(OsStr::new));
    let told = files.filter_map(|file| fs::read_to_string(file).ok());
    told.filter_map(|text| text.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// The disk of a cell. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    dir: Arc<Path>,
    reserve: u64,
}

impl Space {
    pub(crate) fn new(dir: &Path, reserve: u64) -> Self {
        Self { dir: dir.into(), reserve }
    }

    /// How many bytes too few are free.
    pub(crate) fn lacking(&self) -> io::Result<u64> {
        Ok(self.reserve.saturating_sub(free(&self.dir)?))
    }

    /// An error when less is free than has to stay so.
    pub(crate) fn check(&self) -> io::Result<()> {
        let free = free(&self.dir)?;
        if free >= self.reserve {
            return Ok(());
        }
        let (free, reserve) = (free >> 20, self.reserve >> 20);
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "the cell's disk is full: {free} MiB are free and {reserve} MiB have to stay free; \
                 its operator can make room or give it a larger disk"
            ),
        ))
    }

    /// The same bytes, as long as there is room for them.
    pub(crate) fn guard(&self, input: Input) -> Input {
        Box::pin(Guarded { space: self.clone(), input })
    }
}

struct Guarded {
    space: Space,
    input: Input,
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.space.check()?;
        self.input.as_mut().poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn nothing_is_read_into_the_reserve() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let read = async |reserve| {
            let input: Input = Box::pin(io::Cursor::new(b"bytes".to_vec()));
            let mut text = String::new();
            let mut guarded = Space::new(dir.path(), reserve).guard(input);
            guarded.read_to_string(&mut text).await.map(|_| text)
        };
        assert_eq!(read(0).await.expect("there is room"), "bytes");
        let full = read(u64::MAX).await.expect_err("there is none");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(full.to_string().starts_with("the cell's disk is full: "), "{full}");
    }

    #[test]
    fn what_the_cell_will_use_is_not_for_containers() {
        let small = DiskUse::of(10 << 30);
        assert_eq!(small.layers, 1 << 30);
        assert_eq!(small.reserve, 1 << 30);
        let large = DiskUse::of(1 << 40);
        assert_eq!((large.caches, large.reserve), (CACHED_BUILD_BYTES, RESERVE_BYTES));
        let dir = tempfile::tempdir().expect("makes a directory");
        let all = small.layers + small.caches + small.spool + small.reserve;
        assert_eq!(small.to_come(dir.path()), all);
        for (file, bytes) in [("layers/a.bytes", "1000"), ("caches/.used/k", "200")] {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().expect("has one")).expect("makes");
            fs::write(file, bytes).expect("writes");
        }
        assert_eq!(small.to_come(dir.path()), all - 1_200, "what is there is not free");
    }
}
