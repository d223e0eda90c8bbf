//! The limit of open files: an agent needs many, what it runs should find what it would without us.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit this process had before it was raised.
static FOUND: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the limit of open files to what the system allows this process. What the process driver
/// starts has the limit that was found here, unless it is given another: programs that close or
/// select every descriptor they might have would be slow or break with a large one.
pub fn raise_open_files() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    FOUND.get_or_init(|| current);
    if current == maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).map_err(io::Error::from)
}

/// The soft limit that was found, if it was raised since.
pub(crate) fn found() -> Option<u64> {
    FOUND.get().copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_to_the_hard_limit_and_remembered() {
        const LOW: u64 = 256;
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(LOW), maximum }).expect("lowers");
        raise_open_files().expect("raises");
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
        raise_open_files().expect("there is nothing to do");
        assert_eq!(found(), Some(LOW));
    }
}
