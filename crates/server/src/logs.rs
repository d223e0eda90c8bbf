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
        | RowKey::Deployment(_)
        | RowKey::Instance(_) => None,
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

    /// Adds one line of the platform's own.
    pub fn say(&self, stream: &str, text: &str) {
        let source = u32::from(LogSource::System.code());
        let text = bytes::Bytes::copy_from_slice(text.as_bytes());
        self.append_log(stream, &[LogLine { at_ms: self.now().0, source, text }]);
    }

    /// The log of a job, task or instance; it may be empty yet.
    pub fn log(&self, stream: &str) -> Result<LogBuffer, logbuf::LogError> {
        self.logs().stream(stream)
    }

    pub(crate) fn end_log(&self, stream: &str) {
        let ended = self.logs().stream(stream).and_then(|log| log.end());
        if let Err(error) = ended {
            tracing::debug!(stream, %error, "a log could not be ended");
        }
    }
}
