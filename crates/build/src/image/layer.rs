//! Layers out of directories: equal content makes equal bytes.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use model::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The modification time of everything: 1980-01-01T00:00:01Z.
pub const MTIME: u64 = 315_532_801;
/// [`MTIME`] as text.
pub const MTIME_TEXT: &str = "1980-01-01T00:00:01Z";
/// The deepest directory.
const MAX_DEPTH: usize = 256;
const BUFFER: usize = 64 * 1024;

/// Passes bytes on and keeps their digest and number.
#[derive(Debug)]
pub struct Hashing<W> {
    inner: W,
    sha: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    /// Around `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, sha: Sha256::new(), bytes: 0 }
    }

    /// What is inside, the digest and the number of bytes that passed.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.sha.finalize().into()), self.bytes)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.sha.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.passed(&bytes[..read]);
        Ok(read)
    }
}

/// Writes a tar stream whose bytes depend on names, contents and executable bits only.
pub struct TarWriter<W: Write>(Builder<W>);

impl<W: Write> std::fmt::Debug for TarWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TarWriter")
    }
}

impl<W: Write> TarWriter<W> {
    /// Into `out`.
    pub fn new(out: W) -> Self {
        Self(Builder::new(out))
    }

    /// A directory.
    pub fn dir(&mut self, name: &Path) -> io::Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0);
        let mut name = name.as_os_str().to_owned();
        name.push("/");
        self.0.append_data(&mut header, name, io::empty())
    }

    /// A file with the content of the file `from`.
    pub fn file(&mut self, name: &Path, from: &Path, metadata: &Metadata) -> io::Result<()> {
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let size = metadata.len();
        let mut data = File::open(from)?.take(size);
        self.0.append_data(&mut header(EntryType::Regular, mode, size), name, &mut data)?;
        if data.limit() > 0 {
            return Err(io::Error::other(format!("{} shrank while it was read", from.display())));
        }
        Ok(())
    }

    /// A file with these bytes.
    pub fn bytes(&mut self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
        self.0.append_data(&mut header, name, bytes)
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &Path, target: &Path) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target)
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A directory of the machine that becomes a directory of the image.
pub(crate) struct Tree<'a> {
    /// Its path in the image, without the leading `/`.
    pub(crate) name: &'a str,
    /// Where it is.
    pub(crate) from: PathBuf,
    /// Which names at its top are taken.
    pub(crate) keep: &'a dyn Fn(&str) -> bool,
}

impl Tree<'_> {
    /// Writes the directory, those above it, and everything below it, sorted by name.
    pub(crate) fn write<W: Write>(&self, tar: &mut TarWriter<W>) -> io::Result<()> {
        let name = Path::new(self.name);
        let mut above: Vec<_> =
            name.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        above.reverse();
        above.into_iter().try_for_each(|path| tar.dir(path))?;
        tar.dir(name)?;
        below(tar, name, &self.from, 0, self.keep)
    }
}

fn below<W: Write>(
    tar: &mut TarWriter<W>,
    name: &Path,
    from: &Path,
    depth: usize,
    keep: &dyn Fn(&str) -> bool,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} is nested too deep", from.display())));
    }
    let mut names = std::fs::read_dir(from)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    for child in names {
        if !keep(&child.to_string_lossy()) {
            continue;
        }
        let (name, from) = (name.join(&child), from.join(&child));
        let metadata = std::fs::symlink_metadata(&from)?;
        if metadata.is_dir() {
            tar.dir(&name)?;
            below(tar, &name, &from, depth + 1, &|_| true)?;
        } else if metadata.is_symlink() {
            tar.link(&name, &std::fs::read_link(&from)?)?;
        } else if metadata.is_file() {
            tar.file(&name, &from, &metadata)?;
        }
        // Sockets, pipes and devices have no content to keep.
    }
    Ok(())
}

/// A layer as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blob {
    /// Of the compressed bytes.
    pub(crate) digest: Digest,
    /// Of the compressed bytes.
    pub(crate) size: u64,
    /// Of the uncompressed bytes.
    pub(crate) diff_id: Digest,
}

/// Writes what `fill` gives as a blob into `dir`, named by its digest.
pub(crate) fn write_blob(
    dir: &Path,
    fill: impl FnOnce(&mut TarWriter<&mut dyn Write>) -> io::Result<()>,
) -> io::Result<Blob> {
    let temporary = dir.join(format!(".new-{}", std::process::id()));
    let buffer = BufWriter::with_capacity(BUFFER, File::create(&temporary)?);
    let mut plain = Hashing::new(GzEncoder::new(Hashing::new(buffer), Compression::fast()));
    let mut tar = TarWriter::new(&mut plain as &mut dyn Write);
    fill(&mut tar)?;
    tar.finish()?;
    let (gzip, diff_id, _) = plain.finish();
    let (buffer, digest, size) = gzip.finish()?.finish();
    buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
    std::fs::rename(temporary, dir.join(digest.hex()))?;
    Ok(Blob { digest, size, diff_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path, order: &[&str]) {
        for name in order {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, name).expect("written");
        }
        std::os::unix::fs::symlink("b/c", dir.join("l")).expect("linked");
    }

    fn blob(dir: &Path) -> Blob {
        let out = tempfile::tempdir().expect("a directory");
        let keep = |name: &str| name != ".git";
        let tree = Tree { name: "layers/x/y", from: dir.to_owned(), keep: &keep };
        write_blob(out.path(), |tar| tree.write(tar)).expect("written")
    }

    #[test]
    fn equal_content_makes_equal_layers() {
        let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        sample(one.path(), &["a", "b/c", "b/d/e", ".git/config"]);
        sample(two.path(), &["b/d/e", "b/c", "a"]);
        assert_eq!(blob(one.path()), blob(two.path()));
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(two.path().join("a"), executable).expect("set");
        assert_ne!(blob(one.path()), blob(two.path()));
    }
}
