//! Namespaces of the helper.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, WaitOptions, setrlimit, waitpid};
use rustix::thread::{
    capabilities, set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::oci::bundle::{MESSAGE_QUEUE_BYTES, PENDING_SIGNALS};
use crate::oci::slots::USERS;

/// Leaves the machine's mount namespace for a copy of it.
#[expect(unsafe_code, reason = "there is no safe way to make a namespace")]
pub(super) fn own_mounts() -> io::Result<()> {
    // SAFETY: the mount namespace matters to no memory.
    let made = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if made == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace whose user 0 is `first`: the container's, and what tells the kernel how to show
/// files. It is made by `first`, for what is used in a namespace counts as its maker's, too: signals
/// that wait, message queues, watched files. Made by root, all containers would share root's limits.
#[expect(unsafe_code, reason = "a namespace needs a process, and there is no safe fork")]
pub(super) fn namespace(first: u32) -> io::Result<OwnedFd> {
    let (ready, made) = io::pipe()?;
    let (wait, done) = io::pipe()?;
    // SAFETY: this is the only thread; the child only makes system calls and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop((ready, done));
        // SAFETY: as above. Reading ends when the parent closes its end.
        unsafe {
            let is_made = be(first).is_ok() && libc::unshare(libc::CLONE_NEWUSER) == 0;
            let mut byte = [0; 1];
            if is_made && rustix::io::write(&made, b"+").is_ok() {
                libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len());
            }
            libc::_exit(0);
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    drop((made, wait));
    let namespace = map(child, first, &ready);
    drop(done);
    let child = Pid::from_raw(child);
    while matches!(waitpid(child, WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    namespace
}

/// Becomes the user, with all rights; its limits are those of a namespace it makes.
fn be(user: u32) -> io::Result<()> {
    for (resource, most) in
        [(Resource::Sigpending, PENDING_SIGNALS), (Resource::Msgqueue, MESSAGE_QUEUE_BYTES)]
    {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    let mut sets = capabilities(None)?;
    sets.effective = sets.permitted;
    Ok(set_capabilities(None, sets)?)
}

fn map(child: i32, first: u32, ready: &io::PipeReader) -> io::Result<OwnedFd> {
    if rustix::io::read(ready, &mut [0; 1])? == 0 {
        return Err(io::Error::other("the kernel refuses user namespaces"));
    }
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{file}"), format!("0 {first} {USERS}"))?;
    }
    Ok(fs::File::open(format!("/proc/{child}/ns/user"))?.into())
}
