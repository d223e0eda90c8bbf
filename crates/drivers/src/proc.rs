//! What the kernel says about running processes.
//!
//! A process number alone names nothing: numbers are used again. Everything here names a process
//! by its number and its start time, and checks both before it sends a signal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Id {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, in ticks since the machine did.
    pub(crate) start: u64,
}

/// One line of the process table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// It has ended and only waits for its parent to notice.
    pub(crate) ended: bool,
    /// Ticks used by itself.
    pub(crate) own_ticks: u64,
    /// Ticks used by its children that ended.
    pub(crate) child_ticks: u64,
    pub(crate) rss_pages: u64,
}

impl Entry {
    /// Reads the entry of one process; `None` when there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &String::from_utf8_lossy(&line))
    }

    fn parse(pid: i32, line: &str) -> Option<Self> {
        // The name in parentheses may contain anything, so start after the last one.
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc(5) counts from 1 and `rest` starts with field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let signed = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
        Some(Self {
            id: Id { pid, start: number(22)? },
            parent: signed(4)?,
            session: signed(6)?,
            ended: matches!(fields.first(), Some(&("Z" | "X" | "x"))),
            own_ticks: number(14)? + number(15)?,
            child_ticks: number(16)? + number(17)?,
            rss_pages: number(24)?,
        })
    }
}

impl Id {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Entry::read(pid).map(|entry| entry.id)
    }

    /// Whether it still runs.
    pub(crate) fn runs(self) -> bool {
        Entry::read(self.pid).is_some_and(|entry| entry.id == self && !entry.ended)
    }

    /// A descriptor of exactly this process; `None` when it is gone.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Ok(self.runs().then_some(fd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal to exactly this process; a gone one is fine.
    pub(crate) fn send(self, signal: Signal) -> io::Result<()> {
        let Some(fd) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(&fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// All processes of the machine at one moment.
#[derive(Debug)]
pub(crate) struct Table(BTreeMap<i32, Entry>);

impl Table {
    /// Reads the process table.
    pub(crate) fn read() -> io::Result<Self> {
        let mut entries = BTreeMap::new();
        for file in fs::read_dir("/proc")? {
            let name = file?.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            if let Some(entry) = pid.and_then(Entry::read) {
                entries.insert(entry.id.pid, entry);
            }
        }
        Ok(Self(entries))
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Entry> {
        self.0.get(&id.pid).filter(|entry| entry.id == id)
    }

    /// The process that has this number.
    pub(crate) fn named(&self, pid: i32) -> Option<Id> {
        self.0.get(&pid).map(|entry| entry.id)
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Entry> {
        self.0.values().filter(|entry| !entry.ended)
    }

    /// Every descendant of `roots` and of what they lead to, without the roots themselves.
    pub(crate) fn descendants(&self, roots: &[Id]) -> BTreeSet<Id> {
        let mut children: BTreeMap<i32, Vec<Id>> = BTreeMap::new();
        for entry in self.0.values() {
            children.entry(entry.parent).or_default().push(entry.id);
        }
        let mut found = BTreeSet::new();
        let mut next: Vec<Id> =
            roots.iter().copied().filter(|id| self.get(*id).is_some()).collect();
        while let Some(id) = next.pop() {
            for child in children.get(&id.pid).into_iter().flatten() {
                if found.insert(*child) {
                    next.push(*child);
                }
            }
        }
        found
    }
}

/// Whether the environment a process was started with contains every one of `markers`.
pub(crate) fn environment_has(pid: i32, markers: &[String]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let mut found = vec![false; markers.len()];
    for variable in environment.split(|byte| *byte == 0) {
        for (marker, found) in markers.iter().zip(&mut found) {
            *found |= variable == marker.as_bytes();
        }
    }
    found.into_iter().all(|found| found)
}

/// What a variable was in the environment a process was started with.
pub(crate) fn environment_value(pid: i32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |variable: &[u8]| {
        let rest = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(rest.to_vec()).ok()
    };
    environment.split(|byte| *byte == 0).find_map(value)
}

/// Whether a process works below `dir`.
pub(crate) fn works_below(pid: i32, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
}

/// What tells this run of the machine from every other.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Processor ticks as time.
pub(crate) fn ticks(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(ticks.saturating_mul(1000) / per_second)
}

/// Memory pages as bytes.
pub(crate) fn pages(pages: u64) -> u64 {
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_an_entry() {
        let line = "7 (a) S 1 1) R 2 7 7 0 -1 0 0 0 0 0 11 12 3 4 20 0 1 0 99 1000 5 0 0";
        let entry = Entry::parse(7, line).expect("parses");
        assert_eq!((entry.parent, entry.id.start, entry.rss_pages), (2, 99, 5));
        assert_eq!((entry.own_ticks, entry.child_ticks), (23, 7));
    }

    #[test]
    fn this_process_is_found_and_a_wrong_start_time_is_not() {
        let me = Id::of(std::process::id().cast_signed()).expect("runs");
        assert!(me.runs());
        let other = Id { start: me.start + 1, ..me };
        assert!(!other.runs());
        assert!(other.open().expect("asks").is_none());
    }
}
