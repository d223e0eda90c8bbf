//! Starts the command of a supervisor in a container by entering it.
//!
//! A child of the supervisor joins the container's control groups and namespaces, gives up what the
//! container has no right to and becomes the command. So the command's parent is the supervisor, who
//! learns how it ended from the system itself; the container's first process has no part in it, and
//! no runtime is started. Until it is the command, the child cannot be looked into from the
//! container: it is not dumpable, and none of its descriptors survives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType,
    capability_is_in_bounding_set, move_into_link_name_space, move_into_thread_name_spaces,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use super::command::{exec_fault, usual_signals};
use super::through::usual_mortality;
use crate::error::StartFault;
use crate::oci::seccomp;
use crate::proc::Id;

/// Said by the child when it is in the container.
const ENTERED: u8 = b'e';
/// Said by it when nothing is left but to become the command.
const READY: u8 = b'r';
/// `KEYCTL_JOIN_SESSION_KEYRING` of `keyctl(2)`.
const JOIN_SESSION_KEYRING: libc::c_long = 1;
/// `SECCOMP_SET_MODE_FILTER` of `seccomp(2)`.
const SET_FILTER: libc::c_long = 1;

/// A command to be started in a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Enter {
    /// The first process of the container.
    pub(crate) first: Id,
    /// Whether the container has users of its own.
    pub(crate) own_users: bool,
    /// The machine's number for the command's user and group.
    pub(crate) owner: (u32, u32),
    /// The directories of the control groups it belongs to.
    pub(crate) groups: Vec<PathBuf>,
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Its working directory, in the container.
    pub(crate) dir: String,
    /// User and group, in the container.
    pub(crate) user: (u32, u32),
    /// What it may do as the container's root; other users may do nothing of it.
    pub(crate) capabilities: u64,
    /// Numbers of resources with soft and hard limit.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    /// A file with the line `oom_kill N`: how many processes of the container were killed because
    /// memory ran out.
    pub(crate) oom_file: PathBuf,
}

/// Starts the command.
pub(super) fn spawn(enter: &Enter) -> Result<super::Command, StartFault> {
    let failed = |error: io::Error| StartFault::Supervisor(format!("enter the container: {error}"));
    let (stdout, their_stdout) = own_pipe(enter.owner).map_err(failed)?;
    let (stderr, their_stderr) = own_pipe(enter.owner).map_err(failed)?;
    let (mut said, say) = io::pipe().map_err(failed)?;
    usual_mortality().map_err(failed)?;
    let way = Way::new(enter, say.into()).map_err(failed)?;
    let name = enter.argv.first().ok_or(StartFault::Missing)?;
    let mut command = Command::new(name);
    command
        .args(enter.argv.iter().skip(1))
        .env_clear()
        .envs(&enter.env)
        .stdin(Stdio::null())
        .stdout(their_stdout)
        .stderr(their_stderr);
    let child = spawn_below(command, way).map_err(failed)?;
    match child {
        Ok(child) => {
            let pid = child.id().cast_signed();
            Ok(super::Command {
                pid,
                stdout: Some(stdout.into()),
                stderr: Some(stderr.into()),
                launched: None,
            })
        }
        Err(error) => {
            let mut text = Vec::new();
            said.read_to_end(&mut text).map_err(failed)?;
            Err(match text.as_slice() {
                [ENTERED, READY] => exec_fault(&error),
                [ENTERED] => StartFault::Directory(format!("{}: {error}", enter.dir)),
                _ => failed(error),
            })
        }
    }
}

/// A pipe that the command's user may open anew by its name in `/proc`.
fn own_pipe((uid, gid): (u32, u32)) -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    rustix::fs::fchown(&writer, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok((reader, writer))
}

