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
pub const NAMES: [&str; 10] = ["M1", "M4", "M5", "M6", "M10", "M14", "M15", "M17", "M18", "M19"];

#[cfg(feature = "planted")]
pub(crate) fn is(name: &str) -> bool {
    state::planted::is(name)
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_: &str) -> bool {
    false
}
