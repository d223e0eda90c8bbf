//! What this machine has to offer, and the identity the cell keeps on it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use model::CellId;
use runtime::{Ids, Random, SystemClock};
use rustix::fs::{FlockOperation, flock};

use crate::error::CellError;
use crate::limits::DEFAULT_CONTAINERS;
use crate::options::Capacity;
use crate::space;

/// All memory, and the free disk without what the cell needs itself.
pub(crate) fn capacity(dir: &Path) -> Capacity {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    Capacity {
        memory_mb: total.unwrap_or(0) / 1024,
        disk_mb: space::for_containers(dir) >> 20,
        containers: DEFAULT_CONTAINERS,
        cpu_shares: None,
        pids: None,
    }
}

/// The directory of a cell, held as long as this lives.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) id: CellId,
    _lock: File,
}

impl Home {
    /// Takes the directory and reads the cell's id in it; makes both when missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, CellError> {
        let failed = |source| CellError::Data { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| CellError::InUse(dir.to_owned()))?;
        let id = identity(dir).map_err(failed)?;
        Ok(Self { id, _lock: lock })
    }
}

fn identity(dir: &Path) -> io::Result<CellId> {
    let file = dir.join("id");
    match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = CellId(Ids::new(Random::system()).fresh(&SystemClock));
            write_whole(&file, format!("{id}\n").as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// Writes a file so that it is there with all its content, or as it was before.
pub(crate) fn write_whole(file: &Path, content: &[u8]) -> io::Result<()> {
    let draft = file.with_extension("new");
    fs::write(&draft, content)?;
    fs::rename(&draft, file)
}
