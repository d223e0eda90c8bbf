//! Processes of this machine, as tests find them.

use std::collections::BTreeSet;
use std::fs;

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
