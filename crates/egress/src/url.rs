//! Addresses of users: taken apart, followed, and shown without what may be secret.

use std::fmt;
use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use crate::Failure;

/// An `http` or `https` URL. What is shown of it has no password and no query: those may be secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Whether it is `https`.
    pub tls: bool,
    /// The host, as it was written.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub target: String,
    /// What its user and password become.
    pub authorization: Option<String>,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{path}", self.host_header())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Url {
    /// Takes a URL apart.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let uri = Uri::from_str(text).map_err(|_| Failure::new("the URL makes no sense"))?;
        Self::of(&uri)
    }

    fn of(uri: &Uri) -> Result<Self, Failure> {
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(_) | None => return Err(Failure::new("only http and https URLs are followed")),
        };
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| Failure::new("the URL names no host"))?;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if tls => 443,
            None => 80,
        };
        let target = uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
        let host = authority.host().to_owned();
        Ok(Self { tls, host, port, target, authorization: authorization(authority) })
    }

    /// The address that it names outright, if its host is no name.
    pub fn address(&self) -> Option<std::net::IpAddr> {
        self.host.trim_matches(['[', ']']).parse().ok()
    }

    /// What the `Host` header says.
    pub fn host_header(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    fn is_same_origin(&self, other: &Self) -> bool {
        (self.tls, self.port) == (other.tls, other.port)
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    /// Where a redirect leads. Passwords stay with the host they are for, and what was asked for
    /// over TLS is not asked for without.
    pub fn follow(&self, location: &str) -> Result<Self, Failure> {
        let senseless = || Failure::new("a redirect leads to a URL that makes no sense");
        let scheme = if self.tls { "https" } else { "http" };
        let has_scheme = location.split(['/', '?', '#']).next().is_some_and(|it| it.contains(':'));
        let full = if has_scheme {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else {
            let path = self.target.split('?').next().unwrap_or_default();
            let base = match location.chars().next() {
                Some('/') => "",
                Some('?' | '#') | None => path,
                Some(_) => path.rsplit_once('/').map_or("/", |(dir, _)| dir),
            };
            let slash = if location.starts_with(['/', '?', '#']) { "" } else { "/" };
            format!("{scheme}://{}{base}{slash}{location}", self.host_header())
        };
        let mut next = Self::of(&Uri::from_str(&full).map_err(|_| senseless())?)?;
        if self.tls && !next.tls {
            return Err(Failure::new("a redirect leads from https to http"));
        }
        next.authorization = self.authorization.clone().filter(|_| self.is_same_origin(&next));
        Ok(next)
    }
}

fn authorization(authority: &Authority) -> Option<String> {
    let (user, _) = authority.as_str().rsplit_once('@')?;
    Some(format!("Basic {}", STANDARD.encode(decoded(user))))
}

/// Undoes `%41`.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut rest = bytes.clone();
        let digits = (byte == b'%').then(|| [rest.next(), rest.next()]);
        let value = digits.and_then(|digits| {
            let [high, low] = digits.map(|it| it.and_then(|it| char::from(it).to_digit(16)));
            u8::try_from(high? * 16 + low?).ok()
        });
        if value.is_some() {
            bytes = rest;
        }
        plain.push(value.unwrap_or(byte));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = url("https://me:p%40ss@example.com:8443/a/b?sig=secret#x");
        assert_eq!(secret.to_string(), "https://example.com:8443/a/b");
        assert_eq!(format!("{secret:?}"), secret.to_string());
        assert_eq!(secret.target, "/a/b?sig=secret");
        assert_eq!(secret.authorization, Some(format!("Basic {}", STANDARD.encode("me:p@ss"))));
        for bad in ["file:///etc/passwd", "gopher://x/", "http://", "http:///x", "x", ""] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_are_followed_as_they_are_meant() {
        let from = url("https://me:x@example.com/a/b?c=d");
        let lead =
            |location: &str| from.follow(location).map(|url| format!("{url} {}", url.target));
        for (location, wanted) in [
            ("/x?y", "https://example.com/x /x?y"),
            ("x", "https://example.com/a/x /a/x"),
            ("?q=a:b", "https://example.com/a/b /a/b?q=a:b"),
            ("//cdn.example/z", "https://cdn.example/z /z"),
            ("https://other.example:1/z", "https://other.example:1/z /z"),
        ] {
            assert_eq!(lead(location), Ok(wanted.to_owned()), "{location}");
        }
        for bad in ["http://example.com/", "file:///etc/passwd", "gopher://a/b"] {
            assert!(lead(bad).is_err(), "{bad}");
        }
        let keeps = |location: &str| from.follow(location).expect("leads").authorization.is_some();
        assert!(keeps("/x") && keeps("https://EXAMPLE.com/"));
        assert!(!keeps("https://example.com:444/") && !keeps("//example.org/"));
    }
}
