//! Who did what: lines that are only ever added to.

use std::collections::BTreeMap;

use model::{AppId, ExitStatus, Name, ProjectId, Role, SessionId, Time, TokenId};
use serde::{Deserialize, Serialize};

use crate::tables::Core;
use crate::{Archived, Reply};

/// The history of who did what.
pub const AUDIT_HISTORY: &str = "audit";
/// Most bytes of the words of a command that are written down.
pub const MAX_AUDIT_WORDS: usize = 8 << 10;

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The session it is about.
    pub session: SessionId,
    /// When it happened; set when it is applied.
    #[serde(default)]
    pub at: Time,
    /// Whose token it was.
    pub token: TokenId,
    /// What that lets its bearer be.
    pub role: Role,
    /// What that is for, in its owner's words.
    pub label: String,
    /// The project.
    pub project: ProjectId,
    /// Its name at that time.
    pub project_name: Name,
    /// The app.
    pub app: AppId,
    /// Its name at that time.
    pub app_name: Name,
    /// The workspace.
    pub workspace: Name,
    /// The deployment's number.
    pub deployment: u64,
    /// Which instance, as in `web.2`.
    pub instance: String,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// A session is about to begin.
    SessionOpened {
        /// `exec`, `copy_in` or `copy_out`.
        action: String,
        /// The command, or the path that is copied.
        words: Vec<String>,
        /// Names of variables the command is given; their values are nobody's business.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        env: Vec<String>,
        /// Whether the command has a terminal.
        terminal: bool,
    },
    /// It ended.
    SessionEnded {
        /// How the command ended, where one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<ExitStatus>,
        /// Why it was not carried out to its end, if so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl AuditEvent {
    /// A session is about to begin; words beyond [`MAX_AUDIT_WORDS`] are cut.
    pub fn opened<'a>(
        action: &str,
        words: impl IntoIterator<Item = &'a str>,
        env: &BTreeMap<String, String>,
        terminal: bool,
    ) -> Self {
        let mut room = MAX_AUDIT_WORDS;
        let mut cut = |word: &str| {
            let end = word.floor_char_boundary(room);
            room -= end;
            word.get(..end).unwrap_or_default().to_owned()
        };
        let all = words.into_iter().map(&mut cut).collect::<Vec<_>>();
        let env = env.keys().map(|name| cut(name)).collect();
        Self::SessionOpened { action: action.to_owned(), words: all, env, terminal }
    }
}

impl Core {
    pub(crate) fn audit(&mut self, now: Time, line: Audit) -> Reply {
        self.audited.push(Audit { at: now, ..line });
        Reply::Done
    }

    /// The lines since the last call, for the store.
    pub(crate) fn take_audited(&mut self) -> Result<Vec<Archived>, String> {
        let lines = std::mem::take(&mut self.audited).into_iter();
        let archived = lines.map(|line| {
            let body = serde_json::to_vec(&line)
                .map_err(|error| format!("cannot render a line of the audit log: {error}"))?;
            Ok(Archived { kind: AUDIT_HISTORY, id: line.session.0, body })
        });
        archived.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut_between_characters() {
        let long = "é".repeat(MAX_AUDIT_WORDS);
        let env = BTreeMap::from([("A".to_owned(), "secret".to_owned())]);
        let event = AuditEvent::opened("exec", ["x", &long, "y"], &env, false);
        let AuditEvent::SessionOpened { words, env, .. } = event else { unreachable!("opened") };
        assert_eq!(words.len(), 3);
        assert!(words.iter().map(String::len).sum::<usize>() <= MAX_AUDIT_WORDS);
        assert!(words[1].ends_with('é'));
        assert!(!env.contains(&"secret".to_owned()));
    }
}
