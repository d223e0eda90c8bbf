//! The processes that are measured, and what the system says of them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a process may take to start.
const START: Duration = Duration::from_secs(10);

/// A folder that is gone in the end.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("shore-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        Ok(Self(path))
    }
}

impl std::ops::Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Something that listens on a port.
pub(super) trait Listens {
    fn port(&self) -> u16;
}

/// A child of ours, ended with this.
pub(super) struct Child {
    child: std::process::Child,
    port: u16,
}

impl Listens for Child {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Child {
    /// This program again, as a router.
    pub(super) fn router(
        serve: &str,
        backend: u16,
        hosts: usize,
        told: Option<&Path>,
    ) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut child = Command::new(program)
            .args(["router", serve, &backend.to_string(), &hosts.to_string()])
            .args(told)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let output = child.stdout.take().ok_or("the child has no output")?;
        let line = super::first_line(output)?;
        let port = line.parse().map_err(|_| format!("the router said `{line}`"))?;
        Ok(Self { child, port })
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        vec![self.child.id()]
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An nginx of ours, ended with this.
pub(super) struct Nginx {
    child: std::process::Child,
    pub(super) port: u16,
}

impl Listens for Nginx {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Nginx {
    /// Answers everything with `body`.
    pub(super) fn backend(dir: &Path, name: &str, body: &str) -> Result<Self, String> {
        let port = free_port()?;
        let server = format!(
            "keepalive_requests 1000000000;\nkeepalive_timeout 600s;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; return 200 '{body}'; }}\n"
        );
        Self::start(dir, name, port, 2, &server)
    }

    /// Passes `hosts` hosts on, as a careful administrator would have it: each is an app with an
    /// upstream of its own that keeps connections.
    pub(super) fn proxy(
        dir: &Path,
        backend: u16,
        hosts: usize,
        workers: usize,
    ) -> Result<Self, String> {
        let port = free_port()?;
        let mut servers = String::from(
            "keepalive_requests 1000000000;\n\
             server_names_hash_max_size 65536;\nserver_names_hash_bucket_size 64;\n\
             proxy_http_version 1.1;\nproxy_set_header Connection '';\n\
             proxy_set_header Host $http_host;\nproxy_set_header X-Forwarded-For $remote_addr;\n\
             proxy_set_header X-Forwarded-Host $http_host;\n\
             proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header X-Request-Id $request_id;\n",
        );
        for index in 0..hosts {
            let name = super::host(index);
            writeln!(
                servers,
                "upstream app{index} {{ server 127.0.0.1:{backend}; keepalive 128;\n\
                 keepalive_requests 1000000000; }}\n\
                 server {{ listen 127.0.0.1:{port}; server_name {name};\n\
                 location / {{ proxy_pass http://app{index}; }} }}"
            )
            .map_err(|error| error.to_string())?;
        }
        Self::start(dir, &format!("proxy{hosts}"), port, workers, &servers)
    }

    fn start(
        dir: &Path,
        name: &str,
        port: u16,
        workers: usize,
        http: &str,
    ) -> Result<Self, String> {
        let at = dir.join(name);
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        let path = at.display();
        let mut temporary = String::new();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(temporary, "{kind}_temp_path {path}/{kind};")
                .map_err(|error| error.to_string())?;
        }
        let config = format!(
            "daemon off;\nworker_processes {workers};\npid {path}/pid;\n\
             error_log {path}/error.log;\nworker_rlimit_nofile 20000;\n\
             events {{ worker_connections 15000; }}\n\
             http {{\naccess_log off;\n{temporary}{http}}}\n"
        );
        let file = at.join("nginx.conf");
        std::fs::write(&file, config).map_err(|error| error.to_string())?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(&at)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("nginx cannot be started (package nginx-light): {error}"))?;
        let nginx = Self { child, port };
        nginx.wait(&at.join("error.log"))?;
        Ok(nginx)
    }

    fn wait(&self, log: &Path) -> Result<(), String> {
        let started = runtime::mono_now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if started.elapsed() > START {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("nginx does not listen: {log}"));
            }
            runtime::pause_thread(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The master and its workers.
    pub(super) fn pids(&self) -> Vec<u32> {
        let master = self.child.id();
        let path = format!("/proc/{master}/task/{master}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(master).chain(children).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; SIGKILL would leave them.
        let pid = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        drop(self.child.wait());
    }
}

fn free_port() -> Result<u16, String> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    Ok(listener.local_addr().map_err(|error| error.to_string())?.port())
}

/// CPU time all of them used, in microseconds.
pub(super) fn cpu_us(pids: &[u32]) -> Result<f64, String> {
    /// What `/proc` counts in, on every Linux we run on.
    const TICK_US: u64 = 10_000;
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_err(|error| format!("process {pid}: {error}"))?;
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let fields: Vec<u64> =
            fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let (user, system) = fields.get(11).zip(fields.get(12)).ok_or("unreadable stat")?;
        ticks += user + system;
    }
    Ok((ticks * TICK_US) as f64)
}

/// Memory all of them have resident, in MB.
pub(super) fn rss_mb(pids: &[u32]) -> Result<f64, String> {
    let mut kib = 0.0;
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|error| format!("process {pid}: {error}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.and_then(|line| line.split_whitespace().next()).unwrap_or("0");
        kib += text.parse::<f64>().map_err(|error| error.to_string())?;
    }
    Ok(super::round(kib / 1_024.0))
}

/// Tells the parent something.
pub(super) fn say(line: &str) -> Result<(), String> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(|error| error.to_string())
}
