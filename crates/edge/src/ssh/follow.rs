//! Showing a job to the one who pushed.

use logbuf::{LogBuffer, Read, Start};
use model::{JobId, JobState, LogSource, TerminalEvent};
use server::Server;
use state::Job;

use super::push::Say;

/// Lines read at once.
const BATCH: usize = 256;

/// Shows a job until it ends; its failure as a reason with a hint.
pub(crate) async fn job(server: &Server, job: JobId, say: &mut Say) -> Result<(), String> {
    let over = server.wait_for(move |state| {
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
