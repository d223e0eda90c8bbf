//! Blobs: what is put comes back, and what does not fit its digest does not.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation is not met")]

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use sha2::{Digest as _, Sha256};
use store::StoreError;
use store::blobs::{BlobError, BlobLimits, Blobs, Digest};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

const SMALL: BlobLimits = BlobLimits { max_blob_bytes: 1 << 20, min_free_bytes: 0 };

fn blobs() -> (TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), SMALL).unwrap();
    (dir, blobs)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

fn path_of(dir: &Path, digest: Digest) -> PathBuf {
    let name = hex::encode(digest);
    dir.join("sha256").join(hex::encode([digest[0]])).join(name)
}

fn left_in(dir: &Path, name: &str) -> usize {
    fs::read_dir(dir.join(name)).unwrap().count()
}

#[tokio::test]
async fn what_is_put_comes_back() {
    let (dir, blobs) = blobs();
    for len in [0, 1, 70_000, 1 << 20] {
        let content = vec![7; len];
        let stored = blobs.put(&content[..]).await.unwrap();
        assert_eq!((stored.digest, stored.len), (digest_of(&content), len as u64));
        assert_eq!(blobs.get(stored.digest).await.unwrap().len(), len as u64);
        assert_eq!(blobs.read(stored.digest, 1 << 20).await.unwrap(), content);
        assert!(blobs.exists(stored.digest).await.unwrap());
        assert!(path_of(dir.path(), stored.digest).is_file());
    }
    assert_eq!(left_in(dir.path(), "tmp"), 0);
    drop(blobs);
    let blobs = Blobs::open(dir.path(), SMALL).unwrap();
    assert_eq!(blobs.len(digest_of(b"\x07")).await.unwrap(), Some(1));
}

#[tokio::test]
async fn only_announced_content_is_taken() {
    let (dir, blobs) = blobs();
    let right = digest_of(b"right");
    let error = blobs.put_expected(&b"wrong"[..], right).await.unwrap_err();
    assert_eq!(error, BlobError::Mismatch { expected: right, found: digest_of(b"wrong") });
    assert!(!blobs.exists(right).await.unwrap());
    assert!(!blobs.exists(digest_of(b"wrong")).await.unwrap());
    blobs.put_expected(&b"right"[..], right).await.unwrap();
    assert_eq!(left_in(dir.path(), "tmp"), 0);
}

#[tokio::test]
async fn limits_are_kept() {
    let (dir, blobs) = blobs();
    let error = blobs.put(&vec![0; (1 << 20) + 1][..]).await.unwrap_err();
    assert_eq!(error, BlobError::TooLarge { limit: 1 << 20 });
    let stored = blobs.put(&b"12345"[..]).await.unwrap();
    let error = blobs.read(stored.digest, 4).await.unwrap_err();
    assert_eq!(error, BlobError::TooLarge { limit: 4 });
    assert_eq!(left_in(dir.path(), "tmp"), 0);
    drop(blobs);
    let limits = BlobLimits { min_free_bytes: u64::MAX, ..SMALL };
    let blobs = Blobs::open(dir.path(), limits).unwrap();
    let error = blobs.put(&b"x"[..]).await.unwrap_err();
    assert!(matches!(error, BlobError::LowSpace { floor: u64::MAX, .. }), "{error}");
    assert_eq!(blobs.read(stored.digest, 9).await.unwrap(), b"12345", "reading goes on");
}

/// Gives some bytes, then fails.
struct Broken(bool);

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        buf.put_slice(b"some");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_broken_source_and_a_dropped_upload_leave_nothing() {
    let (dir, blobs) = blobs();
    let error = blobs.put(Broken(false)).await.unwrap_err();
    assert!(matches!(error, BlobError::Source { .. }), "{error}");
    let mut upload = blobs.begin().await.unwrap();
    upload.write(b"half").await.unwrap();
    assert_eq!((upload.received(), left_in(dir.path(), "tmp")), (4, 1));
    drop(upload);
    assert_eq!(left_in(dir.path(), "tmp"), 0);
    assert_eq!(blobs.list(None, 9).await.unwrap(), []);
}

#[tokio::test]
async fn pieces_make_one_blob() {
    let (_dir, blobs) = blobs();
    let mut upload = blobs.begin().await.unwrap();
    for piece in ["one ", "", "blob"] {
        upload.write(piece.as_bytes()).await.unwrap();
    }
    let stored = upload.finish_as(digest_of(b"one blob")).await.unwrap();
    assert_eq!(blobs.read(stored.digest, 99).await.unwrap(), b"one blob");
}

