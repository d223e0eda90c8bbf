//! Logs of jobs, tasks and instances. A log is named by its owner's id.

use api::proto::LogLine;
use logbuf::{Line, LogBuffer};
use model::LogSource;
use state::{Job, RowKey, State, Task};

use crate::Server;

/// The logs among `rows` whose owners ended.
pub(crate) fn ended(state: &State, rows: &[RowKey]) -> Vec<String> {
    let name = |key: &RowKey| match key {
        RowKey::Job(id) => {
            state.get::<Job>(*id).filter(|job| job.state.is_terminal()).map(|_| id.to_string())
        }
        RowKey::Task(id) => {
            state.get::<Task>(*id).filter(|task| task.state.is_terminal()).map(|_| id.to_string())
        }
        RowKey::Project(_)
        | RowKey::App(_)
        | RowKey::Token(_)
        | RowKey::Key(_)
        | RowKey::Runner(_)
        | RowKey::Cell(_)
        | RowKey::Build(_)
        | RowKey::Process(_)
        | RowKey::Delivery(_)
        | RowKey::Signing(_)
        | RowKey::Deployment(_)
        | RowKey::Instance(_)
        | RowKey::Volume(_) => None,
    };
    rows.iter().filter_map(name).collect()
}

impl Server {
    /// Adds lines to a log. A log that ended takes no more; what cannot be kept is reported once.
    pub(crate) fn append_log(&self, stream: &str, lines: &[LogLine]) {
        let entries = lines.iter().map(|line| Line {
            time_ms: line.at_ms,
            source: u8::try_from(line.source).unwrap_or(LogSource::System.code()),
            data: &line.text,
        });
        let kept = self.logs().stream(stream).and_then(|log| log.append_all(entries));
        if let Err(error) = kept {
            tracing::debug!(stream, %error, "log lines were not kept");
        }
    }

    /// Hands everything a log has to the operating system; false when the disk refuses. Until then
    /// the lines are in memory only, and nobody may be told that they are kept.
    pub(crate) async fn write_log(&self, stream: &str) -> bool {
        let (server, name) = (self.clone(), stream.to_owned());
        let write = move || server.logs().stream(&name).and_then(|log| log.flush());
        match self.tasks().blocking(write).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(stream, %error, "log lines could not be written to disk");
                false
            }
        }
    }

    /// Adds one line of the platform's own.
    pub fn say(&self, stream: &str, text: &str) {
        let source = u32::from(LogSource::System.code());
        let text = bytes::Bytes::copy_from_slice(text.as_bytes());
        self.append_log(stream, &[LogLine { at_ms: self.now().0, source, text }]);
    }

    /// The log of a job, task or instance, for a follower; it may be empty yet.
    pub fn log(&self, stream: &str) -> Result<LogBuffer, logbuf::LogError> {
        self.logs().follow(stream)
    }

    pub(crate) fn end_log(&self, stream: &str) {
        let ended = self.logs().stream(stream).and_then(|log| log.end());
        if let Err(error) = ended {
            tracing::debug!(stream, %error, "a log could not be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use runtime::{Ids, Random, Stop, SystemClock, Tasks};
    use store::memory::MemoryStore;

    use super::*;
    use crate::Parts;

    async fn start(dir: &Path) -> Server {
        let parts = Parts {
            store: Arc::new(MemoryStore::new()),
            clock: Arc::new(SystemClock),
            ids: Ids::new(Random::seeded(1)),
            tasks: Tasks::new(Stop::new()),
            domain: "localhost".to_owned(),
            authority: None,
            blobs: store::blobs::BlobLimits::default(),
            settings: crate::Settings::default(),
        };
        Server::start(parts, dir).await.expect("starts")
    }

    /// The directory of the one stream there is.
    fn stream_dir(dir: &Path) -> PathBuf {
        let only = |dir: &Path| {
            let entry = std::fs::read_dir(dir).expect("lists").next().expect("one entry");
            entry.expect("reads").path()
        };
        only(&only(&dir.join("logs")))
    }

    #[tokio::test]
    async fn lines_count_as_kept_once_they_are_in_the_file() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let server = start(dir.path()).await;
        let line = [LogLine { at_ms: 1, source: 1, text: "a line".into() }];
        server.log("ins_1").expect("opens");
        let (stream, away) = (stream_dir(dir.path()), dir.path().join("away"));
        std::fs::rename(&stream, &away).expect("moves");
        server.append_log("ins_1", &line);
        assert!(!server.write_log("ins_1").await, "there is nowhere to write to");
        std::fs::rename(&away, &stream).expect("moves back");
        assert!(server.write_log("ins_1").await);
        let file = std::fs::read(stream.join("00000000000000000000.log")).expect("reads");
        assert!(String::from_utf8_lossy(&file).contains("a line"));
    }
}
