//! The first process of a container: it idles, and starts the processes the agent asks for.
//!
//! `build.rs` links it statically, because nothing can be assumed of a container's files; so it
//! uses no crate but the standard library. It listens on a socket that only the machine may use,
//! and gives each request to a child of its own, the launcher. That starts one program, adopts
//! what its descendants leave behind, tells the wait status, and ends when nothing is left. When
//! the asker goes away, the program is killed: nothing runs that nobody keeps the output of.

mod system;
#[cfg_attr(not(alone), expect(dead_code, reason = "the other half is used by the driver"))]
mod wire;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use wire::{Answer, Fault, LENGTH_BYTES, MAX_REQUEST_BYTES, NOTED, Order};

/// The number every first process has.
const FIRST: u32 = 1;
/// How long to wait for children that were killed, in milliseconds.
const KILL_PAUSE_MS: i32 = 10;
/// Users and groups of a container whose image has none.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n";
const GROUPS: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
const NOT_FOUND: i32 = 2;
const NO_PERMISSION: i32 = 1;
const TRY_AGAIN: i32 = 11;
const NO_MEMORY: i32 = 12;
const ACCESS_DENIED: i32 = 13;
const NOT_A_DIRECTORY: i32 = 20;
const NOT_A_PROGRAM: i32 = 8;

