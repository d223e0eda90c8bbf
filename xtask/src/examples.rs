//! Brings every example up as a person would and asks it for a page.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
    for (index, (name, word)) in EXAMPLES.iter().enumerate() {
        let port = 17_420 + 10 * u16::try_from(index).unwrap_or(0);
        example(&shore, name, word, port)?;
    }
    Ok(())
}

fn example(shore: &Path, name: &str, word: &str, port: u16) -> Result<(), Failure> {
    let home = std::env::temp_dir().join(format!("shore-example-{name}-{}", std::process::id()));
    let mut child = Command::new(shore)
        .arg("up")
        .arg(root().join("examples").join(name))
        .args(["--json", "--port", &port.to_string()])
        .args(["--http-port", &(port + 1).to_string(), "--ssh-port", &(port + 2).to_string()])
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", shore.display()))?;
    let page = page(&mut child, name, port + 1);
    let stopped = stop(&mut child);
    drop(std::fs::remove_dir_all(&home));
    let page = page?;
    stopped?;
    if !page.starts_with("HTTP/1.1 200") || !page.to_lowercase().contains(word) {
        return Err(format!("{name} answered something else:\n{page}"));
    }
    eprintln!("ok: {name} answered with its page");
    Ok(())
}

/// Waits for the URL, then asks for it.
fn page(child: &mut Child, name: &str, port: u16) -> Result<String, Failure> {
    let out = child.stdout.take().ok_or("shore has no output")?;
    let mut seen = Vec::new();
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|error| format!("shore's output ended: {error}"))?;
        if let Some(host) = host(&line) {
            return get(&host, port).map_err(|error| format!("{name}: {error}"));
        }
        seen.push(line);
    }
    Err(format!("{name} did not come up:\n{}", seen.join("\n")))
}

/// The host in the event that names the URL.
fn host(line: &str) -> Option<String> {
    let rest = line.split_once(r#""event":"value","name":"url","value":"http://"#)?.1;
    rest.split([':', '"']).next().map(str::to_owned)
}

fn get(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Ctrl-C, as a person would; everything must end by itself.
fn stop(child: &mut Child) -> Result<(), Failure> {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    sent.map_err(|error| format!("kill cannot be started: {error}"))?;
    let status = child.wait().map_err(|error| format!("shore is gone: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("shore ended with {status}")) }
}
