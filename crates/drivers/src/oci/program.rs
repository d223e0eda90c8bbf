//! Whether a program of a container can be run at all. A runtime notices some reasons only after it
//! has said that all is well, and the C library hands what is no program to a shell.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::stage::Root;

/// How much of a file is read.
const HEAD_BYTES: u64 = 256;

/// What is known about a program before it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing that would stop it: the runtime decides.
    Unknown,
    /// A script that names an interpreter which is not there.
    NoInterpreter,
    /// Neither a binary nor a script.
    NoProgram,
}

/// Looks at the program a container would start.
pub(super) fn judge(root: &Root, name: &str, dir: &str, search: &str) -> Judgement {
    let candidates: Vec<String> = if name.contains('/') {
        vec![join(dir, name)]
    } else {
        search.split(':').map(|at| join(dir, &format!("{at}/{name}"))).collect()
    };
    let Some(head) = candidates.iter().find_map(|path| head(root, path)) else {
        return Judgement::Unknown;
    };
    if head.starts_with(b"\x7fELF") {
        return Judgement::Unknown;
    }
    let Some(line) = head.strip_prefix(b"#!") else { return Judgement::NoProgram };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let Some(interpreter) = line.split_whitespace().next() else { return Judgement::NoProgram };
    if root.find(Path::new(&join(dir, interpreter)), OFlags::PATH).is_err() {
        return Judgement::NoInterpreter;
    }
    Judgement::Unknown
}

fn join(dir: &str, path: &str) -> String {
    let path = Path::new("/").join(dir).join(path);
    path.display().to_string().trim_start_matches('/').to_owned()
}

/// The beginning of a file that may be executed.
fn head(root: &Root, path: &str) -> Option<Vec<u8>> {
    let found = root.find(Path::new(path), OFlags::PATH).ok()?;
    let metadata = rustix::fs::fstat(&found).ok()?;
    let regular = rustix::fs::FileType::from_raw_mode(metadata.st_mode).is_file();
    if !regular || metadata.st_mode & 0o111 == 0 {
        return None;
    }
    // Never a device or a pipe: opening one could have effects.
    let file = File::from(root.find(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK).ok()?);
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}
