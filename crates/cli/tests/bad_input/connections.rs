//! What one SSH connection may do, and for how long.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testkit::{Dev, Failure, Repo};

use crate::{holds, program, told};

/// Commands that one connection may run at once.
const CHANNELS: usize = 8;

/// A connection that stays open, with the real ssh.
struct Connection {
    private: PathBuf,
    socket: PathBuf,
    port: u16,
}

impl Connection {
    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-i").arg(&self.private).arg("-S").arg(&self.socket);
        for option in [
            "ControlMaster=auto",
            "ControlPersist=60",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-p", &self.port.to_string(), "git@127.0.0.1"]);
        command
    }

    /// Starts a fetch that waits for what the client wants.
    fn fetch(&self) -> Result<Child, Failure> {
        let mut command = self.ssh();
        command.arg("git-upload-pack '/shop'");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // The connection outlives its first command, and a pipe of it would too.
        let errors = std::fs::File::create(self.errors()).map_err(told)?;
        command.stderr(errors).spawn().map_err(told)
    }

    fn errors(&self) -> PathBuf {
        self.socket.with_extension("err")
    }

    /// Wants nothing, as git says it, and waits; what was said on standard error.
    fn finish(&self, mut fetch: Child) -> Result<(bool, String), Failure> {
        if let Some(mut input) = fetch.stdin.take() {
            // A refused fetch reads nothing.
            drop(input.write_all(b"0000"));
        }
        let ended = fetch.wait_with_output().map_err(told)?;
        let said = std::fs::read_to_string(self.errors()).map_err(told)?;
        Ok((ended.status.success(), said))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended by itself.
        let mut exit = Command::new("ssh");
        exit.arg("-S").arg(&self.socket).args(["-O", "exit", "git@127.0.0.1"]);
        drop(exit.stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
}

fn start(dir: &Path) -> Result<(Dev, Connection), Failure> {
    let dev = Dev::start(program())?;
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let private = public.with_extension("");
    let connection = Connection { private, socket: dir.join("ssh"), port: dev.ports.ssh };
    Ok((dev, connection))
}

#[test]
fn a_key_that_was_removed_does_nothing_more_over_an_open_connection() -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(told)?;
    let (dev, connection) = start(dir.path())?;
    let (good, said) = connection.finish(connection.fetch()?)?;
    if !good {
        return Err(format!("the key works at first: {said}"));
    }
    let keys = dev.shore(&["key", "list"])?.ok("key list")?;
    let id = keys.split_whitespace().find(|word| word.starts_with("key_"));
    dev.shore(&["key", "remove", id.ok_or("the key has an id")?])?.ok("key remove")?;
    let (good, said) = connection.finish(connection.fetch()?)?;
    holds(&said, &["this SSH key was removed", "hint: "])?;
    if good { Err("a removed key was served".to_owned()) } else { Ok(()) }
}

#[test]
fn one_connection_runs_a_few_commands_and_goes_on_when_they_ended() -> Result<(), Failure> {
    let dir = tempfile::tempdir().map_err(told)?;
    let (_dev, connection) = start(dir.path())?;
    let mut held = Vec::new();
    for _ in 0..CHANNELS {
        let mut fetch = connection.fetch()?;
        let output = fetch.stdout.as_mut().ok_or("it has an output")?;
        // git speaks first, so it runs.
        output.read_exact(&mut [0; 4]).map_err(told)?;
        held.push(fetch);
    }
    // ssh says so, and opens another connection.
    let (_, said) = connection.finish(connection.fetch()?)?;
    holds(&said, &["Session open refused by peer"])?;
    for fetch in held {
        let (good, said) = connection.finish(fetch)?;
        if !good {
            return Err(format!("a command that runs goes on: {said}"));
        }
    }
    let (good, said) = connection.finish(connection.fetch()?)?;
    if good { Ok(()) } else { Err(format!("there is room again: {said}")) }
}
