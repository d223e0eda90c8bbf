//! Starts the command of a supervisor.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use super::Direct;
use crate::error::StartFault;
use crate::spec::Limits;

/// Every signal the kernel has, except those the C library keeps for itself.
const SIGNALS: std::ops::Range<i32> = 1..32;

/// Starts the command in its own process group, with exactly the environment and limits asked for.
pub(super) fn spawn(request: &Direct) -> Result<Child, StartFault> {
    let mut command = prepared(request)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn().map_err(|error| exec_fault(&error))
}

/// The same with the standard streams of this process.
pub(super) fn spawn_here(request: &Direct) -> Result<Child, StartFault> {
    prepared(request)?.process_group(0).spawn().map_err(|error| exec_fault(&error))
}

/// The same in a session of its own, with a terminal.
#[expect(unsafe_code, reason = "a terminal is taken between fork and exec")]
pub(super) fn spawn_at(request: &Direct, terminal: &OwnedFd) -> Result<Child, StartFault> {
    let mut command = prepared(request)?;
    let stream = || terminal.try_clone().map(Stdio::from).map_err(|error| exec_fault(&error));
    command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
    // SAFETY: the closure only makes system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // Standard input is the terminal already.
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    command.spawn().map_err(|error| exec_fault(&error))
}

#[expect(unsafe_code, reason = "limits must be set between fork and exec")]
fn prepared(request: &Direct) -> Result<Command, StartFault> {
    let name = request.argv.first().ok_or(StartFault::Missing)?;
    if !request.dir.is_dir() {
        return Err(StartFault::Directory(request.dir.display().to_string()));
    }
    let program = find(name, request)?;
    check_format(&program)?;
    let limits = resources(&request.limits, request.usual_open_files);
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(request.argv.iter().skip(1))
        .current_dir(&request.dir)
        .env_clear()
        .envs(&request.env);
    // SAFETY: the closure only makes system calls and touches memory allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            // If the supervisor is killed, its command must not run on unseen.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            usual_signals();
            for (resource, limit) in &limits {
                setrlimit(*resource, *limit)?;
            }
            Ok(())
        });
    }
    Ok(command)
}

/// Resets what signals do: what an ancestor ignored (`nohup`, a background job) must not stay
/// ignored. The two signals that cannot be set always have their default.
#[expect(unsafe_code, reason = "there is no safe way to reset a signal")]
pub(crate) fn usual_signals() {
    for signal in SIGNALS {
        // SAFETY: no handler is installed, so none is lost.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// What it means that a program could not be executed.
pub(super) fn exec_fault(error: &io::Error) -> StartFault {
    match Errno::from_io_error(error) {
        // A program or the interpreter of a script may be looked for below a file.
        Some(Errno::NOENT | Errno::NOTDIR) => StartFault::Missing,
        Some(Errno::ACCESS | Errno::PERM) => StartFault::Denied,
        Some(Errno::NOEXEC) => StartFault::Format,
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE) => StartFault::Limits(error.to_string()),
        _ => StartFault::Other(error.to_string()),
    }
}

/// Finds the program the way a shell would, but in the command's own `PATH`.
fn find(name: &str, request: &Direct) -> Result<PathBuf, StartFault> {
    if name.contains('/') {
        let path = request.dir.join(name);
        return executable(&path).map(|()| path);
    }
    let mut fault = StartFault::Missing;
    let search = request.env.get("PATH").map_or("", String::as_str);
    for dir in std::env::split_paths(search) {
        let path = request.dir.join(dir).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(StartFault::Missing) => {}
            Err(other) => fault = other,
        }
    }
    Err(fault)
}

fn executable(path: &Path) -> Result<(), StartFault> {
    match access(path, Access::EXEC_OK) {
        Ok(()) if path.is_dir() => Err(StartFault::Denied),
        Ok(()) => Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(StartFault::Missing),
        Err(Errno::ACCESS) => Err(StartFault::Denied),
        Err(error) => Err(StartFault::Other(io::Error::from(error).to_string())),
    }
}

/// Refuses what is neither a binary nor a script that names its interpreter: the C library would
/// hand such a file to a shell, and the platform starts no shell of its own.
fn check_format(program: &Path) -> Result<(), StartFault> {
    // A program that may be run but not read is left to the kernel to judge.
    let Ok(file) = File::open(program) else { return Ok(()) };
    let mut start = Vec::with_capacity(4);
    let read = file.take(4).read_to_end(&mut start);
    if read.is_ok() && !start.starts_with(b"#!") && !start.starts_with(b"\x7fELF") {
        return Err(StartFault::Format);
    }
    Ok(())
}

/// The limits the kernel keeps for single processes. None is raised above what this one may.
fn resources(limits: &Limits, usual_open_files: Option<u64>) -> Vec<(Resource, Rlimit)> {
    let wanted = [
        (Resource::Core, Some(0)),
        (Resource::Nofile, limits.open_files),
        (Resource::Nproc, limits.processes),
        (Resource::As, limits.address_space_bytes),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Cpu, limits.cpu_seconds),
    ];
    let clamp = |resource: Resource, value: u64| {
        let value = getrlimit(resource).maximum.map_or(value, |most| value.min(most));
        (resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    let usual = usual_open_files.filter(|_| limits.open_files.is_none()).map(|soft| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let soft = maximum.map_or(soft, |most| soft.min(most));
        (Resource::Nofile, Rlimit { current: Some(soft), maximum })
    });
    let set = wanted.into_iter().filter_map(|(kind, value)| value.map(|value| clamp(kind, value)));
    set.chain(usual).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_limit_of_open_files_is_soft_and_gives_way_to_a_wanted_one() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let files = |limits: &Limits| {
            let all = resources(limits, Some(64)).into_iter();
            all.filter(|(kind, _)| *kind == Resource::Nofile).map(|(_, limit)| limit).collect()
        };
        let usual: Vec<Rlimit> = files(&Limits::default());
        assert_eq!(usual, [Rlimit { current: Some(64), maximum }]);
        let wanted: Vec<Rlimit> = files(&Limits { open_files: Some(32), ..Limits::default() });
        assert_eq!(wanted, [Rlimit { current: Some(32), maximum: Some(32) }]);
    }
}
