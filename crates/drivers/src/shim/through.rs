//! Starts the command of a session through a container runtime.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::{KILLED_FILE, Through, command};
use crate::driver::Outcome;
use crate::error::StartFault;
use crate::spec::PATH;

/// The descriptor a runtime reads the process from.
const PROCESS_FD: i32 = 3;
/// Where a runtime writes the number of what it started.
const PID_FILE: &str = "pid";
/// What a shell exits with when its child was killed by signal 9.
const SHELL_KILLED: i32 = 128 + 9;

/// The number of what a runtime started.
pub(super) fn take_pid(dir: &Path) -> io::Result<i32> {
    let file = dir.join(PID_FILE);
    let pid = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    pid.trim().parse().map_err(io::Error::other)
}

/// The runtime with all its arguments.
pub(super) fn runtime(dir: &Path, through: &Through) -> Result<Command, StartFault> {
    let failed = |error: io::Error| StartFault::Supervisor(error.to_string());
    let (program, arguments) = through.before.split_first().ok_or(StartFault::Missing)?;
    let process = in_memory(&through.process).map_err(failed)?;
    usual_mortality().map_err(failed)?;
    let mut runtime = Command::new(program);
    runtime
        .args(arguments)
        .args(["--process", "/proc/self/fd/3", "--pid-file"])
        .arg(dir.join(PID_FILE))
        .args(&through.after)
        .env_clear()
        .env("PATH", PATH);
    give(&mut runtime, process, through.real_user);
    Ok(runtime)
}

/// An agent may be the last to be killed when memory runs out; what it starts is not.
pub(crate) fn usual_mortality() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "0")
}

fn in_memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("process", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// Gives the runtime the process to start, the usual signals and its user.
#[expect(unsafe_code, reason = "a descriptor must be passed on between fork and exec")]
fn give(runtime: &mut Command, process: File, real_user: Option<u32>) {
    // SAFETY: the closure only makes system calls.
    unsafe {
        runtime.pre_exec(move || {
            command::usual_signals();
            if process.as_raw_fd() == PROCESS_FD {
                rustix::io::fcntl_setfd(&process, rustix::io::FdFlags::empty())?;
            } else if libc::dup2(process.as_raw_fd(), PROCESS_FD) < 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(user) = real_user {
                let (root, group) = (Uid::ROOT, Gid::ROOT);
                set_thread_res_gid(Gid::from_raw(user), group, group)?;
                set_thread_res_uid(Uid::from_raw(user), root, root)?;
            }
            Ok(())
        });
    }
}

/// What the last line of a log says.
fn message(log: &str) -> String {
    let last = log.trim().lines().last().unwrap_or("it does not say why");
    let quoted = last.split_once("msg=\"").map(|(_, message)| message.trim_end_matches('"'));
    quoted.map_or_else(|| last.to_owned(), |message| message.replace("\\\"", "\""))
}

/// What a complaint of a runtime means. The words are the kernel's and the same in all of them.
pub(super) fn fault(complaint: &str) -> StartFault {
    let last = message(complaint);
    let has = |words: &str| last.contains(words);
    if has("chdir to cwd") || has("chdir") && has("cwd") {
        StartFault::Directory(last)
    } else if !has("exec: \"") && !has("executable file") && !has("exec /") {
        StartFault::Other(last)
    } else if ["not found", "no such file or directory", "not a directory"].into_iter().any(has) {
        StartFault::Missing
    } else if has("exec format error") || has("Exec format error") {
        StartFault::Format
    } else if has("permission denied") || has("is a directory") || has("Permission denied") {
        StartFault::Denied
    } else if has("resource temporarily unavailable") || has("cannot allocate memory") {
        StartFault::Limits(last)
    } else {
        StartFault::Other(last)
    }
}

/// How many processes of a container were killed because memory ran out.
#[derive(Debug)]
pub(super) struct OomCount {
    file: PathBuf,
    before: u64,
}

impl OomCount {
    pub(super) fn new(file: PathBuf) -> Self {
        let before = read(&file).unwrap_or_default();
        Self { file, before }
    }

    /// Whether a process ended because memory ran out: it was killed, the driver did not do it, and
    /// the count has grown since it was started.
    pub(super) fn explains(&self, outcome: Outcome, state_dir: &Path) -> bool {
        let killed = matches!(outcome, Outcome::Signal(9) | Outcome::Code(SHELL_KILLED));
        let grown = || read(&self.file).is_some_and(|now| now > self.before);
        killed && !state_dir.join(KILLED_FILE).exists() && grown()
    }
}

fn read(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_runtimes_are_understood() {
        let wanted = [
            ("exec failed: exec: \"x\": executable file not found in $PATH", StartFault::Missing),
            ("exec: \"/no\": stat /no: no such file or directory", StartFault::Missing),
            (
                "time=1 level=error msg=\"x: exec: \\\"./no\\\": permission denied\"",
                StartFault::Denied,
            ),
            ("exec /plain: exec format error", StartFault::Format),
        ];
        for (text, wanted) in wanted {
            assert_eq!(fault(text), wanted, "{text}");
        }
        let text = "chdir to cwd (\"/x\") set in config.json failed: no such file or directory";
        assert_eq!(fault(text), StartFault::Directory(text.to_owned()));
    }
}
