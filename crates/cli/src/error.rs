//! Errors as people see them: what was attempted, why it failed, what to do. The kind gives the
//! exit code.

use api::ClientError;

/// What kind of error ends the program, and with which exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The work itself failed: a build, a deployment. 1.
    Failed,
    /// The command line is wrong. 2, as the parser of command lines has it.
    Usage,
    /// There is no such thing. 3.
    NotFound,
    /// Not logged in, or not allowed. 4.
    Denied,
    /// It contradicts what is there. 5.
    Conflict,
    /// Something given makes no sense. 6.
    Invalid,
    /// The server or a port cannot be had. 7.
    Unavailable,
    /// Something of ours broke. 70.
    Internal,
    /// Ctrl-C or TERM came before the work was done. 130, as shells have it.
    Interrupted,
}

impl ErrorKind {
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Conflict => 5,
            Self::Invalid => 6,
            Self::Unavailable => 7,
            Self::Internal => 70,
            Self::Interrupted => 130,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error on its way to the terminal.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// What a command exited with that ran elsewhere: so does this program.
    pub(crate) exit: Option<u8>,
}

pub(crate) type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, exit: None }
    }

    pub(crate) fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Invalid, message.to_string())
    }

    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message.to_string())
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What this program exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit.unwrap_or_else(|| self.kind.exit_code())
    }

    /// A server that cannot be addressed.
    pub(crate) fn address(error: api::ConnectError) -> Self {
        let hint = match &error {
            api::ConnectError::NoAuthority => {
                "this token was made before the server spoke TLS: stop the server, make a new one \
                 with `shore token create --data DIR`, start it again"
            }
            api::ConnectError::Plain(_) => {
                "use `https://`: a server that is started with `--listen` on such an address \
                 speaks TLS"
            }
            api::ConnectError::Address(_) | api::ConnectError::Tls(_) => {
                "see what `shore server` printed at its start"
            }
        };
        Self::invalid(error).hint(hint)
    }

    /// A file operation that failed.
    pub(crate) fn file(attempt: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let message = format!("cannot {attempt} {}: {error}", path.display());
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::InvalidData => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check who may use it: `ls -l`",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "free space on its disk: `df -h`"
            }
            _ => "see what is there: `ls -l`",
        };
        Self::new(kind, message).hint(hint)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { url, .. } => {
                let hint = if api::is_loopback_url(&url) {
                    "start a server with `shore dev`, or choose another with `shore context use`"
                } else {
                    "see that the server runs and this machine reaches it, or choose another with \
                     `shore context use`"
                };
                Self::new(ErrorKind::Unavailable, message).hint(hint)
            }
            ClientError::Authority { .. } => Self::new(ErrorKind::Denied, message)
                .hint("check the address, or take a token that this server made"),
            ClientError::Refused { status, body } => {
                let kind = match status.as_u16() {
                    401 | 403 => ErrorKind::Denied,
                    404 => ErrorKind::NotFound,
                    409 => ErrorKind::Conflict,
                    400 | 413 | 415 | 422 => ErrorKind::Invalid,
                    426 | 429 | 503 | 507 => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                Self { kind, message, hint: body.hint, exit: None }
            }
            ClientError::Answer { .. } => Self::internal(message)
                .hint("the server may be of another version: compare `shore version`"),
            ClientError::Connect(error) => Self::address(error),
            ClientError::Version(_) => Self::new(ErrorKind::Unavailable, message)
                .hint("compare `shore version` with that of the server"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_local_server_is_to_be_started_here() {
        let hint = |url: &str| {
            let (url, reason) = (url.to_owned(), "connection refused".to_owned());
            CliError::from(ClientError::Unreachable { url, reason }).hint.unwrap_or_default()
        };
        assert!(hint("http://127.0.0.1:7420").contains("shore dev"));
        assert!(!hint("https://192.0.2.2:7420").contains("shore dev"));
    }

    #[test]
    fn exit_codes_differ() {
        use ErrorKind::{
            Conflict, Denied, Failed, Internal, Invalid, NotFound, Unavailable, Usage,
        };
        let all = [Failed, Usage, NotFound, Denied, Conflict, Invalid, Unavailable, Internal];
        let codes: std::collections::BTreeSet<u8> =
            all.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), all.len());
        assert!(!codes.contains(&0));
    }
}
