//! What containers leave on the machine: their processes, by instance, and their directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where a cell keeps everything.
fn cell(home: &Path) -> PathBuf {
    home.join("data/longshore/cell")
}

/// Processes that run in a container, with their variables.
fn contained(home: &Path) -> Vec<(u32, Vec<String>)> {
    let mark = cell(home).display().to_string();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let text = String::from_utf8_lossy(&environ);
        let vars: Vec<String> = text.split('\0').map(str::to_owned).collect();
        let inside = |var: &String| var.starts_with("SHORE_ROOT=") && var.contains(&mark);
        vars.iter().any(inside).then_some((pid, vars))
    })
    .collect()
}

/// The process numbers of each instance.
pub(crate) fn instances(home: &Path) -> BTreeMap<String, BTreeSet<u32>> {
    let mut found: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for (pid, vars) in contained(home) {
        let id = vars.iter().find_map(|var| var.strip_prefix("SHORE_INSTANCE_ID="));
        if let Some(id) = id {
            found.entry(id.to_owned()).or_default().insert(pid);
        }
    }
    found
}

/// Processes that run in a container.
pub(crate) fn processes(home: &Path) -> Vec<String> {
    let line = |(pid, _): (u32, Vec<String>)| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "))
    };
    contained(home).into_iter().map(line).collect()
}

/// Containers, and what waits in the driver's bin to be removed.
pub(crate) fn directories(home: &Path) -> Vec<String> {
    let containers = cell(home).join("containers");
    let names = |dir: &Path| {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.map(|entry| entry.file_name().display().to_string()).collect::<Vec<_>>()
    };
    let live = names(&containers).into_iter().filter(|name| name != ".trash");
    let all = live.chain(names(&containers.join(".trash")));
    all.map(|name| format!("directory {name}")).collect()
}
