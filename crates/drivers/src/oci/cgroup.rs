//! Control groups: one for each container, and below it one for each of its processes, so that
//! whatever a process leaves behind is found.
//!
//! Version 1 has one tree for each controller; processes are told apart in that of `pids`. Version 2
//! has one tree. Where both are mounted (hybrid), the controllers are those of version 1.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::driver::Stats;
use crate::proc::Id;

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";
/// The controllers of version 1 that are used here.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];
/// The tree of version 1 that tells processes apart.
const TRACKING: &str = "pids";
/// How often to look for processes that were made while others were being killed.
const KILL_ROUNDS: usize = 10_000;
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Which version the machine has, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 1, a tree for each controller.
    Trees(PathBuf),
    /// Version 2.
    One(PathBuf),
}

impl Layout {
    /// Finds the machine's; `Err` says what is missing.
    pub(super) fn find() -> Result<Self, String> {
        Self::find_in(Path::new(MOUNTED))
    }

    fn find_in(mounted: &Path) -> Result<Self, String> {
        if let Ok(controllers) = fs::read_to_string(mounted.join("cgroup.controllers")) {
            let has = |name: &str| controllers.split_whitespace().any(|found| found == name);
            return match ["memory", "cpu", "pids"].into_iter().find(|name| !has(name)) {
                Some(name) => Err(format!("the control group controller {name} is missing")),
                None => Ok(Self::One(mounted.to_owned())),
            };
        }
        match CONTROLLERS.into_iter().find(|name| !mounted.join(name).is_dir()) {
            Some(name) => Err(format!("{}: no control group {name}", mounted.display())),
            None => Ok(Self::Trees(mounted.to_owned())),
        }
    }

    /// Whether both versions are mounted.
    pub(super) fn is_hybrid(&self) -> bool {
        match self {
            Self::Trees(mounted) => mounted.join("unified").is_dir(),
            Self::One(_) => false,
        }
    }

    /// The tree a controller is in.
    fn tree(&self, controller: &str) -> PathBuf {
        match self {
            Self::Trees(mounted) => mounted.join(controller),
            Self::One(mounted) => mounted.clone(),
        }
    }

    /// Every tree there is, also those not used here: a runtime makes groups in all of them.
    fn trees(&self) -> Vec<PathBuf> {
        match self {
            Self::One(mounted) => vec![mounted.clone()],
            Self::Trees(mounted) => {
                let Ok(entries) = fs::read_dir(mounted) else { return Vec::new() };
                entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
            }
        }
    }

    /// Whether swap can be limited, so that memory is not just moved there.
    pub(super) fn limits_swap(&self) -> bool {
        match self {
            Self::Trees(mounted) => mounted.join("memory/memory.memsw.limit_in_bytes").exists(),
            Self::One(_) => true,
        }
    }
}

/// The control group of a container.
#[derive(Debug, Clone)]
pub(super) struct Group {
    layout: Layout,
    /// Where it is in its trees, without a leading slash.
    path: String,
}

impl Group {
    pub(super) fn new(layout: &Layout, path: String) -> Self {
        Self { layout: layout.clone(), path }
    }

    fn dir(&self, controller: &str) -> PathBuf {
        self.layout.tree(controller).join(&self.path)
    }

    /// Makes the group of one process, and gives its name for the runtime.
    pub(super) fn make_process(&self, name: &str) -> io::Result<String> {
        let dir = self.dir(TRACKING);
        // A stop that was cut short may have left this.
        match fs::create_dir(dir.join(name)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(match self.layout {
            Layout::Trees(_) => format!("{TRACKING}:{name}"),
            Layout::One(_) => name.to_owned(),
        })
    }

    /// Removes the group of a process that was not started, so that its name can be used again.
    pub(super) fn forget_process(&self, name: &str) {
        // With something in it, it stays until the container is removed.
        drop(fs::remove_dir(self.of_process(name)));
    }

    /// Where the group of a process is.
    pub(super) fn of_process(&self, name: &str) -> PathBuf {
        self.dir(TRACKING).join(name)
    }

    /// The groups a process is in whose own group has this name: one in each tree.
    pub(super) fn all_of_process(&self, name: &str) -> Vec<PathBuf> {
        let tracking = self.layout.tree(TRACKING);
        let trees = self.layout.trees().into_iter();
        let groups = trees.map(|tree| {
            let group = tree.join(&self.path);
            if tree == tracking { group.join(name) } else { group }
        });
        groups.filter(|group| group.is_dir()).collect()
    }

    /// The file that counts processes killed because memory ran out.
    pub(super) fn oom_file(&self) -> PathBuf {
        let name = match self.layout {
            Layout::Trees(_) => "memory.oom_control",
            Layout::One(_) => "memory.events",
        };
        self.dir("memory").join(name)
    }

    /// The groups of its processes.
    fn process_groups(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.dir(TRACKING)) else { return Vec::new() };
        let dirs = entries.filter_map(Result::ok).map(|entry| entry.path());
        dirs.filter(|path| path.is_dir()).collect()
    }

