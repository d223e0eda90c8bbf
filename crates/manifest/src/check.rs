//! Health checks in a project file.

use hcl_edit::Span as _;
use hcl_edit::structure::Block;
use model::{Check, CheckKind};

use crate::project::{count, unlabelled};
use crate::read::{Item, ManifestError, Source};

/// A health check. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckFile {
    /// What is asked; an answer to `GET /` when absent.
    pub kind: Option<CheckKind>,
    /// Another port than the instance's own.
    pub port: Option<u16>,
    /// Between two checks.
    pub interval_ms: Option<u64>,
    /// By how much of the interval checks are moved apart.
    pub jitter_percent: Option<u32>,
    /// For one check.
    pub timeout_ms: Option<u64>,
    /// From start to the first success.
    pub start_timeout_ms: Option<u64>,
    /// Failures in a row.
    pub failures: Option<u32>,
    /// Successes in a row.
    pub successes: Option<u32>,
}

impl CheckFile {
    /// The check, with the usual values where the file says nothing.
    pub fn check(&self) -> Check {
        let usual = Check::default();
        Check {
            kind: self.kind.clone().unwrap_or(usual.kind),
            port: self.port,
            interval_ms: self.interval_ms.unwrap_or(usual.interval_ms),
            jitter_percent: self.jitter_percent.unwrap_or(usual.jitter_percent),
            timeout_ms: self.timeout_ms.unwrap_or(usual.timeout_ms),
            start_timeout_ms: self.start_timeout_ms.unwrap_or(usual.start_timeout_ms),
            failures: self.failures.unwrap_or(usual.failures),
            successes: self.successes.unwrap_or(usual.successes),
        }
    }
}

const WORDS: &str = "`path`, `tcp`, `command`, `port`, `interval`, `jitter`, `timeout`, \
                     `start_timeout`, `failures` and `successes`";

pub(crate) fn check(source: Source<'_>, block: &Block) -> Result<CheckFile, ManifestError> {
    unlabelled(source, block)?;
    let word = block.ident.as_str();
    let mut file = CheckFile::default();
    source.each(&block.body, &format!("in `{word}`"), WORDS, |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        let kind = match it.key.as_str() {
            "path" => Some(CheckKind::Http { path: source.text(it)? }),
            "tcp" => source.flag(it)?.then_some(CheckKind::Tcp),
            "command" => Some(CheckKind::Command { argv: source.texts(it)? }),
            "port" => {
                let port = source.number(it, 1..=u64::from(u16::MAX))?;
                file.port = u16::try_from(port).ok();
                None
            }
            "interval" => set(&mut file.interval_ms, source.millis(it)?),
            "jitter" => set(&mut file.jitter_percent, count(source.number(it, 0..=100)?)),
            "timeout" => set(&mut file.timeout_ms, source.millis(it)?),
            "start_timeout" => set(&mut file.start_timeout_ms, source.millis(it)?),
            "failures" => set(&mut file.failures, count(source.number(it, 1..=1_000)?)),
            "successes" => set(&mut file.successes, count(source.number(it, 1..=1_000)?)),
            _ => return Ok(false),
        };
        if kind.is_some() && file.kind.is_some() {
            let message = format!("a `{word}` has one of `path`, `tcp` and `command`");
            return Err(source.error(it.key.span(), message));
        }
        if let Some(kind) = kind {
            source.holds(it.value.span(), |spec| {
                spec.check = Some(Check { kind: kind.clone(), ..Check::default() });
            })?;
            file.kind = Some(kind);
        }
        Ok(true)
    })?;
    source.holds(block.ident.span(), |spec| spec.check = Some(file.check()))?;
    Ok(file)
}

/// Notes a setting that does not say what is asked.
const fn set<T: Copy>(at: &mut Option<T>, value: T) -> Option<CheckKind> {
    *at = Some(value);
    None
}
