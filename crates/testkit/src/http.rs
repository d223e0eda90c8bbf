//! Asking for a page, by plain HTTP/1.1.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Page {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// `GET path` of `host`, from the router on `port` of this machine.
pub fn get(port: u16, host: &str, path: &str) -> std::io::Result<Page> {
    exchange(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close"), b"")
}

/// Sends a request as it is written, without its last two line breaks, and reads the answer.
pub fn exchange(port: u16, head: &str, body: &[u8]) -> std::io::Result<Page> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n\r\n")?;
    stream.write_all(body)?;
    answer(&mut stream)
}

/// Reads an answer after which the connection closes.
pub fn answer(stream: &mut TcpStream) -> std::io::Result<Page> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {text:?}")))?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok(Page { status, head: head.to_owned(), body: body.to_owned() })
}