#[tokio::test]
async fn damage_is_found_before_the_last_byte_and_put_in_quarantine() {
    let content = vec![b'a'; 300_000];
    let digest = digest_of(&content);
    let flipped = {
        let mut flipped = content.clone();
        flipped[150_000] ^= 1;
        flipped
    };
    let damages = [flipped, content[..299_999].to_vec(), [&content[..], b"a"].concat(), vec![]];
    for damage in damages {
        let (dir, blobs) = blobs();
        blobs.put(&content[..]).await.unwrap();
        fs::write(path_of(dir.path(), digest), &damage).unwrap();
        let mut reader = blobs.get(digest).await.unwrap();
        let mut got = Vec::new();
        let error = reader.read_to_end(&mut got).await.unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert!(got.len() < damage.len().max(1), "the end is held back");
        assert_eq!(left_in(dir.path(), "quarantine"), 1);
        let moved_to = dir.path().join("quarantine").join(hex::encode(digest));
        let again = blobs.get(digest).await.unwrap_err();
        assert_eq!(again, BlobError::Damaged { digest, moved_to });
        assert!(!blobs.exists(digest).await.unwrap());
        blobs.put(&content[..]).await.unwrap();
        assert_eq!(blobs.read(digest, 1 << 20).await.unwrap(), content, "a new put heals");
        assert_eq!(left_in(dir.path(), "quarantine"), 0);
    }
}

#[tokio::test]
async fn the_same_content_can_be_put_many_times_at_once() {
    let (dir, blobs) = blobs();
    let content = vec![3; 200_000];
    let puts = (0..16).map(|_| blobs.put(&content[..]));
    for stored in futures_util::future::join_all(puts).await {
        assert_eq!(stored.unwrap().digest, digest_of(&content));
    }
    assert_eq!(blobs.list(None, 9).await.unwrap().len(), 1);
    assert_eq!(left_in(dir.path(), "tmp"), 0);
}

#[tokio::test]
async fn listings_are_paged_in_order_and_ignore_foreign_files() {
    let (dir, blobs) = blobs();
    let mut all = Vec::new();
    for n in 0..40_u8 {
        all.push(blobs.put(&[n][..]).await.unwrap().digest);
    }
    all.sort_unstable();
    fs::write(dir.path().join("sha256/00/readme"), "not a blob").unwrap();
    fs::write(path_of(dir.path(), all[0]).with_file_name(hex::encode([9; 32])), "").unwrap();
    let mut paged = Vec::new();
    loop {
        let page = blobs.list(paged.last().copied(), 7).await.unwrap();
        assert!(page.iter().all(|listed| listed.len == 1 && listed.stored_ms > 0));
        if page.is_empty() {
            break;
        }
        paged.extend(page.iter().map(|listed| listed.digest));
    }
    assert_eq!(paged, all);
    assert!(blobs.delete(all[0]).await.unwrap());
    assert!(!blobs.delete(all[0]).await.unwrap());
    assert_eq!(blobs.list(None, 99).await.unwrap().len(), 39);
    let gone = blobs.get(all[0]).await.unwrap_err();
    assert_eq!(gone, BlobError::Missing { digest: all[0] });
}

#[tokio::test]
async fn a_link_in_place_of_a_blob_is_not_followed() {
    let (dir, blobs) = blobs();
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let digest = digest_of(b"secret");
    std::os::unix::fs::symlink(&secret, path_of(dir.path(), digest)).unwrap();
    assert!(matches!(blobs.get(digest).await, Err(BlobError::Io { .. })));
    assert_eq!(blobs.len(digest).await.unwrap(), None);
}

#[tokio::test]
async fn half_received_blobs_are_removed_at_start_and_one_process_owns_the_directory() {
    let (dir, blobs) = blobs();
    fs::write(dir.path().join("tmp/7"), "half").unwrap();
    let refused = Blobs::open(dir.path(), SMALL).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    assert_eq!(left_in(dir.path(), "tmp"), 1, "a refused start removes nothing");
    drop(blobs);
    let _blobs = Blobs::open(dir.path(), SMALL).unwrap();
    assert_eq!(left_in(dir.path(), "tmp"), 0);
}
