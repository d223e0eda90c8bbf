//! Requests to a Docker daemon over its unix socket.
//!
//! One connection for each request, blocking, in HTTP/1.0: an answer then ends with its connection
//! and is never in pieces, so nothing more than the head has to be understood. Callers run on
//! threads that may block.

use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::supervised::locked;

/// How long the daemon may take for its next byte; loading an image is quiet for long.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);
/// How long it may take to say who it is.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// The largest answer.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// How much of a refusal is passed on.
const MAX_REASON_BYTES: usize = 2_000;
/// The version of the API of Docker 20.10, the oldest that is understood.
const OLDEST: Version = Version { major: 1, minor: 41 };
/// The version of the API of Docker 28, the newest whose descriptions were read.
const NEWEST: Version = Version { major: 1, minor: 50 };

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The daemon does not answer, or not in its language.
    #[error("the Docker daemon at {socket}: {error}")]
    Silent {
        /// Where it should listen.
        socket: String,
        /// What happened.
        error: io::Error,
    },
    /// It answered that it will not.
    #[error("Docker refused: {reason} ({status})")]
    Status {
        /// The status of HTTP.
        status: u16,
        /// Its reason.
        reason: String,
    },
    /// There is no version both understand.
    #[error("{0}")]
    Version(String),
}

impl Refusal {
    /// Whether the daemon knows no such thing.
    pub(super) const fn is_missing(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }

    /// Whether what was asked for is there already, or in use.
    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self, Self::Status { status: 409, .. })
    }

    /// Whether the daemon says that it speaks another version than agreed: it was exchanged.
    fn is_other_version(&self) -> bool {
        matches!(self, Self::Status { status: 400, reason } if reason.contains("client version"))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::other(refusal.to_string())
    }
}

/// What a request carries.
pub(super) enum Body<'a> {
    Empty,
    Json(Vec<u8>),
    /// A tar of this many bytes, written when the daemon is ready for it.
    Tar(u64, &'a dyn Fn(&mut dyn Write) -> io::Result<()>),
}

/// A way to one daemon.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    /// What was agreed on; asked again after the daemon was away.
    agreed: Mutex<Option<Version>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Greeting {
    api_version: String,
    #[serde(default, rename = "MinAPIVersion")]
    min_api_version: String,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), agreed: Mutex::new(None) }
    }

    /// The version both understand.
    pub(super) fn version(&self) -> Result<Version, Refusal> {
        if let Some(version) = *locked(&self.agreed) {
            return Ok(version);
        }
        let text = self.exchange(("GET", "/version"), &Body::Empty, GREETING_LIMIT)?;
        let version = agree(&self.parse(&text)?)?;
        tracing::info!(socket = %self.socket.display(), %version, "agreed with Docker");
        *locked(&self.agreed) = Some(version);
        Ok(version)
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.parse(&self.send("GET", path, &Body::Empty)?)
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Refusal> {
        let body = serde_json::to_vec(body).map_err(|error| self.silent(error.into()))?;
        self.parse(&self.send("POST", path, &Body::Json(body))?)
    }

    pub(super) fn delete(&self, path: &str) -> Result<(), Refusal> {
        self.send("DELETE", path, &Body::Empty).map(drop)
    }

    /// Sends a request in the version that was agreed on.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        body: &Body<'_>,
    ) -> Result<Vec<u8>, Refusal> {
        let once = || {
            let path = format!("/v{}{path}", self.version()?);
            self.exchange((method, &path), body, ANSWER_LIMIT)
        };
        match once() {
            Err(refusal) if refusal.is_other_version() => {
                *locked(&self.agreed) = None;
                once()
            }
            Err(refusal @ Refusal::Silent { .. }) => {
                *locked(&self.agreed) = None;
                Err(refusal)
            }
            other => other,
        }
    }

    fn silent(&self, error: io::Error) -> Refusal {
        Refusal::Silent { socket: self.socket.display().to_string(), error }
    }

    fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, Refusal> {
        serde_json::from_slice(text).map_err(|error| self.silent(error.into()))
    }

    fn exchange(
        &self,
        (method, path): (&str, &str),
        body: &Body<'_>,
        limit: Duration,
    ) -> Result<Vec<u8>, Refusal> {
        let talk = || {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            let written = write_request(&mut stream, (method, path), body);
            // A daemon that refuses does not read to the end, but says why.
            let mut answer = Vec::new();
            let read = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer);
            if answer.is_empty() {
                written?;
            }
            read?;
            parts(answer)
        };
        let (status, text) = talk().map_err(|error| self.silent(error))?;
        if (200..300).contains(&status) || status == 304 {
            return Ok(text);
        }
        let reason = serde_json::from_slice::<Reason>(&text).map(|reason| reason.message);
        let mut reason = reason.unwrap_or_else(|_| String::from_utf8_lossy(&text).into_owned());
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Err(Refusal::Status { status, reason: reason.trim().to_owned() })
    }
}