/// Starts a child in the process namespace of the container; this process stays where it is.
#[expect(unsafe_code, reason = "the container is entered between fork and exec")]
fn spawn_below(mut command: Command, way: Way) -> io::Result<io::Result<std::process::Child>> {
    let own = File::open("/proc/self/ns/pid")?;
    let container = way.container.try_clone()?;
    // SAFETY: the closure makes system calls, and this process has one thread.
    unsafe { command.pre_exec(move || way.go()) };
    move_into_thread_name_spaces(container.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    let child = command.spawn();
    // Threads can only be made where this process is itself.
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    Ok(child)
}

/// What the child needs on its way, made before it is.
struct Way {
    container: OwnedFd,
    namespaces: ThreadNameSpaceType,
    groups: Vec<File>,
    limits: Vec<(u32, u64, u64)>,
    user: (u32, u32),
    capabilities: CapabilitySet,
    dir: String,
    filter: Vec<libc::sock_filter>,
    say: OwnedFd,
}

impl Way {
    fn new(enter: &Enter, say: OwnedFd) -> io::Result<Self> {
        let gone = || io::Error::other("its first process has ended");
        let pid = Pid::from_raw(enter.first.pid).ok_or_else(gone)?;
        let container = pidfd_open(pid, PidfdFlags::empty())?;
        // Its number could have gone to another process before it was opened.
        if !enter.first.runs() {
            return Err(gone());
        }
        let groups = enter.groups.iter().map(|group| {
            let file = group.join("cgroup.procs");
            let opened = File::options().write(true).open(&file);
            opened.map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            })
        });
        let mut namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        namespaces.set(ThreadNameSpaceType::USER, enter.own_users);
        Ok(Self {
            container,
            namespaces,
            groups: groups.collect::<io::Result<_>>()?,
            limits: enter.limits.clone(),
            user: enter.user,
            capabilities: CapabilitySet::from_bits_retain(enter.capabilities),
            dir: enter.dir.clone(),
            filter: seccomp::filter(),
            say,
        })
    }

    /// The way of the child, up to where it becomes the command.
    fn go(&self) -> io::Result<()> {
        usual_signals();
        for group in &self.groups {
            rustix::io::write(group, b"0")?;
        }
        own_keyring();
        self.limit()?;
        hide()?;
        move_into_thread_name_spaces(self.container.as_fd(), self.namespaces)?;
        be_the_user(self.user, self.capabilities)?;
        rustix::process::setsid()?;
        rustix::io::write(&self.say, &[ENTERED])?;
        rustix::process::chdir(self.dir.as_str())?;
        set_no_new_privs(true)?;
        self.filter()?;
        rustix::io::write(&self.say, &[READY])?;
        Ok(())
    }

    #[expect(unsafe_code, reason = "there is no safe way to set a limit by its number")]
    fn limit(&self) -> io::Result<()> {
        for (kind, soft, hard) in &self.limits {
            let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
            // SAFETY: the structure is initialised and outlives the call.
            if unsafe { libc::setrlimit(*kind, &raw const limit) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "there is no safe way to install a filter")]
    fn filter(&self) -> io::Result<()> {
        let len = u16::try_from(self.filter.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: self.filter.as_ptr().cast_mut() };
        // SAFETY: the program and the filter it points to outlive the call, which only reads them.
        let set = unsafe { libc::syscall(libc::SYS_seccomp, SET_FILTER, 0, &raw const program) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Becomes the user, and gives up every right the container does not have.
fn be_the_user((user, group): (u32, u32), rights: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !rights.contains(one) && capability_is_in_bounding_set(one).unwrap_or(false) {
            remove_capability_from_bounding_set(one)?;
        }
    }
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[])?;
    // With `fs.suid_dumpable`, entering a user namespace and becoming somebody show this process
    // again. Until it is hidden, it keeps rights that keep everybody in the container out.
    set_keep_capabilities(true)?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    hide()?;
    let own = if user.is_root() { rights } else { CapabilitySet::empty() };
    let sets =
        CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Leaves the agent's keys behind. A kernel without keys has none to leave.
#[expect(unsafe_code, reason = "there is no safe way to make this call")]
fn own_keyring() {
    let unnamed = std::ptr::null::<libc::c_char>();
    // SAFETY: the call takes a null pointer for a keyring without a name.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, unnamed) };
}

/// Keeps everybody in the container from looking into this process.
fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
    use rustix::thread::capabilities;

    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "the child becomes somebody before it is a program")]
    fn who_became_the_user_is_hidden_and_has_no_rights_but_the_containers() {
        if !rustix::process::geteuid().is_root() {
            // Nobody else enters containers.
            return;
        }
        let rights = CapabilitySet::CHOWN | CapabilitySet::KILL;
        for (user, wanted) in [(0, rights), (1000, CapabilitySet::empty())] {
            let mut command = Command::new("/bin/true");
            let become_the_user = move || {
                // What `fs.suid_dumpable` does when it is 1.
                set_dumpable_behavior(DumpableBehavior::Dumpable)?;
                be_the_user((user, user), rights)?;
                let hidden = dumpable_behavior()? == DumpableBehavior::NotDumpable;
                let own = capabilities(None)?;
                let right = own.permitted == wanted && own.effective == wanted;
                if hidden && right { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
            };
            // SAFETY: the closure makes system calls only.
            unsafe { command.pre_exec(become_the_user) };
            assert!(command.status().expect("is hidden and has its rights").success(), "{user}");
        }
    }
}
