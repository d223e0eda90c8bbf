//! Tar stream in.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps, UTIME_OMIT,
    fchmod, futimens, linkat, openat, renameat, statat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::{IS_DIRECTORY, Leading, Limits, NOT_A_DIRECTORY, Summary, descend, names};
use crate::error::{DriverError, Result};

/// The longest long name or extended header.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// How much of a file is copied at once, or becomes a hole.
const PIECE_BYTES: usize = 64 << 10;

/// Unpacks `tar` below `root`. What was unpacked before an error stays.
pub fn unpack(tar: impl Read, root: BorrowedFd<'_>, limits: Limits) -> Result<Summary> {
    unpack_around(tar, root, limits, &[])
}

/// Unpacks `tar` below `root`, where nothing replaces what has one of the `kept` names.
pub(crate) fn unpack_around(
    tar: impl Read,
    root: BorrowedFd<'_>,
    limits: Limits,
    kept: &[PathBuf],
) -> Result<Summary> {
    let mut archive = Archive::new(tar);
    let entries = archive.entries().map_err(unreadable)?.raw(true);
    let mut unpacker = Unpacker { root, limits, kept, summary: Summary::default(), parent: None };
    let mut extension = Extension::default();
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        unpacker.count(&entry)?;
        if extension.read(&mut entry)? {
            continue;
        }
        let facts = Facts::new(&entry, std::mem::take(&mut extension))?;
        unpacker.entry(&mut entry, &facts).map_err(|fault| fault.at(&facts.name))?;
    }
    Ok(unpacker.summary)
}

fn unreadable(error: io::Error) -> DriverError {
    DriverError::io("read the archive", error)
}

fn refused(name: &[u8], reason: impl Into<String>) -> DriverError {
    DriverError::Archive {
        entry: String::from_utf8_lossy(name).into_owned(),
        reason: reason.into(),
    }
}

/// Why an entry was not unpacked.
enum Fault {
    Refused(&'static str),
    System(Errno),
    Data(io::Error),
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOTDIR | Errno::LOOP => Self::Refused(NOT_A_DIRECTORY),
            other => Self::System(other),
        }
    }
}

impl Fault {
    fn at(self, name: &[u8]) -> DriverError {
        match self {
            Self::Refused(reason) => refused(name, reason),
            Self::System(error) => {
                DriverError::io(format!("unpack {}", String::from_utf8_lossy(name)), error)
            }
            Self::Data(error) => {
                DriverError::io(format!("unpack {}", String::from_utf8_lossy(name)), error)
            }
        }
    }
}

/// What extension entries say about the entry that follows them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    modified: Option<i64>,
    size: Option<u64>,
}