    /// The names of the groups of its processes.
    pub(super) fn process_names(&self) -> Vec<String> {
        let groups = self.process_groups();
        let names = groups.iter().filter_map(|path| path.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }

    /// Kills everything that was started in the container, or one process with all it left behind;
    /// returns when nothing of it runs.
    pub(super) fn kill(&self, only: Option<&str>, deadline: Instant) -> io::Result<()> {
        let groups = match only {
            Some(name) => vec![self.dir(TRACKING).join(name)],
            None => self.process_groups(),
        };
        groups.iter().try_for_each(|group| kill_all(group, deadline))
    }

    /// Kills everything, the first process too, and removes the group from every tree.
    pub(super) fn remove(&self, deadline: Instant) -> io::Result<()> {
        self.kill(None, deadline)?;
        for tree in self.layout.trees() {
            let dir = tree.join(&self.path);
            if dir.is_dir() {
                kill_all(&dir, deadline)?;
                remove_tree(&dir, deadline)?;
            }
        }
        Ok(())
    }

    /// Limits the memory of everything in the group, with swap, where the group is there; without a
    /// limit, takes an earlier one away.
    pub(super) fn limit_memory(&self, bytes: Option<u64>) -> io::Result<()> {
        let dir = self.dir("memory");
        let number = bytes.map(|bytes| bytes.to_string());
        let set = |name: &str, text: &str| match fs::write(dir.join(name), text) {
            Err(error) if !gone(&error) => {
                Err(io::Error::new(error.kind(), format!("{}: {error}", dir.join(name).display())))
            }
            _ => Ok(()),
        };
        match self.layout {
            Layout::Trees(_) => {
                let text = number.as_deref().unwrap_or("-1");
                // Memory alone is never more than with swap: one of them goes first, by turns.
                let first = set("memory.limit_in_bytes", text);
                if self.layout.limits_swap() {
                    set("memory.memsw.limit_in_bytes", text)?;
                }
                first.or_else(|_| set("memory.limit_in_bytes", text))
            }
            Layout::One(_) => {
                set("memory.swap.max", if number.is_some() { "0" } else { "max" })?;
                set("memory.max", number.as_deref().unwrap_or("max"))
            }
        }
    }

    /// Removes the parent of the groups of a driver from every tree, where nothing is in it.
    pub(super) fn remove_parent(&self) {
        for tree in self.layout.trees() {
            if let Some(parent) = tree.join(&self.path).parent().filter(|parent| *parent != tree) {
                // Another container may be in it.
                drop(fs::remove_dir(parent));
            }
        }
    }

    /// What runs in it, without the first process of the container.
    fn running(&self) -> usize {
        self.process_groups()
            .iter()
            .map(|group| members(group).map_or(0, |found| found.len()))
            .sum()
    }

    /// What it uses; the size on disk is not known here.
    pub(super) fn stats(&self) -> Stats {
        let memory = Counters::read(&self.dir("memory").join("memory.stat"));
        let throttle = Counters::read(&self.dir("cpu").join("cpu.stat"));
        let (rss_bytes, cpu, throttled) = match self.layout {
            Layout::Trees(_) => {
                let used = fs::read_to_string(self.dir("cpuacct").join("cpuacct.usage"));
                let used = used.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
                let throttled = Duration::from_nanos(throttle.get("throttled_time"));
                let resident = memory.get("total_rss") + memory.get("total_shmem");
                (resident, Duration::from_nanos(used), throttled)
            }
            Layout::One(_) => (
                memory.get("anon") + memory.get("shmem"),
                Duration::from_micros(throttle.get("usage_usec")),
                Duration::from_micros(throttle.get("throttled_usec")),
            ),
        };
        Stats {
            rss_bytes,
            cpu,
            processes: u32::try_from(self.running()).unwrap_or(u32::MAX),
            disk_bytes: 0,
            throttled,
            oom_kills: Counters::read(&self.oom_file()).get("oom_kill"),
        }
    }
}

/// Kills everything in the group of a process, from wherever this is called.
pub(crate) fn kill_group(group: &Path, limit: Duration) -> io::Result<()> {
    kill_all(group, runtime::mono_now() + limit)
}

/// The lines `NAME NUMBER` of a file.
struct Counters(String);

impl Counters {
    fn read(path: &Path) -> Self {
        Self(fs::read_to_string(path).unwrap_or_default())
    }

    fn get(&self, name: &str) -> u64 {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value).unwrap_or_default()
    }
}

