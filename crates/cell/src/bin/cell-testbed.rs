//! The supervisor of containers for this crate's tests, and the app that runs in them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = drivers::shim::maybe_run() {
        return code;
    }
    if let Some(code) = gate::maybe_run() {
        return code;
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Answers every request with 200 until one asks for `/fail`; from then on with 500, until one asks
/// for `/mend`.
fn serve() -> std::io::Result<()> {
    let port = std::env::vars().find_map(|(name, value)| (name == "PORT").then_some(value));
    let listener = TcpListener::bind(format!("127.0.0.1:{}", port.unwrap_or_default()))?;
    writeln!(std::io::stdout(), "listening")?;
    let mut status = "200 OK";
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 1024];
        let read = stream.read(&mut request)?;
        let line = String::from_utf8_lossy(request.get(..read).unwrap_or_default()).into_owned();
        if line.starts_with("GET /fail") {
            status = "500 Internal Server Error";
        } else if line.starts_with("GET /mend") {
            status = "200 OK";
        }
        // A check that only connects is gone already.
        drop(write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n"));
    }
    Ok(())
}
