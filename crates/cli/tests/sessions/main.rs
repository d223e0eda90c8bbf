//! People work in instances: commands with and without a terminal, files in and out. Everything here
//! drives the real program.

mod commands;
mod files;
mod relay;
mod terminal;
mod wire;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testkit::{Dev, Failure};

/// How long something may take that does not happen at once.
const LIMIT: Duration = Duration::from_secs(20);
/// The project and the app every command here is about.
const HERE: [&str; 2] = ["--project", "shop"];

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

/// An error of the system as a failure.
fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Every word is in what was said.
fn holds(said: &str, words: &[&str]) -> Result<(), Failure> {
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{word}` is missing in:\n{said}")),
    }
}

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        let err = String::from_utf8_lossy(&stderr).into_owned();
        Self { code: status.code().unwrap_or(-1), out: stdout, err }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// It ended with this code and said exactly this on standard output.
    fn is(&self, code: i32, out: &str) -> Result<(), Failure> {
        if self.code == code && self.text() == out {
            return Ok(());
        }
        let (own, text) = (self.code, self.text());
        Err(format!("{own}, not {code}; out {text:?}, not {out:?}; err {}", self.err))
    }

    /// It ended with this code and complained with these words.
    fn refused(&self, code: i32, words: &[&str]) -> Result<(), Failure> {
        if self.code != code {
            return Err(format!("{}, not {code}: {} {}", self.code, self.text(), self.err));
        }
        holds(&self.err, words)
    }
}

/// Runs a command to its end with this standard input.
fn piped(mut command: Command, input: &[u8]) -> Result<Said, Failure> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(told)?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    let input = input.to_vec();
    // A command that does not read to the end is fine.
    let feeds = runtime_thread(move || drop(stdin.write_all(&input)))?;
    let output = child.wait_with_output().map_err(told)?;
    feeds.join().map_err(|_| "the input broke")?;
    Ok(Said::of(output))
}

fn runtime_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, Failure> {
    std::thread::Builder::new().spawn(work).map_err(told)
}

/// A server with an app that runs: two instances of `web`.
struct World {
    dev: Dev,
}

/// The source of an app.
fn source(below: &Path) -> Result<PathBuf, Failure> {
    let dir = below.join("site");
    std::fs::create_dir_all(&dir).map_err(told)?;
    std::fs::write(dir.join("index.html"), "<h1>hello</h1>").map_err(told)?;
    Ok(dir)
}

impl World {
    fn start() -> Result<Self, Failure> {
        let dev = Dev::start(program())?;
        let site = source(dev.home())?.display().to_string();
        dev.shore(&["up", &site, "--project", "shop"])?.ok("shore up")?;
        Ok(Self { dev })
    }

    /// `shore exec web ARGS -- ARGV`.
    fn exec(&self, args: &[&str], command: &[&str], input: &[u8]) -> Result<Said, Failure> {
        let all = [&["exec", "web"], &HERE[..], args, &["--"], command].concat();
        piped(self.dev.command(&all), input)
    }

    /// `shore cp ARGS`.
    fn cp(&self, args: &[&str], input: &[u8]) -> Result<Said, Failure> {
        piped(self.dev.command(&[&["cp"], &HERE[..], args].concat()), input)
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.dev.ports.api)
    }
}

/// Whether a process with this number runs.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