/// The processes of one group. One that was removed has none.
fn members(group: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Kills every process of a group, and of nothing below it.
fn kill_all(group: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    for round in 0..KILL_ROUNDS {
        let members = members(group)?;
        if members.is_empty() {
            return Ok(());
        }
        if round == 0 {
            // Then it makes no new ones. A group of version 2 is killed as a whole instead.
            drop(fs::write(group.join("pids.max"), "0"));
            drop(fs::write(group.join("cgroup.kill"), "1"));
        }
        for pid in members {
            // Between reading the number and opening the process it may end and its number be used
            // again; only what is still a member is killed.
            if let Some(id) = Id::of(pid).filter(|_| is_member(group, pid)) {
                id.send(rustix::process::Signal::KILL)?;
            }
        }
        if runtime::mono_now() >= deadline {
            break;
        }
        runtime::pause_thread(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    let message = format!("processes in {} do not end", group.display());
    Err(io::Error::new(ErrorKind::TimedOut, message))
}

/// Whether a process is in a group, by its own account.
fn is_member(group: &Path, pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let paths = text.lines().filter_map(|line| line.rsplit(':').next());
    paths.filter(|path| path.len() > 1).any(|path| group.ends_with(path.trim_start_matches('/')))
}

/// Removes a group with all below it.
fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), deadline)?;
        }
    }
    let mut pause = FIRST_PAUSE;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if gone(&error) => return Ok(()),
            // The kernel still holds what was just killed, or something was on its way here.
            Err(error)
                if error.kind() == ErrorKind::ResourceBusy && runtime::mono_now() < deadline =>
            {
                kill_all(dir, deadline)?;
                runtime::pause_thread(pause);
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("has a parent")).expect("makes");
        fs::write(path, text).expect("writes");
    }

    #[test]
    fn every_version_is_found() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let at = dir.path();
        assert!(Layout::find_in(at).is_err(), "nothing is mounted");
        for controller in CONTROLLERS {
            fs::create_dir(at.join(controller)).expect("makes");
        }
        // The unified tree of a hybrid machine has no controllers and changes nothing.
        write(&at.join("unified/cgroup.controllers"), "");
        assert_eq!(Layout::find_in(at), Ok(Layout::Trees(at.to_owned())));
        write(&at.join("cgroup.controllers"), "cpuset cpu memory\n");
        assert!(Layout::find_in(at).is_err_and(|reason| reason.contains("pids")));
        write(&at.join("cgroup.controllers"), "cpuset cpu io memory pids\n");
        assert_eq!(Layout::find_in(at), Ok(Layout::One(at.to_owned())));
    }

    #[test]
    fn stats_of_version_2() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let group = Group::new(&Layout::One(dir.path().to_owned()), "tag/c".to_owned());
        let at = dir.path().join("tag/c");
        write(&at.join("memory.stat"), "anon 4096\nfile 999\nshmem 100\nanon_thp 7\n");
        write(&at.join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        write(&at.join("cpu.stat"), "usage_usec 1500\nnr_throttled 4\nthrottled_usec 250\n");
        write(&at.join("p-a/cgroup.procs"), "10\n11\n");
        write(&at.join("p-b/cgroup.procs"), "");
        let wanted = Stats {
            rss_bytes: 4196,
            cpu: Duration::from_micros(1500),
            processes: 2,
            disk_bytes: 0,
            throttled: Duration::from_micros(250),
            oom_kills: 2,
        };
        assert_eq!(group.stats(), wanted);
    }

    #[test]
    fn memory_is_limited_with_swap() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("reads");
        let two = Group::new(&Layout::One(dir.path().to_owned()), "tag".to_owned());
        assert!(two.limit_memory(Some(7)).is_ok(), "nothing to limit yet");
        fs::create_dir_all(dir.path().join("tag")).expect("makes");
        two.limit_memory(Some(7)).expect("limits");
        assert_eq!((read("tag/memory.max"), read("tag/memory.swap.max")), ("7".into(), "0".into()));
        two.limit_memory(None).expect("lifts");
        assert_eq!(read("tag/memory.max"), "max");
        write(&dir.path().join("memory/memory.memsw.limit_in_bytes"), "");
        fs::create_dir_all(dir.path().join("memory/tag")).expect("makes");
        let one = Group::new(&Layout::Trees(dir.path().to_owned()), "tag".to_owned());
        one.limit_memory(Some(8)).expect("limits");
        assert_eq!(read("memory/tag/memory.limit_in_bytes"), "8");
        assert_eq!(read("memory/tag/memory.memsw.limit_in_bytes"), "8");
        one.limit_memory(None).expect("lifts");
        assert_eq!(read("memory/tag/memory.limit_in_bytes"), "-1");
    }

    #[test]
    fn stats_of_version_1() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let group = Group::new(&Layout::Trees(dir.path().to_owned()), "tag/c".to_owned());
        let at = |controller: &str| dir.path().join(controller).join("tag/c");
        write(&at("memory").join("memory.stat"), "rss 1\ntotal_rss 4096\ntotal_shmem 100\n");
        write(&at("memory").join("memory.oom_control"), "oom_kill_disable 0\noom_kill 1\n");
        write(&at("cpuacct").join("cpuacct.usage"), "2000\n");
        write(&at("cpu").join("cpu.stat"), "nr_periods 3\nthrottled_time 5000\n");
        write(&at("pids").join("p-a/cgroup.procs"), "7\n");
        let stats = group.stats();
        assert_eq!((stats.rss_bytes, stats.oom_kills, stats.processes), (4196, 1, 1));
        assert_eq!(
            (stats.cpu, stats.throttled),
            (Duration::from_micros(2), Duration::from_micros(5))
        );
    }
}
