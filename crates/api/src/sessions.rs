//! Sessions as the HTTP API has them: binary WebSocket frames whose first byte says what follows.
//!
//! Bytes flow as far as there is credit, from the program that types to the container and back.
//! Frames with bytes cost what [`cost`] says; whoever has passed bytes on grants as much again. Who
//! sends more than its credit loses the session.

use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use model::ExitStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The WebSocket subprotocol, with its version.
pub const SUBPROTOCOL: &str = "shore.session.v1";
/// Most bytes of one frame behind its first.
pub const MAX_SESSION_DATA: usize = 64 << 10;
/// What the smallest frame with bytes costs.
pub const LEAST_COST: u32 = 256;
/// Most bytes on their way to whoever opened a session: no more credit may be granted. It is what
/// a cell lets be on its way in the other direction, too.
pub const SESSION_WINDOW: u32 = 256 << 10;

/// What a frame of `bytes` bytes costs.
pub fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).max(LEAST_COST)
}

/// What is wanted: the first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// What the server may send at first.
    pub credit: u32,
    /// What to do.
    pub what: SessionWhat,
}

/// What is done in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionWhat {
    /// Runs a command.
    Exec(SessionCommand),
    /// Unpacks a tar stream, which is the input, below this path.
    CopyIn(String),
    /// Packs this path as a tar stream.
    CopyOut(String),
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionCommand {
    /// No shell is involved.
    pub argv: Vec<String>,
    /// On top of the instance's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it runs; the container's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// The size of its terminal, if it is to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// How wide.
    pub columns: u16,
    /// How high.
    pub rows: u16,
}

/// How a session ended that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionEnded {
    /// How the command ended; absent where files were copied.
    #[schema(value_type = Option<Object>)]
    pub exit: Option<ExitStatus>,
}

/// What whoever opened a session says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    /// What is wanted; first, and once.
    Open(OpenSession),
    /// Standard input, or the next bytes of an archive.
    Input(Bytes),
    /// There is no more of it.
    InputEnd,
    /// The server may send so much more.
    Credit(u32),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// A signal for the command: `term`, `kill`, `int`, `hup`, `quit`, `usr1`, `usr2`, `stop`, `cont`.
    Signal(String),
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    /// It runs; so much input may be sent at first.
    Started(u32),
    /// Standard output, what a terminal shows, or an archive.
    Output(Bytes),
    /// Standard error.
    Error(Bytes),
    /// The client may send so much more.
    Credit(u32),
    /// It was carried out. The last frame.
    Ended(SessionEnded),
    /// It was not, or not to its end; for people. The last frame.
    Failed(String),
}

/// Why a frame makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFrame(String);

fn bad<T>(reason: impl Into<String>) -> Result<T, BadFrame> {
    Err(BadFrame(reason.into()))
}

fn framed(kind: u8, rest: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + rest.len());
    frame.put_u8(kind);
    frame.extend_from_slice(rest);
    frame.freeze()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of texts and numbers always render.
    serde_json::to_vec(value).unwrap_or_default()
}

fn split(mut frame: Bytes) -> Result<(u8, Bytes), BadFrame> {
    match frame.first().copied() {
        Some(_) if frame.len() > MAX_SESSION_DATA + 1 => {
            bad(format!("a frame holds at most {MAX_SESSION_DATA} bytes behind its first"))
        }
        Some(kind) => Ok((kind, frame.split_off(1))),
        None => bad("a frame begins with a byte that says what it is"),
    }
}

fn number(rest: &[u8]) -> Result<u32, BadFrame> {
    rest.try_into().map(u32::from_be_bytes).or_else(|_| bad("credit has four bytes"))
}

fn text(rest: &[u8]) -> Result<String, BadFrame> {
    std::str::from_utf8(rest).map(str::to_owned).or_else(|_| bad("text is UTF-8"))
}

impl FromClient {
    /// As a frame.
    pub fn frame(&self) -> Bytes {
        match self {
            Self::Open(open) => framed(0, &json(open)),
            Self::Input(bytes) => framed(1, bytes),
            Self::InputEnd => framed(2, &[]),
            Self::Credit(bytes) => framed(3, &bytes.to_be_bytes()),
            Self::Resize(size) => {
                let [a, b] = size.columns.to_be_bytes();
                let [c, d] = size.rows.to_be_bytes();
                framed(4, &[a, b, c, d])
            }
            Self::Signal(name) => framed(5, name.as_bytes()),
        }
    }

