//! `shore cp`: files into an instance that runs, and out of it.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use api::sessions::SessionWhat;
use drivers::archive;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::io::SyncIoBridge;

use super::Shell;
use super::sessions::{Ends, UNWRITTEN, path, work};
use crate::args::{AppName, CpArgs};
use crate::error::{CliError, ErrorKind, Result};

/// Bytes of an archive between what packs it and what sends it.
const PIPE: usize = 256 << 10;
/// How often it is said how far a copy is.
const PROGRESS: Duration = Duration::from_millis(200);
/// An archive on standard input or output.
const STANDARD: &str = "-";

/// A path in an instance.
struct Remote {
    app: Option<AppName>,
    path: String,
}

/// `[APP]:PATH`. What has a `/` before its first `:` is a path of this machine, but for a project's
/// app.
fn remote(text: &str) -> Option<Remote> {
    let (app, path) = text.split_once(':')?;
    let path = path.to_owned();
    if app.is_empty() {
        return Some(Remote { app: None, path });
    }
    let app = app.parse().ok()?;
    Some(Remote { app: Some(app), path })
}

pub(super) async fn cp(shell: &Shell, args: CpArgs) -> Result<()> {
    match (remote(&args.from), remote(&args.to)) {
        (None, Some(to)) => copy_in(shell, &args, to).await,
        (Some(from), None) => copy_out(shell, &args, from).await,
        (Some(_), Some(_)) => Err(CliError::invalid("both FROM and TO are in an instance")
            .hint("copy to this machine first; write a path of it as `./NAME`")),
        (None, None) => Err(CliError::invalid("neither FROM nor TO is in an instance")
            .hint("name one as `APP:PATH`, or as `:PATH` for the app of this directory")),
    }
}

fn archived(error: impl std::fmt::Display) -> CliError {
    CliError::new(ErrorKind::Failed, error.to_string())
}

/// What to do where a file was to get the name of a directory.
fn into_directory(error: CliError, to: &str) -> CliError {
    if to.ends_with('/') || !error.message.contains(archive::IS_DIRECTORY) {
        return error;
    }
    error.hint(format!("`{to}/` puts it into the directory under its own name"))
}

/// Counts bytes that pass.
struct Counted<T> {
    inner: T,
    bytes: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = &polled {
            self.bytes.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Says how far a copy is, on a terminal, while it is under way.
async fn shown<T>(shell: &Shell, bytes: &AtomicU64, copying: impl Future<Output = T>) -> T {
    let here = io::stderr().is_terminal() && !shell.output.is_json();
    tokio::pin!(copying);
    let mut said = false;
    let done = loop {
        tokio::select! {
            done = &mut copying => break done,
            () = runtime::sleep(PROGRESS), if here => {
                said = true;
                crate::output::progress(&amount(bytes.load(Ordering::Relaxed)));
            }
        }
    };
    if said {
        crate::output::progress("");
    }
    done
}

/// Bytes for people.
fn amount(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{}.{} KiB", bytes >> 10, ((bytes & 0x3ff) * 10) >> 10),
        _ => format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20),
    }
}

/// Does what blocks in a thread of its own, beside the session.
fn in_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // Whoever waited may have gone.
        drop(sender.send(work()));
    };
    runtime::spawn_thread(name, run).map_err(CliError::internal)?;
    Ok(receiver)
}

async fn finished<T>(work: oneshot::Receiver<drivers::Result<T>>) -> Result<T> {
    let done = work.await.map_err(|_| CliError::internal("a thread ended without an answer"))?;
    done.map_err(archived)
}

/// The bytes of the files at a path, and below it.
fn bytes_of(path: &Path) -> io::Result<u64> {
    let (mut bytes, mut left) = (0, vec![path.to_owned()]);
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.is_file() {
            bytes += found.len();
        } else if found.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(bytes)
}

/// Says what was copied, and how many bytes of files that was.
fn copied(shell: &Shell, args: &CpArgs, bytes: u64) {
    let (from, to) = (&args.from, &args.to);
    let done = json!({ "event": "copied", "from": from, "to": to, "bytes": bytes });
    shell.output.done(&done, &format!("copied {from} to {to} ({})", amount(bytes)));
}

