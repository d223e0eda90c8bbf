//! Archives on their way into a container: tar, gzipped tar and zip become a plain tar stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use drivers::{DriverError, Input, archive};
use flate2::read::MultiGzDecoder;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::actor::Actor;
use crate::blob;
use crate::checksum::permanent;
use crate::error::Failure;
use crate::zips::{self, unreadable};

/// Pieces of an archive that wait to be unpacked.
const PIECES: usize = 8;
/// How large one piece is.
const PIECE_BYTES: usize = 64 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// Unpacks an archive below `to`, and reads it to its end: only there it is known to be whole.
pub(crate) async fn unpack(actor: &Actor, to: &str, input: Input) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let (done, whole) = oneshot::channel();
    let (tasks, spool) = (actor.shared.tasks.clone(), actor.shared.spool()?.to_owned());
    tasks.clone().spawn_ok("unpack", async move {
        tasks.blocking(move || pump(input, sender, (spool, done))).await;
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece, receiver))
    });
    let plain = Box::pin(StreamReader::new(pieces.boxed()));
    let limits = archive::Limits::default();
    actor.driver.copy_in(&actor.handle, to, plain, limits).await.map_err(refused)?;
    match whole.await {
        Ok(read) => read.map_err(blob::broken),
        Err(_) => Err(Failure::new("it was not read to its end")),
    }
}

/// Reading may work the next time; an archive that breaks a rule always will.
fn refused(error: DriverError) -> Failure {
    let transient = matches!(
        &error,
        DriverError::Io { source, .. } if source.kind() != io::ErrorKind::InvalidData
    );
    Failure { transient, ..Failure::from(error) }
}

/// The input, shared with what reads an archive in it.
#[derive(Clone)]
struct Shared(Arc<Mutex<SyncIoBridge<Input>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..bytes.len().min(PIECE_BYTES)).unwrap_or_default();
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(piece)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pump(
    input: Input,
    sender: mpsc::Sender<io::Result<Bytes>>,
    (spool, done): (PathBuf, oneshot::Sender<io::Result<()>>),
) {
    let mut input = Shared(Arc::new(Mutex::new(SyncIoBridge::new(input))));
    let out = Pieces(sender.clone());
    match convert(input.clone(), out, || tempfile::tempfile_in(spool)) {
        // Whoever unpacks may stop at the archive's end.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && sender.is_closed() => {}
        Err(error) => {
            let same = io::Error::new(error.kind(), error.to_string());
            drop(sender.blocking_send(Err(same)));
            drop(done.send(Err(error)));
            return;
        }
        Ok(()) => {}
    }
    drop(sender);
    // An archive may end before its bytes do.
    let mut rest = vec![0; PIECE_BYTES];
    let end = loop {
        match input.read(&mut rest) {
            Ok(0) => break Ok(()),
            Ok(_) if done.is_closed() => return,
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    // Whoever asked may have given up.
    drop(done.send(end));
}

fn convert(
    mut input: impl Read,
    mut out: impl Write,
    spool: impl FnOnce() -> io::Result<File>,
) -> io::Result<()> {
    let mut head = Vec::new();
    input.by_ref().take(ZIP_MAGIC.len() as u64).read_to_end(&mut head)?;
    let (compressed, is_zip) = (head.starts_with(&GZIP_MAGIC), head == ZIP_MAGIC);
    let whole = io::BufReader::with_capacity(PIECE_BYTES, io::Cursor::new(head).chain(input));
    if is_zip {
        return unzip(whole, out, spool()?);
    }
    let mut plain: Box<dyn Read> =
        if compressed { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = match plain.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(());
        }
        out.write_all(piece.get(..read).unwrap_or_default())?;
    }
}

/// The table of a zip archive is at its end, so it is written to disk first.
fn unzip(mut input: impl Read, out: impl Write, mut spool: File) -> io::Result<()> {
    io::copy(&mut input, &mut spool)?;
    let mut archive = zips::open(spool)?;
    let mut tar = tar::Builder::new(out);
    for number in 0..archive.len() {
        let mut entry = archive.by_index(number).map_err(|error| unreadable(&error))?;
        let name = entry.name().map_err(|error| unreadable(&error))?.into_owned();
        let mut header = tar::Header::new_gnu();
        let (is_dir, is_link) = (entry.is_dir(), entry.is_symlink());
        let usual = if is_dir { 0o755 } else { 0o644 };
        header.set_mode(entry.unix_mode().map_or(usual, |mode| mode & 0o777));
        if is_dir {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            tar.append_data(&mut header, &name, io::empty())?;
        } else if is_link {
            let mut target = String::new();
            entry.take(MAX_LINK).read_to_string(&mut target)?;
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, &name, &target)?;
        } else {
            let size = entry.size();
            header.set_size(size);
            let mut content = Exact { inner: &mut entry, left: size };
            tar.append_data(&mut header, &name, &mut content)?;
            if content.left > 0 || content.inner.read(&mut [0])? > 0 {
                return Err(permanent(format!("zip archive: {name} has another size")));
            }
        }
    }
    tar.finish()
}

/// The longest target of a symbolic link.
const MAX_LINK: u64 = 4_096;

/// Reads as many bytes as were announced, at most.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Compresses a stream.
pub(crate) fn gzip(actor: &Actor, input: Input) -> blob::Pieces {
    let (sender, receiver) = mpsc::channel(PIECES);
    let tasks = actor.shared.tasks.clone();
    actor.shared.tasks.spawn_ok("compress", async move {
        tasks.blocking(move || compress(input, &sender)).await;
    });
    let next = |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    };
    futures_util::stream::unfold(receiver, next).boxed()
}

fn compress(input: Input, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let copy = || {
        let out = Pieces(sender.clone());
        let mut out = flate2::write::GzEncoder::new(out, flate2::Compression::default());
        io::copy(&mut SyncIoBridge::new(input), &mut out)?;
        out.finish().map(drop)
    };
    if let Err(error) = copy() {
        // Nobody minds when the reader went away first.
        drop(sender.blocking_send(Err(error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zip_archives_become_tar_archives() {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let deflated = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated);
        zip.add_directory("dir/", deflated).expect("adds");
        zip.start_file("dir/run", deflated.unix_permissions(0o755)).expect("adds");
        zip.write_all("echo\n".repeat(1_000).as_bytes()).expect("writes");
        zip.add_symlink("link", "dir/run", deflated).expect("adds");
        let zipped = zip.finish().expect("ends").into_inner();
        let mut out = Vec::new();
        convert(zipped.as_slice(), &mut out, tempfile::tempfile).expect("converts");
        let mut tar = tar::Archive::new(out.as_slice());
        let entries: Vec<String> = tar
            .entries()
            .expect("reads")
            .map(|entry| {
                let entry = entry.expect("is whole");
                let (path, header) = (entry.path().expect("a path"), entry.header());
                let (mode, size) = (header.mode().expect("a mode"), entry.size());
                format!("{} {mode:o} {size} {:?}", path.display(), header.entry_type())
            })
            .collect();
        assert_eq!(
            entries,
            ["dir/ 755 0 Directory", "dir/run 755 5000 Regular", "link 777 0 Symlink"]
        );
        let cut = convert(&zipped[..zipped.len() - 30], io::sink(), tempfile::tempfile);
        assert_eq!(cut.expect_err("is damaged").kind(), io::ErrorKind::InvalidData);
    }
}
