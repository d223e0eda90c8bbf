//! Actions: what a task or an instance does inside its container, as a tree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, MAX_FILES};

/// How deep actions may nest.
pub const MAX_ACTION_DEPTH: usize = 16;
/// How many actions one tree may hold.
pub const MAX_ACTIONS: usize = 1_000;
/// Most bytes of one command's words and variables; the kernel takes no single word longer than this.
pub const MAX_RUN_BYTES: usize = 128 << 10;
/// Most bytes a download or an upload moves unless it says less.
pub const MAX_TRANSFER_BYTES: u64 = 10 << 30;
/// Most bytes of a URL.
pub const MAX_URL_BYTES: usize = 2_048;
/// Most bytes of what is said of progress, and of the name of a log source.
pub const MAX_PHRASE_BYTES: usize = 1_024;

/// One action. Paths are inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Puts bytes into the container: a blob or what a URL answers with, one of the two.
    Download {
        /// Which blob.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blob: Option<Digest>,
        /// `http://` or `https://`; private and link-local addresses are refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The file, or with `unpack` the directory.
        to: String,
        /// Whether it is a tar archive (plain or gzip) or a zip archive to unpack.
        unpack: bool,
        /// What the bytes must hash to; a blob is checked anyway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checksum: Option<Checksum>,
        /// Most bytes before unpacking; [`MAX_TRANSFER_BYTES`] when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_bytes: Option<u64>,
    },
    /// Takes bytes out of the container, into the blob store or to a URL.
    Upload {
        /// The file or directory.
        from: String,
        /// What is taken.
        mode: UploadMode,
        /// Where it is sent with `PUT` instead of the blob store; `https://` or `http://`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// Most bytes; [`MAX_TRANSFER_BYTES`] when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_bytes: Option<u64>,
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
        /// Who runs it, as `uid` or `uid:gid` inside the container; the container's user when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Most open files; the container's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        files: Option<u64>,
        /// What its lines are marked with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log_source: Option<String>,
        /// Whether its output goes nowhere.
        #[serde(default, skip_serializing_if = "is_false")]
        quiet: bool,
    },
    /// One after the other, until one fails.
    Serial {
        /// The actions.
        actions: Vec<Self>,
    },
    /// All at once; fails if any failed.
    Parallel {
        /// The actions.
        actions: Vec<Self>,
        /// Whether the first failure interrupts the others; all are waited for either way.
        #[serde(default, skip_serializing_if = "is_false")]
        fail_fast: bool,
    },
    /// All at once, meant to run for ever: the first that ends, however it does, interrupts the
    /// others, and the whole has failed.
    Codependent {
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
    /// Says in the log how the action goes.
    EmitProgress {
        /// The action.
        inner: Box<Self>,
        /// Said before it.
        start: String,
        /// Said after it succeeded.
        success: String,
        /// Said after it failed, before the reason.
        failure: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_false(it: &bool) -> bool {
    !*it
}

/// What bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checksum {
    /// Which hash.
    pub algorithm: ChecksumAlgorithm,
    /// Lower-case hex digits.
    pub value: String,
}

/// A hash. MD5 and SHA-1 find damage, not malice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the algorithms'")]
pub enum ChecksumAlgorithm {
    Md5,
    Sha1,
    Sha256,
}

impl Checksum {
    /// Whether the value has the form of its hash.
    pub fn is_well_formed(&self) -> bool {
        let digits = match self.algorithm {
            ChecksumAlgorithm::Md5 => 32,
            ChecksumAlgorithm::Sha1 => 40,
            ChecksumAlgorithm::Sha256 => 64,
        };
        self.value.len() == digits
            && self.value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// What an upload takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadMode {
    /// One file.
    File,
    /// Every file of a directory (not below it), each named by the hex digits of its SHA-256.
    DigestNamed,
    /// A directory with all below it, as a gzipped tar archive.
    Archive,
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
    /// Runs a program with nothing special about it.
    pub fn run<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self::Run {
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            dir: None,
            user: None,
            files: None,
            log_source: None,
            quiet: false,
        }
    }

    /// Puts a blob into the container.
    pub fn download(blob: Digest, to: impl Into<String>, unpack: bool) -> Self {
        let (to, blob) = (to.into(), Some(blob));
        Self::Download { blob, url: None, to, unpack, checksum: None, max_bytes: None }
    }

    /// Takes bytes into the blob store.
    pub fn upload(from: impl Into<String>, mode: UploadMode) -> Self {
        Self::Upload { from: from.into(), mode, url: None, max_bytes: None }
    }

    /// Checks depth, size and fields of the whole tree.
    pub fn validate(&self) -> Result<(), ActionError> {
        self.count(1).map(|_| ())
    }

    /// How many actions the tree holds.
    fn count(&self, depth: usize) -> Result<usize, ActionError> {
        if depth > MAX_ACTION_DEPTH {
            return Err(ActionError::TooDeep);
        }
        self.check_fields()?;
        let mut sum = 1;
        for action in self.below() {
            sum += action.count(depth + 1)?;
            if sum > MAX_ACTIONS {
                return Err(ActionError::TooMany);
            }
        }
        Ok(sum)
    }

    /// The actions directly below this one.
    pub fn below(&self) -> &[Self] {
        match self {
            Self::Serial { actions }
            | Self::Parallel { actions, .. }
            | Self::Codependent { actions } => actions,
            Self::Timeout { inner, .. }
            | Self::Try { inner }
            | Self::EmitProgress { inner, .. } => std::slice::from_ref(inner),
            Self::Download { .. } | Self::Upload { .. } | Self::Run { .. } => &[],
        }
    }

    fn check_fields(&self) -> Result<(), ActionError> {
        match self {
            Self::Serial { .. } | Self::Parallel { .. } | Self::Try { .. } => Ok(()),
            Self::Codependent { actions } => {
                require(!actions.is_empty(), "codependent", "it has no actions")
            }
            Self::Timeout { ms, .. } => require(*ms > 0, "timeout", "its limit is zero"),
            Self::EmitProgress { start, success, failure, .. } => {
                let short = [start, success, failure].iter().all(|it| it.len() <= MAX_PHRASE_BYTES);
                require(short, "emit_progress", "a message has more than 1024 bytes")
            }
            Self::Run { argv, env, dir, user, files, log_source, .. } => {
                check_run(argv, env, dir.as_deref())?;
                let can_be = files.is_none_or(|files| (1..=MAX_FILES).contains(&files));
                require(can_be, "run", "its files are not from 1 to 1048576")?;
                let is_user = user.as_deref().is_none_or(|user| parse_user(user).is_some());
                require(is_user, "run", "its user is no `uid` or `uid:gid`")?;
                let short = log_source.as_ref().is_none_or(|it| it.len() <= MAX_PHRASE_BYTES);
                require(short, "run", "its log source has more than 1024 bytes")
            }
            Self::Download { blob, url, to, checksum, max_bytes, .. } => {
                let one = blob.is_some() != url.is_some();
                require(one, "download", "it wants a blob or a url, one of the two")?;
                check_url(url.as_deref(), "download")?;
                let sum = checksum.as_ref().is_none_or(Checksum::is_well_formed);
                require(sum, "download", "its checksum has not the form of its algorithm")?;
                check_bytes(*max_bytes, "download")?;
                path(to, "download")
            }
            Self::Upload { from, mode, url, max_bytes } => {
                check_url(url.as_deref(), "upload")?;
                let fits = url.is_none() || *mode != UploadMode::DigestNamed;
                require(fits, "upload", "files named by their digests go to the blob store only")?;
                check_bytes(*max_bytes, "upload")?;
                path(from, "upload")
            }
        }
    }
}

/// The numbers of `uid` or `uid:gid`; the group is the user's number when it is not told.
pub fn parse_user(user: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && *number < u32::from(u16::MAX))
    };
    match user.split_once(':') {
        Some((uid, gid)) => Some((number(uid)?, number(gid)?)),
        None => number(user).map(|uid| (uid, uid)),
    }
}

