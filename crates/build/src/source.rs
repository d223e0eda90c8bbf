//! Source archives: a directory as a deterministic gzip tar, and back.
//!
//! `.git` and other version control directories stay out. If the directory has a `.shoreignore`,
//! that says what else stays out; otherwise its `.gitignore` files do.

mod ignore;

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use model::Digest;

use crate::image::{Hashing, ImageError, Limits, Summary, TarWriter};

pub use ignore::Rules;

/// The most a source archive may hold.
pub const MAX: Limits = Limits { bytes: 2 << 30, entries: 200_000 };
/// The file that says what stays out.
pub const IGNORE_FILE: &str = ".shoreignore";
const GIT_IGNORE_FILE: &str = ".gitignore";
/// What never goes in.
const NEVER: [&str; 4] = [".git", ".hg", ".svn", ".DS_Store"];
const MAX_DEPTH: usize = 256;
const MAX_IGNORE_FILE: u64 = 1 << 20;

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There are too many files.
    #[error(
        "{dir} has more than {limit} files and directories: list what the build does not need in \
         {IGNORE_FILE}"
    )]
    TooMany {
        /// The directory.
        dir: PathBuf,
        /// How many are allowed.
        limit: u64,
    },
    /// There are too many bytes.
    #[error(
        "{dir} has more than {limit} bytes (at {at}): list what the build does not need in \
         {IGNORE_FILE}"
    )]
    TooLarge {
        /// The directory.
        dir: PathBuf,
        /// How many are allowed.
        limit: u64,
        /// The file where that happened.
        at: PathBuf,
    },
    /// A symbolic link points out of the directory.
    #[error(
        "{link} is a symbolic link to {target}, which is not in the directory: replace it by what \
         it points at, or list it in {IGNORE_FILE}"
    )]
    Leaves {
        /// The link.
        link: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// Directories are nested too deep.
    #[error("{0} is nested too deep")]
    TooDeep(PathBuf),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn io_error(what: &str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { context: format!("{what} {}", path.display()), source }
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Of the archive.
    pub digest: Digest,
    /// Bytes of the archive.
    pub size: u64,
    /// What is in it.
    pub content: Summary,
}

/// Packs `dir` into `out`. Equal content makes equal archives.
pub fn pack(dir: &Path, out: impl Write, limits: Limits) -> Result<Packed, SourceError> {
    let root = dir.canonicalize().map_err(|error| io_error("find", dir, error))?;
    let gzip = GzEncoder::new(Hashing::new(out), Compression::fast());
    let own = root.join(IGNORE_FILE).is_file();
    let mut packer = Packer {
        tar: TarWriter::new(gzip),
        ignore_file: if own { IGNORE_FILE } else { GIT_IGNORE_FILE },
        nested: !own,
        limits,
        content: Summary::default(),
        root: &root,
    };
    packer.directory(Path::new(""), &mut Rules::default(), 0)?;
    let write = |error| io_error("write the archive of", dir, error);
    let content = packer.content;
    let gzip = packer.tar.finish().map_err(write)?;
    let (mut out, digest, size) = gzip.finish().map_err(write)?.finish();
    out.flush().map_err(write)?;
    Ok(Packed { digest, size, content })
}

/// Unpacks an archive into `dir`, as [`unpack`](crate::image::unpack) does.
pub fn unpack(archive: impl Read, dir: &Path, limits: Limits) -> Result<Summary, ImageError> {
    crate::image::unpack(archive, dir, limits)
}

/// Refuses a tree with a symbolic link that points out of it. An archive that was not packed here can
/// hold one, and what a build follows must be in the source.
pub fn check_links(root: &Path) -> Result<(), SourceError> {
    let root = root.canonicalize().map_err(|error| io_error("find", root, error))?;
    check_below(&root, Path::new(""), 0)
}

fn check_below(root: &Path, name: &Path, depth: usize) -> Result<(), SourceError> {
    let dir = root.join(name);
    if depth > MAX_DEPTH {
        return Err(SourceError::TooDeep(dir));
    }
    let read = |error| io_error("read", &dir, error);
    for entry in std::fs::read_dir(&dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        let (name, kind) = (name.join(entry.file_name()), entry.file_type().map_err(read)?);
        if kind.is_dir() {
            check_below(root, &name, depth + 1)?;
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).map_err(read)?;
            if leaves(root, &name, &target) {
                return Err(SourceError::Leaves { link: name, target });
            }
        }
    }
    Ok(())
}

/// Whether a link at `name` below `root` points out of it, as it reads or as it resolves.
fn leaves(root: &Path, name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    let real = root.join(name).canonicalize();
    real.is_ok_and(|real| !real.starts_with(root))
}

struct Packer<'a, W: Write> {
    tar: TarWriter<W>,
    ignore_file: &'static str,
    /// Whether directories below have ignore files too.
    nested: bool,
    limits: Limits,
    content: Summary,
    root: &'a Path,
}

