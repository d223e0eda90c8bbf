//! A place for containers of tests, and what Docker says about it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use drivers::conformance::Subject;
use drivers::docker::{Config, DockerDriver};
use drivers::{Driver, Exit, Handle, Output, OutputOffset, ProcessId, ProcessSpec, Source};
use futures_util::StreamExt as _;
use runtime::{Stop, Tasks, timeout};

use crate::daemon;

const TESTBED: &str = env!("CARGO_BIN_EXE_drivers-testbed");
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Whether a machine without Docker is a failure.
#[expect(clippy::disallowed_methods, reason = "only the environment tells that this is CI")]
pub(crate) fn insists() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

pub(crate) struct Place {
    dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        daemon::socket().map(|socket| Self { dir, socket })
    }

    /// A place on another daemon than that of all tests.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { dir: tempfile::tempdir().expect("makes a directory"), socket }
    }

    /// Where the driver keeps what it knows.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    /// A directory beside that.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).expect("makes a directory");
        dir
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new(self.path());
        config.supervisor = TESTBED.into();
        config.socket.clone_from(&self.socket);
        config.unused_images = 0;
        config.base_mounts = drivers::oci::Config::machine_base();
        config
    }

    pub(crate) fn driver(&self) -> DockerDriver {
        driver_of(&self.config())
    }

    /// Runs a script to its end and gives its output.
    pub(crate) async fn run(&self, driver: &DockerDriver, at: &Handle, text: &str) -> String {
        let known = driver.inspect(at).await.expect("is there").processes.len();
        self.run_spec(driver, at, sh(&format!("run{known}"), text)).await.1
    }

    pub(crate) async fn run_spec(
        &self,
        driver: &DockerDriver,
        at: &Handle,
        spec: ProcessSpec,
    ) -> (Exit, String) {
        let name = spec.id.clone();
        driver.start(at, spec).await.expect("starts");
        let mut stream = driver.attach(at, &name, OutputOffset(0)).await.expect("attaches");
        let mut text = Vec::new();
        while let Some(output) = timeout(SOON, stream.next()).await.expect("ends in time") {
            if let Output::Chunk(chunk) = output.expect("reads")
                && chunk.source == Source::Stdout
            {
                text.extend_from_slice(&chunk.bytes);
            }
        }
        let exit = timeout(SOON, driver.wait(at, &name)).await.expect("ends in time");
        (exit.expect("waits"), String::from_utf8_lossy(&text).into_owned())
    }

    fn owner(&self) -> String {
        fs::read_to_string(self.path().join(".owner")).expect("reads")
    }

    /// Names of the containers Docker has of this place.
    pub(crate) fn containers(&self) -> Vec<String> {
        let label = format!("longshore.owner={}", self.owner());
        let filter = format!("%7B%22label%22%3A%5B%22{label}%22%5D%7D");
        let listed = self.ask("GET", &format!("/containers/json?all=1&filters={filter}"));
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("parses");
        listed.iter().map(|one| one["Names"][0].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Identifiers of the images Docker has of this place.
    pub(crate) fn images(&self) -> Vec<String> {
        let listed = self.ask("GET", "/images/json");
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("parses");
        let own = format!("longshore/{}:", self.owner());
        let is_own = |one: &&serde_json::Value| one["RepoTags"].to_string().contains(&own);
        listed.iter().filter(is_own).map(|one| one["Id"].to_string()).collect()
    }

    /// Kills containers behind the driver's back.
    pub(crate) fn kill_all(&self) {
        for name in self.containers() {
            self.ask("POST", &format!("/containers{name}/kill"));
        }
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("connects");
        write!(stream, "{method} {path} HTTP/1.0\r\n\r\n").expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        answer.split_once("\r\n\r\n").expect("has a head").1.to_owned()
    }

    /// Checks that Docker, the disk and the process table know nothing of this place any more.
    pub(crate) fn nothing_is_left(&self) {
        assert_eq!(self.containers(), Vec::<String>::new(), "containers");
        assert_eq!(self.images(), Vec::<String>::new(), "images");
        let left = fs::read_dir(self.path()).expect("lists").flatten();
        let names: Vec<_> = left.map(|entry| entry.file_name().into_string()).collect();
        let hidden = |name: &Result<String, _>| {
            name.as_ref().is_ok_and(|name: &String| name.starts_with('.'))
        };
        assert!(names.iter().all(hidden), "{names:?}");
        let trash = fs::read_dir(self.path().join(".trash")).expect("lists").count();
        assert_eq!(trash, 0, "trash");
    }
}

impl Drop for Place {
    /// What a failed test left behind.
    fn drop(&mut self) {
        if !self.path().join(".owner").exists() {
            return;
        }
        for name in self.containers() {
            self.ask("DELETE", &format!("/containers{name}?force=1&v=1"));
        }
        for image in self.images() {
            self.ask("DELETE", &format!("/images/{}?force=1", image.trim_matches('"')));
        }
    }
}

impl Subject for Place {
    fn open(&self) -> drivers::Result<Arc<dyn Driver>> {
        Ok(Arc::new(self.driver()))
    }

    fn shares_users(&self) -> bool {
        true
    }
}

/// The rules for connections there are.
pub(crate) fn iptables_rules() -> String {
    let rules = Command::new("iptables").args(["-w", "-S"]).output().expect("runs");
    String::from_utf8_lossy(&rules.stdout).into_owned()
}

pub(crate) fn driver_of(config: &Config) -> DockerDriver {
    DockerDriver::open(config, Tasks::new(Stop::new())).expect("opens")
}

pub(crate) fn handle(name: &str) -> Handle {
    Handle::new(name).expect("a good handle")
}

pub(crate) fn id(name: &str) -> ProcessId {
    ProcessId::new(name).expect("a good id")
}

pub(crate) fn sh(name: &str, text: &str) -> ProcessSpec {
    ProcessSpec::new(id(name), ["/bin/sh", "-c", text])
}