/// Something of this machine that is copied.
struct Source {
    /// Its path, without symbolic links.
    full: PathBuf,
    /// The directory it is in, or itself.
    root: OwnedFd,
    /// Its name there, and its name in the instance, if it is a file.
    file: Option<(String, String)>,
    /// Where it goes.
    into: String,
}

/// What of `local` goes where for `to`.
fn source(local: &str, to: &str) -> Result<Source> {
    let given = Path::new(local);
    let read = |error: io::Error| CliError::file("read", given, &error);
    let full = given.canonicalize().map_err(read)?;
    if full.is_dir() {
        return Ok(Source {
            root: archive::open_root(&full).map_err(archived)?,
            file: None,
            into: to.to_owned(),
            full,
        });
    }
    let utf8 = |name: Option<&std::ffi::OsStr>| {
        let name = name.and_then(|name| name.to_str()).map(str::to_owned);
        name.ok_or_else(|| CliError::invalid(format!("the name of {local} is not UTF-8")))
    };
    let own = utf8(full.file_name())?;
    let (into, name) = match to.rsplit_once('/') {
        Some((_, "")) => (to.to_owned(), utf8(given.file_name())?),
        Some((into, name)) => (format!("{into}/"), name.to_owned()),
        None => ("/".to_owned(), to.to_owned()),
    };
    if name.is_empty() || matches!(&*name, "." | "..") {
        return Err(CliError::invalid(format!("`{to}` names no file"))
            .hint("end the path with `/` to keep the file's own name"));
    }
    let parent = full.parent().unwrap_or_else(|| Path::new("/"));
    let root = archive::open_root(parent).map_err(archived)?;
    Ok(Source { root, file: Some((own, name)), into, full })
}

async fn copy_in(shell: &Shell, args: &CpArgs, to: Remote) -> Result<()> {
    let url = path(&args.app, to.app.as_ref(), &args.which)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let mut local = None;
    let (ends, into) = if args.from == STANDARD {
        let input = Counted { inner: tokio::io::stdin(), bytes: Arc::clone(&bytes) };
        let ends = Ends {
            input: Some(Box::pin(input)),
            whole: Box::pin(std::future::ready(Ok(()))),
            output: Box::pin(tokio::io::sink()),
            error: Box::pin(tokio::io::sink()),
            typed: false,
        };
        (ends, to.path.clone())
    } else {
        let Source { root, file, into, full } = source(&args.from, &to.path)?;
        local = Some(full);
        let (reader, writer) = tokio::io::duplex(PIPE);
        let mut writer = SyncIoBridge::new(writer);
        let packed = in_thread("pack", move || {
            let out = io::BufWriter::with_capacity(PIPE, &mut writer);
            match &file {
                None => archive::pack(out, root.as_fd(), "/"),
                Some((own, name)) => archive::pack_as(out, root.as_fd(), own, name),
            }
        })?;
        let whole = async move { finished(packed).await };
        let input = Counted { inner: reader, bytes: Arc::clone(&bytes) };
        let ends = Ends {
            input: Some(Box::pin(input)),
            whole: Box::pin(whole),
            output: Box::pin(tokio::io::sink()),
            error: Box::pin(tokio::io::sink()),
            typed: false,
        };
        (ends, into)
    };
    let copying = work(shell, &url, SessionWhat::CopyIn(into), ends);
    shown(shell, &bytes, copying).await.map_err(|error| into_directory(error, &args.to))?;
    // What is around the files in an archive is nobody's concern, nor are files that are gone by now.
    let files = local.and_then(|path| bytes_of(&path).ok());
    copied(shell, args, files.unwrap_or_else(|| bytes.load(Ordering::Relaxed)));
    Ok(())
}

/// The most that may follow the end of an archive: what fills up its last block, and more.
const MAX_PADDING: u64 = 1 << 20;

/// Where what is copied out is put: into a directory that is there, or into a fresh one beside the
/// place it is to have.
struct Target {
    dir: PathBuf,
    fresh: Option<tempfile::TempDir>,
}

impl Target {
    fn new(local: &Path) -> Result<Self> {
        if local.is_dir() {
            return Ok(Self { dir: local.to_owned(), fresh: None });
        }
        let parent = local.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or_else(|| Path::new("."));
        let fresh = tempfile::Builder::new().prefix(".shore-cp-").tempdir_in(parent);
        let fresh = fresh.map_err(|error| CliError::file("write to", parent, &error))?;
        Ok(Self { dir: fresh.path().to_owned(), fresh: Some(fresh) })
    }

