//! The control groups of a container: what it uses, and which processes it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the kernel shows control groups.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The control groups a process is in; empty paths where a controller is missing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    accounting: Option<PathBuf>,
    cpu: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl Cgroups {
    /// Those of a process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = fs::read_to_string(MOUNTS)?;
        Ok(Self::parse(&groups, &mounts))
    }

    fn parse(groups: &str, mounts: &str) -> Self {
        let of = |controller: &str| {
            let path = groups.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                let named = controllers.split(',').any(|name| name == controller);
                named.then(|| path.trim_start_matches('/'))
            })?;
            Some(mount_of(mounts, controller)?.join(path))
        };
        Self {
            memory: of("memory"),
            pids: of("pids"),
            accounting: of("cpuacct"),
            cpu: of("cpu"),
            unified: of(""),
        }
    }

    /// The numbers of its processes on this machine.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let dir = self.pids.as_ref().or(self.memory.as_ref()).or(self.unified.as_ref());
        let dir = dir.ok_or_else(|| io::Error::other("there are no control groups"))?;
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            // It went away with its last process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Sets how many processes and threads there may be.
    pub(crate) fn limit_processes(&self, most: u64) -> io::Result<()> {
        let dir = self.pids.as_ref().or(self.unified.as_ref());
        let dir = dir.ok_or_else(|| io::Error::other("there are no control groups"))?;
        fs::write(dir.join("pids.max"), most.to_string())
    }

    /// The file that counts processes that were killed because memory ran out.
    pub(crate) fn oom_file(&self) -> Option<PathBuf> {
        match &self.memory {
            Some(dir) => Some(dir.join("memory.oom_control")),
            None => Some(self.unified.as_ref()?.join("memory.events")),
        }
    }

    /// How many processes were killed because memory ran out.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = self.oom_file().and_then(|file| fs::read_to_string(file).ok());
        text.and_then(|text| number(&text, "oom_kill")).unwrap_or_default()
    }

    /// Memory that could not be had back by forgetting files.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let (dir, usage, forgettable) = match &self.memory {
            Some(dir) => (Some(dir), "memory.usage_in_bytes", "total_inactive_file"),
            None => (self.unified.as_ref(), "memory.current", "inactive_file"),
        };
        let usage = whole(dir, usage).unwrap_or_default();
        usage.saturating_sub(field(dir, "memory.stat", forgettable).unwrap_or_default())
    }

    /// Processor time used.
    pub(crate) fn cpu(&self) -> Duration {
        match &self.accounting {
            Some(dir) => whole(Some(dir), "cpuacct.usage").map(Duration::from_nanos),
            None => {
                field(self.unified.as_ref(), "cpu.stat", "usage_usec").map(Duration::from_micros)
            }
        }
        .unwrap_or_default()
    }

    /// How long it waited because its processor time was used up.
    pub(crate) fn throttled(&self) -> Duration {
        match &self.cpu {
            Some(dir) => field(Some(dir), "cpu.stat", "throttled_time").map(Duration::from_nanos),
            None => field(self.unified.as_ref(), "cpu.stat", "throttled_usec")
                .map(Duration::from_micros),
        }
        .unwrap_or_default()
    }
}

/// Where the hierarchy of a controller is mounted; that of version 2 has no name.
fn mount_of(mounts: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let place = place.split(' ').nth(4)?;
        let mut kind = kind.split(' ');
        let version = kind.next()?;
        let found = if controller.is_empty() {
            version == "cgroup2"
        } else {
            version == "cgroup" && kind.nth(1)?.split(',').any(|name| name == controller)
        };
        found.then(|| PathBuf::from(place))
    })
}

fn whole(dir: Option<&PathBuf>, name: &str) -> Option<u64> {
    read(dir?, name)?.trim().parse().ok()
}

fn field(dir: Option<&PathBuf>, name: &str, field: &str) -> Option<u64> {
    number(&read(dir?, name)?, field)
}

fn number(text: &str, field: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find_map(|(name, value)| (name == field).then(|| value.trim().parse().ok())?)
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_every_kind_of_hierarchy() {
        let first = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        let second = "29 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n";
        let found = Cgroups::parse(groups, &format!("{first}{second}"));
        assert_eq!(found.memory, Some("/sys/fs/cgroup/memory/docker/abc".into()));
        assert_eq!(found.cpu, Some("/sys/fs/cgroup/cpu,cpuacct/docker/abc".into()));
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified/docker/abc".into()));
        assert_eq!(found.pids, None);
        let found = Cgroups::parse("0::/system.slice/docker-abc.scope\n", second);
        assert_eq!(found.memory, None);
        let path = "/sys/fs/cgroup/unified/system.slice/docker-abc.scope";
        assert_eq!(found.unified, Some(path.into()));
    }
}
