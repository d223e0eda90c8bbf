//! Layers into directories, and a store of unpacked ones.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use drivers::archive::{self, Limits, Summary};
use flate2::bufread::MultiGzDecoder;
use model::Digest;

use crate::error::if_there;

use super::{Hashing, ImageError, io_error};

const BUFFER: usize = 64 * 1024;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Unpacks a tar stream, plain or gzip, into the directory `dir`.
///
/// Names that lead out, ways through symbolic links, hard links to anything but files of the same
/// archive, devices and pipes are refused, as is more than `limits` allows; set-id bits and owners
/// are dropped. Whiteouts stay as the files they are; [`materialise`](super::materialise) applies
/// them.
pub fn unpack(tar: impl Read, dir: &Path, limits: Limits) -> Result<Summary, ImageError> {
    let root = archive::open_root(dir)?;
    let mut tar = BufReader::with_capacity(BUFFER, tar);
    let start = tar.fill_buf().map_err(|error| io_error("read the archive for", dir, error))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        let mut plain = BufReader::with_capacity(BUFFER, MultiGzDecoder::new(tar));
        Ok(archive::unpack(&mut plain, root.as_fd(), limits)?)
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let reason = "it is compressed with zstd, which is not supported: use gzip".to_owned();
        Err(ImageError::Format { what: "archive", reason })
    } else {
        Ok(archive::unpack(&mut tar, root.as_fd(), limits)?)
    }
}

/// Unpacked layers by digest. Safe to use from several threads and processes at once.
#[derive(Debug, Clone)]
pub struct LayerStore {
    dir: PathBuf,
}

impl LayerStore {
    /// The store in `dir`. It is emptied after the machine was started anew: nothing in it was
    /// forced to disk, so a power failure may have left holes.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let boot = std::fs::read(BOOT_ID).unwrap_or_default();
        let mark = dir.join("boot");
        if std::fs::read(&mark).ok().as_ref() != Some(&boot) {
            if_there(std::fs::remove_dir_all(dir))
                .map_err(|error| io_error("empty", dir, error))?;
            std::fs::create_dir_all(dir).map_err(|error| io_error("make", dir, error))?;
            std::fs::write(&mark, boot).map_err(|error| io_error("write", &mark, error))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The directory of an unpacked layer, if it is there.
    pub fn find(&self, digest: &Digest) -> Option<PathBuf> {
        let dir = self.dir.join(digest.hex());
        dir.is_dir().then_some(dir)
    }

    /// Unpacks the layer whose compressed bytes are `blob`, unless it is there. The bytes are
    /// checked against the digest before anybody can see the result.
    pub fn add(
        &self,
        digest: &Digest,
        blob: impl Read,
        limits: Limits,
    ) -> Result<PathBuf, ImageError> {
        if let Some(found) = self.find(digest) {
            return Ok(found);
        }
        let temporary = self.temporary(digest)?;
        let mut hashing = Hashing::new(blob);
        let unpacked = unpack(&mut hashing, &temporary, limits).and_then(|_| {
            io::copy(&mut hashing, &mut io::sink())
                .map_err(|error| io_error("read the end of a layer for", &temporary, error))?;
            let (_, found, _) = hashing.finish();
            if found == *digest {
                Ok(())
            } else {
                Err(ImageError::Digest { wanted: *digest, found })
            }
        });
        let place = self.dir.join(digest.hex());
        let kept = unpacked.and_then(|()| match std::fs::rename(&temporary, &place) {
            // Somebody else was faster.
            Err(_) if place.is_dir() => Ok(()),
            other => other.map_err(|error| io_error("keep", &place, error)),
        });
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary)
                .map_err(|error| io_error("remove", &temporary, error))?;
        }
        kept.map(|()| place)
    }

    /// Removes an unpacked layer.
    pub fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let dir = self.dir.join(digest.hex());
        if_there(std::fs::remove_dir_all(&dir)).map_err(|error| io_error("remove", &dir, error))
    }

    fn temporary(&self, digest: &Digest) -> Result<PathBuf, ImageError> {
        const ATTEMPTS: u32 = 1_000;
        for attempt in 0..ATTEMPTS {
            let name = format!(".new-{}-{}-{attempt}", digest.hex(), std::process::id());
            let dir = self.dir.join(name);
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    return made.map(|()| dir.clone()).map_err(|e| io_error("make", &dir, e));
                }
            }
        }
        let error = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(io_error("make a fresh directory in", &self.dir, error))
    }
}
