//! How processes run: what an app says for all of them, and each for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hcl_edit::Span as _;
use hcl_edit::structure::{Attribute, Block};
use model::{
    ContainerSpec, CrashPolicy, EgressProtocol, EgressRule, MAX_FILES, MAX_LOG_RATE, MAX_PIDS,
    Name, ProcessSpec, StopSignal, VolumeMount,
};

use crate::check::{CheckFile, check};
use crate::project::{count, unlabelled};
use crate::read::{Item, ManifestError, Source};

type Result<T> = std::result::Result<T, ManifestError>;

/// The words of [`RunFile`], for messages.
pub(crate) const WORDS: &str = "`env`, `memory`, `disk`, `cpu`, `pids`, `files`, `log_rate`, \
     `driver`, `tags`, `user`, `read_only`, `tmp`, `stop_grace`, `stop_signal`, `pre_stop`, \
     `volume`, `egress`, `check`, `startup`, `readiness` and `crash`";

/// How processes run. Absent: the next more general one's, then the platform's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFile {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Memory of an instance in MiB.
    pub memory_mb: Option<u64>,
    /// Disk of an instance in MiB.
    pub disk_mb: Option<u64>,
    /// Shares of processor time, 1,024 to a core.
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Bytes of log lines a second.
    pub log_bytes: Option<u64>,
    /// The driver it must run on.
    pub driver: Option<Name>,
    /// What the cell must be tagged with.
    pub tags: BTreeSet<Name>,
    /// `uid` or `uid:gid`.
    pub user: Option<String>,
    /// Whether only volumes, caches and `/tmp` may be written.
    pub read_only: Option<bool>,
    /// MiB of `/tmp`, in memory.
    pub tmp_mb: Option<u64>,
    /// Time from the hook to KILL, in milliseconds.
    pub stop_grace_ms: Option<u64>,
    /// What asks it to end.
    pub stop_signal: Option<StopSignal>,
    /// Run before that.
    pub pre_stop: Option<Vec<String>>,
    /// Volumes by name.
    pub volumes: BTreeMap<Name, VolumeMount>,
    /// Connections it may open beyond the usual.
    pub egress: Vec<EgressRule>,
    /// Whether it lives.
    pub check: Option<CheckFile>,
    /// Whether it has started.
    pub startup: Option<CheckFile>,
    /// Whether it can take requests.
    pub readiness: Option<CheckFile>,
    /// When it starts again.
    pub crash: Option<CrashPolicy>,
}