fn main() -> ExitCode {
    system::hide();
    let launch = std::env::args_os().nth(1).is_some_and(|argument| argument == wire::LAUNCH);
    let result = if std::process::id() == FIRST {
        listen()
    } else if launch {
        serve()
    } else {
        Ok(())
    };
    result.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// Hands every connection from outside to a launcher.
fn listen() -> io::Result<()> {
    system::ignore_children();
    system::usual_umask();
    usual_files();
    // Docker keeps what is mounted there when it starts the container again.
    drop(fs::remove_file(wire::SOCKET));
    for connection in UnixListener::bind(wire::SOCKET)?.incoming() {
        let Ok(connection) = connection else { continue };
        if !system::peer(&connection).is_ok_and(|peer| peer == (0, 0)) {
            continue;
        }
        let Ok(copy) = connection.try_clone() else { continue };
        let launcher = Command::new("/proc/self/exe")
            .arg0("launcher")
            .arg(wire::LAUNCH)
            .env_clear()
            .stdin(OwnedFd::from(copy))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if let Err(error) = launcher {
            answer(&connection, failed(&error));
        }
    }
    Ok(())
}

/// Makes what every process may expect; an image may lack it, or be read-only.
fn usual_files() {
    for (dir, mode) in [("/home", 0o1777), ("/root", 0o700), ("/tmp", 0o1777)] {
        if fs::create_dir(dir).is_ok() {
            drop(fs::set_permissions(dir, fs::Permissions::from_mode(mode)));
        }
    }
    for (path, text) in [("/etc/passwd", USERS), ("/etc/group", GROUPS)] {
        if let Ok(mut file) = File::create_new(path) {
            drop(file.write_all(text.as_bytes()));
        }
    }
}

fn answer(connection: &UnixStream, answer: Answer) {
    system::tell(connection.as_raw_fd(), &answer.to_bytes());
}

/// Starts one program for the connection that is the standard input.
fn serve() -> io::Result<()> {
    system::usual_signals();
    let connection = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    if !system::peer(&connection).is_ok_and(|peer| peer == (0, 0)) {
        return Ok(());
    }
    system::own_session();
    system::adopt_orphans();
    let children = File::from(system::children_fd()?);
    let Some((order, files)) = request(&connection)? else {
        answer(&connection, Answer::Failed(Fault::Request, 0));
        return Ok(());
    };
    match start(&connection, &order, files) {
        Ok((child, terminal)) => {
            let runs = Answer::Runs.to_bytes();
            match terminal {
                Some(terminal) => system::send_with(&connection, &runs, &terminal)?,
                None => system::tell(connection.as_raw_fd(), &runs),
            }
            follow(connection, children, child.id().cast_signed())
        }
        Err(fault) => {
            answer(&connection, fault);
            Ok(())
        }
    }
}

/// Reads what to start, and the descriptors for it.
fn request(connection: &UnixStream) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
    let mut length = [0; LENGTH_BYTES];
    let (got, files) = system::receive(connection, &mut length)?;
    let mut rest = connection;
    if let Some(missing) = length.get_mut(got..) {
        rest.read_exact(missing)?;
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_REQUEST_BYTES {
        return Ok(None);
    }
    let mut text = vec![0; length];
    rest.read_exact(&mut text)?;
    Ok(Order::from_bytes(&text).map(|order| (order, files)))
}

/// Standard input, output and error of a new process.
type Streams = [Stdio; 3];

/// Sorts out the descriptors of a request; the other end of a terminal goes back to the asker.
fn streams(order: &Order, files: Vec<OwnedFd>) -> io::Result<(Streams, Option<OwnedFd>)> {
    if let Some((columns, rows)) = order.terminal {
        let (outer, inner) = system::terminal(columns, rows, order.user)?;
        let copies = [inner.try_clone()?.into(), inner.try_clone()?.into(), inner.into()];
        return Ok((copies, Some(outer)));
    }
    let mut files = files.into_iter().rev();
    let (error, output) = (files.next(), files.next());
    let (Some(error), Some(output)) = (error, output) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Without an input of its own it gets an empty one.
    let input = files.next().map_or_else(Stdio::null, Stdio::from);
    Ok(([input, output.into(), error.into()], None))
}

fn start(
    connection: &UnixStream,
    order: &Order,
    files: Vec<OwnedFd>,
) -> Result<(Child, Option<OwnedFd>), Answer> {
    let dir = Path::new(&order.dir);
    enter(dir, order.user).map_err(|error| failure(Fault::Directory, &error))?;
    let name = order.argv.first().ok_or(Answer::Failed(Fault::Request, 0))?;
    let program = find(name, order).map_err(|error| failed(&error))?;
    check_format(&program).map_err(|error| failed(&error))?;
    let (streams, terminal) = streams(order, files).map_err(|error| failed(&error))?;
    let [stdin, stdout, stderr] = streams;
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(order.argv.iter().skip(1))
        .current_dir(dir)
        .env_clear()
        .envs(order.env.iter().filter_map(|text| text.split_once('=')))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    if let Some((uid, gid)) = order.user {
        command.uid(uid).gid(gid);
    }
    if order.terminal.is_none() {
        command.process_group(0);
    }
    let limits = order.limits.clone();
    let in_terminal = order.terminal.is_some();
    let asker = connection.as_raw_fd();
    let before = move || {
        system::end_with_parent();
        system::usual_signals();
        if in_terminal {
            system::own_session();
            system::control_terminal();
        }
        for (kind, soft, hard) in &limits {
            system::limit(*kind, *soft, *hard)?;
        }
        system::tell(asker, &Answer::Here.to_bytes());
        Ok(())
    };
    let child = system::spawn(&mut command, before).map_err(|error| failed(&error))?;
    Ok((child, terminal))
}

/// Makes the working directory when it is missing, for its user.
fn enter(dir: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    match user {
        Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

fn failure(fault: Fault, error: &io::Error) -> Answer {
    Answer::Failed(fault, error.raw_os_error().unwrap_or_default())
}

fn failed(error: &io::Error) -> Answer {
    let fault = match error.raw_os_error().unwrap_or_default() {
        // A script's interpreter may lie below a file.
        NOT_FOUND | NOT_A_DIRECTORY => Fault::Missing,
        ACCESS_DENIED | NO_PERMISSION => Fault::Denied,
        NOT_A_PROGRAM => Fault::Format,
        TRY_AGAIN | NO_MEMORY => Fault::Limits,
        _ => Fault::Other,
    };
    failure(fault, error)
}

/// Finds the program the way a shell would, but in the command's own `PATH`.
fn find(name: &str, order: &Order) -> io::Result<PathBuf> {
    let dir = Path::new(&order.dir);
    if name.contains('/') {
        let path = dir.join(name);
        return executable(&path).map(|()| path);
    }
    let mut found = io::Error::from_raw_os_error(NOT_FOUND);
    let search = order.env.iter().rev().find_map(|text| text.strip_prefix("PATH="));
    for part in std::env::split_paths(search.unwrap_or_default()) {
        let path = dir.join(part).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(NOT_FOUND) => {}
            Err(error) => found = error,
        }
    }
    Err(found)
}

fn executable(path: &Path) -> io::Result<()> {
    match system::executable(path) {
        Ok(()) if path.is_dir() => Err(io::Error::from_raw_os_error(ACCESS_DENIED)),
        Err(error) if error.raw_os_error() == Some(NOT_A_DIRECTORY) => {
            Err(io::Error::from_raw_os_error(NOT_FOUND))
        }
        other => other,
    }
}

/// Refuses what is neither a binary nor a script that names its interpreter: the C library would
/// hand such a file to a shell, and the platform starts no shell of its own.
fn check_format(program: &Path) -> io::Result<()> {
    // A program that may be run but not read is left to the kernel to judge.
    let Ok(file) = File::open(program) else { return Ok(()) };
    let mut start = Vec::with_capacity(4);
    let read = file.take(4).read_to_end(&mut start);
    if read.is_ok() && !start.starts_with(b"#!") && !start.starts_with(b"\x7fELF") {
        return Err(io::Error::from_raw_os_error(NOT_A_PROGRAM));
    }
    Ok(())
}

/// Waits for the program and for everything it leaves behind. When the asker goes away, all of it
/// is killed.
fn follow(connection: UnixStream, mut children: File, command: i32) -> io::Result<()> {
    let mut asker = Some(connection);
    let mut noted = [0];
    // The asker looks at the new process before it says so: until then it must stay findable.
    let told = asker.as_ref().map(|mut asker| asker.read(&mut noted));
    if !matches!(told, Some(Ok(1))) || noted != [NOTED] {
        asker = None;
    }
    loop {
        if asker.is_none() {
            kill_children();
        }
        let limit = asker.is_none().then_some(KILL_PAUSE_MS);
        let (ended, spoke) = system::wait_readable(&children, asker.as_ref(), limit);
        if spoke && !matches!(asker.as_ref().map(|mut asker| asker.read(&mut noted)), Some(Ok(1))) {
            asker = None;
        }
        if ended {
            drop(children.read(&mut [0; 512]));
        }
        loop {
            match system::reap() {
                Ok(Some((pid, status))) if pid == command => {
                    if let Some(asker) = &asker {
                        system::tell(asker.as_raw_fd(), &encode(status).to_le_bytes());
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Kills the children of this process. Theirs are its own then, and killed the next time.
fn kill_children() {
    let own = std::process::id();
    let list = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    for pid in list.split(' ').filter_map(|pid| pid.parse().ok()) {
        system::send_signal(pid, system::SIGKILL);
    }
}

/// An exit code as it is, a signal as a negative number.
fn encode(status: i32) -> i32 {
    let status = ExitStatus::from_raw(status);
    status.code().or_else(|| status.signal().map(i32::wrapping_neg)).unwrap_or(i32::MIN)
}
