//! A Docker daemon for tests: the one that runs, or one of their own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

const USUAL_SOCKET: &str = "/var/run/docker.sock";
const LOCK: &str = "/tmp/longshore-docker-tests.lock";
/// Starts a daemon and ends it when the tests do, whatever happens to them.
const SCRIPT: &str = "dir=$1; after=$2; shift 2; \"$@\" & read -r nothing; kill $!; wait; \
    umount \"$dir/data\"; test $after = keep && exit; rm -rf \"$dir\"; \
    for link in /sys/class/net/ls-*; do ip link del \"${link##*/}\"; done";
const START_LIMIT: Duration = Duration::from_secs(30);

/// Where a daemon listens; an error says what to install.
pub(crate) fn socket() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<(PathBuf, Option<Own>), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if answers(Path::new(USUAL_SOCKET)) {
            return Ok((USUAL_SOCKET.into(), None));
        }
        let own = Own::new(&[], LOCK, "remove")?;
        Ok((own.socket(), Some(own)))
    });
    found.as_ref().map(|(socket, _)| socket.clone()).map_err(Clone::clone)
}

/// A daemon of the tests.
pub(crate) struct Own {
    dir: tempfile::TempDir,
    arguments: Vec<&'static str>,
    /// Whether its files are kept when it ends.
    after: &'static str,
    /// Closing its input ends it; that happens when this process ends.
    child: Option<Child>,
    /// Other test processes wait with theirs: two would make the same network.
    lock: File,
}

impl Own {
    /// Starts one with these arguments beyond the usual.
    pub(crate) fn start(arguments: &[&'static str], lock: &str) -> Result<Self, String> {
        Self::new(arguments, lock, "keep")
    }

    fn new(arguments: &[&'static str], lock: &str, after: &'static str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err(failed("cannot start dockerd", &"not root"));
        }
        let locked = File::create(lock).map_err(|error| failed(lock, &error))?;
        flock(&locked, FlockOperation::LockExclusive).map_err(|error| failed(lock, &error))?;
        let dir = tempfile::tempdir().map_err(|error| failed("no directory", &error))?;
        let mut own = Self { dir, arguments: arguments.to_vec(), after, child: None, lock: locked };
        own.begin()?;
        Ok(own)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// Starts it again where it was stopped.
    pub(crate) fn begin(&mut self) -> Result<(), String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let log = File::create(path("log")).map_err(|error| failed("no log", &error))?;
        let lock = self.lock.try_clone().map_err(|error| failed("no lock", &error))?;
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh", &path(""), self.after, "dockerd", "--bridge=none"])
            .args(&self.arguments)
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "-H", &format!("unix://{}", path("docker.sock"))])
            .stdin(Stdio::piped())
            // So it is locked until all of this daemon is gone.
            .stdout(lock)
            .stderr(log)
            .spawn()
            .map_err(|error| failed("cannot start dockerd", &error))?;
        self.child = Some(child);
        let deadline = runtime::mono_now() + START_LIMIT;
        while !answers(&self.socket()) {
            if runtime::mono_now() > deadline {
                let log = std::fs::read_to_string(path("log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(failed("dockerd does not answer", &end.join("\n")));
            }
            runtime::pause_thread(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Stops it as a service would be stopped.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            child.wait().expect("ends");
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop();
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> String {
    format!("{what}: {error} (Debian: apt install docker.io iptables; as root)")
}

fn answers(socket: &Path) -> bool {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.ends_with("OK"))
    };
    ask().unwrap_or(false)
}
