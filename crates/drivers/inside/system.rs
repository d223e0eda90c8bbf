//! The system calls of the first process that the standard library has no name for.
#![expect(unsafe_code, reason = "this program is built without any other crate")]

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
const SCM_RIGHTS: c_int = 1;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const MSG_NOSIGNAL: c_int = 0x4000;
const PR_SET_PDEATHSIG: c_int = 1;
const PR_SET_DUMPABLE: c_int = 4;
const PR_SET_CHILD_SUBREAPER: c_int = 36;
const SIG_BLOCK: c_int = 0;
const SFD_CLOEXEC: c_int = 0o2_000_000;
const SFD_NONBLOCK: c_int = 0o4000;
const POLLIN: i16 = 1;
const WNOHANG: c_int = 1;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;
const O_RDWR: c_int = 2;
const O_NOCTTY: c_int = 0o400;
const O_CLOEXEC: c_int = 0o2_000_000;
const X_OK: c_int = 1;
/// Every signal except those the C library keeps for itself.
const SIGNALS: std::ops::Range<c_int> = 1..32;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
/// The signal a parent gets when a child ends.
const SIGCHLD: c_int = 17;
/// The signal that cannot be ignored.
pub(crate) const SIGKILL: c_int = 9;

const HEADER_BYTES: usize = 16;
const CONTROL_BYTES: usize = HEADER_BYTES + 16;

#[repr(C)]
struct Peer {
    pid: i32,
    uid: u32,
    gid: u32,
}

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct Message {
    name: *mut c_void,
    name_len: c_uint,
    iov: *mut IoVec,
    iov_len: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

/// A control message, aligned as the system wants it.
#[repr(C, align(8))]
struct Control {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; 4],
}

const _: () = assert!(size_of::<Control>() == CONTROL_BYTES);

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

#[repr(C)]
struct RLimit {
    soft: u64,
    hard: u64,
}

#[repr(C)]
struct WinSize {
    rows: u16,
    columns: u16,
    x: u16,
    y: u16,
}

unsafe extern "C" {
    fn getsockopt(fd: c_int, level: c_int, name: c_int, to: *mut c_void, len: *mut c_uint)
    -> c_int;
    fn recvmsg(fd: c_int, message: *mut Message, flags: c_int) -> isize;
    fn sendmsg(fd: c_int, message: *const Message, flags: c_int) -> isize;
    fn send(fd: c_int, from: *const c_void, len: usize, flags: c_int) -> isize;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn kill(pid: i32, signal: c_int) -> c_int;
    fn waitpid(pid: i32, status: *mut c_int, options: c_int) -> i32;
    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    fn setsid() -> i32;
    fn umask(mask: c_uint) -> c_uint;
    fn sigemptyset(set: *mut [u64; 16]) -> c_int;
    fn sigaddset(set: *mut [u64; 16], signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const [u64; 16], old: *mut [u64; 16]) -> c_int;
    fn signalfd(fd: c_int, set: *const [u64; 16], flags: c_int) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn access(path: *const c_char, mode: c_int) -> c_int;
    fn fchown(fd: c_int, uid: c_uint, gid: c_uint) -> c_int;
    fn getrlimit(kind: c_uint, limit: *mut RLimit) -> c_int;
    fn setrlimit(kind: c_uint, limit: *const RLimit) -> c_int;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Number (0 when it is outside of this container) and user of whoever made a connection.
pub(crate) fn peer(socket: &impl AsRawFd) -> io::Result<(i32, u32)> {
    let mut peer = Peer { pid: -1, uid: u32::MAX, gid: u32::MAX };
    let mut len = c_uint::try_from(size_of::<Peer>()).unwrap_or_default();
    let to = (&raw mut peer).cast();
    // SAFETY: `to` has room for what is asked for, and `len` says how much.
    checked(unsafe { getsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_PEERCRED, to, &raw mut len) })?;
    Ok((peer.pid, peer.uid))
}