fn check_run(
    argv: &[String],
    env: &BTreeMap<String, String>,
    dir: Option<&str>,
) -> Result<(), ActionError> {
    let program = argv.first().is_some_and(|program| !program.is_empty());
    require(program, "run", "it names no program")?;
    let words = || argv.iter().chain(env.keys()).chain(env.values()).map(String::as_str);
    let nul = words().chain(dir).any(|word| word.contains('\0'));
    require(!nul, "run", "it holds a NUL byte")?;
    let bytes: usize = words().map(str::len).sum();
    require(bytes <= MAX_RUN_BYTES, "run", "its words have more than 128 KiB")
}

fn check_url(url: Option<&str>, action: &'static str) -> Result<(), ActionError> {
    let Some(url) = url else { return Ok(()) };
    let known = url.starts_with("https://") || url.starts_with("http://");
    require(known, action, "its url starts with neither `https://` nor `http://`")?;
    require(url.len() <= MAX_URL_BYTES, action, "its url has more than 2048 bytes")?;
    let plain = !url.chars().any(|c| c.is_control() || c.is_whitespace());
    require(plain, action, "its url holds spaces or control characters")
}

const fn check_bytes(max: Option<u64>, action: &'static str) -> Result<(), ActionError> {
    let fits = matches!(max, None | Some(1..=MAX_TRANSFER_BYTES));
    require(fits, action, "its max_bytes is not from 1 to 10 GiB")
}

