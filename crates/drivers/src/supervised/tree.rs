//! Directory trees of containers: measuring and deleting them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The size of a block in `stat`.
const BLOCK_BYTES: u64 = 512;
/// How many containers of one name may wait in the trash.
const MAX_NAMESAKES: u32 = 1_000;

/// Moves a directory into `trash` under a name that is free there.
pub(crate) fn move_into(dir: &Path, trash: &Path) -> io::Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    for number in 0..MAX_NAMESAKES {
        let to = trash.join(format!("{name}.{number}"));
        match fs::rename(dir, &to) {
            Ok(()) => return Ok(to),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the trash cannot be emptied"))
}

/// Deletes everything in a directory.
pub(crate) fn remove_contents(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

/// Deletes a tree, including directories that are closed to their owner, or a file.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(dir)?;
            fs::remove_dir_all(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(dir),
        other => other,
    }
}

/// Lets the owner into every directory of a tree. No process of the container runs any more.
fn open_up(dir: &Path) -> io::Result<()> {
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                next.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Bytes a tree takes on disk. What goes away or cannot be read meanwhile does not count.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * BLOCK_BYTES;
            if metadata.is_dir() {
                next.push(entry.path());
            }
        }
    }
    bytes
}
