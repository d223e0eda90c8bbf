//! One machine of the cluster: a host, a disk, and at most one role that runs on it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Disk, Host, Lan, Ran, wait_for};

use crate::Failure;

/// MiB of a machine's disk. Only what is written takes room.
const DISK_MIB: u64 = 20 << 10;
/// The port of the server.
pub(super) const API_PORT: u16 = 7420;
/// The port of routers.
pub(super) const HTTP_PORT: u16 = 8080;
/// How long a role may take to be ready.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(20);

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) host: Host,
    pub(super) disk: Disk,
    shore: PathBuf,
    home: PathBuf,
    /// Where it says things, on another disk.
    log: PathBuf,
    args: Vec<String>,
    variables: Vec<(String, String)>,
    /// By how much its clock is wrong, in the words of libfaketime.
    skew: Option<String>,
    child: Option<Child>,
}

impl Machine {
    pub(super) fn new(shore: &Path, lan: &Lan, name: &str, number: u8) -> Result<Self, Failure> {
        let home = lan.home().join(name);
        Ok(Self {
            host: lan.host(name, number)?,
            disk: Disk::new(&home, DISK_MIB)?,
            shore: shore.to_owned(),
            log: lan.home().join(format!("{name}.log")),
            home,
            args: Vec::new(),
            variables: Vec::new(),
            skew: None,
            child: None,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.host.name
    }

    /// Where it keeps everything.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.host.address), port)
    }

    /// `shore ARGS` on this machine.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(&self.shore);
        command.args(args).current_dir(&self.home);
        command.env("XDG_DATA_HOME", self.home.join("data"));
        command.env("XDG_CONFIG_HOME", self.home.join("config")).env("NO_COLOR", "1");
        command
    }

    /// What runs on it, and the variables that has.
    pub(super) fn runs(&mut self, args: &[&str], variables: &[(&str, &str)]) {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.variables = variables.iter().map(own).collect();
    }

    fn out(&self) -> PathBuf {
        self.log.with_extension("out")
    }

    /// What it said of itself.
    pub(super) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts its role, and does not wait.
    pub(super) fn launch(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| error.to_string();
        let log = std::fs::File::options().append(true).create(true).open(&self.log);
        let out = std::fs::File::create(self.out()).map_err(failed)?;
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let mut command = self.command(&[&args[..], &["--json", "--log", "info"]].concat());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(skew) = &self.skew {
            command.env("LD_PRELOAD", faketime()?).env("FAKETIME", skew);
        }
        command.stdin(Stdio::null()).stdout(out).stderr(log.map_err(failed)?);
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Waits until its role says that it is ready; what it says then.
    pub(super) fn ready(&self) -> Result<Value, Failure> {
        let look = || {
            let text = std::fs::read_to_string(self.out()).ok()?;
            serde_json::from_str::<Value>(text.lines().next()?).ok()
        };
        let ready = wait_for(&format!("{} to be ready", self.name()), READY_LIMIT, look);
        ready.map_err(|late| format!("{late}:\n{}", self.said()))
    }

    pub(super) fn start(&mut self) -> Result<Value, Failure> {
        self.launch()?;
        self.ready()
    }

    /// Ends its role as `kill -9` does.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Ends everything on it, as a power cut does.
    pub(super) fn power_off(&mut self) -> Result<(), Failure> {
        self.host.power_off()?;
        self.kill()
    }

    fn signal(&self, signal: &str) -> Result<(), Failure> {
        let child = self.child.as_ref().ok_or_else(|| format!("{} does not run", self.name()))?;
        run(Command::new("kill").args([signal, &child.id().to_string()]))?.ok("kill").map(|_| ())
    }

    /// Stops its role where it is.
    pub(super) fn freeze(&self) -> Result<(), Failure> {
        self.signal("-STOP")
    }

    /// Lets it go on.
    pub(super) fn thaw(&self) -> Result<(), Failure> {
        self.signal("-CONT")
    }

    /// Starts its role again with a clock that is wrong from now on, in the words of libfaketime; with
    /// one that is right when absent.
    pub(super) fn restart_with_clock(&mut self, skew: Option<&str>) -> Result<Value, Failure> {
        self.kill()?;
        self.skew = skew.map(str::to_owned);
        self.start()
    }

    /// Makes everything as it should be, whatever was done to it.
    pub(super) fn mend(&mut self) -> Result<(), Failure> {
        self.host.heal()?;
        // Only one of the machines has a full disk, if any.
        self.disk.make_room().unwrap_or_default();
        if self.args.is_empty() {
            return Ok(());
        }
        let ended = match &mut self.child {
            Some(child) => child.try_wait().map_err(|error| error.to_string())?.is_some(),
            None => true,
        };
        let is_wrong = self.skew.take().is_some();
        if is_wrong || ended {
            self.kill()?;
            self.start()?;
        }
        self.thaw()
    }
}

/// Runs a command to its end.
pub(super) fn run(command: &mut Command) -> Result<Ran, Failure> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The library that lies about the time.
fn faketime() -> Result<PathBuf, Failure> {
    let dirs = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = dirs.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let found = found.find(|path| path.is_file());
    found.ok_or_else(|| "libfaketime is not on this machine".to_owned())
}
