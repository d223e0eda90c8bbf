//! Actions: what a task or an instance does inside its container, as a tree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// How deep actions may nest.
pub const MAX_ACTION_DEPTH: usize = 16;
/// How many actions one tree may hold.
pub const MAX_ACTIONS: usize = 1_000;
/// Most bytes of one command's words and variables; the kernel takes no single word longer than this.
pub const MAX_RUN_BYTES: usize = 128 << 10;

/// One action. Paths are inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Puts a blob into the container.
    Download {
        /// Which blob.
        blob: Digest,
        /// The file, or with `unpack` the directory.
        to: String,
        /// Whether the blob is a tar archive (plain or gzip) to unpack.
        unpack: bool,
    },
    /// Takes bytes out of the container into the blob store.
    Upload {
        /// The file or directory.
        from: String,
        /// What is taken.
        mode: UploadMode,
    },
    /// Runs a program to its end; any exit but 0 is a failure.
    Run {
        /// The program and its arguments. No shell is involved.
        argv: Vec<String>,
        /// Added to the container's environment.
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// The working directory.
        #[serde(default)]
        dir: Option<String>,
    },
    /// One after the other, until one fails.
    Serial {
        /// The actions.
        actions: Vec<Self>,
    },
    /// All at once; waits for all, fails if any failed.
    Parallel {
        /// The actions.
        actions: Vec<Self>,
    },
    /// Interrupts the action when it takes too long.
    Timeout {
        /// The action.
        inner: Box<Self>,
        /// The limit in milliseconds, above zero.
        ms: u64,
    },
    /// Ignores the action's failure.
    Try {
        /// The action.
        inner: Box<Self>,
    },
}

/// What an upload takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadMode {
    /// One file.
    File,
    /// Every file of a directory (not below it), each named by the hex digits of its SHA-256.
    DigestNamed,
}

/// Why an action tree is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// Too deep.
    #[error("the action tree nests deeper than {MAX_ACTION_DEPTH}")]
    TooDeep,
    /// Too large.
    #[error("the action tree holds more than {MAX_ACTIONS} actions")]
    TooMany,
    /// A field that makes no sense.
    #[error("the {action} action is not allowed: {reason}")]
    Field {
        /// Which action.
        action: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Action {
    /// Checks depth, size and fields of the whole tree.
    pub fn validate(&self) -> Result<(), ActionError> {
        self.count(1).map(|_| ())
    }

    fn count(&self, depth: usize) -> Result<usize, ActionError> {
        if depth > MAX_ACTION_DEPTH {
            return Err(ActionError::TooDeep);
        }
        let below = match self {
            Self::Serial { actions } | Self::Parallel { actions } => {
                let mut sum = 0;
                for action in actions {
                    sum += action.count(depth + 1)?;
                    if sum > MAX_ACTIONS {
                        return Err(ActionError::TooMany);
                    }
                }
                sum
            }
            Self::Timeout { inner, ms } => {
                require(*ms > 0, "timeout", "its limit is zero")?;
                inner.count(depth + 1)?
            }
            Self::Try { inner } => inner.count(depth + 1)?,
            Self::Run { argv, env, dir } => {
                let program = argv.first().is_some_and(|program| !program.is_empty());
                require(program, "run", "it names no program")?;
                let nul = argv.iter().chain(env.keys()).chain(env.values()).chain(dir);
                require(!nul.into_iter().any(|s| s.contains('\0')), "run", "it holds a NUL byte")?;
                let words = argv.iter().chain(env.keys()).chain(env.values());
                let bytes: usize = words.map(String::len).sum();
                require(bytes <= MAX_RUN_BYTES, "run", "its words have more than 128 KiB")?;
                0
            }
            Self::Download { to, .. } => path(to, "download")?,
            Self::Upload { from, .. } => path(from, "upload")?,
        };
        Ok(below + 1)
    }
}

const fn require(
    holds: bool,
    action: &'static str,
    reason: &'static str,
) -> Result<(), ActionError> {
    if holds { Ok(()) } else { Err(ActionError::Field { action, reason }) }
}

fn path(path: &str, action: &'static str) -> Result<usize, ActionError> {
    require(path.starts_with('/'), action, "its path is not absolute")?;
    require(!path.split('/').any(|part| part == ".."), action, "its path contains `..`")?;
    require(!path.contains('\0'), action, "its path holds a NUL byte")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Action {
        Action::Run { argv: vec!["true".into()], env: BTreeMap::new(), dir: None }
    }

    fn nested(depth: usize) -> Action {
        (1..depth).fold(run(), |inner, _| Action::Try { inner: Box::new(inner) })
    }

    #[test]
    fn depth_and_size_are_limited() {
        assert_eq!(nested(MAX_ACTION_DEPTH).validate(), Ok(()));
        assert_eq!(nested(MAX_ACTION_DEPTH + 1).validate(), Err(ActionError::TooDeep));
        let many = Action::Parallel { actions: vec![run(); MAX_ACTIONS + 1] };
        assert_eq!(many.validate(), Err(ActionError::TooMany));
    }

    #[test]
    fn senseless_fields_are_refused() {
        let empty = Action::Run { argv: vec![], env: BTreeMap::new(), dir: None };
        let escape = Action::Upload { from: "/a/../b".into(), mode: UploadMode::File };
        let instant = Action::Timeout { inner: Box::new(run()), ms: 0 };
        let word = "x".repeat(MAX_RUN_BYTES);
        let long = Action::Run { argv: vec!["a".into(), word], env: BTreeMap::new(), dir: None };
        for action in [empty, escape, instant, long] {
            assert!(matches!(action.validate(), Err(ActionError::Field { .. })), "{action:?}");
        }
    }

    #[test]
    fn json_shape_is_flat() {
        let json = serde_json::to_string(&run()).expect("actions serialise");
        assert_eq!(json, r#"{"action":"run","argv":["true"],"env":{},"dir":null}"#);
    }
}
