//! A copy of the source in which only what changed is written.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use model::Digest;
use sha2::{Digest as _, Sha256};

/// What is not mirrored at the top.
const NOT: [&str; 2] = [".git", "target"];

/// Makes `to` equal to `from` and gives the digest of all names and contents. Files that are equal
/// already keep their modification time.
pub(super) fn mirror(from: &Path, to: &Path) -> io::Result<Digest> {
    let mut digest = Sha256::new();
    directory(from, to, &mut digest, true)?;
    Ok(Digest(digest.finalize().into()))
}

fn directory(from: &Path, to: &Path, digest: &mut Sha256, top: bool) -> io::Result<()> {
    if !fs::symlink_metadata(to).is_ok_and(|metadata| metadata.is_dir()) {
        remove(to)?;
        fs::create_dir_all(to)?;
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if !(top && NOT.iter().any(|not| name == *not)) {
            names.insert(name);
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !names.contains(&entry.file_name()) {
            remove(&entry.path())?;
        }
    }
    for name in &names {
        note(digest, b"name", name.as_bytes());
        child(&from.join(name), &to.join(name), digest)?;
    }
    note(digest, b"end", b"");
    Ok(())
}

/// Lengths keep what is noted apart.
fn note(digest: &mut Sha256, what: &[u8], bytes: &[u8]) {
    for part in [what, bytes] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
}

fn child(from: &Path, to: &Path, digest: &mut Sha256) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        note(digest, b"directory", b"");
        return directory(from, to, digest, false);
    }
    let there = fs::symlink_metadata(to).ok();
    if metadata.is_symlink() {
        let target = fs::read_link(from)?;
        note(digest, b"link", target.as_os_str().as_bytes());
        if fs::read_link(to).ok().as_ref() != Some(&target) {
            remove(to)?;
            symlink(target, to)?;
        }
    } else if metadata.is_file() {
        let bytes = fs::read(from)?;
        let mode = metadata.permissions().mode() & 0o777;
        note(digest, if mode & 0o111 == 0 { b"file" } else { b"program" }, &bytes);
        let same = there.is_some_and(|there| {
            there.is_file()
                && there.permissions().mode() & 0o777 == mode
                && there.len() == bytes.len() as u64
        });
        if !(same && fs::read(to)? == bytes) {
            remove(to)?;
            fs::write(to, bytes)?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let (from, to) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let (from, to) = (from.path(), to.path().join("copy"));
        fs::create_dir_all(from.join("d/e")).expect("made");
        fs::create_dir_all(from.join("target")).expect("made");
        for name in ["a", "d/b", "d/e/c"] {
            fs::write(from.join(name), name).expect("written");
        }
        symlink("a", from.join("l")).expect("linked");
        let first = mirror(from, &to).expect("mirrored");
        assert_eq!(fs::read(to.join("d/e/c")).expect("read"), b"d/e/c");
        assert!(!to.join("target").exists());
        let old = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        for name in ["a", "d/b"] {
            let file = fs::File::options().write(true).open(to.join(name)).expect("opened");
            file.set_times(old).expect("set");
        }
        assert_eq!(mirror(from, &to).expect("mirrored"), first);
        fs::write(from.join("a"), "A").expect("written");
        fs::remove_dir_all(from.join("d/e")).expect("removed");
        fs::remove_file(from.join("l")).expect("removed");
        fs::create_dir(from.join("l")).expect("made");
        assert_ne!(mirror(from, &to).expect("mirrored"), first);
        let changed = |name: &str| {
            let time = fs::metadata(to.join(name)).and_then(|m| m.modified()).expect("a time");
            time != std::time::SystemTime::UNIX_EPOCH
        };
        assert!(changed("a") && !changed("d/b"));
        assert!(!to.join("d/e").exists() && to.join("l").is_dir());
    }
}
