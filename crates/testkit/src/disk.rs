//! A small disk of its own, which can be filled up: a file with an ext4 file system, mounted by loop.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::Failure;
use crate::dev::run;

/// The file that takes up the rest.
const FILLER: &str = "filler";
/// The smallest piece the rest is taken in.
const BLOCK: u64 = 4_096;

/// A mounted disk. Its file takes no more room than what is written to it.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes a disk of so many MiB and mounts it at `at`, which it makes.
    pub fn new(at: &Path, mib: u64) -> Result<Self, Failure> {
        let image = at.with_extension("img");
        let failed = |error: std::io::Error| format!("{}: {error}", image.display());
        std::fs::create_dir_all(at).map_err(failed)?;
        let file = std::fs::File::create(&image).map_err(failed)?;
        file.set_len(mib << 20).map_err(failed)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
        run(mkfs.arg(&image))?.ok("mkfs.ext4")?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at))?.ok("mount")?;
        Ok(Self { image, at: at.to_owned() })
    }

    /// Takes every free block.
    pub fn fill(&self) -> Result<(), Failure> {
        let path = self.at.join(FILLER);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = std::fs::File::create(&path).map_err(failed)?;
        let mut end = 0;
        let mut piece = self.free()?.max(BLOCK);
        while piece >= BLOCK {
            match fallocate(&file, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(failed(error.into())),
            }
        }
        file.sync_all().map_err(failed)
    }

    /// Gives them back.
    pub fn make_room(&self) -> Result<(), Failure> {
        let path = self.at.join(FILLER);
        std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// How many bytes are free.
    pub fn free(&self) -> Result<u64, Failure> {
        let stat = statvfs(&self.at).map_err(|error| format!("{}: {error}", self.at.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, should a process still be about to end; the kernel lets go of the loop device then.
        drop(run(Command::new("umount").arg("-l").arg(&self.at)));
        drop(std::fs::remove_file(&self.image));
    }
}
