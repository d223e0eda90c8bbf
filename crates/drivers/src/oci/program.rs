//! Whether a program of a container can be run at all. A runtime notices some reasons only after it
//! has said that all is well, and the C library hands what is no program to a shell.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::stage::Root;
use crate::error::StartFault;

/// How much of a file is read.
const HEAD_BYTES: u64 = 256;
/// In how many directories of a `PATH` a program is looked for.
const MAX_SEARCHED: usize = 64;
/// How long may be looked for what a process needs in its container, which a container can make a
/// long way: it is half of what its start may take.
pub(super) const SEARCH_LIMIT: Duration = Duration::from_secs(5);

/// Looks at the program a container would start. Fine when nothing is known that would stop it: the
/// rest is for the system to tell.
///
/// A program that only the process itself would find, as `/proc/self/exe`, is none: until the process
/// has become a program of its container, that is one of the machine.
pub(super) fn judge(root: &Root, name: &str, dir: &str, search: &str) -> Result<(), StartFault> {
    let looked_for: Vec<String> = if name.contains('/') {
        vec![join(dir, name)]
    } else {
        // An empty part is the working directory.
        let parts = search.split(':').take(MAX_SEARCHED);
        parts.map(|at| join(dir, Path::new(at).join(name).to_string_lossy().as_ref())).collect()
    };
    let mut is_there = false;
    for path in &looked_for {
        match head(root, Path::new(path)) {
            Ok(Some(head)) => return judge_head(root, &head, dir),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
            Err(Errno::TIMEDOUT) => return Err(too_slow()),
            // The second is the answer to links of `/proc` that are no paths.
            Err(Errno::LOOP | Errno::XDEV) => return Err(StartFault::Denied),
            // What may not be executed, or what the system shall tell.
            Ok(None) | Err(_) => is_there = true,
        }
    }
    match search.split(':').nth(MAX_SEARCHED) {
        _ if is_there => Ok(()),
        Some(_) if !name.contains('/') => Err(StartFault::Other(format!(
            "it is not in the first {MAX_SEARCHED} directories of PATH: give its whole path"
        ))),
        Some(_) | None => Err(StartFault::Missing),
    }
}

/// Looks at the beginning of a program.
fn judge_head(root: &Root, head: &[u8], dir: &str) -> Result<(), StartFault> {
    if head.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let line = head.strip_prefix(b"#!").ok_or(StartFault::Format)?;
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let interpreter = line.split_whitespace().next().ok_or(StartFault::Format)?;
    match root.find(Path::new(&join(dir, interpreter)), OFlags::PATH) {
        Ok(_) => Ok(()),
        Err(Errno::TIMEDOUT) => Err(too_slow()),
        Err(_) => Err(StartFault::Missing),
    }
}

/// Why a working directory cannot be had.
pub(super) fn no_directory(dir: &str, error: &io::Error) -> StartFault {
    match Errno::from_io_error(error) {
        Some(Errno::TIMEDOUT) => too_slow(),
        _ => StartFault::Directory(format!("{dir}: {error}")),
    }
}

fn too_slow() -> StartFault {
    StartFault::Other(format!(
        "looking for its directory and its program in the container took more than {} s: give short \
         paths without chains of symbolic links",
        SEARCH_LIMIT.as_secs()
    ))
}

fn join(dir: &str, path: &str) -> String {
    let path = Path::new("/").join(dir).join(path).display().to_string();
    // From the root, which has no name but this one.
    format!("./{}", path.trim_start_matches('/'))
}

/// The beginning of a file; nothing of what may not be executed.
fn head(root: &Root, path: &Path) -> Result<Option<Vec<u8>>, Errno> {
    let found = root.find(path, OFlags::PATH)?;
    let metadata = rustix::fs::fstat(&found)?;
    let regular = rustix::fs::FileType::from_raw_mode(metadata.st_mode).is_file();
    if !regular || metadata.st_mode & 0o111 == 0 {
        return Ok(None);
    }
    // Never a device or a pipe: opening one could have effects.
    let file = File::from(root.find(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
    let mut head = Vec::new();
    let read = file.take(HEAD_BYTES).read_to_end(&mut head);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A root with an executable text that is no program.
    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("makes a directory");
        fs::write(dir.path().join("text"), "x").expect("writes");
        fs::set_permissions(dir.path().join("text"), Permissions::from_mode(0o755)).expect("sets");
        let root = Root::open(dir.path(), (0, 0)).expect("opens");
        (dir, root)
    }

    #[test]
    fn a_program_is_looked_for_in_so_many_directories() {
        let (_dir, root) = root();
        let search = |before: usize| format!("{}/", "/no:".repeat(before));
        let last = search(MAX_SEARCHED - 1);
        assert_eq!(judge(&root, "text", "/", &last), Err(StartFault::Format));
        let fault = judge(&root, "text", "/", &search(MAX_SEARCHED)).expect_err("is too far");
        assert!(fault.to_string().contains("first 64 directories of PATH"), "{fault}");
        let behind = search(MAX_SEARCHED);
        assert_eq!(judge(&root, "/text", "/", &behind), Err(StartFault::Format));
        assert_eq!(judge(&root, "/no", "/", &behind), Err(StartFault::Missing));
    }

    #[test]
    fn an_empty_part_of_a_path_is_the_working_directory() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("sub")).expect("makes");
        assert_eq!(judge(&root, "text", "/sub", "/no:"), Err(StartFault::Missing));
        assert_eq!(judge(&root, "text", "/", "/no:"), Err(StartFault::Format));
    }

    #[test]
    fn nothing_is_looked_for_when_it_is_too_late() {
        let (dir, root) = root();
        symlink("text", dir.path().join("link")).expect("links");
        let root = root.within(Duration::ZERO);
        let fault = judge(&root, "link", "/", "/").expect_err("is too late");
        assert!(fault.to_string().contains("took more than 5 s"), "{fault}");
        let error = root.make_dir(Path::new("a/b")).expect_err("is too late");
        assert_eq!(no_directory("/a/b", &error), too_slow());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn what_may_not_be_executed_is_left_to_the_system() {
        let (dir, root) = root();
        fs::write(dir.path().join("plain"), "x").expect("writes");
        assert_eq!(judge(&root, "plain", "/", "/"), Ok(()));
        assert_eq!(judge(&root, "/", "/", "/"), Ok(()));
    }
}