impl RunFile {
    /// These settings, and those of `base` where they say nothing. Environment, tags, volumes and
    /// rules add up.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        let joined = |own: &BTreeMap<String, String>, base: &BTreeMap<String, String>| {
            base.iter().chain(own).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let volumes = base.volumes.iter().chain(&self.volumes);
        Self {
            env: joined(&self.env, &base.env),
            memory_mb: self.memory_mb.or(base.memory_mb),
            disk_mb: self.disk_mb.or(base.disk_mb),
            cpu_shares: self.cpu_shares.or(base.cpu_shares),
            pids: self.pids.or(base.pids),
            files: self.files.or(base.files),
            log_bytes: self.log_bytes.or(base.log_bytes),
            driver: self.driver.clone().or_else(|| base.driver.clone()),
            tags: base.tags.union(&self.tags).cloned().collect(),
            user: self.user.clone().or_else(|| base.user.clone()),
            read_only: self.read_only.or(base.read_only),
            tmp_mb: self.tmp_mb.or(base.tmp_mb),
            stop_grace_ms: self.stop_grace_ms.or(base.stop_grace_ms),
            stop_signal: self.stop_signal.or(base.stop_signal),
            pre_stop: self.pre_stop.clone().or_else(|| base.pre_stop.clone()),
            volumes: volumes.map(|(name, mount)| (name.clone(), mount.clone())).collect(),
            egress: base.egress.iter().chain(&self.egress).cloned().collect(),
            check: self.check.clone().or_else(|| base.check.clone()),
            startup: self.startup.clone().or_else(|| base.startup.clone()),
            readiness: self.readiness.clone().or_else(|| base.readiness.clone()),
            crash: self.crash.or(base.crash),
        }
    }

    /// The same without checks: those of an app are for `web` only.
    #[must_use]
    pub fn without_checks(&self) -> Self {
        Self { check: None, startup: None, readiness: None, ..self.clone() }
    }

    /// Puts everything but the checks into a spec.
    pub fn apply(&self, spec: &mut ProcessSpec) {
        let ContainerSpec { env, limits, volumes, driver, tags, .. } = &mut spec.container;
        env.clone_from(&self.env);
        limits.memory_mb = self.memory_mb;
        limits.disk_mb = self.disk_mb;
        limits.cpu_shares = self.cpu_shares;
        limits.pids = self.pids;
        limits.files = self.files;
        limits.log_bytes = self.log_bytes;
        volumes.clone_from(&self.volumes);
        driver.clone_from(&self.driver);
        tags.clone_from(&self.tags);
        spec.container.egress.clone_from(&self.egress);
        spec.container.user.clone_from(&self.user);
        spec.container.read_only = self.read_only.unwrap_or_default();
        spec.container.tmp_mb = self.tmp_mb;
        spec.stop_grace_ms = self.stop_grace_ms.unwrap_or(spec.stop_grace_ms);
        spec.stop_signal = self.stop_signal.unwrap_or_default();
        spec.pre_stop.clone_from(&self.pre_stop);
        spec.crash = self.crash.unwrap_or_default();
    }

    /// Takes in one word; false when it is not one of these.
    pub(crate) fn take(&mut self, source: Source<'_>, item: Item<'_>) -> Result<bool> {
        match item {
            Item::Attribute(it) => self.attribute(source, it),
            Item::Block(it) => self.block(source, it),
        }
    }

    fn attribute(&mut self, source: Source<'_>, it: &Attribute) -> Result<bool> {
        match it.key.as_str() {
            "env" => self.env = source.process_env(it)?,
            "memory" => self.memory_mb = Some(source.number(it, 1..=1 << 20)?),
            "disk" => self.disk_mb = Some(source.number(it, 1..=1 << 20)?),
            "cpu" => self.cpu_shares = Some(source.cores(it)?),
            "pids" => self.pids = Some(source.number(it, 1..=MAX_PIDS)?),
            "files" => self.files = Some(source.number(it, 1..=MAX_FILES)?),
            "log_rate" => self.log_bytes = Some(source.number(it, 1..=MAX_LOG_RATE >> 10)? << 10),
            "driver" => {
                let driver = source.name(it)?;
                let set = |spec: &mut ProcessSpec| spec.container.driver = Some(driver.clone());
                source.holds(it.value.span(), set)?;
                self.driver = Some(driver);
            }
            "tags" => self.tags = source.names(it)?.into_iter().collect(),
            "user" => {
                let user = source.text(it)?;
                source.holds(it.value.span(), |spec| spec.container.user = Some(user.clone()))?;
                self.user = Some(user);
            }
            "read_only" => self.read_only = Some(source.flag(it)?),
            "tmp" => self.tmp_mb = Some(source.number(it, 1..=1 << 20)?),
            "stop_grace" => {
                let grace = source.millis(it)?;
                source.holds(it.value.span(), |spec| spec.stop_grace_ms = grace)?;
                self.stop_grace_ms = Some(grace);
            }
            "stop_signal" => self.stop_signal = Some(stop_signal(source, it)?),
            "pre_stop" => {
                let hook = source.texts(it)?;
                source.holds(it.value.span(), |spec| spec.pre_stop = Some(hook.clone()))?;
                self.pre_stop = Some(hook);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn block(&mut self, source: Source<'_>, it: &Block) -> Result<bool> {
        match it.ident.as_str() {
            "check" => self.check = Some(check(source, it)?),
            "startup" => self.startup = Some(check(source, it)?),
            "readiness" => self.readiness = Some(check(source, it)?),
            "crash" => self.crash = Some(crash(source, it)?),
            "egress" => self.egress.push(egress(source, it)?),
            "volume" => {
                let name = source.label(it)?;
                let (mount, at) = volume(source, it, &name)?;
                if self.volumes.insert(name.clone(), mount).is_some() {
                    let message = format!("volume \"{name}\" is there twice");
                    return Err(source.error(it.ident.span(), message));
                }
                self.volumes_hold(source, at)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl RunFile {
    /// Whether one process may have all these volumes.
    pub(crate) fn volumes_hold(&self, source: Source<'_>, at: Option<Range<usize>>) -> Result<()> {
        source.holds(at, |spec| spec.container.volumes.clone_from(&self.volumes))
    }
}

const SIGNALS: [(&str, StopSignal); 6] = [
    ("term", StopSignal::Term),
    ("int", StopSignal::Int),
    ("quit", StopSignal::Quit),
    ("hup", StopSignal::Hup),
    ("usr1", StopSignal::Usr1),
    ("usr2", StopSignal::Usr2),
];

fn stop_signal(source: Source<'_>, it: &Attribute) -> Result<StopSignal> {
    let text = source.text(it)?.to_ascii_lowercase();
    let bare = text.strip_prefix("sig").unwrap_or(&text);
    let found = SIGNALS.iter().find(|(name, _)| *name == bare);
    found.map(|(_, signal)| *signal).ok_or_else(|| {
        let known = SIGNALS.map(|(name, _)| format!("\"{name}\"")).join(", ");
        source.error(it.value.span(), format!("`stop_signal` must be one of {known}"))
    })
}

/// A volume, and where its path is written.
fn volume(
    source: Source<'_>,
    block: &Block,
    name: &Name,
) -> Result<(VolumeMount, Option<Range<usize>>)> {
    let mut mount = VolumeMount { path: String::new(), read_only: false };
    let mut at = block.ident.span();
    source.each(&block.body, "in `volume`", "`path` and `read_only`", |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "path" => {
                mount.path = source.text(it)?;
                at = it.value.span();
            }
            "read_only" => mount.read_only = source.flag(it)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if mount.path.is_empty() {
        let message = "a `volume` says where it is: path = \"/data\"".to_owned();
        return Err(source.error(at, message));
    }
    source.holds(at.clone(), |spec| {
        spec.container.volumes.insert(name.clone(), mount.clone());
    })?;
    Ok((mount, at))
}

pub(crate) fn egress(source: Source<'_>, block: &Block) -> Result<EgressRule> {
    unlabelled(source, block)?;
    let mut rule = EgressRule { to: String::new(), protocol: None, ports: None };
    source.each(&block.body, "in `egress`", "`to`, `protocol` and `ports`", |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "to" => rule.to = source.text(it)?,
            "protocol" => rule.protocol = Some(protocol(source, it)?),
            "ports" => rule.ports = Some(ports(source, it)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    source.holds(block.ident.span(), |spec| spec.container.egress.push(rule.clone()))?;
    Ok(rule)
}

fn protocol(source: Source<'_>, it: &Attribute) -> Result<EgressProtocol> {
    match source.text(it)?.as_str() {
        "tcp" => Ok(EgressProtocol::Tcp),
        "udp" => Ok(EgressProtocol::Udp),
        "icmp" => Ok(EgressProtocol::Icmp),
        other => {
            let message = format!("`protocol` must be \"tcp\", \"udp\" or \"icmp\", not {other:?}");
            Err(source.error(it.value.span(), message))
        }
    }
}

/// `"5432"` or `"8000-8010"`.
fn ports(source: Source<'_>, it: &Attribute) -> Result<(u16, u16)> {
    let text = source.text(it)?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let ports = first.trim().parse().ok().zip(last.trim().parse().ok());
    ports.filter(|(first, last)| (1..=*last).contains(first)).ok_or_else(|| {
        let message = "`ports` must be a port or a range, as in \"5432\" or \"8000-8010\"";
        source.error(it.value.span(), message.to_owned())
    })
}

fn crash(source: Source<'_>, block: &Block) -> Result<CrashPolicy> {
    unlabelled(source, block)?;
    let mut policy = CrashPolicy::default();
    let allowed = "`immediate`, `base`, `cap`, `reset_after` and `give_up_after`";
    source.each(&block.body, "in `crash`", allowed, |item| {
        let Item::Attribute(it) = item else { return Ok(false) };
        match it.key.as_str() {
            "immediate" => policy.immediate = count(source.number(it, 0..=1_000)?),
            "base" => policy.base_ms = source.millis(it)?,
            "cap" => policy.cap_ms = source.millis(it)?,
            "reset_after" => policy.reset_after_ms = source.millis(it)?,
            "give_up_after" => policy.give_up_after = count(source.number(it, 1..=1_000_000)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if policy.cap_ms < policy.base_ms {
        let message = "`cap` must not be shorter than `base`".to_owned();
        return Err(source.error(block.ident.span(), message));
    }
    Ok(policy)
}