impl<W: Write> Packer<'_, W> {
    fn directory(
        &mut self,
        name: &Path,
        rules: &mut Rules,
        depth: usize,
    ) -> Result<(), SourceError> {
        let dir = self.root.join(name);
        if depth > MAX_DEPTH {
            return Err(SourceError::TooDeep(dir));
        }
        let read = |error| io_error("read", &dir, error);
        let known = rules.len();
        if depth == 0 || self.nested {
            rules.add(name, &ignore_text(&dir.join(self.ignore_file))?);
        }
        let names = std::fs::read_dir(&dir).map_err(read)?.map(|e| e.map(|e| e.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>().map_err(read)?;
        names.sort_unstable();
        for child in names {
            if !NEVER.iter().any(|never| child == OsStr::new(never)) {
                self.entry(&name.join(child), rules, depth)?;
            }
        }
        rules.truncate(known);
        Ok(())
    }

    fn entry(&mut self, name: &Path, rules: &mut Rules, depth: usize) -> Result<(), SourceError> {
        let from = self.root.join(name);
        let read = |error| io_error("read", &from, error);
        let metadata = std::fs::symlink_metadata(&from).map_err(read)?;
        if rules.ignores(name, metadata.is_dir()) {
            return Ok(());
        }
        self.count(&from, &metadata)?;
        if metadata.is_dir() {
            self.tar.dir(name).map_err(read)?;
            return self.directory(name, rules, depth + 1);
        }
        if metadata.is_symlink() {
            let target = std::fs::read_link(&from).map_err(read)?;
            if leaves(self.root, name, &target) {
                return Err(SourceError::Leaves { link: name.to_owned(), target });
            }
            return self.tar.link(name, &target).map_err(read);
        }
        if metadata.is_file() {
            return self.tar.file(name, &from, &metadata).map_err(read);
        }
        Ok(())
    }

    fn count(&mut self, path: &Path, metadata: &Metadata) -> Result<(), SourceError> {
        let dir = || self.root.to_owned();
        self.content.entries += 1;
        if self.content.entries > self.limits.entries {
            return Err(SourceError::TooMany { dir: dir(), limit: self.limits.entries });
        }
        if metadata.is_file() {
            self.content.bytes = self.content.bytes.saturating_add(metadata.len());
        }
        if self.content.bytes > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(SourceError::TooLarge { dir: dir(), limit, at: path.to_owned() });
        }
        Ok(())
    }
}

fn ignore_text(file: &Path) -> Result<String, SourceError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let open = std::fs::File::open(file)?;
        open.take(MAX_IGNORE_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) =>
        {
            Ok(String::new())
        }
        Err(error) => Err(io_error("read", file, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn packed(dir: &tempfile::TempDir) -> (Packed, Vec<u8>) {
        let mut bytes = Vec::new();
        let packed = pack(dir.path(), &mut bytes, MAX).expect("packed");
        assert_eq!(packed.digest, Digest::of(&bytes));
        assert_eq!(packed.size, bytes.len() as u64);
        (packed, bytes)
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let entries = archive.entries().expect("an archive");
        entries.map(|e| String::from_utf8_lossy(&e.expect("read").path_bytes()).into()).collect()
    }

    #[test]
    fn equal_content_makes_equal_archives_that_unpack() {
        let files = [("b/c", "1"), ("a", "2"), (".git/config", "x"), ("b/.git/x", "x")];
        let (one, two) = (tree(&files), tree(&[("a", "2"), ("b/c", "1")]));
        for dir in [&one, &two] {
            symlink("b/c", dir.path().join("link")).expect("linked");
        }
        let (first, bytes) = packed(&one);
        assert_eq!(first, packed(&two).0);
        check_links(one.path()).expect("a link within is fine");
        assert_eq!(names(&bytes), ["a", "b/", "b/c", "link"]);
        let back = tempfile::tempdir().expect("a directory");
        assert_eq!(unpack(&*bytes, back.path(), MAX).expect("unpacked").entries, 4);
        assert_eq!(fs::read_to_string(back.path().join("link")).expect("read"), "1");
    }

    #[test]
    fn ignore_files_are_honoured() {
        let files = [
            (".gitignore", "*.log\nout/\n"),
            ("a.log", ""),
            ("out/x", ""),
            ("d/.gitignore", "!b.log\n/x\n"),
            ("d/b.log", ""),
            ("d/x", ""),
            ("d/e/x", ""),
        ];
        let dir = tree(&files);
        let wanted = [".gitignore", "d/", "d/.gitignore", "d/b.log", "d/e/", "d/e/x"];
        assert_eq!(names(&packed(&dir).1), wanted);
        fs::write(dir.path().join(IGNORE_FILE), "d\n").expect("written");
        let wanted = [".gitignore", IGNORE_FILE, "a.log", "out/", "out/x"];
        assert_eq!(names(&packed(&dir).1), wanted);
    }

    #[test]
    fn links_that_leave_are_refused() {
        for target in ["/etc/passwd", "../x", "sub/../../x", "sub/up/../x"] {
            let dir = tree(&[("sub/x", "")]);
            symlink("..", dir.path().join("sub/up")).expect("linked");
            symlink(target, dir.path().join("link")).expect("linked");
            let parent = dir.path().parent().expect("a parent").join("x");
            let made = !parent.exists();
            fs::write(&parent, "").expect("written");
            let error = pack(dir.path(), io::sink(), MAX).expect_err(target);
            let unpacked = check_links(dir.path()).expect_err(target);
            if made {
                fs::remove_file(parent).expect("removed");
            }
            assert!(matches!(unpacked, SourceError::Leaves { .. }), "{target}: {unpacked}");
            assert!(matches!(error, SourceError::Leaves { .. }), "{target}: {error}");
        }
    }

    #[test]
    fn limits_name_the_ignore_file() {
        let dir = tree(&[("a", "12345"), ("b", "12345")]);
        for limits in [Limits { bytes: 9, ..MAX }, Limits { entries: 1, ..MAX }] {
            let error = pack(dir.path(), io::sink(), limits).expect_err("too much").to_string();
            assert!(error.contains(".shoreignore"), "{error}");
        }
        let error = pack(&dir.path().join("none"), io::sink(), MAX).expect_err("missing");
        assert!(matches!(error, SourceError::Io { .. }));
    }
}
