//! Who is calling, and what they may do. One function decides, and it denies by default.

use model::{Digest, JoinToken, ProjectId, Role, TokenId};
use state::{State, Token};

/// A caller whose token was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// The token.
    pub token: TokenId,
    /// What it lets its bearer be.
    pub role: Role,
    /// The one project it is limited to.
    pub project: Option<ProjectId>,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look at projects, apps, jobs, logs.
    Read,
    /// Change apps: queue jobs, set configuration, scale, upload source.
    Change,
    /// Manage projects, tokens, keys, cells, runners.
    Administer,
    /// Do the work of a job: tasks, builds, deployments, releases.
    Work,
    /// Read and write blobs.
    Bytes,
    /// Open a runner's stream.
    Runner,
    /// Open a cell's stream.
    Cell,
    /// Open a router's stream.
    Router,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Change,
        Self::Administer,
        Self::Work,
        Self::Bytes,
        Self::Runner,
        Self::Cell,
        Self::Router,
    ];
}

/// Whether `principal` may do `action` on `project` (`None`: on the installation as a whole).
pub fn allows(principal: &Principal, action: Action, project: Option<ProjectId>) -> bool {
    let role_may = match principal.role {
        Role::Admin => !matches!(action, Action::Runner | Action::Cell | Action::Router),
        Role::Developer => matches!(action, Action::Read | Action::Change | Action::Bytes),
        Role::Viewer => matches!(action, Action::Read),
        Role::Runner => {
            matches!(action, Action::Runner | Action::Work | Action::Bytes | Action::Read)
        }
        Role::Cell => matches!(action, Action::Cell | Action::Bytes),
        Role::Router => matches!(action, Action::Router),
    };
    let in_scope = match (principal.project, project) {
        (None, _) => true,
        (Some(own), Some(wanted)) => own == wanted,
        // Bytes are named by their digest, which nobody can guess.
        (Some(_), None) => matches!(action, Action::Bytes),
    };
    role_may && in_scope
}

/// Why a token does not let its bearer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// There is none.
    #[error("a token is needed, and none was sent")]
    Missing,
    /// It does not read as a token.
    #[error("what was sent is no token: `shore_<id>_<secret>` is wanted")]
    Garbled,
    /// Nobody with this id and secret.
    #[error("this server does not know the token")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was taken back.
    #[error("the token was revoked")]
    Revoked,
}

impl TokenFault {
    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Missing => "send `Authorization: Bearer TOKEN`",
            Self::Garbled => "copy the whole token, on one line",
            Self::Unknown => "it may be of another server: see `shore context list`",
            Self::Expired | Self::Revoked => {
                "let an administrator make a new one with `shore token create`, then \
                 `shore context set NAME --server URL --token TOKEN`"
            }
        }
    }
}

/// Verifies a token against what the state keeps of it. Only who knows the secret learns more than
/// that the token is unknown.
pub(crate) fn verify(
    state: &State,
    now: model::Time,
    token: &JoinToken,
) -> Result<Principal, TokenFault> {
    let row = state.get::<Token>(token.id).ok_or(TokenFault::Unknown)?;
    if !constant_time_eq(&row.hash.0, &Digest::of(&token.secret).0) {
        return Err(TokenFault::Unknown);
    }
    live(row, now)?;
    Ok(Principal { token: row.id, role: row.role, project: row.project })
}

/// Whether a token still works.
pub(crate) fn live(row: &Token, now: model::Time) -> Result<(), TokenFault> {
    if row.revoked_at.is_some() {
        return Err(TokenFault::Revoked);
    }
    if row.expires_at.is_some_and(|at| at <= now) {
        return Err(TokenFault::Expired);
    }
    Ok(())
}

/// Compares without telling by its duration where the difference is.
fn constant_time_eq(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differences, (x, y)| differences | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for role in Role::ALL {
            for own in [None, Some(ProjectId(1))] {
                let principal = Principal { token: TokenId(1), role, project: own };
                let allowed = |project| {
                    let yes = Action::ALL.into_iter().filter(|a| allows(&principal, *a, project));
                    yes.map(|action| format!("{action:?}")).collect::<Vec<_>>().join(" ")
                };
                let limited = if own.is_some() { "limited" } else { "free" };
                for (what, project) in [
                    ("installation", None),
                    ("own project", Some(ProjectId(1))),
                    ("other project", Some(ProjectId(2))),
                ] {
                    writeln!(
                        table,
                        "{:<10}{limited:<9}{what:<14}{}",
                        role.name(),
                        allowed(project)
                    )
                    .expect("writing to a string");
                }
            }
        }
        insta::assert_snapshot!(table);
    }
}
