//! Brings every example up as a person would and asks it for a page.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use testkit::{Page, Ports, get};

use crate::{Failure, build_shore, root};

/// Every example, and how to know its page.
const EXAMPLES: [(&str, &str); 5] = [
    ("static-site", "static"),
    ("python-web", "python"),
    ("node-web", "node"),
    ("rust-web", "rust"),
    ("procfile", "procfile"),
];

pub(crate) fn run() -> Result<(), Failure> {
    let shore = build_shore()?;
    for (name, word) in EXAMPLES {
        example(&shore, name, word, Ports::free()?)?;
    }
    Ok(())
}

fn example(shore: &Path, name: &str, word: &str, ports: Ports) -> Result<(), Failure> {
    let home = std::env::temp_dir().join(format!("shore-example-{name}-{}", std::process::id()));
    let mut child = Command::new(shore)
        .arg("up")
        .arg(root().join("examples").join(name))
        .args(["--json", "--port", &ports.api.to_string()])
        .args(["--http-port", &ports.http.to_string(), "--ssh-port", &ports.ssh.to_string()])
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", shore.display()))?;
    let page = page(&mut child, name, ports.http);
    let stopped = stop(&mut child);
    drop(std::fs::remove_dir_all(&home));
    let page = page?;
    stopped?;
    if page.status != 200 || !page.body.to_lowercase().contains(word) {
        return Err(format!("{name} answered something else: {page:?}"));
    }
    eprintln!("ok: {name} answered with its page");
    Ok(())
}

/// Waits for the URL, then asks for it.
fn page(child: &mut Child, name: &str, port: u16) -> Result<Page, Failure> {
    let out = child.stdout.take().ok_or("shore has no output")?;
    let mut seen = Vec::new();
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|error| format!("shore's output ended: {error}"))?;
        if let Some(host) = host(&line) {
            return get(port, &host, "/").map_err(|error| format!("{name}: {error}"));
        }
        seen.push(line);
    }
    Err(format!("{name} did not come up:\n{}", seen.join("\n")))
}

/// The host in the event that says that the app is live.
fn host(line: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let url = event["url"].as_str().filter(|_| event["event"] == "live")?;
    url.strip_prefix("http://")?.split(':').next().map(str::to_owned)
}

/// Ctrl-C, as a person would; everything must end by itself.
fn stop(child: &mut Child) -> Result<(), Failure> {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    sent.map_err(|error| format!("kill cannot be started: {error}"))?;
    let status = child.wait().map_err(|error| format!("shore is gone: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("shore ended with {status}")) }
}