    /// Gives what came the name it is to have; it was one file when it has the name of what was
    /// asked for and nothing came with it.
    fn keep(self, remote: &str, local: &Path) -> Result<()> {
        let Some(fresh) = self.fresh else { return Ok(()) };
        let failed = |error: io::Error| CliError::file("write", local, &error);
        let found: Vec<_> = fs::read_dir(fresh.path())
            .and_then(Iterator::collect::<io::Result<_>>)
            .map_err(failed)?;
        let wants_dir = |text: &str| text.ends_with('/');
        let asked = remote.rsplit('/').next().filter(|name| !name.is_empty());
        if let [one] = &*found
            && Some(one.file_name().as_os_str()) == asked.map(std::ffi::OsStr::new)
            && !one.file_type().map_err(failed)?.is_dir()
            && !wants_dir(&local.to_string_lossy())
        {
            return fs::rename(one.path(), local).map_err(failed);
        }
        if local.symlink_metadata().is_ok() {
            let message = format!("{} is there, and is no directory", local.display());
            return Err(CliError::new(ErrorKind::Conflict, message).hint("choose another name"));
        }
        // As any other new directory.
        let allowed = 0o777 & !umask();
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(allowed)).map_err(failed)?;
        let made = fresh.keep();
        fs::rename(made, local).map_err(failed)
    }
}

/// What new files of this process are not allowed.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.as_raw_mode()
}

async fn copy_out(shell: &Shell, args: &CpArgs, from: Remote) -> Result<()> {
    let url = path(&args.app, from.app.as_ref(), &args.which)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let what = SessionWhat::CopyOut(from.path.clone());
    let ends = |output| Ends {
        input: None,
        whole: Box::pin(std::future::ready(Ok(()))),
        output,
        error: Box::pin(tokio::io::sink()),
        typed: false,
    };
    if args.to == STANDARD {
        let output = Counted { inner: tokio::io::stdout(), bytes: Arc::clone(&bytes) };
        let copying = work(shell, &url, what, ends(Box::pin(output)));
        return shown(shell, &bytes, copying).await.map(drop);
    }
    let local = Path::new(&args.to);
    let target = Target::new(local)?;
    let root = archive::open_root(&target.dir).map_err(archived)?;
    let (reader, writer) = tokio::io::duplex(PIPE);
    let mut reader = SyncIoBridge::new(reader);
    let unpacked = in_thread("unpack", move || {
        let summary = archive::unpack(&mut reader, root.as_fd(), archive::Limits::default())?;
        // What fills up the last block is sent, too.
        drop(io::copy(&mut reader.take(MAX_PADDING), &mut io::sink()));
        Ok(summary)
    })?;
    let output = Counted { inner: writer, bytes: Arc::clone(&bytes) };
    let copying = work(shell, &url, what, ends(Box::pin(output)));
    let came = shown(shell, &bytes, copying).await;
    // What unpacks has seen the end by now.
    let unpacked = finished(unpacked).await;
    let summary = match (came, unpacked) {
        (Err(error), Err(refused)) if error.message.starts_with(UNWRITTEN) => {
            return Err(refused);
        }
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        (Ok(_), Ok(summary)) => summary,
    };
    target.keep(&from.path, local)?;
    copied(shell, args, summary.bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_are_the_bytes_of_files() {
        let home = tempfile::tempdir().expect("made");
        let below = home.path().join("below");
        fs::create_dir(&below).expect("made");
        fs::write(below.join("one"), [0; 3_482]).expect("written");
        fs::write(home.path().join("two"), "text").expect("written");
        std::os::unix::fs::symlink("one", below.join("link")).expect("made");
        assert_eq!(bytes_of(&below.join("one")).expect("read"), 3_482);
        assert_eq!(bytes_of(home.path()).expect("read"), 3_486);
        let table = [(4, "4 bytes"), (3_482, "3.4 KiB"), (5 << 20, "5.0 MiB")];
        assert!(table.iter().all(|(bytes, text)| amount(*bytes) == *text));
    }
}
