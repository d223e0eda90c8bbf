//! Where the logs of containers continue, written down so that the next agent goes on from there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::lines::Position;
use crate::machine::write_whole;

/// The file with all positions.
#[derive(Debug)]
pub(crate) struct ResumeFile(PathBuf);

impl ResumeFile {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.join("logs.json"))
    }

    /// The positions of the last agent, by handle. A damaged file only means repeated lines.
    pub(crate) fn read(&self) -> BTreeMap<String, Position> {
        let text = fs::read(&self.0).unwrap_or_default();
        let known: BTreeMap<String, (u64, u64)> = serde_json::from_slice(&text).unwrap_or_default();
        let position = |(stdout, stderr)| Position { stdout, stderr };
        known.into_iter().map(|(handle, pair)| (handle, position(pair))).collect()
    }

    pub(crate) fn write(&self, positions: &BTreeMap<String, Position>) -> io::Result<()> {
        let pair = |position: &Position| (position.stdout, position.stderr);
        let known: BTreeMap<&String, (u64, u64)> =
            positions.iter().map(|(handle, position)| (handle, pair(position))).collect();
        write_whole(&self.0, &serde_json::to_vec(&known)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let file = ResumeFile::new(dir.path());
        assert!(file.read().is_empty());
        let positions = BTreeMap::from([("a-1".to_owned(), Position { stdout: 1, stderr: 2 })]);
        file.write(&positions).expect("writes");
        assert_eq!(file.read(), positions);
    }
}
