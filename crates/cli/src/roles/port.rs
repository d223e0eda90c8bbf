//! Ports: taking one, and saying who has it when that fails.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::error::{CliError, ErrorKind, Result};

/// How the kernel's table of sockets says "listens".
const LISTENS: &str = "0A";

/// How long a port that is taken is tried again. A predecessor that was killed while it started a
/// process leaves a child that has its sockets until it becomes that process.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Binds a port, or says what to do about it.
pub(super) async fn bind(what: &str, address: SocketAddr, flag: &str) -> Result<TcpListener> {
    let until = runtime::mono_now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && runtime::mono_now() < until =>
            {
                runtime::sleep(PAUSE).await;
            }
            bound => return bound.map_err(|error| refused(what, address, flag, &error)),
        }
    }
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
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_port_that_a_killed_predecessor_still_has_is_waited_for() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = holder.local_addr().expect("an address");
        let mut binding = std::pin::pin!(bind("server", address, "--listen"));
        let first = futures_util::poll!(binding.as_mut());
        assert!(matches!(first, Poll::Pending), "it is taken");
        drop(holder);
        assert_eq!(binding.await.expect("binds").local_addr().expect("an address"), address);
    }

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
