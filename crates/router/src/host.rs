//! The host a request names.

use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderValue;

/// Longest host name.
const MAX_HOST: usize = 253;

/// A host name in lower case, without port and final dot, on the stack.
#[derive(Debug)]
pub(crate) struct Host {
    bytes: [u8; MAX_HOST],
    length: usize,
}

impl Host {
    /// The host in `text`, as a `Host` field or an authority has it. `None`: it cannot be one.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let name = without_port(text)?;
        let name = name.strip_suffix(b".").unwrap_or(name);
        if name.is_empty() || name.len() > MAX_HOST {
            return None;
        }
        let mut host = Self { bytes: [0; MAX_HOST], length: name.len() };
        let literal = name[0] == b'[';
        for (slot, byte) in host.bytes.iter_mut().zip(name) {
            let fits = byte.is_ascii_alphanumeric()
                || matches!(byte, b'-' | b'.' | b'_')
                || (literal && matches!(byte, b':' | b'[' | b']'));
            if !fits {
                return None;
            }
            *slot = byte.to_ascii_lowercase();
        }
        Some(host)
    }

    /// The name.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The name for people: nothing but letters, digits and `-._:[]`.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// `host:port` without the port, which must be a number. Brackets stay.
fn without_port(text: &[u8]) -> Option<&[u8]> {
    let position = |wanted: u8| text.iter().position(|byte| *byte == wanted);
    let name_end = if *text.first()? == b'[' {
        position(b']')? + 1
    } else {
        position(b':').unwrap_or(text.len())
    };
    let (name, port) = text.split_at(name_end);
    match port {
        [] => Some(name),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            Some(name)
        }
        _ => None,
    }
}

/// How every `Forwarded` field of a client begins.
pub(crate) fn forwarded_for(peer: IpAddr) -> Box<str> {
    match peer {
        IpAddr::V4(v4) => format!("for={v4};proto=http;host=").into(),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\";proto=http;host=").into(),
    }
}

/// Renders a `Forwarded` field. `host` has passed [`Host::parse`], so quoting is enough.
pub(crate) fn forwarded(begin: &str, host: &HeaderValue) -> Option<HeaderValue> {
    let is_plain = host.as_bytes().iter().all(|byte| !matches!(byte, b':' | b'[' | b']'));
    let quote: &[u8] = if is_plain { b"" } else { b"\"" };
    let mut text = Vec::with_capacity(begin.len() + host.len() + 2);
    for part in [begin.as_bytes(), quote, host.as_bytes(), quote] {
        text.extend_from_slice(part);
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_case_port_and_final_dot() {
        for (given, wanted) in [
            ("a.example", "a.example"),
            ("A.Example", "a.example"),
            ("a.example.", "a.example"),
            ("a.example:8080", "a.example"),
            ("a.example.:80", "a.example"),
            ("a.example:", "a.example"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8080", "[::1]"),
            ("a_b.example", "a_b.example"),
        ] {
            let host = Host::parse(given.as_bytes()).expect(given);
            assert_eq!(host.as_str(), wanted, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_a_host_is_refused() {
        let long = "a".repeat(MAX_HOST + 1);
        for bad in [
            "", ":80", ".", "a b", "a/b", "a%2eb", "a@b", "a:80:80", "a:b", "[::1", "ü", "a,b",
            &long,
        ] {
            assert!(Host::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn forwarded_quotes_what_needs_it() {
        for (peer, host, wanted) in [
            ("10.0.0.1", "a.b", "for=10.0.0.1;proto=http;host=a.b"),
            ("::1", "a:80", "for=\"[::1]\";proto=http;host=\"a:80\""),
        ] {
            let begin = forwarded_for(peer.parse().expect("an address"));
            let field = forwarded(&begin, &HeaderValue::from_static(host));
            assert_eq!(field.expect("a field"), wanted);
        }
    }
}
