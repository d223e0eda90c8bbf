//! Requests and their answers.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::files::{Content, Found, Site, Target};
use super::kinds::content_type;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const CHUNK: usize = 64 * 1024;
const INDEX: &str = "index.html";
const NOT_FOUND: &str = "404.html";
/// Clients keep files but ask each time whether they are still the same.
const CACHE_CONTROL: &str = "public, max-age=0, must-revalidate";

/// The answer to `request`.
pub(super) async fn answer<B>(site: &Site, request: &Request<B>) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let mut response = if head || request.method() == Method::GET {
        match page(site, request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(%error, "a file cannot be read");
                plain(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    } else {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED);
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        refused
    };
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    if head {
        *response.body_mut() = full(Bytes::new());
    }
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode) -> Response<Body> {
    let text = format!("{status}\n");
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.body_mut() = full(text.into());
    response
}

async fn page<B>(site: &Site, request: &Request<B>) -> io::Result<Response<Body>> {
    let uri = request.uri();
    let Some(path) = Path::parse(uri.path()) else { return missing(site).await };
    let headers = request.headers();
    if !path.directory {
        match site.find(&path.name).await? {
            Target::File(found) => return file(&path.name, found, headers),
            Target::Directory => return Ok(redirect(&path.name, uri.query())),
            Target::Nothing => {}
        }
        let html = format!("{}.html", path.name);
        if let Target::File(found) = site.find(&html).await? {
            return file(&html, found, headers);
        }
    } else if let Target::File(found) = site.find(&path.index()).await? {
        return file(INDEX, found, headers);
    }
    let last = path.name.rsplit('/').next().unwrap_or_default();
    if site.spa
        && !last.contains('.')
        && let Target::File(found) = site.find(INDEX).await?
    {
        return file(INDEX, found, headers);
    }
    missing(site).await
}

/// A request path that may be looked up.
#[derive(Debug, PartialEq, Eq)]
struct Path {
    /// Relative, without `.`, `..` and empty parts.
    name: String,
    /// Whether it ends with `/`.
    directory: bool,
}

impl Path {
    fn parse(path: &str) -> Option<Self> {
        let decoded = decode(path)?;
        let mut parts = Vec::new();
        for part in decoded.split('/').filter(|part| !part.is_empty()) {
            let hidden = part.starts_with('.') && part != ".well-known";
            if hidden || part.contains('\0') {
                return None;
            }
            parts.push(part);
        }
        Some(Self { name: parts.join("/"), directory: parts.is_empty() || decoded.ends_with('/') })
    }

    fn index(&self) -> String {
        if self.name.is_empty() { INDEX.to_owned() } else { format!("{}/{INDEX}", self.name) }
    }
}

/// The text behind percent signs.
fn decode(text: &str) -> Option<String> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = digit(bytes.next())? << 4 | digit(bytes.next())?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// To the same path with a `/` at its end. It always starts with one `/`, so it stays on this host.
fn redirect(name: &str, query: Option<&str>) -> Response<Body> {
    let mut to = String::from("/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(to, "%{byte:02X}").unwrap_or_default();
        }
    }
    to.push('/');
    if let Some(query) = query {
        to.push('?');
        to.push_str(query);
    }
    let mut response = plain(StatusCode::MOVED_PERMANENTLY);
    if let Ok(to) = HeaderValue::try_from(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

async fn missing(site: &Site) -> io::Result<Response<Body>> {
    let Target::File(found) = site.find(NOT_FOUND).await? else {
        return Ok(plain(StatusCode::NOT_FOUND));
    };
    let mut response = file(NOT_FOUND, found, &HeaderMap::new())?;
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().remove(header::ETAG);
    Ok(response)
}

fn file(name: &str, found: Found, headers: &HeaderMap) -> io::Result<Response<Body>> {
    let mut response = Response::new(full(Bytes::new()));
    let own = response.headers_mut();
    let tag = HeaderValue::try_from(&found.tag).map_err(io::Error::other)?;
    own.insert(header::ETAG, tag);
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_CONTROL));
    if headers.get(header::IF_NONE_MATCH).is_some_and(|value| names_tag(value, &found.tag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    own.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    own.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let (start, length) = match wanted_range(headers, &found) {
        Range::Whole => (0, found.size),
        Range::Part { start, length } => {
            let last = start + length - 1;
            let value = format!("bytes {start}-{last}/{}", found.size);
            own.insert(
                header::CONTENT_RANGE,
                HeaderValue::try_from(value).map_err(io::Error::other)?,
            );
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (start, length)
        }
        Range::Unsatisfiable => {
            let mut refused = plain(StatusCode::RANGE_NOT_SATISFIABLE);
            let value = HeaderValue::try_from(format!("bytes */{}", found.size));
            let value = value.map_err(io::Error::other)?;
            refused.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(refused);
        }
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    *response.body_mut() = match found.content {
        Content::Memory(bytes) => full(part(&bytes, start, length)),
        Content::Disk(file) => stream(file, start, length)?,
    };
    Ok(response)
}

fn part(bytes: &Bytes, start: u64, length: u64) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(at(start)..at(start + length))
}

fn stream(mut file: File, start: u64, length: u64) -> io::Result<Body> {
    file.seek(SeekFrom::Start(start))?;
    let reader = tokio::fs::File::from_std(file).take(length);
    let chunks = ReaderStream::with_capacity(reader, CHUNK).map_ok(Frame::data);
    Ok(StreamBody::new(chunks).boxed_unsync())
}

/// Whether a list of entity tags has this one, compared weakly.
fn names_tag(value: &HeaderValue, tag: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    let mut tags = value.split(',').map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

enum Range {
    Whole,
    Part { start: u64, length: u64 },
    Unsatisfiable,
}

/// One range is honoured; several, or what is no range, count as none.
fn wanted_range(headers: &HeaderMap, found: &Found) -> Range {
    let Some(range) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Range::Whole;
    };
    let same = |value: &HeaderValue| value.as_bytes() == found.tag.as_bytes();
    if !headers.get(header::IF_RANGE).is_none_or(same) {
        return Range::Whole;
    }
    parse_range(range, found.size).unwrap_or(Range::Whole)
}

fn parse_range(range: &str, size: u64) -> Option<Range> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| -> Option<u64> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    let (start, end) = match (first, last) {
        ("", last) => (size.saturating_sub(number(last)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    Some(if start < end {
        Range::Part { start, length: end - start }
    } else {
        Range::Unsatisfiable
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_and_hide_dotfiles() {
        let path = |name: &str, directory| Some(Path { name: name.to_owned(), directory });
        for (given, wanted) in [
            ("/", path("", true)),
            ("/a/b", path("a/b", false)),
            ("//a//b/", path("a/b", true)),
            ("/%61%20b", path("a b", false)),
            ("/.well-known/x", path(".well-known/x", false)),
            ("/../etc/passwd", None),
            ("/a/%2e%2e/%2E%2E/x", None),
            ("/a%2f..%2fx", None),
            ("/.env", None),
            ("/a/.git/config", None),
            ("/a%00b", None),
            ("/%", None),
            ("/%zz", None),
            ("/%ff", None),
        ] {
            assert_eq!(Path::parse(given), wanted, "{given}");
        }
    }
}
