//! Processes of this machine, as tests find and end them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// An agent in a process of its own, killed when this is dropped.
pub(crate) struct Agent(pub(crate) Child);

impl Agent {
    /// Starts one that does `what` in a directory.
    pub(crate) fn start(dir: &Path, what: &str) -> Self {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_drivers-testbed"));
        agent.arg(dir).arg(what).stdin(Stdio::null()).stderr(Stdio::null());
        Self(agent.spawn().expect("starts"))
    }

    /// Kills the keeper of its only session, then the agent, which cannot do anything about it.
    pub(crate) fn end_with_its_keeper(self) {
        kill_process(Pid::from_child(&self.0), Signal::STOP).expect("it runs");
        let is_keeper = |pid: &String| {
            let line = fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.starts_with(b"longshore-session"))
        };
        let mut keepers = children(self.0.id());
        keepers.retain(is_keeper);
        assert_eq!(keepers.len(), 1, "{keepers:?}");
        let keeper = keepers.concat().parse().ok().and_then(Pid::from_raw).expect("a number");
        kill_process(keeper, Signal::KILL).expect("it runs");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().expect("kills the agent");
        self.0.wait().expect("reaps the agent");
    }
}

/// Processes that run and whose environment has this text.
pub(crate) fn running_with(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("reads /proc").flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(text) {
            found.insert(entry.file_name().display().to_string());
        }
    }
    found
}

/// All children of a process, ended ones too.
pub(crate) fn children(of: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{of}/task")).expect("lists").flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    lists
        .flatten()
        .flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter(|pid| !pid.is_empty())
        .collect()
}
