//! Showing a job to the one who pushed.

use std::time::Duration;

use logbuf::{LogBuffer, Read, Start};
use model::{JobId, JobState, LogSource, TerminalEvent};
use server::Server;
use state::{Job, RowKey, State};

use super::push::Say;

/// How long a job may be in line before the one who pushed is told why.
const GLANCE: Duration = Duration::from_millis(300);
/// Lines read at once.
const BATCH: usize = 256;

/// Shows a job until it ends; its failure as a reason with a hint.
pub(crate) async fn job(server: &Server, job: JobId, say: &mut Say) -> Result<(), String> {
    in_line(server, job, say).await?;
    let over = server.wait_for_row(RowKey::Job(job), move |state| {
        let row = state.get::<Job>(job);
        row.is_none_or(|job| job.state.is_terminal()).then_some(())
    });
    match server.log(&job.to_string()) {
        Ok(log) => {
            let ended = async {
                if over.await.is_ok() {
                    // Whoever sees the end first ends the log.
                    log.end().unwrap_or_default();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                shown = lines(&log, say) => shown?,
                () = ended => {}
            }
        }
        Err(error) => {
            // The push counts, not what is shown of it.
            say.line(&format!("the log is not shown: {error}")).await;
            over.await.map_err(|error| error.to_string())?;
        }
    }
    let row = server.job(job).await.map_err(|error| error.to_string())?;
    match row.map(|row| row.state.clone()) {
        Some(JobState::Succeeded) => Ok(()),
        Some(JobState::Failed { reason } | JobState::Cancelled { reason }) => {
            Err(format!("{reason}\nhint: mend it and push again; the branch was not moved"))
        }
        Some(_) | None => Err("the job is gone".to_owned()),
    }
}

/// Says why a job waits in line, each reason once, until it does not.
async fn in_line(server: &Server, job: JobId, say: &mut Say) -> Result<(), String> {
    let why = move |state: &State| state.get::<Job>(job).and_then(|row| state.why_queued(row));
    let taken = server.wait_for(move |state| why(state).is_none().then_some(()));
    if runtime::timeout(GLANCE, taken).await.is_some() {
        return Ok(());
    }
    let mut said = String::new();
    loop {
        let last = said.clone();
        let news = server.wait_for(move |state| {
            let why = why(state);
            (why.as_deref() != Some(last.as_str())).then_some(why)
        });
        let Some(why) = news.await.map_err(|error| error.to_string())? else { return Ok(()) };
        say.line(&format!("job {job} {why}")).await;
        said = why;
    }
}

/// Shows a log to its end.
async fn lines(log: &LogBuffer, say: &mut Say) -> Result<(), String> {
    let mut reader = log.reader(Start::Oldest);
    loop {
        match reader.next_batch(BATCH).await.map_err(|error| error.to_string())? {
            Read::Batch(batch) => {
                for entry in batch.iter() {
                    let text = String::from_utf8_lossy(entry.data);
                    say.line(&rendered(LogSource::from_code(entry.source), &text)).await;
                }
            }
            Read::Skipped { count, .. } => say.line(&format!("({count} lines skipped)")).await,
            Read::Ended => return Ok(()),
        }
    }
}

fn rendered(source: LogSource, text: &str) -> String {
    let event = (source == LogSource::Event)
        .then(|| serde_json::from_str::<TerminalEvent>(text).ok())
        .flatten();
    event.map_or_else(|| text.to_owned(), |event| event.to_string())
}
