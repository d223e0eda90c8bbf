//! Brings bytes into containers and takes files out of them: from and to the blob store, or a URL.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use drivers::Input;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use model::{Checksum, Digest, MAX_TASK_ARTIFACT, MAX_TASK_RESULT, MAX_TRANSFER_BYTES, UploadMode};
use runtime::Stop;
use rustix::fs::{Dir, FileType};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::actor::Actor;
use crate::blob::{self, Pieces};
use crate::checksum::{limited, limited_by, permanent, too_large, verified};
use crate::error::Failure;
use crate::files;
use crate::limits::{MAX_ARCHIVE_BYTES, MAX_NAMED_UPLOADS};
use crate::pace::Pace;
use crate::unpack::{gzip, unpack};
use crate::web::{Ask, Body, Url, fetch};

/// Bytes sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// What is brought into a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Download<'a> {
    pub(crate) from: Origin<'a>,
    pub(crate) to: &'a str,
    pub(crate) unpack: bool,
    pub(crate) checksum: Option<&'a Checksum>,
    pub(crate) max_bytes: Option<u64>,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    Blob(Digest),
    Url(&'a str),
}

/// Ends a stream when it is dropped, also for a thread that waits for the stream's next bytes.
struct Leash(Stop);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Leash {
    fn tie(&self, pieces: Pieces) -> Input {
        let stop = self.0.clone();
        let tied = pieces.take_until(async move { stop.stopped().await });
        Box::pin(StreamReader::new(tied.boxed()))
    }
}

/// Puts bytes into the container: as a file, or unpacked below a directory.
pub(crate) async fn download(actor: &Actor, what: &Download<'_>) -> Result<(), Failure> {
    let shared = &actor.shared;
    let places = match what.from {
        Origin::Blob(_) => &shared.downloads,
        // A server that is slow on purpose must not keep images waiting.
        Origin::Url(_) => &shared.fetches,
    };
    let _place = places.take(&actor.owner).await?;
    let pace = Pace::default();
    let work = blob::retry(|| async {
        let leash = Leash(Stop::new());
        let input = leash.tie(pace.count(open(actor, what).await?));
        if what.unpack {
            unpack(actor, what.to, shared.space.guard(input)).await
        } else {
            files::put(actor, what.to, input).await
        }
    });
    pace.keep(work).await
}

async fn open(actor: &Actor, what: &Download<'_>) -> Result<Pieces, Failure> {
    let most = what.max_bytes.unwrap_or(MAX_TRANSFER_BYTES);
    let (pieces, length) = match what.from {
        Origin::Blob(digest) => (blob::pieces(&actor.shared.client, digest).await?, None),
        Origin::Url(url) => fetch(&actor.shared.web, &Url::parse(url)?).await?,
    };
    if length.is_some_and(|length| length > most) {
        return Err(Failure::new(too_large(most)));
    }
    let pieces = limited(pieces, most);
    Ok(match what.checksum.cloned() {
        Some(checksum) => verified(pieces, checksum, || permanent("its checksum is another one")),
        None => pieces,
    })
}

/// What is taken out of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upload<'a> {
    pub(crate) from: &'a str,
    pub(crate) mode: UploadMode,
    pub(crate) url: Option<&'a str>,
    pub(crate) max_bytes: Option<u64>,
}

/// Takes files out of the container.
pub(crate) async fn upload(actor: &Actor, what: &Upload<'_>) -> Result<(), Failure> {
    let shared = &actor.shared;
    // As with downloads, a server that is slow on purpose must not keep builds waiting.
    let places = if what.url.is_some() { &shared.sends } else { &shared.uploads };
    let _place = places.take(&actor.owner).await?;
    let most = what.max_bytes.unwrap_or(MAX_TRANSFER_BYTES);
    let url = what.url.map(Url::parse).transpose()?;
    match what.mode {
        UploadMode::Archive => {
            blob::retry(|| async {
                let tar = actor.driver.copy_out(&actor.handle, what.from).await?;
                let leash = Leash(Stop::new());
                let packed = limited(gzip(actor, leash.tie(plain(tar))), most);
                match &url {
                    Some(url) => put_once(actor, url, packed).await,
                    None => store(actor, None, packed).await.map(drop),
                }
            })
            .await
        }
        UploadMode::File => {
            let (file, _outside) = files::file(actor, what.from, most).await?;
            match &url {
                Some(url) => put(actor, url, &file).await,
                None => send(actor, None, &file).await.map(drop),
            }
        }
        UploadMode::DigestNamed => {
            let outside = files::directory(actor, what.from, most).await?;
            let names = digests(&outside.dir, most)?;
            futures_util::stream::iter(names)
                .map(|name| send_named(actor, &outside.dir, name))
                .buffer_unordered(MAX_NAMED_UPLOADS)
                .try_collect::<()>()
                .await
        }
    }
}

/// A tar stream before it is compressed: zeros take next to no room then, so their number is limited
/// here.
fn plain(tar: Input) -> Pieces {
    let pieces = ReaderStream::with_capacity(tar, PIECE_BYTES).boxed();
    let too_large = || permanent(format!("it has more than {MAX_ARCHIVE_BYTES} bytes unpacked"));
    limited_by(pieces, MAX_ARCHIVE_BYTES, too_large)
}

