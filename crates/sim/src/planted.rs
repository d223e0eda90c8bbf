//! Planted bugs: on only with the feature `planted`.

/// Plants a bug for the life of the process.
#[cfg(feature = "planted")]
pub fn plant(name: &str) -> Result<(), String> {
    if !NAMES.contains(&name) {
        return Err(format!("there is no bug {name}: there are {}", NAMES.join(", ")));
    }
    state::planted::plant(name);
    Ok(())
}

/// Plants a bug for the life of the process.
#[cfg(not(feature = "planted"))]
pub fn plant(name: &str) -> Result<(), String> {
    Err(format!("cannot plant {name}: build with `--features planted`"))
}

/// The bugs that can be planted.
pub const NAMES: [&str; 20] = [
    "M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M10", "M11", "M12", "M13", "M14", "M15",
    "M16", "M17", "M18", "M19", "M20",
];

#[cfg(feature = "planted")]
pub(crate) fn is(name: &str) -> bool {
    state::planted::is(name)
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_: &str) -> bool {
    false
}
