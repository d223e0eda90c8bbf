//! The sockets each thread listens on.

use std::net::{SocketAddr, TcpListener};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::StartError;
use crate::options::{MAX_THREADS, Options};

/// Connections the system keeps for us until they are accepted.
const BACKLOG: i32 = 1_024;

/// How many threads serve.
pub(crate) fn threads(wanted: usize) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if wanted == 0 { cores() } else { wanted };
    threads.clamp(1, MAX_THREADS)
}

type Sockets = (Vec<SocketAddr>, Vec<Vec<TcpListener>>);

/// How many connections to instances may be kept, by the process's limit of open files.
pub(crate) fn sockets_to_keep() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)) / 2
}

/// The addresses, and for each thread a socket on each of them. The system spreads connections over
/// the sockets of an address.
pub(crate) fn sockets(options: &Options, threads: usize) -> Result<Sockets, StartError> {
    let mut addresses = Vec::new();
    let mut each: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    for listener in &options.listeners {
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        for mine in &mut each {
            mine.push(listener.try_clone()?);
        }
    }
    for wanted in &options.listen {
        let mut address = *wanted;
        let refused =
            |error: rustix::io::Errno| StartError::Listen { address: *wanted, error: error.into() };
        if address.port() != 0 && !options.shares {
            // Sockets that share a port would share it with another router, too, without a word.
            drop(bind(address, false).map_err(refused)?);
        }
        for mine in &mut each {
            let listener = bind(address, true).map_err(refused)?;
            // With port 0, the first socket finds the port for the others.
            address = listener.local_addr()?;
            mine.push(listener);
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(StartError::NoListener);
    }
    Ok((addresses, each))
}

fn bind(address: SocketAddr, is_shared: bool) -> rustix::io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, is_shared)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
