//! Commands of the platform in a container that runs: checks and hooks.

use std::sync::Arc;
use std::time::Duration;

use drivers::{
    Ability, Driver, Exit, Handle, Input, Output, OutputOffset, ProcessId, ProcessSpec, Target,
};
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;

use crate::actions::name_of;
use crate::actor::describe;
use crate::error::Failure;
use crate::health::Length;
use crate::tail::Tail;

/// How long the output of a command that ended may still come.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How many of its last lines are told.
const TOLD_LINES: usize = 3;

/// Runs commands in one container.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) handle: Handle,
    /// Where commands run.
    pub(crate) dir: Option<String>,
}

impl Inside {
    /// Runs a command that is to end with 0 within the limit; what is wrong names its last lines.
    pub(crate) async fn check(&self, argv: &[String], limit: Duration) -> Result<(), String> {
        let program = name_of(argv);
        let tail = Tail::default();
        let fault = match self.run(argv, limit, &tail).await {
            Ok(Some(exit)) if exit.success() => return Ok(()),
            Ok(Some(exit)) => format!("`{program}` {}", describe(&exit)),
            Ok(None) => format!("`{program}` did not end within {}", Length(limit)),
            Err(failure) => format!("`{program}`: {failure}"),
        };
        let lines = tail.lines();
        let last = lines.get(lines.len().saturating_sub(TOLD_LINES)..).unwrap_or_default();
        Err(if last.is_empty() { fault } else { format!("{fault}: {}", last.join("; ")) })
    }

    async fn run(
        &self,
        argv: &[String],
        limit: Duration,
        tail: &Tail,
    ) -> Result<Option<Exit>, Failure> {
        // Containers end long before that many.
        let number = runtime::Random::system().next_u64();
        let id = ProcessId::new(format!("check-{number:016x}"))?;
        let mut spec = ProcessSpec::new(id.clone(), argv.iter().map(String::as_str));
        spec.dir.clone_from(&self.dir);
        if self.driver.capabilities().can(Ability::Sessions) {
            return self.session(spec, limit, tail).await;
        }
        self.driver.start(&self.handle, spec).await?;
        let exit = runtime::timeout(limit, self.driver.wait(&self.handle, &id)).await;
        if exit.is_none() {
            self.driver.stop(&self.handle, Target::One(id.clone()), Duration::ZERO).await?;
        }
        let output = self.driver.attach(&self.handle, &id, OutputOffset::default()).await?;
        runtime::timeout(LAST_WORDS, read(output, tail)).await.unwrap_or_default();
        Ok(exit.transpose()?)
    }

    /// The same, without a trace in the container.
    async fn session(
        &self,
        spec: ProcessSpec,
        limit: Duration,
        tail: &Tail,
    ) -> Result<Option<Exit>, Failure> {
        let mut session = self.driver.session(&self.handle, spec, None).await?;
        drop(session.input);
        let output =
            async { tokio::join!(lines(session.output, tail), lines(session.error, tail)) };
        tokio::pin!(output);
        let mut read = false;
        let end = async {
            let exit = session.control.wait();
            tokio::pin!(exit);
            loop {
                tokio::select! {
                    exit = &mut exit => return exit,
                    _ = &mut output, if !read => read = true,
                }
            }
        };
        let exit = runtime::timeout(limit, end).await;
        if !read {
            runtime::timeout(LAST_WORDS, output).await.unwrap_or_default();
        }
        Ok(exit.transpose()?)
    }
}

async fn read(mut output: drivers::OutputStream, tail: &Tail) {
    let mut text = Vec::new();
    while let Some(Ok(item)) = output.next().await {
        if let Output::Chunk(chunk) = item {
            text.extend_from_slice(&chunk.bytes);
            keep_lines(&mut text, tail);
        }
    }
    push(&text, tail);
}

async fn lines(mut input: Input, tail: &Tail) {
    let mut text = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = input.read(&mut piece).await {
        text.extend_from_slice(piece.get(..read).unwrap_or_default());
        keep_lines(&mut text, tail);
    }
    push(&text, tail);
}

/// Moves whole lines into the tail, and whatever gets too long to be one.
fn keep_lines(text: &mut Vec<u8>, tail: &Tail) {
    while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = text.drain(..=end).collect();
        push(line.trim_ascii_end(), tail);
    }
    if text.len() > model::MAX_TAIL_BYTES {
        push(text, tail);
        text.clear();
    }
}

fn push(line: &[u8], tail: &Tail) {
    if !line.is_empty() {
        tail.push(line);
    }
}
