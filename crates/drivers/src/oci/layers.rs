//! Layers of images in the form an overlay understands.
//!
//! A layer without removals is used where it is. One that removes files of the layers below gets a
//! second form in the driver's directory, once: the same files by hard links, removals as the kernel
//! wants them. Nothing writes to either.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, linkat, makedev, mknodat,
    setxattr, utimensat,
};
use rustix::io::Errno;

use crate::supervised::{make_private, tree};

/// How names begin that say that something is removed.
const REMOVED: &str = ".wh.";
/// The name that says that everything beside it is removed.
const ALL_REMOVED: &str = ".wh..wh..opq";
/// What tells the kernel the same about a directory.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Where the second form is, in the directory of a layer.
const FORM: &str = "form";
/// Which layer it is the form of.
const SOURCE: &str = "source";
/// The deepest directory of a layer.
const MAX_DEPTH: usize = 256;

/// The forms of layers a driver has made.
#[derive(Debug, Clone)]
pub(super) struct Layers(PathBuf);

impl Layers {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        make_private(&dir, true)?;
        Ok(Self(dir))
    }

    /// The directory to mount for a layer.
    pub(super) fn mountable(&self, layer: &Path) -> io::Result<PathBuf> {
        let at = self.0.join(key(layer)?);
        let form = at.join(FORM);
        if at.join(SOURCE).exists() {
            return Ok(if form.exists() { form } else { layer.to_owned() });
        }
        // Two containers may want it at once, or an agent died while it was made: each makes its
        // own, and the first to finish gives it the name.
        let draft = self.0.join(format!(".new-{}-{}", std::process::id(), unique()));
        let made = make(layer, &draft).and_then(|()| match fs::rename(&draft, &at) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => tree::remove(&draft),
            other => other,
        });
        if made.is_err() {
            drop(tree::remove(&draft));
        }
        made?;
        Ok(if form.exists() { form } else { layer.to_owned() })
    }

    /// Removes what belongs to layers that are gone, and what agents that died were making.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stale = if let Some(rest) = name.strip_prefix(".new-") {
                let maker = rest.split('-').next().unwrap_or_default();
                !Path::new("/proc").join(maker).exists()
            } else {
                let source = fs::read_to_string(path.join(SOURCE)).unwrap_or_default();
                !Path::new(source.trim()).exists()
            };
            if stale {
                tree::remove(&path)?;
            }
        }
        Ok(())
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Names a layer: where it is, and which directory that is now.
fn key(layer: &Path) -> io::Result<String> {
    let metadata = fs::metadata(layer)?;
    let mut hasher = DefaultHasher::new();
    (layer, metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
        .hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn make(layer: &Path, draft: &Path) -> io::Result<()> {
    make_private(draft, false)?;
    if removes(layer, MAX_DEPTH)? {
        convert(layer, &draft.join(FORM), MAX_DEPTH)?;
    }
    fs::write(draft.join(SOURCE), layer.display().to_string())
}

/// Whether a layer removes anything.
fn removes(dir: &Path, depth: usize) -> io::Result<bool> {
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let removal = entry.file_name().to_string_lossy().starts_with(REMOVED);
        if removal || (entry.file_type()?.is_dir() && removes(&entry.path(), depth)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn too_deep() -> io::Error {
    io::Error::other(format!("a layer is deeper than {MAX_DEPTH} directories"))
}

fn convert(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let removed = name.to_string_lossy();
        if removed == ALL_REMOVED {
            setxattr(to, OPAQUE, b"y", XattrFlags::empty())?;
        } else if let Some(gone) = removed.strip_prefix(REMOVED) {
            // The kernel's own mark: a character device with the number 0, 0.
            let kind = FileType::CharacterDevice;
            mknodat(CWD, to.join(gone), kind, Mode::empty(), makedev(0, 0))?;
        } else if entry.file_type()?.is_dir() {
            convert(&entry.path(), &to.join(&name), depth)?;
        } else {
            share(&entry.path(), &to.join(&name))?;
        }
    }
    let metadata = fs::metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, metadata.permissions())?;
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, to, &times, AtFlags::empty())?)
}

/// The same file under another name; a copy where that is not possible.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    match linkat(CWD, from, CWD, to, AtFlags::empty()) {
        Err(Errno::XDEV | Errno::MLINK | Errno::PERM) => {}
        other => return Ok(other?),
    }
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    if !metadata.is_file() {
        return Ok(());
    }
    io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

/// Whether layers bring an operating system of their own.
pub(crate) fn bring_a_system(layers: &[PathBuf]) -> bool {
    let has = |layer: &PathBuf, path: &str| layer.join(path).symlink_metadata().is_ok();
    layers.iter().any(|layer| has(layer, "bin/sh") || has(layer, "usr/bin/sh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_get_a_second_form_once() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("a/b")).expect("makes");
        fs::write(layer.join("a/kept"), "kept").expect("writes");
        let layers = Layers::open(dir.path().join("forms")).expect("opens");
        assert_eq!(layers.mountable(&layer).expect("is fine"), layer, "used where it is");
        fs::write(layer.join("a/.wh.gone"), "").expect("writes");
        fs::write(layer.join("a/b/.wh..wh..opq"), "").expect("writes");
        fs::write(layer.join("now"), "another directory now").expect("writes");
        let form = layers.mountable(&layer).expect("is made");
        assert_ne!(form, layer);
        assert_eq!(layers.mountable(&layer).expect("is there"), form);
        let same = |path: &str| fs::metadata(path).expect("is there").ino();
        let path = |at: &Path| at.join("a/kept").display().to_string();
        assert_eq!(same(&path(&form)), same(&path(&layer)), "not a copy");
        assert!(!form.join("a/.wh.gone").exists());
        layers.sweep().expect("sweeps");
        assert!(form.exists());
        fs::remove_dir_all(&layer).expect("removes");
        layers.sweep().expect("sweeps");
        assert!(!form.exists(), "its layer is gone");
    }
}
