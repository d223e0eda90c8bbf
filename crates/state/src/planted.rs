//! Planted bugs, for the simulator to find. Compiled only with the feature `planted`.

use std::sync::OnceLock;

static PLANTED: OnceLock<String> = OnceLock::new();

/// Plants the bug of this name (`M1`, `M4`, …) for the life of the process.
pub fn plant(name: &str) {
    PLANTED.get_or_init(|| name.to_owned());
}

/// Whether the bug of this name is planted.
pub fn is(name: &str) -> bool {
    PLANTED.get().is_some_and(|planted| planted == name)
}
