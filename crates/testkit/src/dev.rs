//! An all-in-one server in a directory of its own.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Failure, wait_for};

/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Ports that are chosen from.
const FIRST_PORT: u16 = 10_000;
/// How many there are.
const PORTS: u64 = 20_000;
/// How many are tried for each that is wanted.
const TRIES: usize = 100;

/// Where an all-in-one server listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The server.
    pub api: u16,
    /// The router.
    pub http: u16,
    /// git over SSH.
    pub ssh: u16,
}

impl Ports {
    /// Three ports that are free now, below those the system gives to connections: a server that is
    /// started again finds them free.
    pub fn free() -> Result<Self, Failure> {
        let random = runtime::Random::system();
        let bind = || {
            let ports = (0..TRIES).map(|_| FIRST_PORT + (random.next_u64() % PORTS) as u16);
            let mut free = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
            free.next().ok_or_else(|| "no port is free".to_owned())
        };
        let held = [bind()?, bind()?, bind()?];
        let port = |socket: &TcpListener| {
            socket.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
        };
        Ok(Self { api: port(&held[0])?, http: port(&held[1])?, ssh: port(&held[2])? })
    }
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// The output of a command that had to succeed.
    pub fn ok(self, what: &str) -> Result<String, Failure> {
        if self.code == 0 {
            return Ok(self.out);
        }
        Err(format!("{what} ended with {}:\n{}{}", self.code, self.out, self.err))
    }

    /// The output of a command that had to fail.
    pub fn failed(self, what: &str) -> Result<String, Failure> {
        if self.code != 0 {
            return Ok(self.out + &self.err);
        }
        Err(format!("{what} should have failed:\n{}{}", self.out, self.err))
    }
}

/// `shore ARGS`, ready to start as a person whose home this is would.
pub(crate) fn at_home(shore: &Path, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(shore);
    command
        .args(args)
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("NO_COLOR", "1")
        .current_dir(home);
    command
}

/// The first line of what `shore ARGS --json` says.
pub(crate) fn first_json(
    args: &[&str],
    shore: impl FnOnce(&[&str]) -> Result<Ran, Failure>,
) -> Result<Value, Failure> {
    let mut all = args.to_vec();
    all.push("--json");
    let out = shore(&all)?.ok(&format!("shore {}", args.join(" ")))?;
    let line = out.lines().next().unwrap_or("null");
    serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Ran, Failure> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The `shore` program beside this one, where cargo builds both.
pub fn shore_binary() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let dirs = own.ancestors().skip(1).take(3);
    let found = dirs.map(|dir| dir.join("shore")).find(|path| path.is_file());
    found.ok_or_else(|| "there is no `shore` beside this program: build it first".to_owned())
}

/// An all-in-one server. It is ended when this is dropped.
#[derive(Debug)]
pub struct Dev {
    shore: PathBuf,
    home: PathBuf,
    /// Where it listens.
    pub ports: Ports,
    child: Option<Child>,
    /// Removed last.
    _root: TempDir,
}

impl Dev {
    /// Starts `shore dev` in a fresh directory and waits until it is ready.
    pub fn start(shore: &Path) -> Result<Self, Failure> {
        Self::start_below(shore, Path::new(""))
    }

    /// Starts it in the directory `below` a fresh one.
    pub fn start_below(shore: &Path, below: &Path) -> Result<Self, Failure> {
        let root = tempfile::Builder::new().prefix("shore-test-").tempdir();
        let root = root.map_err(|error| error.to_string())?;
        let (shore, home) = (shore.to_owned(), root.path().join(below));
        std::fs::create_dir_all(&home).map_err(|error| error.to_string())?;
        let mut dev = Self { shore, home, ports: Ports::free()?, child: None, _root: root };
        dev.launch()?;
        Ok(dev)
    }

    /// The owner's token.
    pub fn token(&self) -> Result<String, Failure> {
        let text = std::fs::read_to_string(self.data().join("tokens.json"));
        let text = text.map_err(|error| error.to_string())?;
        let tokens: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        tokens["admin"].as_str().map(str::to_owned).ok_or_else(|| "no token is kept".to_owned())
    }