const fn require(
    holds: bool,
    action: &'static str,
    reason: &'static str,
) -> Result<(), ActionError> {
    if holds { Ok(()) } else { Err(ActionError::Field { action, reason }) }
}

fn path(path: &str, action: &'static str) -> Result<(), ActionError> {
    require(path.starts_with('/'), action, "its path is not absolute")?;
    require(!path.split('/').any(|part| part == ".."), action, "its path contains `..`")?;
    require(!path.contains('\0'), action, "its path holds a NUL byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Action {
        Action::run(["true"])
    }

    fn nested(depth: usize) -> Action {
        (1..depth).fold(run(), |inner, _| Action::Try { inner: Box::new(inner) })
    }

    #[test]
    fn depth_and_size_are_limited() {
        assert_eq!(nested(MAX_ACTION_DEPTH).validate(), Ok(()));
        assert_eq!(nested(MAX_ACTION_DEPTH + 1).validate(), Err(ActionError::TooDeep));
        let many = Action::Parallel { actions: vec![run(); MAX_ACTIONS + 1], fail_fast: false };
        assert_eq!(many.validate(), Err(ActionError::TooMany));
    }

    #[test]
    fn senseless_fields_are_refused() {
        let change = |change: fn(&mut Action)| {
            let mut action = Action::download(Digest([1; 32]), "/a", false);
            change(&mut action);
            action
        };
        let both = change(|it| {
            if let Action::Download { url, .. } = it {
                *url = Some("https://example.com/a".into());
            }
        });
        let neither = change(|it| {
            if let Action::Download { blob, .. } = it {
                *blob = None;
            }
        });
        let from = |url: &str| {
            let (url, to) = (Some(url.to_owned()), "/a".to_owned());
            Action::Download { blob: None, url, to, unpack: true, checksum: None, max_bytes: None }
        };
        assert_eq!(from("https://example.com/a.tgz").validate(), Ok(()));
        let sum = change(|it| {
            if let Action::Download { checksum, .. } = it {
                let value = "ABC".into();
                *checksum = Some(Checksum { algorithm: ChecksumAlgorithm::Md5, value });
            }
        });
        let root = |name: &str| {
            let mut action = run();
            if let Action::Run { user, .. } = &mut action {
                *user = Some(name.to_owned());
            }
            action
        };
        assert_eq!(root("1000:1000").validate(), Ok(()));
        let open = |most: u64| {
            let mut action = run();
            if let Action::Run { files, .. } = &mut action {
                *files = Some(most);
            }
            action
        };
        assert_eq!(open(MAX_FILES).validate(), Ok(()));
        let empty = Action::run([""; 0]);
        let escape = Action::upload("/a/../b", UploadMode::File);
        let instant = Action::Timeout { inner: Box::new(run()), ms: 0 };
        let long = Action::run(["a".to_owned(), "x".repeat(MAX_RUN_BYTES)]);
        let alone = Action::Codependent { actions: Vec::new() };
        for action in [
            (both, neither, sum),
            (from("file:///etc/passwd"), from("https://a b"), root("root")),
            (root("0:0:0"), root("+1"), root("70000")),
            (empty, escape, instant),
            (long, alone, from("")),
            (open(0), open(MAX_FILES + 1), Action::run([""])),
        ]
        .into_iter()
        .flat_map(|(a, b, c)| [a, b, c])
        {
            assert!(matches!(action.validate(), Err(ActionError::Field { .. })), "{action:?}");
        }
    }

    #[test]
    fn an_unknown_checksum_algorithm_is_refused() {
        let json = |algorithm: &str| {
            let value = "0".repeat(32);
            format!(
                r#"{{"action":"download","url":"https://example.com/a","to":"/a","unpack":false,
                    "checksum":{{"algorithm":"{algorithm}","value":"{value}"}}}}"#
            )
        };
        let known: Action = serde_json::from_str(&json("md5")).expect("a download");
        assert_eq!(known.validate(), Ok(()));
        for unknown in ["sha512", "MD5", ""] {
            let error = serde_json::from_str::<Action>(&json(unknown)).expect_err("refused");
            let error = error.to_string();
            assert!(error.contains("unknown variant") && error.contains(unknown), "{error}");
        }
    }

    #[test]
    fn json_shape_is_flat() {
        let json = serde_json::to_string(&run()).expect("actions serialise");
        assert_eq!(json, r#"{"action":"run","argv":["true"],"env":{},"dir":null}"#);
    }
}
