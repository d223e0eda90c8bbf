//! A web app of the standard library alone: answers every path with who and where it is.
//!
//! One thread per connection, connections are kept alive. It needs no handler for TERM: an answer
//! is one write, so the signal finds it either sent or not begun.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Most bytes of the head of a request.
const MAX_HEAD: u64 = 32 * 1024;
/// Most bytes of the body of a request, which is read and forgotten.
const MAX_BODY: u64 = 1024 * 1024;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(75);

fn main() -> io::Result<()> {
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let port = env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let listener = TcpListener::bind(format!("{host}:{port}"))?;
    println!("listening on {port}");
    let page: Arc<str> = page().into();
    for stream in listener.incoming() {
        let page = Arc::clone(&page);
        match stream {
            // A client that goes away, or that sends nonsense, is not worth a word.
            Ok(stream) => drop(thread::spawn(move || serve(&stream, &page))),
            Err(error) => eprintln!("no connection accepted: {error}"),
        }
    }
    Ok(())
}

fn page() -> String {
    let name = escape(&env::var("SHORE_APP").unwrap_or_else(|_| "rust-web".to_owned()));
    let index = escape(&env::var("SHORE_INSTANCE_INDEX").unwrap_or_else(|_| "local".to_owned()));
    format!("<!doctype html><title>{name}</title><h1>{name}</h1><p>rust-web, instance {index}</p>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn serve(stream: &TcpStream, page: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let connection = if request.close { "close" } else { "keep-alive" };
        let body = if request.head { "" } else { page };
        let length = page.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}"
        );
        (&mut &*stream).write_all(answer.as_bytes())?;
        if request.close {
            break;
        }
    }
    Ok(())
}

struct Request {
    head: bool,
    close: bool,
}

impl Request {
    /// Reads a request with its body; nothing at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = reader.by_ref().take(MAX_HEAD);
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut request = Self { head: line.starts_with("HEAD "), close: !line.contains("HTTP/1.1") };
        let mut length = 0;
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    length = value.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                }
                "connection" => request.close |= value.eq_ignore_ascii_case("close"),
                // Bodies in chunks are not read, so nothing after them can be.
                "transfer-encoding" => request.close = true,
                _ => {}
            }
        }
        if length > MAX_BODY {
            request.close = true;
        } else {
            io::copy(&mut reader.take(length), &mut io::sink())?;
        }
        Ok(Some(request))
    }
}
