//! Numbers that no two containers of the machine share, whichever agent made them. A container's
//! number gives its address, the name of its link and its users.
//!
//! They are handed out in a circle, so that one that was given back is used again as late as
//! possible: whoever still talks to an old address finds nobody for long.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Where the numbers in use are, until the machine restarts.
pub(super) const RUN: &str = "/run/shore";
/// The first number: the addresses before it are the network's own and the machine's.
const FIRST: u16 = 2;
/// Behind the last number: every one needs its own users.
const END: u16 = 57_000;
/// The first user of the machine that belongs to a container.
const FIRST_USER: u32 = 1 << 29;
/// How many users a container has.
pub(super) const USERS: u32 = 1 << 16;

/// The number of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot(u16);

impl Slot {
    /// Its address in a network of 65,536.
    pub(super) fn address(self, network: Ipv4Addr) -> Ipv4Addr {
        let [first, second, ..] = network.octets();
        let [third, fourth] = self.0.to_be_bytes();
        Ipv4Addr::new(first, second, third, fourth)
    }

    /// The user of the machine that its user 0 is.
    pub(super) fn first_user(self) -> u32 {
        FIRST_USER + u32::from(self.0) * USERS
    }

    /// The machine's end of its link.
    pub(super) fn link(self, prefix: &str) -> String {
        format!("{prefix}{:04x}", self.0)
    }
}

/// The numbers in use.
#[derive(Debug, Clone)]
pub(super) struct Slots(PathBuf);

impl Slots {
    pub(super) fn new(run: &Path) -> Self {
        Self(run.join("slots"))
    }

    /// Makes the directory of the numbers.
    pub(super) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)
    }

    /// Takes a number for a container, which `holders` name: it is given back at the latest when
    /// none of these paths is there any more.
    pub(super) fn take(&self, holders: [&Path; 2]) -> io::Result<Slot> {
        let lock = self.lock()?;
        let next = fs::read_to_string(self.0.join("next")).unwrap_or_default();
        let next = next.trim().parse().ok().filter(|next| (FIRST..END).contains(next));
        let next = next.unwrap_or(FIRST);
        let text = holders.map(|path| format!("{}\n", path.display())).concat();
        for number in (next..END).chain(FIRST..next) {
            let path = self.0.join(number.to_string());
            match File::create_new(&path) {
                Ok(mut file) => file.write_all(text.as_bytes())?,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                Err(_) if in_use(&path) => continue,
                Err(_) => fs::write(&path, &text)?,
            }
            fs::write(self.0.join("next"), (number + 1).to_string())?;
            drop(lock);
            return Ok(Slot(number));
        }
        Err(io::Error::other("every address is in use"))
    }

    /// Gives a number back.
    pub(super) fn give_back(&self, slot: Slot) -> io::Result<()> {
        match fs::remove_file(self.0.join(slot.0.to_string())) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives back the numbers nobody holds: of agents that died before they wrote theirs down.
    pub(super) fn sweep(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let Some(number) = number.filter(|_| !in_use(&path)) {
                self.give_back(Slot(number))?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<File> {
        let file = File::open(&self.0)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

fn in_use(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return true };
    text.lines().any(|holder| Path::new(holder).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_again_as_late_as_possible() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let slots = Slots::new(dir.path());
        slots.make().expect("makes");
        let here = [dir.path(), dir.path()];
        let first = slots.take(here).expect("takes");
        slots.give_back(first).expect("gives back");
        let second = Slots::new(dir.path()).take(here).expect("takes");
        assert_ne!(first, second);
        fs::write(dir.path().join("slots/next"), (END - 1).to_string()).expect("writes");
        let nobody = [Path::new("/no/such"), Path::new("/no/such/either")];
        let numbers: Vec<_> = (0..3).map(|_| slots.take(nobody).expect("takes").0).collect();
        assert_eq!(numbers, [END - 1, FIRST, FIRST + 2], "the second is held by somebody");
        fs::write(dir.path().join("slots/next"), FIRST.to_string()).expect("writes");
        assert_eq!(slots.take(here).expect("takes"), Slot(FIRST), "its holder is gone");
        slots.sweep().expect("sweeps");
        let left = |number: u16| dir.path().join(format!("slots/{number}")).exists();
        assert_eq!([FIRST, FIRST + 1, FIRST + 2, END - 1].map(left), [true, true, false, false]);
    }

    #[test]
    fn everything_follows_from_the_number() {
        let slot = Slot(0x1234);
        let network = Ipv4Addr::new(10, 208, 0, 0);
        assert_eq!(slot.address(network), Ipv4Addr::new(10, 208, 0x12, 0x34));
        assert_eq!(slot.link("sh0a1b2"), "sh0a1b21234");
        let last = Slot(END - 1).first_user();
        assert!(last.checked_add(USERS).is_some_and(|end| end < u32::MAX));
    }
}
