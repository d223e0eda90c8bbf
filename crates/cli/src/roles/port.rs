//! Ports: taking one, and saying who has it when that fails.

use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpListener;

use crate::error::{CliError, ErrorKind, Result};

/// How the kernel's table of sockets says "listens".
const LISTENS: &str = "0A";

/// Binds a port, or says what to do about it.
pub(super) async fn bind(what: &str, address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| refused(what, address, flag, &error))
}

/// A port that cannot be had.
pub(super) fn refused(
    what: &str,
    address: SocketAddr,
    flag: &str,
    error: &std::io::Error,
) -> CliError {
    let message = format!("cannot listen on {address} for the {what}: {error}");
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let holder = holder(address.port()).unwrap_or_else(|| "another program".to_owned());
            format!("{holder} has the port: end it, or choose another with `{flag}`")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need more rights: choose another with `{flag}`")
        }
        _ => format!("choose another address with `{flag}`"),
    };
    CliError::new(ErrorKind::Unavailable, message).hint(hint)
}

/// The process that listens on a port, when this user may see it.
fn holder(port: u16) -> Option<String> {
    let sockets = inodes(port);
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(std::result::Result::ok);
    processes.filter(|entry| has_one(&entry.path(), &sockets)).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(format!("process {pid} ({})", name.trim()))
    })
}

/// The sockets that listen on a port, as `/proc/PID/fd` names them.
fn inodes(port: u16) -> Vec<String> {
    let port = format!("{port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String =
        tables.iter().map(|table| std::fs::read_to_string(table).unwrap_or_default()).collect();
    let listening = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let found = *state == LISTENS && address.rsplit_once(':')?.1 == port;
        found.then(|| format!("socket:[{inode}]"))
    });
    listening.collect()
}

fn has_one(process: &Path, sockets: &[String]) -> bool {
    let Ok(files) = std::fs::read_dir(process.join("fd")) else { return false };
    files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).any(|link| {
        let link = link.to_string_lossy();
        sockets.iter().any(|socket| *socket == link)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = held.local_addr().expect("an address").port();
        let found = holder(port).expect("this process is found");
        assert!(found.starts_with(&format!("process {} (", std::process::id())), "{found}");
        drop(held);
        assert_eq!(holder(port), None);
    }
}
