//! The four roles as processes of their own, the router twice, each of which can be killed and
//! started again.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::dev::{at_home, first_json, run};
use crate::{Failure, Ports, Ran, end_all_below};

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Keeps everything.
    Server,
    /// Takes jobs.
    Runner,
    /// Runs containers.
    Cell,
    /// Routes requests.
    Router,
    /// Routes requests on the same port.
    OtherRouter,
}

impl Role {
    /// Every role, in the order in which they start.
    pub const ALL: [Self; 5] =
        [Self::Server, Self::Runner, Self::Cell, Self::Router, Self::OtherRouter];

    /// The command's name.
    pub const fn command(self) -> &'static str {
        match self {
            Self::OtherRouter => "router",
            other => other.name(),
        }
    }

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Runner => "runner",
            Self::Cell => "cell",
            Self::Router => "router",
            Self::OtherRouter => "other-router",
        }
    }
}

/// Server, runner, cell and two routers, each a process.
#[derive(Debug)]
pub struct Cluster {
    shore: PathBuf,
    home: TempDir,
    /// Where they listen.
    pub ports: Ports,
    children: [Option<Child>; Role::ALL.len()],
    tokens: [String; Role::ALL.len()],
}

impl Cluster {
    /// Starts all of them in a fresh directory.
    pub fn start(shore: &Path) -> Result<Self, Failure> {
        let home = tempfile::Builder::new().prefix("shore-cluster-").tempdir();
        let home = home.map_err(|error| error.to_string())?;
        let mut cluster = Self {
            shore: shore.to_owned(),
            home,
            ports: Ports::free()?,
            children: Default::default(),
            tokens: Default::default(),
        };
        let ready = cluster.launch(Role::Server)?;
        let admin = ready["token"].as_str().ok_or("the server printed no token")?.to_owned();
        let url = cluster.url();
        cluster
            .shore(&["context", "set", "cluster", "--server", &url, "--token", &admin])?
            .ok("context set")?;
        for role in [Role::Runner, Role::Cell, Role::Router, Role::OtherRouter] {
            let made = cluster.json(&["token", "create", "--role", role.command()])?;
            let token = made["token"].as_str().ok_or("no token was printed")?;
            token.clone_into(&mut cluster.tokens[role as usize]);
            cluster.launch(role)?;
        }
        Ok(cluster)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    /// A directory for the test's own files.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// What a role said of itself.
    pub fn log(&self, role: Role) -> String {
        std::fs::read_to_string(self.log_file(role)).unwrap_or_default()
    }

    fn log_file(&self, role: Role) -> PathBuf {
        self.home.path().join(format!("{}.log", role.name()))
    }

    /// `shore ARGS`, ready to start as a person would.
    pub fn command(&self, args: &[&str]) -> Command {
        at_home(&self.shore, self.home.path(), args)
    }

    /// Starts a role; its first line when it prints one.
    pub fn launch(&mut self, role: Role) -> Result<Value, Failure> {
        let log = std::fs::File::options().append(true).create(true).open(self.log_file(role));
        let log = log.map_err(|error| error.to_string())?;
        let ports = self.ports;
        let mut command = self.command(&[role.command(), "--json", "--log", "info"]);
        let listen = |port: u16| format!("127.0.0.1:{port}");
        match role {
            Role::Server => {
                command.args(["--listen", &listen(ports.api), "--ssh", &listen(ports.ssh)]);
            }
            Role::Router | Role::OtherRouter => {
                command.args(["--listen", &listen(ports.http), "--share-port", "--data"]);
                command.arg(self.home.path().join("data/longshore").join(role.name()));
            }
            Role::Cell => {
                // The same on every machine, with or without a container runtime.
                command.args(["--driver", "process"]);
            }
            Role::Runner => {}
        }
        if role != Role::Server {
            command.env("SHORE_TOKEN", &self.tokens[role as usize]).env("SHORE_SERVER", self.url());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let out = child.stdout.take().ok_or("a role has no output")?;
        self.children[role as usize] = Some(child);
        if matches!(role, Role::Runner | Role::Cell) {
            return Ok(Value::Null);
        }
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(|error| error.to_string())?;
        serde_json::from_str(&line)
            .map_err(|_| format!("{} did not start:\n{}", role.name(), self.log(role)))
    }

    /// The process number of a role, while it runs.
    pub fn pid(&self, role: Role) -> Option<u32> {
        self.children[role as usize].as_ref().map(Child::id)
    }

    /// Ends a role as `kill -9` does.
    pub fn kill(&mut self, role: Role) -> Result<(), Failure> {
        let Some(mut child) = self.children[role as usize].take() else { return Ok(()) };
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Runs `shore ARGS` as a person would.
    pub fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        run(&mut self.command(args))
    }

    /// Starts `shore ARGS` and does not wait.
    pub fn shore_in_background(&self, args: &[&str], out: Stdio) -> Result<Child, Failure> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        command.spawn().map_err(|error| error.to_string())
    }

    /// Runs `shore ARGS --json` and reads the first line.
    pub fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        first_json(args, |args| self.shore(args))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for role in [Role::Runner, Role::Router, Role::OtherRouter, Role::Cell, Role::Server] {
            self.kill(role).unwrap_or_default();
        }
        end_all_below(self.home.path());
    }
}
