//! What a component says of its way to the server: once for each cause, not for each attempt.

use std::error::Error;
use std::io;

use tonic::Status;

use crate::connect::{Endpoint, OTHER_AUTHORITY, OtherAuthority};

/// The innermost cause of an error, for people.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    let kind = last.downcast_ref::<io::Error>().filter(|error| error.raw_os_error().is_some());
    match kind.map(io::Error::kind) {
        // These say all of it; the number of the system's error tells people nothing.
        Some(
            kind @ (io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut),
        ) => kind.to_string(),
        _ => last.to_string(),
    }
}

/// Whether the server was reached, but is not the one that made the token.
pub(crate) fn is_other_authority(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.and_then(|inner| inner.downcast_ref::<OtherAuthority>()).is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

/// A connection that was not made, as a status: final when the server is another one.
pub fn unreachable(error: &(dyn Error + 'static)) -> Status {
    if is_other_authority(error) {
        Status::failed_precondition(OTHER_AUTHORITY)
    } else {
        Status::unavailable(root_cause(error))
    }
}

/// Follows whether a component reaches its server, and chooses what to say of it.
#[derive(Debug)]
pub struct Joining {
    server: String,
    joined: bool,
    /// The cause that was said last; nothing since it joined.
    said: Option<String>,
}

impl Joining {
    /// Nothing was tried yet.
    pub fn new(endpoint: &Endpoint) -> Self {
        Self { server: endpoint.shown(), joined: false, said: None }
    }

    /// The server let it in: a sentence when the last one was of a failure.
    pub fn joined(&mut self) -> Option<String> {
        self.joined = true;
        self.said.take().map(|_| format!("reached the server at {}", self.server))
    }

    /// An attempt failed or a connection broke: a sentence unless it was said already.
    pub fn failed(&mut self, status: &Status) -> Option<String> {
        let message = match (status.source(), status.message()) {
            (Some(source), _) => root_cause(source),
            (None, "") => status.code().description().to_owned(),
            (None, message) => message.to_owned(),
        };
        let Self { server, joined, said } = self;
        if std::mem::take(joined) {
            *said = Some(message.clone());
            return Some(format!("lost the server at {server}: {message}; trying again"));
        }
        if said.as_ref() == Some(&message) {
            return None;
        }
        *said = Some(message.clone());
        Some(format!("cannot reach {server}: {message}; trying again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{JoinToken, TokenId};

    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Outer(#[source] io::Error);

    fn joining() -> Joining {
        let token = JoinToken { id: TokenId(1), secret: [1; 32], ca: None };
        Joining::new(&Endpoint::new("http://127.0.0.1:7420", token).expect("an endpoint"))
    }

    #[test]
    fn each_cause_is_said_once() {
        let mut joining = joining();
        let mut hear = |message: &str| joining.failed(&Status::unavailable(message));
        let first = hear("connection refused");
        assert_eq!(
            first.as_deref(),
            Some("cannot reach http://127.0.0.1:7420: connection refused; trying again")
        );
        assert_eq!(hear("connection refused"), None);
        assert!(hear("no answer").is_some());
        let back = joining.joined();
        assert_eq!(back.as_deref(), Some("reached the server at http://127.0.0.1:7420"));
        let lost = joining.failed(&Status::unavailable("it stopped")).expect("said");
        assert_eq!(lost, "lost the server at http://127.0.0.1:7420: it stopped; trying again");
        assert_eq!(joining.failed(&Status::unavailable("it stopped")), None);
        assert!(joining.joined().is_some());
        assert_eq!(joining.joined(), None);
    }

    #[test]
    fn the_innermost_cause_is_named() {
        let refused = Outer(io::Error::from_raw_os_error(111));
        assert_eq!(root_cause(&refused), "connection refused");
        assert_eq!(unreachable(&refused).code(), tonic::Code::Unavailable);
        let other = Outer(io::Error::other(OtherAuthority));
        assert_eq!(unreachable(&other).code(), tonic::Code::FailedPrecondition);
        assert_eq!(unreachable(&other).message(), OTHER_AUTHORITY);
    }
}