    /// Starts it again after it ended, on the same data.
    pub fn launch(&mut self) -> Result<(), Failure> {
        let mut child = self.spawn(&["dev"], |_| Ok(Stdio::piped()))?;
        let out = child.stdout.take().ok_or("shore dev has no output")?;
        self.child = Some(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(|error| error.to_string())?;
        if !line.contains("\"ready\"") {
            return Err(format!("shore dev did not start:\n{}", self.log()));
        }
        // The first line is all it says; its pipe may close.
        self.wait_until_it_listens()
    }

    /// Starts `shore ARGS`, which brings all roles along, on the same data, and does not wait.
    /// What it prints is in the log.
    pub fn begin(&mut self, args: &[&str]) -> Result<(), Failure> {
        let both = |log: &std::fs::File| log.try_clone().map(Stdio::from);
        self.child = Some(self.spawn(args, both)?);
        Ok(())
    }

    fn spawn(
        &self,
        args: &[&str],
        out: impl FnOnce(&std::fs::File) -> std::io::Result<Stdio>,
    ) -> Result<Child, Failure> {
        let start = || {
            let log = std::fs::File::options().append(true).create(true).open(self.log_file())?;
            let ports = self.ports;
            let mut command = self.command(args);
            command.arg("--json").args(["--port", &ports.api.to_string()]);
            command.args(["--http-port", &ports.http.to_string()]);
            command.args(["--ssh-port", &ports.ssh.to_string()]);
            command.stdin(Stdio::null()).stdout(out(&log)?).stderr(log).spawn()
        };
        start().map_err(|error| error.to_string())
    }

    /// Waits until the server's port takes connections.
    pub fn wait_until_it_listens(&self) -> Result<(), Failure> {
        let api = self.ports.api;
        let up = || std::net::TcpStream::connect(("127.0.0.1", api)).ok();
        let up = wait_for("the server's port", START_LIMIT, up);
        up.map(|_| ()).map_err(|late| format!("{late}:\n{}", self.log()))
    }

    fn log_file(&self) -> PathBuf {
        self.home.join("shore-dev.log")
    }

    /// What the roles said of themselves.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A directory for the test's own files.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where everything is kept.
    pub fn data(&self) -> PathBuf {
        self.home.join("data/longshore")
    }

    /// The process number of the all-in-one server.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `shore ARGS`, ready to start as a person would.
    pub fn command(&self, args: &[&str]) -> Command {
        at_home(&self.shore, &self.home, args)
    }

    /// Runs `shore ARGS` as a person in another terminal would.
    pub fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        run(&mut self.command(args))
    }

    /// Starts `shore ARGS` as a person in another terminal would and does not wait.
    pub fn shore_in_background(&self, args: &[&str], out: Stdio) -> Result<Child, Failure> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        command.spawn().map_err(|error| error.to_string())
    }

    /// Runs `shore ARGS --json` and reads the first line.
    pub fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        first_json(args, |args| self.shore(args))
    }

    /// Sends a signal by number; nothing happens when it has ended.
    pub fn signal(&self, signal: &str) -> Result<(), Failure> {
        let Some(pid) = self.pid() else { return Ok(()) };
        run(Command::new("kill").args([signal, &pid.to_string()])).map(|_| ())
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Ctrl-C; waits until it ended well.
    pub fn stop(&mut self) -> Result<(), Failure> {
        match self.interrupt(STOP_LIMIT)? {
            Some(ended) if !ended.success() => Err(format!("shore dev ended with {ended}")),
            Some(_) | None => Ok(()),
        }
    }

    /// Ctrl-C; waits until it ended, at most for `limit`, and says how. `None`: it had ended before.
    pub fn interrupt(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Failure> {
        self.signal("-INT")?;
        let Some(mut child) = self.child.take() else { return Ok(None) };
        let ended = wait_for("an end after Ctrl-C", limit, || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill().map_err(|error| error.to_string())?;
        }
        ended.map(Some).map_err(|late| format!("{late}:\n{}", self.log()))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Ctrl-C first, so that no container is left behind.
            self.stop().unwrap_or_default();
        }
    }
}