/// Receives bytes and the descriptors that come with them.
pub(crate) fn receive(socket: &impl AsRawFd, to: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = IoVec { base: to.as_mut_ptr().cast(), len: to.len() };
    let mut control = Control { len: 0, level: 0, kind: 0, fds: [-1; 4] };
    let mut message = Message {
        name: std::ptr::null_mut(),
        name_len: 0,
        iov: &raw mut iov,
        iov_len: 1,
        control: (&raw mut control).cast(),
        control_len: CONTROL_BYTES,
        flags: 0,
    };
    // SAFETY: the message points to live buffers of the lengths it tells.
    let got = unsafe { recvmsg(socket.as_raw_fd(), &raw mut message, MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let rights = message.control_len >= HEADER_BYTES
        && (control.level, control.kind) == (SOL_SOCKET, SCM_RIGHTS);
    let count =
        if rights { control.len.saturating_sub(HEADER_BYTES) / size_of::<c_int>() } else { 0 };
    // SAFETY: the system has just made these descriptors for this process.
    let fds = control.fds.iter().take(count).map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
    Ok((got, fds.collect()))
}

/// Sends bytes with one descriptor.
pub(crate) fn send_with(socket: &impl AsRawFd, bytes: &[u8], fd: &impl AsRawFd) -> io::Result<()> {
    let mut iov = IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() };
    let mut control = Control {
        len: HEADER_BYTES + size_of::<c_int>(),
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [fd.as_raw_fd(), 0, 0, 0],
    };
    let message = Message {
        name: std::ptr::null_mut(),
        name_len: 0,
        iov: &raw mut iov,
        iov_len: 1,
        control: (&raw mut control).cast(),
        control_len: HEADER_BYTES + 8,
        flags: 0,
    };
    // SAFETY: the message points to live buffers of the lengths it tells.
    let sent = unsafe { sendmsg(socket.as_raw_fd(), &raw const message, MSG_NOSIGNAL) };
    usize::try_from(sent).map(drop).map_err(|_| io::Error::last_os_error())
}

/// Sends bytes; whoever asked may be gone. Safe between fork and exec.
pub(crate) fn tell(socket: c_int, bytes: &[u8]) {
    // SAFETY: the pointer and the length are those of one slice.
    unsafe { send(socket, bytes.as_ptr().cast(), bytes.len(), MSG_NOSIGNAL) };
}

/// Lets the system reap children without being asked.
pub(crate) fn ignore_children() {
    // SAFETY: no handler is installed.
    unsafe { signal(SIGCHLD, SIG_IGN) };
}

/// Gives every signal its usual meaning. Safe between fork and exec.
pub(crate) fn usual_signals() {
    for number in SIGNALS {
        // SAFETY: no handler is installed; the two that cannot be set have their default.
        unsafe { signal(number, SIG_DFL) };
    }
}

/// Hides this process from others with the same user.
pub(crate) fn hide() {
    // SAFETY: no pointer is passed.
    unsafe { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Makes this process the parent of orphaned descendants.
pub(crate) fn adopt_orphans() {
    // SAFETY: no pointer is passed.
    unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Has this process killed when its parent ends. Safe between fork and exec.
pub(crate) fn end_with_parent() {
    // SAFETY: no pointer is passed.
    unsafe { prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0) };
}

/// Leaves the session of the parent. Safe between fork and exec.
pub(crate) fn own_session() {
    // SAFETY: no pointer is passed.
    unsafe { setsid() };
}

/// Sets which permissions new files do not get.
pub(crate) fn usual_umask() {
    // SAFETY: no pointer is passed.
    unsafe { umask(0o022) };
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn send_signal(pid: i32, number: c_int) {
    // SAFETY: no pointer is passed.
    unsafe { kill(pid, number) };
}

/// Reaps one child that has ended: its number and status, `None` when all still run.
/// An error when there is no child.
pub(crate) fn reap() -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the status has room for the answer.
    let pid = checked(unsafe { waitpid(-1, &raw mut status, WNOHANG) })?;
    Ok((pid > 0).then_some((pid, status)))
}

/// A descriptor that can be read when a child has ended, instead of a signal.
pub(crate) fn children_fd() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<[u64; 16]>::zeroed();
    // SAFETY: the set has room for every signal and is initialised by the first call.
    unsafe {
        checked(sigemptyset(set.as_mut_ptr()))?;
        checked(sigaddset(set.as_mut_ptr(), SIGCHLD))?;
        checked(sigprocmask(SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()))?;
        let fd = checked(signalfd(-1, set.as_ptr(), SFD_CLOEXEC | SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Waits until one of two descriptors can be read, or for some milliseconds, and says which can.
pub(crate) fn wait_readable(
    first: &impl AsRawFd,
    second: Option<&impl AsRawFd>,
    limit: Option<i32>,
) -> (bool, bool) {
    let wanted = |fd| PollFd { fd, events: POLLIN, revents: 0 };
    // A negative descriptor is left out.
    let mut fds = [wanted(first.as_raw_fd()), wanted(second.map_or(-1, AsRawFd::as_raw_fd))];
    // SAFETY: the array has two elements.
    unsafe { poll(fds.as_mut_ptr(), 2, limit.unwrap_or(-1)) };
    let [first, second] = fds;
    (first.revents != 0, second.revents != 0)
}

/// Whether a file may be executed by this process.
pub(crate) fn executable(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a NUL byte.
    checked(unsafe { access(path.as_ptr(), X_OK) }).map(drop)
}

/// Sets a limit, no higher than this process may. Safe between fork and exec.
pub(crate) fn limit(kind: u32, soft: u64, hard: u64) -> io::Result<()> {
    let mut now = RLimit { soft: 0, hard: 0 };
    // SAFETY: the structure has room for the answer.
    checked(unsafe { getrlimit(kind, &raw mut now) })?;
    let wanted = RLimit { soft: soft.min(now.hard), hard: hard.min(now.hard) };
    // SAFETY: the structure is initialised.
    checked(unsafe { setrlimit(kind, &raw const wanted) }).map(drop)
}

/// A new terminal of this size, as its two ends.
pub(crate) fn terminal(
    columns: u16,
    rows: u16,
    owner: Option<(u32, u32)>,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let outer: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/ptmx")?.into();
    let unlocked: c_int = 0;
    let size = WinSize { rows, columns, x: 0, y: 0 };
    let flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
    // SAFETY: both pointers are to structures of the kind the call reads.
    let inner = unsafe {
        checked(ioctl(outer.as_raw_fd(), TIOCSPTLCK, &raw const unlocked))?;
        checked(ioctl(outer.as_raw_fd(), TIOCSWINSZ, &raw const size))?;
        OwnedFd::from_raw_fd(checked(ioctl(outer.as_raw_fd(), TIOCGPTPEER, flags))?)
    };
    if let Some((uid, gid)) = owner {
        // SAFETY: no pointer is passed.
        checked(unsafe { fchown(inner.as_raw_fd(), uid, gid) })?;
    }
    Ok((outer, inner))
}

/// Makes standard input the terminal of this session. Safe between fork and exec.
pub(crate) fn control_terminal() {
    // SAFETY: no pointer is passed.
    unsafe { ioctl(0, TIOCSCTTY, 0 as c_int) };
}

/// Starts a program; `before` runs in the new process and may only do what is safe there.
pub(crate) fn spawn(
    command: &mut Command,
    before: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<Child> {
    // SAFETY: the caller's closure makes system calls only, and this process has one thread.
    unsafe { command.pre_exec(before) }.spawn()
}
