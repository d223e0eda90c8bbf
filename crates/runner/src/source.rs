//! Reading the project file out of a source archive.

use std::io::Read as _;

use api::Client;
use futures_util::TryStreamExt as _;
use manifest::{FILE_NAME, MAX_FILE, ProjectFile};
use model::Digest;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::context::JobError;

/// Most entries looked at for the project file.
const MAX_ENTRIES: usize = 1_000_000;

/// The project file of an archive; an empty one when there is none.
pub(crate) async fn project_file(client: &Client, source: Digest) -> Result<ProjectFile, JobError> {
    let stream = client.get_blob(source).await?;
    let reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream.into_stream())));
    let text = runtime::blocking(move || find(reader)).await;
    match text.map_err(|error| JobError::Failed(format!("the source cannot be read: {error}")))? {
        Some(text) => manifest::parse(&text).map_err(|error| JobError::Failed(error.to_string())),
        None => Ok(ProjectFile::default()),
    }
}

fn find(archive: impl std::io::Read) -> std::io::Result<Option<String>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in archive.entries()?.take(MAX_ENTRIES) {
        let entry = entry?;
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
