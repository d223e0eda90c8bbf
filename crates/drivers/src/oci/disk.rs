//! Disk limits that hold: a file system of its own for what a container writes, in a sparse file.
//!
//! A container that fills it gets "no space left on device" and nobody else notices. The file system
//! has no journal: what a container writes is lost with it anyway.
//!
//! An empty file system of each size is kept: copying the little that is in it takes a tenth of the
//! time of making another.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

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
/// How much is copied at once: what the file system calls data may be the whole file.
const PIECE_BYTES: usize = 1 << 20;
/// The smallest disk.
const LEAST_BYTES: u64 = 4 << 20;
/// What the file system needs for itself: a part of its size and a bit.
const OVERHEAD: (u64, u64) = (48, 1 << 20);

/// Whether this machine can do it.
pub(super) fn available() -> bool {
    program(MAKER).is_some() && Path::new("/dev/loop-control").exists()
}

/// The most sizes an empty file system is kept of; a few hundred KiB each.
const MAX_KEPT: usize = 64;

/// Empty file systems to copy.
#[derive(Debug)]
pub(super) struct Disks(PathBuf);

impl Disks {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// Makes a file with an empty file system that holds `bytes`.
    pub(super) fn make(&self, at: &Path, bytes: u64) -> io::Result<()> {
        let size = bytes.max(LEAST_BYTES);
        let size = size.saturating_add(size / OVERHEAD.0).saturating_add(OVERHEAD.1);
        let kept = self.0.join(size.to_string());
        match File::open(&kept) {
            Ok(kept) => return copy(&kept, &File::create_new(at)?, size),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        make(at, size)?;
        // Two that do this at once keep the same.
        if fs::read_dir(&self.0)?.count() < MAX_KEPT {
            let draft = draft_in(&self.0, at);
            copy(&File::open(at)?, &File::create(&draft)?, size)?;
            fs::rename(draft, kept)?;
        }
        Ok(())
    }
}

/// A name beside the kept ones that nobody else has: that of the container's directory.
fn draft_in(dir: &Path, at: &Path) -> PathBuf {
    let of = at.parent().and_then(Path::file_name).unwrap_or_default();
    dir.join(format!("new-{}", of.to_string_lossy()))
}

fn make(at: &Path, size: u64) -> io::Result<()> {
    File::create_new(at)?.set_len(size)?;
    let output = Command::new(MAKER).args(OPTIONS).arg(at).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{MAKER}: {text}")))
}

/// Copies what is in a file of this size, and nothing of its holes, where the file system tells them.
fn copy(from: &File, to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(begin))?;
        at = begin;
        while at < end {
            let bytes = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let piece = buffer.get_mut(..bytes).unwrap_or_default();
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
    }
}

/// The bytes in use on the file system that holds `path`.
pub(super) fn used(path: &Path) -> io::Result<u64> {
    let sizes = rustix::fs::statvfs(path)?;
    Ok(sizes.f_blocks.saturating_sub(sizes.f_bfree).saturating_mul(sizes.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_kept_file_system_is_copied_without_its_holes() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let size = 64 << 20;
        let file = File::create_new(&from).expect("makes");
        file.set_len(size).expect("grows");
        for at in [0, 5 << 20, size - 4096] {
            file.write_all_at(&[7; 4096], at).expect("writes");
        }
        // More than one piece, and not a whole number of them.
        let long: Vec<u8> = (0..=250).cycle().take(2 * PIECE_BYTES + 4096).collect();
        file.write_all_at(&long, 20 << 20).expect("writes");
        let open = File::open(&from).expect("opens");
        copy(&open, &File::create_new(&to).expect("makes"), size).expect("copies");
        assert!(fs::read(&from).expect("reads") == fs::read(&to).expect("reads"));
        let used = |path: &Path| fs::metadata(path).map(|it| it.blocks()).expect("is there");
        assert!(used(&to) <= used(&from), "{} blocks", used(&to));
    }

    /// The most memory this process had so far, in KiB.
    fn peak() -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("reads");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("is there");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn what_has_no_holes_is_copied_in_pieces() {
        const PIECES: u64 = 64;
        let dir = tempfile::tempdir().expect("makes a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create_new(&from).expect("makes");
        for number in 0..PIECES {
            let piece = vec![u8::try_from(number).expect("is small"); PIECE_BYTES];
            file.write_all_at(&piece, number * PIECE_BYTES as u64).expect("writes");
        }
        let before = peak();
        let open = File::open(&from).expect("opens");
        let size = PIECES * PIECE_BYTES as u64;
        copy(&open, &File::create_new(&to).expect("makes"), size).expect("copies");
        let more = (peak() - before) << 10;
        assert!(more < size / 2, "{more} bytes of memory");
        assert!(fs::read(&from).expect("reads") == fs::read(&to).expect("reads"));
    }
}