    /// From a frame.
    pub fn read(frame: Bytes) -> Result<Self, BadFrame> {
        let (kind, rest) = split(frame)?;
        match kind {
            0 => serde_json::from_slice(&rest)
                .map(Self::Open)
                .or_else(|error| bad(format!("what is to be opened cannot be read: {error}"))),
            1 => Ok(Self::Input(rest)),
            2 if rest.is_empty() => Ok(Self::InputEnd),
            3 => number(&rest).map(Self::Credit),
            4 => match *rest {
                [a, b, c, d] => Ok(Self::Resize(TerminalSize {
                    columns: u16::from_be_bytes([a, b]),
                    rows: u16::from_be_bytes([c, d]),
                })),
                _ => bad("a size has four bytes"),
            },
            5 => text(&rest).map(Self::Signal),
            kind => bad(format!("there is no frame of kind {kind} and {} bytes", rest.len())),
        }
    }
}

impl FromServer {
    /// As a frame.
    pub fn frame(&self) -> Bytes {
        match self {
            Self::Started(credit) => framed(0, &credit.to_be_bytes()),
            Self::Output(bytes) => framed(1, bytes),
            Self::Error(bytes) => framed(2, bytes),
            Self::Credit(bytes) => framed(3, &bytes.to_be_bytes()),
            Self::Ended(ended) => framed(4, &json(ended)),
            Self::Failed(reason) => framed(5, reason.as_bytes()),
        }
    }

    /// From a frame.
    pub fn read(frame: Bytes) -> Result<Self, BadFrame> {
        let (kind, rest) = split(frame)?;
        match kind {
            0 => number(&rest).map(Self::Started),
            1 => Ok(Self::Output(rest)),
            2 => Ok(Self::Error(rest)),
            3 => number(&rest).map(Self::Credit),
            4 => serde_json::from_slice(&rest)
                .map(Self::Ended)
                .or_else(|error| bad(format!("its end cannot be read: {error}"))),
            5 => text(&rest).map(Self::Failed),
            kind => bad(format!("there is no frame of kind {kind} and {} bytes", rest.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let open = OpenSession {
            credit: 7,
            what: SessionWhat::Exec(SessionCommand {
                argv: vec!["a".into(), "b c".into()],
                env: BTreeMap::from([("TERM".into(), "xterm".into())]),
                dir: None,
                terminal: Some(TerminalSize { columns: 300, rows: 2 }),
            }),
        };
        for said in [
            FromClient::Open(open),
            FromClient::Open(OpenSession { credit: 1, what: SessionWhat::CopyIn("/a".into()) }),
            FromClient::Input(Bytes::from_static(b"\0\xff")),
            FromClient::InputEnd,
            FromClient::Credit(70_000),
            FromClient::Resize(TerminalSize { columns: 258, rows: 3 }),
            FromClient::Signal("term".into()),
        ] {
            assert_eq!(FromClient::read(said.frame()), Ok(said));
        }
        for said in [
            FromServer::Started(1 << 18),
            FromServer::Output(Bytes::new()),
            FromServer::Error(Bytes::from_static(b"x")),
            FromServer::Credit(1),
            FromServer::Ended(SessionEnded { exit: Some(ExitStatus::Signal(9)) }),
            FromServer::Ended(SessionEnded { exit: None }),
            FromServer::Failed("no".into()),
        ] {
            assert_eq!(FromServer::read(said.frame()), Ok(said));
        }
    }

    #[test]
    fn senseless_frames_are_refused() {
        let huge = vec![1; MAX_SESSION_DATA + 2];
        for frame in [
            &b""[..],
            b"\0{}",
            b"\0",
            b"\x02x",
            b"\x03abc",
            b"\x04abc",
            b"\x05\xff",
            b"\x09",
            &huge,
        ] {
            assert!(FromClient::read(Bytes::copy_from_slice(frame)).is_err(), "{frame:?}");
        }
        let whole = vec![1; MAX_SESSION_DATA + 1];
        assert!(FromClient::read(whole.into()).is_ok());
    }
}