async fn send_named(actor: &Actor, dir: &OwnedFd, digest: Digest) -> Result<(), Failure> {
    if blob::retry(|| async { Ok(actor.shared.client.has_blob(digest).await?) }).await? {
        return Ok(());
    }
    send(actor, Some(digest), &files::open_file(dir, &digest.hex())?).await.map(drop)
}

fn content(file: &File) -> io::Result<Pieces> {
    let mut file = file.try_clone()?;
    io::Seek::rewind(&mut file)?;
    Ok(ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE_BYTES).boxed())
}

/// Sends a file; the server refuses it when it is not what `digest` names.
async fn send(actor: &Actor, digest: Option<Digest>, file: &File) -> Result<Digest, Failure> {
    blob::retry(|| async { store(actor, digest, content(file)?).await }).await
}

async fn store(actor: &Actor, digest: Option<Digest>, content: Pieces) -> Result<Digest, Failure> {
    let (fault, content) = watched(content);
    let pace = Pace::default();
    let content = pace.count(content);
    let put = async {
        match actor.shared.client.put_blob(digest, content).await {
            Ok(stored) => Ok(stored.digest),
            Err(error) => Err(own_fault(&fault).unwrap_or_else(|| Failure::from(error))),
        }
    };
    pace.keep(put).await
}

/// What a task left in its result file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Short text.
    Text(String),
    /// What is longer than [`MAX_TASK_RESULT`], or no text. The server has it.
    Blob(Digest),
}

/// Reads a task's result file. Once this returns, nothing of the container is needed for it.
pub(crate) async fn result(actor: &Actor, path: &str) -> Result<Left, Failure> {
    // Little is read at once. Whatever is wrong shows again below.
    if let Ok((file, _outside)) = files::file(actor, path, MAX_TASK_RESULT as u64).await {
        let mut bytes = Vec::new();
        let start = tokio::fs::File::from_std(file);
        start.take(MAX_TASK_RESULT as u64 + 1).read_to_end(&mut bytes).await?;
        if bytes.len() <= MAX_TASK_RESULT
            && let Ok(text) = String::from_utf8(bytes)
        {
            return Ok(Left::Text(text));
        }
    }
    // Before anything is spooled, so that this many are on disk at most.
    let _place = actor.shared.uploads.take(&actor.owner).await?;
    let (file, _outside) = files::file(actor, path, MAX_TASK_ARTIFACT).await?;
    let kept = || async { store(actor, None, limited(content(&file)?, MAX_TASK_ARTIFACT)).await };
    blob::retry(kept).await.map(Left::Blob)
}

type Fault = Arc<OnceLock<String>>;

/// The same bytes; remembers what was wrong with them, since the other side only sees them end.
fn watched(pieces: Pieces) -> (Fault, Pieces) {
    let fault = Fault::default();
    let seen = Fault::clone(&fault);
    let pieces = pieces.inspect_err(move |error| {
        if error.kind() == io::ErrorKind::InvalidData {
            seen.set(error.to_string()).unwrap_or_default();
        }
    });
    (fault, pieces.boxed())
}

fn own_fault(fault: &Fault) -> Option<Failure> {
    fault.get().map(Failure::new)
}

fn body(pieces: Pieces) -> Body {
    StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync()
}

/// Sends a file to a URL.
async fn put(actor: &Actor, url: &Url, file: &File) -> Result<(), Failure> {
    let length = Some(file.metadata()?.len());
    let pace = Pace::default();
    let again = || Ok(body(pace.count(content(file)?)));
    let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
    let ask = Ask { method: Method::PUT, headers, body: &again, length };
    let sent = || async { Ok(actor.shared.web.ask(url, &ask).await.map(drop)?) };
    pace.keep(blob::retry(sent)).await
}

/// Sends what can be made only once; a redirect fails.
async fn put_once(actor: &Actor, url: &Url, pieces: Pieces) -> Result<(), Failure> {
    let (fault, pieces) = watched(pieces);
    let pace = Pace::default();
    let pieces = pace.count(pieces);
    let only = Mutex::new(Some(pieces));
    let once = || {
        let pieces = only.lock().unwrap_or_else(PoisonError::into_inner).take();
        pieces.map(body).ok_or_else(|| permanent("an archive does not follow redirects"))
    };
    let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/gzip"))];
    let ask = Ask { method: Method::PUT, headers, body: &once, length: None };
    let sent = async {
        let sent = actor.shared.web.ask(url, &ask).await;
        sent.map(drop).map_err(|failure| own_fault(&fault).unwrap_or_else(|| failure.into()))
    };
    pace.keep(sent).await
}

/// The files of a directory, all of which must be named by a digest.
fn digests(dir: &OwnedFd, most: u64) -> Result<Vec<Digest>, Failure> {
    let mut names = Vec::new();
    let mut bytes = 0_u64;
    for entry in Dir::read_from(dir).map_err(io::Error::from)? {
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name().to_string_lossy();
        if name == "." || name == ".." || entry.file_type() == FileType::Directory {
            continue;
        }
        let digest = format!("sha256:{name}").parse();
        names.push(digest.map_err(|_| Failure::new(format!("{name} is not named by a digest")))?);
        bytes = bytes.saturating_add(files::open_file(dir, &name)?.metadata()?.len());
        if bytes > most {
            return Err(Failure::new(too_large(most)));
        }
    }
    Ok(names)
}