impl Extension {
    /// Takes in an extension entry; false when the entry is a real one.
    fn read<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<bool> {
        match entry.header().entry_type() {
            EntryType::XGlobalHeader => {}
            EntryType::GNULongName => self.name = Some(text(entry)?),
            EntryType::GNULongLink => self.link = Some(text(entry)?),
            EntryType::XHeader => self.pax(&content(entry)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<()> {
        for pair in PaxExtensions::new(bytes) {
            let pair = pair.map_err(unreadable)?;
            let value = pair.value_bytes();
            let text = || std::str::from_utf8(value).ok();
            match pair.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = text().and_then(|text| text.parse().ok()),
                b"mtime" => {
                    self.modified = text().and_then(|text| text.split('.').next()?.parse().ok());
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(refused(key, "sparse files are not supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn content<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(MAX_EXTENSION_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_EXTENSION_BYTES {
        return Err(refused(b"", "an extended header is too long"));
    }
    Ok(bytes)
}

fn text<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>> {
    let mut bytes = content(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

/// One real entry with its extensions applied.
struct Facts {
    kind: EntryType,
    name: Vec<u8>,
    link: Option<Vec<u8>>,
    size: u64,
    mode: u32,
    modified: i64,
}

impl Facts {
    fn new<R: Read>(entry: &Entry<'_, R>, extension: Extension) -> Result<Self> {
        let header = entry.header();
        let name = extension.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let size = header.entry_size().map_err(unreadable)?;
        if extension.size.is_some_and(|other| other != size) {
            return Err(refused(&name, "two sizes that differ"));
        }
        let link = extension.link.or_else(|| header.link_name_bytes().map(Into::into));
        let old_directory = header.entry_type().is_file() && name.ends_with(b"/");
        Ok(Self {
            kind: if old_directory { EntryType::Directory } else { header.entry_type() },
            name,
            link,
            size,
            mode: header.mode().unwrap_or(0o644) & 0o777,
            modified: extension.modified.or_else(|| seconds(header)).unwrap_or(0),
        })
    }
}

fn seconds(header: &tar::Header) -> Option<i64> {
    i64::try_from(header.mtime().ok()?).ok()
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    limits: Limits,
    kept: &'a [PathBuf],
    summary: Summary,
    /// The directory the last entry went to: the next one mostly goes there too.
    parent: Option<(Vec<OsString>, OwnedFd)>,
}

impl Unpacker<'_> {
    fn count<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<()> {
        let name = entry.header().path_bytes();
        self.summary.entries += 1;
        if self.summary.entries > self.limits.entries {
            return Err(refused(&name, format!("more than {} entries", self.limits.entries)));
        }
        let size = entry.header().entry_size().map_err(unreadable)?;
        self.summary.bytes = self.summary.bytes.saturating_add(size);
        if self.summary.bytes > self.limits.bytes {
            return Err(refused(&name, format!("more than {} bytes", self.limits.bytes)));
        }
        Ok(())
    }

    fn entry(&mut self, data: &mut impl Read, facts: &Facts) -> std::result::Result<(), Fault> {
        let mut path = names(&facts.name, Leading::Refused).map_err(Fault::Refused)?;
        if facts.kind == EntryType::Directory {
            return self.directory(&path, facts);
        }
        if self.kept.iter().any(|kept| **kept == *path.iter().collect::<PathBuf>()) {
            return Err(Fault::Refused(IS_DIRECTORY));
        }
        let Some(name) = path.pop() else { return Err(Fault::Refused("the name is empty")) };
        match facts.kind {
            EntryType::Regular | EntryType::Continuous => self.file(path, &name, data, facts),
            EntryType::Symlink => self.symlink(path, &name, facts),
            EntryType::Link => self.hard_link(path, &name, facts),
            EntryType::Char | EntryType::Block => Err(Fault::Refused("a device node")),
            EntryType::Fifo => Err(Fault::Refused("a pipe")),
            EntryType::GNUSparse => Err(Fault::Refused("sparse files are not supported")),
            _ => Err(Fault::Refused("an entry of unknown type")),
        }
    }

    fn parent(&mut self, path: Vec<OsString>) -> std::result::Result<BorrowedFd<'_>, Errno> {
        let known = self.parent.take().filter(|(known, _)| *known == path);
        let found = if let Some(found) = known {
            found
        } else {
            let fd = descend(self.root, &path, true)?;
            (path, fd)
        };
        Ok(self.parent.insert(found).1.as_fd())
    }

    fn directory(&self, path: &[OsString], facts: &Facts) -> std::result::Result<(), Fault> {
        if path.is_empty() {
            return Ok(());
        }
        let dir = descend(self.root, path, true)?;
        Ok(fchmod(&dir, Mode::from_raw_mode(facts.mode | 0o700))?)
    }

    fn file(
        &mut self,
        path: Vec<OsString>,
        name: &OsStr,
        data: &mut impl Read,
        facts: &Facts,
    ) -> std::result::Result<(), Fault> {
        let parent = self.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            replacing(parent, name, || openat(parent, name, flags, Mode::from_raw_mode(0o600)))?;
        let mut file = File::from(fd);
        let copied = copy(data, &mut file).map_err(Fault::Data)?;
        if copied != facts.size {
            return Err(Fault::Refused("the archive ends in the middle of a file"));
        }
        fchmod(&file, Mode::from_raw_mode(facts.mode))?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: facts.modified, tv_nsec: 0 },
        };
        Ok(futimens(&file, &times)?)
    }

    fn symlink(
        &mut self,
        path: Vec<OsString>,
        name: &OsStr,
        facts: &Facts,
    ) -> std::result::Result<(), Fault> {
        let target = facts.link.as_deref().filter(|target| !target.is_empty());
        let target = OsStr::from_bytes(target.ok_or(Fault::Refused("a link to nothing"))?);
        let parent = self.parent(path)?;
        match symlinkat(target, parent, name) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
        // Whoever goes through a link meanwhile gets where it led or where it leads.
        let mut fresh = OsString::from(".");
        fresh.push(name);
        fresh.push(".new");
        if is_mount(parent, name) {
            return Err(Fault::Refused("something is mounted there"));
        }
        replacing(parent, &fresh, || symlinkat(target, parent, &fresh))?;
        renameat(parent, &fresh, parent, name).map_err(|error| match error {
            Errno::ISDIR => Fault::Refused(IS_DIRECTORY),
            other => other.into(),
        })
    }

    fn hard_link(
        &mut self,
        path: Vec<OsString>,
        name: &OsStr,
        facts: &Facts,
    ) -> std::result::Result<(), Fault> {
        let target = facts.link.as_deref().ok_or(Fault::Refused("a link to nothing"))?;
        let mut target = names(target, Leading::Refused)
            .map_err(|_| Fault::Refused("a hard link that leads out of the archive"))?;
        let file = target.pop().ok_or(Fault::Refused("a link to nothing"))?;
        let from = descend(self.root, &target, false)?;
        let stat = statat(&from, &file, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Fault::Refused("a hard link to something that is not a file"));
        }
        let parent = self.parent(path)?;
        replacing(parent, name, || linkat(&from, &file, parent, name, AtFlags::empty()))
    }
}

/// Copies all bytes to a new file and gives their number. Long runs of zeros become holes: an archive
/// of a file with holes takes no more of the disk than the file.
fn copy(data: &mut impl Read, file: &mut File) -> io::Result<u64> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut copied, mut hole) = (0_u64, false);
    loop {
        // Whole pieces, so that holes are found whatever the reader gives at once.
        let read = data.by_ref().take(PIECE_BYTES as u64).read_to_end({
            piece.clear();
            &mut piece
        })?;
        if read == 0 {
            break;
        }
        copied += read as u64;
        hole = piece.iter().all(|byte| *byte == 0);
        if hole {
            file.seek(SeekFrom::Start(copied))?;
        } else {
            file.write_all(&piece)?;
        }
    }
    if hole {
        file.set_len(copied)?;
    }
    Ok(copied)
}

/// Whether a file system or a single file is mounted at this name: removing it would unmount that for
/// who is in there.
fn is_mount(parent: BorrowedFd<'_>, name: &OsStr) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(parent, name, flags, StatxFlags::TYPE);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes something that must be new; what has the name already is removed, never written through.
fn replacing<T>(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn() -> std::result::Result<T, Errno>,
) -> std::result::Result<T, Fault> {
    match make() {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    if is_mount(parent, name) {
        return Err(Fault::Refused("something is mounted there"));
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(make()?),
        Err(Errno::ISDIR | Errno::PERM) => Err(Fault::Refused(IS_DIRECTORY)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::archive::open_root;

    #[test]
    fn zeros_become_holes_and_stay_zeros() {
        let (zeros, text) = (vec![0; 5 * PIECE_BYTES], b"text".repeat(PIECE_BYTES / 2));
        let files = [
            ("empty", Vec::new()),
            ("zeros", zeros.clone()),
            ("middle", [text.clone(), zeros.clone(), text.clone()].concat()),
            ("end", [text, zeros, vec![0; 7]].concat()),
        ];
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_slice()).expect("packs");
        }
        let tar = tar.into_inner().expect("packs");
        let dir = tempfile::tempdir().expect("makes a directory");
        let root = open_root(dir.path()).expect("opens");
        unpack(tar.as_slice(), root.as_fd(), Limits::default()).expect("unpacks");
        for (name, content) in &files {
            assert!(fs::read(dir.path().join(name)).expect("is there") == *content, "{name}");
        }
        assert_eq!(fs::metadata(dir.path().join("zeros")).expect("is there").blocks(), 0);
    }
}
