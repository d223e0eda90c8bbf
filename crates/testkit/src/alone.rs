//! A server without the other roles, as a process that is started with what a test needs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::dev::{at_home, first_json, run};
use crate::{Failure, Page, Ran, end_all_below, exchange, wait_for};

/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// `shore server`, and commands for it. It is ended when this is dropped.
#[derive(Debug)]
pub struct Alone {
    shore: PathBuf,
    home: TempDir,
    child: Option<Child>,
    /// Where it listens.
    pub port: u16,
    /// The first administrator's token.
    pub token: String,
}

impl Alone {
    /// Starts a new server on a free port, with `args` besides.
    pub fn start(shore: &Path, args: &[&str]) -> Result<Self, Failure> {
        Self::start_after(shore, ":", args)
    }

    /// Starts it from a shell that carried out `script` first; `$DISK` is where its data will be.
    pub fn start_after(shore: &Path, script: &str, args: &[&str]) -> Result<Self, Failure> {
        let home = tempfile::Builder::new().prefix("shore-alone-").tempdir();
        let home = home.map_err(|error| error.to_string())?;
        let (shore, token) = (shore.to_owned(), String::new());
        let mut alone = Self { shore, home, child: None, port: 0, token };
        std::fs::create_dir(alone.disk()).map_err(|error| error.to_string())?;
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(args);
        let ready = alone.launch(script, &all)?;
        ready["token"].as_str().unwrap_or_default().clone_into(&mut alone.token);
        alone.use_server(&format!("http://127.0.0.1:{}", alone.port))?.ok("context set")?;
        Ok(alone)
    }

    /// Starts it again after it ended, on the same data.
    pub fn start_again(&mut self, args: &[&str]) -> Result<Value, Failure> {
        self.launch(":", args)
    }

    fn launch(&mut self, script: &str, args: &[&str]) -> Result<Value, Failure> {
        let log = std::fs::File::options().append(true).create(true).open(self.log_file());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{script}\nexec \"$0\" \"$@\"")).arg(&self.shore);
        command.args(["server", "--json", "--ssh", "127.0.0.1:0", "--data"]).arg(self.data());
        command.args(args).env("DISK", self.disk()).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(log.map_err(|error| error.to_string())?);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let out = child.stdout.take().ok_or("the server has no output")?;
        self.child = Some(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(|error| error.to_string())?;
        let ready: Value = serde_json::from_str(&line)
            .map_err(|_| format!("the server did not start:\n{}", self.log()))?;
        let port = ready["server"].as_str().and_then(|url| url.rsplit(':').next()?.parse().ok());
        self.port = port.ok_or("the server did not say where it listens")?;
        Ok(ready)
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// What it said of itself.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A directory for the test's own files.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where a script may put a disk of its own.
    pub fn disk(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// Where it keeps everything.
    pub fn data(&self) -> PathBuf {
        self.disk().join("server")
    }

    /// Its process number.
    pub fn pid(&self) -> Result<u32, Failure> {
        self.child.as_ref().map(Child::id).ok_or_else(|| "the server does not run".to_owned())
    }

    /// The most memory it ever held, in KiB.
    pub fn peak_memory(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.ok_or_else(|| format!("no peak in {text}"))
    }

    /// `shore ARGS`, ready to start as a person would.
    pub fn command(&self, args: &[&str]) -> Command {
        at_home(&self.shore, self.home.path(), args)
    }

    /// Runs `shore ARGS` to its end.
    pub fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        run(&mut self.command(args))
    }

    /// Runs `shore ARGS --json` and reads the first line.
    pub fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        first_json(args, |args| self.shore(args))
    }

    /// Makes a token with `args`, as in `--role cell`.
    pub fn make_token(&self, args: &[&str]) -> Result<String, Failure> {
        let made = self.json(&[&["token", "create"], args].concat())?;
        made["token"].as_str().map(str::to_owned).ok_or_else(|| format!("no token: {made}"))
    }

    /// Sets the context to this server at `url`, with the first token.
    pub fn use_server(&self, url: &str) -> Result<Ran, Failure> {
        self.shore(&["context", "set", "alone", "--server", url, "--token", &self.token])
    }

    /// Calls the HTTP API: `GET /v1/info`, further header lines, a body.
    pub fn call(&self, line: &str, headers: &[&str], body: &[u8]) -> Result<Page, Failure> {
        let mut head = format!("{line} HTTP/1.1\r\nHost: alone\r\nConnection: close");
        for header in headers {
            head = format!("{head}\r\n{header}");
        }
        exchange(self.port, &head, body).map_err(|error| format!("{line}: {error}"))
    }

    /// Ends it as Ctrl-C does, and waits.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let pid = self.pid()?.to_string();
        run(Command::new("kill").args(["-INT", &pid]))?.ok("kill")?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let ended = wait_for("the server to end", STOP_LIMIT, || child.try_wait().ok().flatten());
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("the server ended with {status}:\n{}", self.log())),
            Err(late) => {
                child.kill().map_err(|error| error.to_string())?;
                Err(late)
            }
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop().unwrap_or_default();
        }
        end_all_below(self.home.path());
    }
}