/// The newest version both understand.
fn agree(greeting: &Greeting) -> Result<Version, Refusal> {
    let theirs = Version::parse(&greeting.api_version);
    let refused = |problem: String| {
        Refusal::Version(format!(
            "Docker speaks version {} of its API, {problem}; this driver speaks {OLDEST} \
             (Docker 20.10) to {NEWEST}",
            greeting.api_version
        ))
    };
    let theirs = theirs.ok_or_else(|| refused("which is no version".to_owned()))?;
    if theirs < OLDEST {
        return Err(refused("which is too old".to_owned()));
    }
    let agreed = theirs.min(NEWEST);
    if let Some(least) = Version::parse(&greeting.min_api_version).filter(|least| *least > agreed) {
        return Err(refused(format!("and no older one than {least}")));
    }
    Ok(agreed)
}

fn write_request(
    stream: &mut UnixStream,
    (method, path): (&str, &str),
    body: &Body<'_>,
) -> io::Result<()> {
    let (kind, length) = match body {
        Body::Empty => ("text/plain", 0),
        Body::Json(text) => ("application/json", text.len() as u64),
        Body::Tar(bytes, _) => ("application/x-tar", *bytes),
    };
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    match body {
        Body::Empty => Ok(()),
        Body::Json(text) => stream.write_all(text),
        Body::Tar(_, write) => {
            let mut buffered = io::BufWriter::with_capacity(256 << 10, stream);
            write(&mut buffered)?;
            buffered.flush()
        }
    }
}

/// The status and the body of an answer.
fn parts(answer: Vec<u8>) -> io::Result<(u16, Vec<u8>)> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "this is no answer of Docker");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
    let mut head = answer;
    let body = head.split_off(end + 4);
    let head = String::from_utf8_lossy(&head);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let told = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if !head.starts_with("HTTP/1.") || told.is_some_and(|told| told > body.len()) {
        return Err(broken());
    }
    status.map(|status| (status, body)).ok_or_else(broken)
}

/// Text as part of a path or query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            let [high, low] = [byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16));
            let digits = [high, low].into_iter().flatten();
            escaped
                .extend(std::iter::once('%').chain(digits.map(|digit| digit.to_ascii_uppercase())));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_agreed_on() {
        let agree = |theirs: &str, least: &str| {
            let (api_version, min_api_version) = (theirs.to_owned(), least.to_owned());
            agree(&Greeting { api_version, min_api_version }).map(|version| version.to_string())
        };
        for (theirs, least, agreed) in [
            ("1.41", "1.12", "1.41"),
            ("1.50", "1.24", "1.50"),
            ("1.52", "1.44", "1.50"),
            ("2.0", "", "1.50"),
        ] {
            assert_eq!(agree(theirs, least).expect("agrees"), agreed, "{theirs}");
        }
        for (theirs, least) in [("1.40", "1.12"), ("1.99", "1.51"), ("x", ""), ("", "")] {
            let refused = agree(theirs, least).expect_err("refuses").to_string();
            assert!(refused.contains("1.41 (Docker 20.10) to 1.50"), "{refused}");
        }
    }

    #[test]
    fn answers_are_split() {
        let answer = |text: &str| parts(text.as_bytes().to_vec());
        let whole = answer("HTTP/1.0 201 Created\r\nA: b\r\n\r\n{}\r\n\r\n").expect("splits");
        assert_eq!(whole, (201, b"{}\r\n\r\n".to_vec()));
        let cut = "HTTP/1.0 200 OK\r\ncontent-length: 9\r\n\r\nabc";
        for bad in ["", "x", "HTTP/1.0 200 OK\r\n", cut, "SSH-2.0 1\r\n\r\n"] {
            assert!(answer(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped("a b/{\"x\":[ü]}"), "a%20b%2F%7B%22x%22%3A%5B%C3%BC%5D%7D");
    }
}
