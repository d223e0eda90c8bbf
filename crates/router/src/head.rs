//! What the HTTP parser forgives and we do not.
//!
//! hyper takes a lone line feed for a line end, drops `Content-Length` when `Transfer-Encoding` is
//! there, and folds equal lengths into one. Each is safe for us, because what goes on is rendered
//! anew, but each is also how smuggling begins, so the raw head is looked at once more.

/// What a look at the raw bytes of a head found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is as strict as it should be, and this long.
    Strict(usize),
    /// The bytes do not hold this request's whole head.
    Unseen,
    /// A line ends without a carriage return.
    BareLineFeed,
    /// Both `Content-Length` and `Transfer-Encoding`, or one of them twice.
    Framing,
}

/// Looks at the first head in `bytes`, which should be one of a request with this method.
pub(crate) fn check(bytes: &[u8], method: &str) -> Verdict {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if !bytes[blank..].starts_with(method.as_bytes()) {
        return Verdict::Unseen;
    }
    let mut framing = 0_u8;
    let mut start = blank;
    while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
        let end = start + length;
        let Some(line) = bytes[start..end].strip_suffix(b"\r") else {
            return Verdict::BareLineFeed;
        };
        if line.is_empty() {
            let verdict = Verdict::Strict(end + 1);
            return if framing > 1 { Verdict::Framing } else { verdict };
        }
        if is_framing(line) {
            framing = framing.saturating_add(1);
        }
        start = end + 1;
    }
    Verdict::Unseen
}

fn is_framing(line: &[u8]) -> bool {
    const LENGTH: &[u8] = b"content-length:";
    const ENCODING: &[u8] = b"transfer-encoding:";
    let is = |name: &[u8]| line.get(..name.len()).is_some_and(|it| it.eq_ignore_ascii_case(name));
    match line.first() {
        Some(b'c' | b'C') => is(LENGTH),
        Some(b't' | b'T') => is(ENCODING),
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_heads_pass_and_show_their_length() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(check(head, "GET"), Verdict::Strict(head.len()));
        let two = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
        assert_eq!(check(two, "GET"), Verdict::Strict(head.len() + 2));
        let body = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\n";
        assert_eq!(check(body, "POST"), Verdict::Strict(body.len() - 1));
    }

    #[test]
    fn what_smuggling_begins_with_does_not() {
        for (head, wanted) in [
            ("GET / HTTP/1.1\nHost: a\n\n", Verdict::BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Verdict::BareLineFeed),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Verdict::Framing,
            ),
            (
                "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH:1\r\n\r\n",
                Verdict::Framing,
            ),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Verdict::Framing),
            ("GET / HTTP/1.1\r\nHost: a\r\n", Verdict::Unseen),
            ("", Verdict::Unseen),
            ("tail: x\r\n\r\n", Verdict::Unseen),
        ] {
            assert_eq!(check(head.as_bytes(), "GET"), wanted, "{head:?}");
        }
    }
}
