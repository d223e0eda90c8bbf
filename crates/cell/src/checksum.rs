//! Byte streams that are held to a checksum and to a size.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt as _;
use model::{Checksum, ChecksumAlgorithm};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::blob::Pieces;

enum Hasher {
    Md5(md5::Context),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::Md5 => Self::Md5(md5::Context::new()),
            ChecksumAlgorithm::Sha1 => Self::Sha1(Sha1::new()),
            ChecksumAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hash) => hash.consume(bytes),
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    fn hex(self) -> String {
        match self {
            Self::Md5(hash) => hex::encode(*hash.finalize()),
            Self::Sha1(hash) => hex::encode(hash.finalize()),
            Self::Sha256(hash) => hex::encode(hash.finalize()),
        }
    }
}

struct Verify<F> {
    pieces: Pieces,
    hasher: Hasher,
    wanted: String,
    fault: F,
}

/// The same bytes, and `fault` at their end when they are not what the checksum says.
pub(crate) fn verified<F>(pieces: Pieces, checksum: Checksum, fault: F) -> Pieces
where
    F: Fn() -> io::Error + Send + 'static,
{
    let hasher = Hasher::new(checksum.algorithm);
    let state = Verify { pieces, hasher, wanted: checksum.value, fault };
    let next = |state: Option<Verify<F>>| async move {
        let mut state = state?;
        match state.pieces.next().await {
            Some(Ok(piece)) => {
                state.hasher.update(&piece);
                Some((Ok(piece), Some(state)))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if state.hasher.hex() == state.wanted => None,
            None => Some((Err((state.fault)()), None)),
        }
    };
    futures_util::stream::unfold(Some(state), next).boxed()
}

/// The same bytes, and an error once there are more than `most`.
pub(crate) fn limited(pieces: Pieces, most: u64) -> Pieces {
    limited_by(pieces, most, move || too_large(most))
}

/// The same with an error of one's own.
pub(crate) fn limited_by(
    pieces: Pieces,
    most: u64,
    fault: impl Fn() -> io::Error + Send + 'static,
) -> Pieces {
    let mut left = most;
    let piece = move |piece: io::Result<Bytes>| {
        let piece = piece?;
        left = left.checked_sub(piece.len() as u64).ok_or_else(&fault)?;
        Ok(piece)
    };
    pieces.map(piece).boxed()
}

/// The error of what has more bytes than it may.
pub(crate) fn too_large(most: u64) -> io::Error {
    permanent(format!("it has more than {most} bytes"))
}

/// An error that comes again however often the same is tried.
pub(crate) fn permanent(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(pieces: Pieces) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut pieces = pieces;
        while let Some(piece) = pieces.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    fn abc() -> Pieces {
        let pieces = [Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"bc"))];
        futures_util::stream::iter(pieces).boxed()
    }

    #[tokio::test]
    async fn each_hash_is_what_others_compute() {
        for (algorithm, value) in [
            (ChecksumAlgorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (ChecksumAlgorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                ChecksumAlgorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ] {
            let good = Checksum { algorithm, value: value.to_owned() };
            let fault = || permanent("differs");
            assert_eq!(read(verified(abc(), good.clone(), fault)).await.expect("matches"), b"abc");
            let bad = Checksum { value: value.replace('9', "8"), ..good };
            let error = read(verified(abc(), bad, fault)).await.expect_err("differs");
            assert_eq!(error.to_string(), "differs");
        }
    }

    #[tokio::test]
    async fn too_many_bytes_are_an_error() {
        assert_eq!(read(limited(abc(), 3)).await.expect("fits"), b"abc");
        let error = read(limited(abc(), 2)).await.expect_err("does not fit");
        assert_eq!(error.to_string(), "it has more than 2 bytes");
    }
}
