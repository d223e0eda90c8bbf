//! Disk limits that hold: a file system of its own for what a container writes, in a sparse file.
//!
//! A container that fills it gets "no space left on device" and nobody else notices. The file system
//! has no journal: what a container writes is lost with it anyway.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::program;

/// The program that makes a file system.
const MAKER: &str = "mkfs.ext4";
/// Blocks of 4 KiB whatever the size, no journal, tables written when they are used, nothing kept
/// for root, an inode for each 16 KiB.
const OPTIONS: [&str; 12] = [
    "-q",
    "-F",
    "-b",
    "4096",
    "-m",
    "0",
    "-i",
    "16384",
    "-O",
    "^has_journal",
    "-E",
    "lazy_itable_init=1,nodiscard",
];
/// The smallest disk.
const LEAST_BYTES: u64 = 4 << 20;
/// What the file system needs for itself: a part of its size and a bit.
const OVERHEAD: (u64, u64) = (48, 1 << 20);

/// Whether this machine can do it.
pub(super) fn available() -> bool {
    program(MAKER).is_some()
        && program("mount").is_some()
        && Path::new("/dev/loop-control").exists()
}

/// Makes a file with an empty file system that holds `bytes`.
pub(super) fn make(at: &Path, bytes: u64) -> io::Result<()> {
    let size = bytes.max(LEAST_BYTES);
    let size = size.saturating_add(size / OVERHEAD.0).saturating_add(OVERHEAD.1);
    File::create_new(at)?.set_len(size)?;
    let output = Command::new(MAKER).args(OPTIONS).arg(at).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{MAKER}: {text}")))
}

/// The bytes in use on the file system that holds `path`.
pub(super) fn used(path: &Path) -> io::Result<u64> {
    let sizes = rustix::fs::statvfs(path)?;
    Ok(sizes.f_blocks.saturating_sub(sizes.f_bfree).saturating_mul(sizes.f_frsize))
}
