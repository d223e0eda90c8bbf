//! The WebSocket itself: who may open one, and what is said to who does not keep to the rules.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use testkit::Failure;

use crate::{LIMIT, World, holds, told};

const PROTOCOL: &str = "Sec-WebSocket-Protocol: shore.session.v1";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
/// Opens a command that stays and takes nothing.
const OPEN: &[u8] = b"\0{\"credit\":262144,\"what\":{\"exec\":{\"argv\":[\"sleep\",\"1000\"]}}}";

/// An opcode and a payload.
type Frame<'a> = (u8, &'a [u8]);

struct Wire(TcpStream);

impl Wire {
    /// Asks for a WebSocket; the head of the answer, and what follows it.
    fn ask(world: &World, headers: &[&str]) -> Result<(Self, String), Failure> {
        let mut stream = TcpStream::connect(("127.0.0.1", world.dev.ports.api)).map_err(told)?;
        stream.set_read_timeout(Some(LIMIT)).map_err(told)?;
        let mut head = format!(
            "GET /v1/projects/shop/apps/web/exec HTTP/1.1\r\nHost: here:7420\r\n\
             Authorization: Bearer {}\r\n",
            world.dev.token()?
        );
        for header in headers {
            head = format!("{head}{header}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).map_err(told)?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).map_err(told)?;
            answer.extend(byte);
        }
        Ok((Self(stream), String::from_utf8_lossy(&answer).into_owned()))
    }

    fn open(world: &World) -> Result<Self, Failure> {
        let (wire, head) = Self::ask(world, &[UPGRADE, PROTOCOL])?;
        holds(&head, &["101", "shore.session.v1"])?;
        Ok(wire)
    }

    /// Sends one frame, masked with zeros.
    fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<(), Failure> {
        let mut frame = vec![0x80 | opcode];
        if let Ok(short @ 0..126) = u8::try_from(payload.len()) {
            frame.push(0x80 | short);
        } else {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.write_all(&frame).map_err(told)
    }

    /// One frame of the server's.
    fn frame(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).map_err(told)?;
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).map_err(told)?;
                usize::from(u16::from_be_bytes(length))
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).map_err(told)?;
        Ok((head[0] & 15, payload))
    }

    /// The code it is closed with, and the last words before that.
    fn closed(&mut self) -> Result<(u16, String), Failure> {
        let mut last = String::new();
        loop {
            match self.frame()? {
                (8, payload) => {
                    let code = payload.first_chunk().ok_or("a code")?;
                    return Ok((u16::from_be_bytes(*code), last));
                }
                (2, payload) if payload.first() == Some(&5) => {
                    last = String::from_utf8_lossy(&payload[1..]).into_owned();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn only_a_websocket_of_this_protocol_and_origin_is_taken() -> Result<(), Failure> {
    let world = World::start()?;
    let cases: [(&[&str], &str); 5] = [
        (&["Connection: close"], "426"),
        (&[UPGRADE], "400"),
        (&[UPGRADE, "Sec-WebSocket-Protocol: shore.session.v9"], "400"),
        (&[UPGRADE, PROTOCOL, "Origin: https://evil.example"], "403"),
        (&[UPGRADE, PROTOCOL, "Origin: http://here:7420"], "101"),
    ];
    for (headers, status) in cases {
        let (_, head) = Wire::ask(&world, headers)?;
        let line = head.lines().next().unwrap_or_default();
        assert!(line.contains(status), "{headers:?}: {line}");
    }
    Ok(())
}

#[test]
fn frames_that_make_no_sense_close_it_with_a_reason() -> Result<(), Failure> {
    let world = World::start()?;
    // Frames, each with its opcode; the code that closes; a word of the reason.
    let huge = vec![1; (64 << 10) + 2];
    let enormous = vec![1; 1 << 20];
    let cases: [(&[Frame<'_>], u16, &str); 11] = [
        (&[(1, b"text")], 1003, "binary"),
        (&[(2, b"")], 1002, "begins with a byte"),
        (&[(2, b"\x01input")], 1002, "says what to open"),
        (&[(2, b"\0{\"credit\":1}")], 1002, "cannot be read"),
        (&[(2, b"\0{\"credit\":1,\"what\":{\"exec\":{\"argv\":[]}}}")], 1011, "one word"),
        (&[(2, b"\0{\"credit\":262145,\"what\":{\"copy_out\":\"/\"}}")], 1011, "262144"),
        (&[(2, OPEN), (2, OPEN)], 1002, "opened once"),
        (&[(2, OPEN), (2, b"\x09")], 1002, "no frame of kind 9"),
        (&[(2, OPEN), (2, b"\x03\xff\xff\xff\xff")], 1008, "credit"),
        (&[(2, OPEN), (2, &huge)], 1009, "at most 65536"),
        (&[(2, OPEN), (2, &enormous)], 1009, "at most 65536"),
    ];
    for (frames, code, word) in cases {
        let mut wire = Wire::open(&world)?;
        for (opcode, payload) in frames {
            wire.send(*opcode, payload)?;
        }
        let (closed, last) = wire.closed()?;
        let first = &frames[0].1[..frames[0].1.len().min(40)];
        assert_eq!(closed, code, "{first:?}: {last}");
        assert!(last.contains(word), "{first:?}: {last}");
    }
    // Input without credit; the command takes none.
    let mut wire = Wire::open(&world)?;
    wire.send(2, OPEN)?;
    let mut piece = vec![1; 64 << 10];
    piece[0] = 1;
    for _ in 0..20 {
        if wire.send(2, &piece).is_err() {
            break;
        }
    }
    let (closed, last) = wire.closed()?;
    assert_eq!(closed, 1008, "{last}");
    holds(&last, &["there is credit for"])
}

#[test]
fn orders_without_bytes_have_a_pace() -> Result<(), Failure> {
    /// What is taken at once, and in a second after that; docs/sessions.md says so.
    const BURST: u32 = 128;
    const PER_SECOND: u32 = 100;
    let world = World::start()?;
    let mut wire = Wire::open(&world)?;
    wire.send(2, b"\0{\"credit\":262144,\"what\":{\"exec\":{\"argv\":[\"cat\"]}}}")?;
    let begin = runtime::mono_now();
    for columns in 1..=BURST + PER_SECOND {
        let [high, low] = u16::try_from(columns).map_err(told)?.to_be_bytes();
        wire.send(2, &[4, high, low, 0, 24])?;
    }
    // They are read one after the other, so this is heard when all of them were.
    wire.send(2, &[2])?;
    let (code, _) = wire.closed()?;
    assert_eq!(code, 1000, "the command ended, and nothing was refused");
    assert!(begin.elapsed() >= Duration::from_millis(990), "{:?}", begin.elapsed());
    Ok(())
}
