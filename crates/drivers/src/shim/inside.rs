//! Has the first process of a container start the command of a supervisor.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::Inside;
use crate::docker::inside::{Launched, launch};
use crate::error::StartFault;

/// Starts the command with pipes of this process.
pub(super) fn spawn(inside: &Inside) -> Result<super::Command, StartFault> {
    let failed = |error: io::Error| StartFault::Supervisor(error.to_string());
    let (stdout, their_stdout) = io::pipe().map_err(failed)?;
    let (stderr, their_stderr) = io::pipe().map_err(failed)?;
    let theirs = [their_stdout.as_fd(), their_stderr.as_fd()];
    let launched = launch(inside.first, &inside.order, &theirs)?;
    Ok(super::Command {
        pid: launched.command.pid,
        stdout: Some(stdout.into()),
        stderr: Some(stderr.into()),
        launched: Some(launched),
    })
}

/// Lets the command's end be told, now that it was written down.
pub(super) fn reaped(launched: Launched) -> io::Result<io::PipeReader> {
    launched.noted()?;
    let connection = launched.connection;
    connection.set_read_timeout(None)?;
    // It is read as the pipe of a reaper is: a wait status, then the end.
    Ok(io::PipeReader::from(OwnedFd::from(connection)))
}
