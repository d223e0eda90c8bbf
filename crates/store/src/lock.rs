//! A lock file: one process at a time owns a store or a blob directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// Held for as long as the value lives; the system drops it with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock that guards `subject`, in the file `at`.
    pub(crate) fn take(subject: &Path, at: &Path) -> Result<Self, StoreError> {
        let fail = |error: &std::io::Error| StoreError::io("lock", at, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(at)
            .map_err(|error| fail(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: subject.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(fail(&error)),
        }
        write_pid(&mut file).map_err(|error| fail(&error))?;
        Ok(Self { _file: file })
    }

    /// The lock file that belongs to the file `path`.
    pub(crate) fn beside(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let subject = dir.path().join("x.db");
        let first = Lock::take(&subject, &Lock::beside(&subject)).unwrap();
        let refused = Lock::take(&subject, &Lock::beside(&subject)).unwrap_err();
        assert_eq!(
            refused,
            StoreError::InUse { path: subject.clone(), pid: Some(std::process::id()) }
        );
        drop(first);
        Lock::take(&subject, &Lock::beside(&subject)).unwrap();
    }
}
