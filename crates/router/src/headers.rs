//! Header fields: what must not go through, and what we say of the client.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Uri};

use crate::client::Client;
use crate::host;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const HTTP: HeaderValue = HeaderValue::from_static("http");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
/// Longest request id taken over from a client.
const MAX_REQUEST_ID: usize = 128;

/// The hop-by-hop fields that the `http` crate knows, and `Expect`, which we meet ourselves.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// Hop-by-hop fields of either direction that have no constant.
const HOP_NAMES: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// What only we may say of a client. `_` stands for `-` too, because applications see them alike.
const OURS: [&str; 7] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "client-ip",
    "proxy",
    "x-forwarded",
];

/// The same, by how the name begins.
const OUR_PREFIXES: [&str; 2] = ["x-forwarded-", "x-longshore-"];

fn is_ours(name: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    let begins =
        |known: &str| name.len() >= known.len() && name.bytes().zip(known.bytes()).all(same);
    matches!(name.as_bytes().first(), Some(b'f' | b'x' | b't' | b'c' | b'p'))
        && (OURS.iter().any(|known| known.len() == name.len() && begins(known))
            || OUR_PREFIXES.iter().any(|known| begins(known)))
}

/// Removes the fields for this hop only, and on a request what a client may not say.
fn strip(headers: &mut HeaderMap, is_request: bool) {
    // Names with a constant have their place in the mask; the others are rare and collected.
    let mut hop = 0_u32;
    let mut more: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        let text = name.as_str();
        // Most names differ from all of ours in their first byte.
        match text.as_bytes().first() {
            Some(b'c' | b'e' | b'f' | b'h' | b'k' | b'p' | b't' | b'u' | b'x') => {}
            Some(_) | None => continue,
        }
        if let Some(place) = HOP.iter().position(|known| known == name) {
            hop |= 1 << place;
        } else if HOP_NAMES.contains(&text) || (is_request && is_ours(text)) {
            more.push(name.clone());
        }
    }
    if hop & 1 != 0 {
        for value in headers.get_all(header::CONNECTION) {
            for token in value.as_bytes().split(|byte| *byte == b',') {
                more.extend(named_by_connection(token.trim_ascii()));
            }
        }
    }
    if hop != 0 {
        for (place, name) in HOP.iter().enumerate() {
            if hop & (1 << place) != 0 {
                headers.remove(name);
            }
        }
    }
    for name in more {
        headers.remove(name);
    }
}

/// The field that a `Connection` token names for this hop only.
fn named_by_connection(token: &[u8]) -> Option<HeaderName> {
    if [b"keep-alive".as_slice(), b"close", b"upgrade"]
        .iter()
        .any(|usual| token.eq_ignore_ascii_case(usual))
    {
        return None;
    }
    let name = HeaderName::from_bytes(token).ok()?;
    // Without these the request would be another one.
    let stays = name == header::HOST || name == header::CONTENT_LENGTH || name == header::COOKIE;
    (!stays).then_some(name)
}

/// Whether a comma-separated field has `token`.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut tokens = value.as_bytes().split(|byte| *byte == b',');
        tokens.any(|it| it.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// The protocol a request or a response switches to.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    has_token(headers, &header::CONNECTION, "upgrade").then(|| protocol.clone())
}

/// Makes a request fit to go on: `given` is its `Host` field, `upgrade` what it switches to.
pub(crate) fn forward<B>(
    request: &mut Request<B>,
    client: &Client,
    given: &HeaderValue,
    upgrade: Option<HeaderValue>,
) {
    let is_h2 = request.version() == http::Version::HTTP_2;
    *request.version_mut() = http::Version::HTTP_11;
    let takes_trailers = request.headers().contains_key(header::TE)
        && has_token(request.headers(), &header::TE, "trailers");
    let headers = request.headers_mut();
    strip(headers, true);
    if is_h2 {
        headers.insert(header::HOST, given.clone());
        join_cookies(headers);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol);
    } else if takes_trailers {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        headers.insert(header::TE, TRAILERS);
    }
    headers.insert(FORWARDED_FOR, client.peer_value.clone());
    headers.insert(FORWARDED_PROTO, HTTP);
    headers.insert(FORWARDED_HOST, given.clone());
    if let Some(forwarded) = host::forwarded(&client.forwarded, given) {
        headers.insert(header::FORWARDED, forwarded);
    }
    match headers.get(&REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID => {}
        Some(_) | None => {
            headers.insert(REQUEST_ID, client.worker.request_id());
        }
    }
    if request.uri().authority().is_some() || request.uri().scheme().is_some() {
        let path = request.uri().path_and_query().cloned();
        let path = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        *request.uri_mut() = path;
    }
}

/// HTTP/2 may send a cookie in crumbs; HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.by_ref().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Makes a response fit to go to the client. False: it contradicts itself.
pub(crate) fn answer(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) -> bool {
    let is_ambiguous = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    strip(headers, false);
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, protocol);
    }
    !is_ambiguous
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn hop_by_hop_fields_go_with_what_connection_names() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "Host, x-forwarded-for"),
            ("host", "a"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers, true);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "host", "trailer"]);
    }

    #[test]
    fn what_a_client_may_not_say_of_itself_is_dropped() {
        for name in [
            "forwarded",
            "x-forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded_for",
            "x_forwarded_for",
            "x-real-ip",
            "x_real_ip",
            "x_real-ip",
            "true-client-ip",
            "proxy",
            "x-longshore-user",
            "x_longshore_user",
        ] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["x-forward", "x-real-ipx", "forwarded-for", "x-custom", "from", "te", "proxyx"]
        {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_response_with_two_lengths_contradicts_itself() {
        assert!(answer(&mut map(&[("content-length", "1")]), None));
        assert!(!answer(
            &mut map(&[("content-length", "1"), ("transfer-encoding", "chunked")]),
            None
        ));
    }

    #[test]
    fn an_upgrade_needs_both_fields() {
        assert_eq!(upgrade(&map(&[("upgrade", "websocket")])), None);
        let both = map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(upgrade(&both).expect("a protocol"), "websocket");
    }
}
