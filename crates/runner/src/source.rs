//! Reading the project file out of a source archive.

use std::io::{BufRead as _, BufReader, Read as _};

use api::{Client, ClientError};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use manifest::{FILE_NAME, MAX_FILE, ProjectFile};
use model::Digest;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::context::JobError;

/// How gzip begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Most entries looked at for the project file; a cell unpacks no more either.
const MAX_ENTRIES: usize = 1_000_000;
/// Most bytes of all files of a source; a cell unpacks no more either.
const MAX_BYTES: u64 = 8 << 30;

type Content = BoxStream<'static, std::io::Result<Bytes>>;

/// Opens an archive in the blob store.
pub(crate) async fn archive(client: &Client, source: Digest) -> Result<Content, ClientError> {
    Ok(client.get_blob(source).await?.boxed())
}

/// The project file of an archive; an empty one when there is none.
pub(crate) async fn project_file(archive: Content) -> Result<ProjectFile, JobError> {
    let reader = SyncIoBridge::new(StreamReader::new(archive));
    let text = runtime::blocking(move || find(reader)).await;
    match text
        .map_err(|error| JobError::Failed(format!("the source archive cannot be read: {error}")))?
    {
        Some(text) => manifest::parse(&text).map_err(|error| JobError::Failed(error.to_string())),
        None => Ok(ProjectFile::default()),
    }
}

/// Archives are plain tar or gzip-compressed, as their first bytes tell.
fn find(archive: impl std::io::Read) -> std::io::Result<Option<String>> {
    let mut archive = BufReader::new(archive);
    if archive.fill_buf()?.starts_with(&GZIP) {
        find_in(flate2::read::GzDecoder::new(archive))
    } else {
        find_in(archive)
    }
}

fn find_in(archive: impl std::io::Read) -> std::io::Result<Option<String>> {
    let mut archive = tar::Archive::new(archive);
    let mut bytes = 0_u64;
    for (number, entry) in archive.entries()?.enumerate() {
        let entry = entry?;
        // A small archive can say that it becomes very large; then nothing of it is unpacked.
        bytes = bytes.saturating_add(entry.size());
        if bytes > MAX_BYTES || number >= MAX_ENTRIES {
            return Err(std::io::Error::other(format!(
                "it unpacks to more than {MAX_BYTES} bytes or {MAX_ENTRIES} files"
            )));
        }
        let path = entry.path()?;
        if path.strip_prefix("./").unwrap_or(&path) != std::path::Path::new(FILE_NAME) {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(std::io::Error::other(format!("{FILE_NAME} is not a file")));
        }
        let mut text = String::new();
        entry.take(MAX_FILE as u64 + 1).read_to_string(&mut text)?;
        return Ok(Some(text));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn archive(path: &str, text: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).expect("an entry");
        builder.into_inner().expect("an archive")
    }

    #[test]
    fn plain_and_compressed_archives_are_read() {
        let plain = archive("./shore.hcl", "project = \"a\"");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("compressed");
        let compressed = gzip.finish().expect("compressed");
        for bytes in [plain, compressed] {
            let found = find(bytes.as_slice()).expect("readable");
            assert_eq!(found.as_deref(), Some("project = \"a\""));
        }
        let other = archive("sub/shore.hcl", "x");
        assert_eq!(find(other.as_slice()).expect("readable"), None);
        assert!(find(&b"garbage that is no archive at all"[..]).is_err());
    }

    #[test]
    fn an_archive_that_says_it_is_huge_is_refused_unread() {
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").expect("a name");
        header.set_size(MAX_BYTES + 1);
        header.set_cksum();
        let error = find(&header.as_bytes()[..]).expect_err("too large").to_string();
        assert!(error.contains("more than 8589934592 bytes"), "{error}");
    }
}
