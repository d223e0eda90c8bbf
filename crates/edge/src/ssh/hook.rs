//! What git starts as `pre-receive`: hands the push to the server and shows what that says. If it
//! fails, git refuses the push.
#![expect(clippy::print_stderr, reason = "git shows a hook's standard error to the pusher")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Most bytes of what git tells a hook.
pub(crate) const MAX_UPDATES: u64 = 1024 * 1024;
/// Where the server listens for hooks.
pub(crate) const SOCKET: &str = "SHORE_HOOK_SOCKET";
/// Which push it is.
pub(crate) const TOKEN: &str = "SHORE_HOOK_TOKEN";
/// What git sets so that the pushed objects can be read before they are accepted.
const PASSED: [&str; 3] =
    ["GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH"];

/// What a hook hands to the server: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Push {
    /// Which push it is.
    pub(crate) token: String,
    /// Git's environment for reading the pushed objects.
    pub(crate) env: BTreeMap<String, String>,
    /// `old new ref`, a line each.
    pub(crate) updates: String,
}

/// Runs the hook if this program was started as one.
pub fn maybe_run() -> Option<ExitCode> {
    let started_as = std::env::args_os().next()?;
    if Path::new(&started_as).file_name()? != "pre-receive" {
        return None;
    }
    Some(run().unwrap_or_else(|error| {
        eprintln!("the server cannot take the push: {error}");
        eprintln!("hint: try again; a build that was started goes on, see `shore job list`");
        ExitCode::FAILURE
    }))
}

#[expect(clippy::disallowed_methods, reason = "a hook is told everything by its environment")]
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Uses the socket at `path` under a short name of the same file: a socket's address holds 107 bytes,
/// and data directories can be deeper than that.
pub(crate) fn at_socket<T>(
    path: &Path,
    act: impl FnOnce(&Path) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let (dir, name) = path.parent().zip(path.file_name()).ok_or_else(missing)?;
    let dir = std::fs::File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    act(&short)
}

fn run() -> std::io::Result<ExitCode> {
    let mut updates = String::new();
    std::io::stdin().take(MAX_UPDATES + 1).read_to_string(&mut updates)?;
    if updates.len() as u64 > MAX_UPDATES {
        // What is not seen could delete a branch that is deployed.
        return Err(std::io::Error::other("it moves too many branches at once"));
    }
    let passed = PASSED.iter().filter_map(|name| Some(((*name).to_owned(), var(name)?)));
    let push = Push { token: var(TOKEN).unwrap_or_default(), env: passed.collect(), updates };
    let path = var(SOCKET).unwrap_or_default();
    let mut socket = at_socket(Path::new(&path), |short| UnixStream::connect(short))?;
    let mut line = serde_json::to_vec(&push)?;
    line.push(b'\n');
    socket.write_all(&line)?;
    for line in BufReader::new(socket).lines() {
        let line = line?;
        match line.split_at_checked(1) {
            Some((" ", text)) => eprintln!("{text}"),
            Some(("=", "0")) => return Ok(ExitCode::SUCCESS),
            Some(_) | None => return Ok(ExitCode::FAILURE),
        }
    }
    Err(std::io::Error::other("it went away"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_may_be_deeper_than_its_address_can_say() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).expect("made");
        let path = deep.join("hook.sock");
        assert!(UnixListener::bind(&path).is_err(), "the plain way is too long");
        let listener = at_socket(&path, |short| UnixListener::bind(short)).expect("it listens");
        assert!(path.exists(), "it is where it was meant to be");
        at_socket(&path, |short| UnixStream::connect(short)).expect("it is reached");
        listener.accept().expect("and accepts");
    }
}
