//! What cases share: one driver, containers of their own, shorthands.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;

use super::{Failure, Subject, ensure};
use crate::archive;
use crate::driver::{Driver, Exit, Outcome};
use crate::error::Result;
use crate::output::{Output, OutputOffset, OutputStream, Source};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec};

/// How long anything may take that should be quick.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The workplace of one case.
#[derive(Clone)]
pub(crate) struct Bench {
    subject: Arc<dyn Subject>,
    pub(crate) driver: Arc<dyn Driver>,
    name: String,
    made: Arc<Mutex<Vec<Handle>>>,
}

/// Everything a process wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) dropped: u64,
    pub(crate) end: OutputOffset,
}

impl Written {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn add(&mut self, output: &Output) {
        self.end = output.end();
        match output {
            Output::Dropped { bytes, .. } => self.dropped += bytes,
            Output::Chunk(chunk) if chunk.source == Source::Stdout => {
                self.stdout.extend_from_slice(&chunk.bytes);
            }
            Output::Chunk(chunk) => self.stderr.extend_from_slice(&chunk.bytes),
        }
    }
}

/// Fails instead of waiting for ever.
pub(crate) async fn soon<F: Future>(
    what: &str,
    future: F,
) -> std::result::Result<F::Output, Failure> {
    runtime::timeout(SOON, future).await.ok_or_else(|| Failure::new(format!("{what}: too slow")))
}

/// Reads a stream to its end.
pub(crate) async fn drain(mut stream: OutputStream) -> std::result::Result<Written, Failure> {
    let mut written = Written::default();
    while let Some(output) = soon("output", stream.next()).await? {
        written.add(&output?);
    }
    Ok(written)
}

impl Bench {
    pub(super) fn new(subject: Arc<dyn Subject>, name: &str) -> Result<Self> {
        let driver = subject.open()?;
        let name = name.replace("::", "-");
        Ok(Self { subject, driver, name, made: Arc::default() })
    }

    /// Whether the root of a container is that of the machine.
    pub(crate) fn shares_users(&self) -> bool {
        self.subject.shares_users()
    }

    /// The driver of an agent that was started again.
    pub(crate) fn reopen(&self) -> Result<Arc<dyn Driver>> {
        self.subject.open()
    }

    /// Names a container of this case.
    pub(crate) fn handle(&self, suffix: &str) -> Result<Handle> {
        let handle = Handle::new(format!("{}-{suffix}", self.name))?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push(handle.clone());
        Ok(handle)
    }

    /// Makes a container with programs in it.
    pub(crate) async fn container(&self) -> Result<Handle> {
        self.named("c").await
    }

    pub(crate) async fn named(&self, suffix: &str) -> Result<Handle> {
        let handle = self.handle(suffix)?;
        self.driver.create(ContainerSpec::new(handle.clone())).await?;
        self.subject.furnish(&*self.driver, &handle).await?;
        Ok(handle)
    }

    /// Makes a container with programs in it that is unlike others.
    pub(crate) async fn with(
        &self,
        suffix: &str,
        change: impl FnOnce(&mut ContainerSpec),
    ) -> Result<Handle> {
        let handle = self.handle(suffix)?;
        let mut spec = ContainerSpec::new(handle.clone());
        change(&mut spec);
        self.driver.create(spec).await?;
        self.subject.furnish(&*self.driver, &handle).await?;
        Ok(handle)
    }

    pub(super) async fn clean_up(&self) -> Result<()> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for handle in made {
            self.driver.remove(&handle).await?;
        }
        Ok(())
    }

    /// Starts a process.
    pub(crate) async fn start(
        &self,
        handle: &Handle,
        id: &str,
        argv: &[&str],
    ) -> Result<ProcessId> {
        let id = ProcessId::new(id)?;
        self.driver.start(handle, ProcessSpec::new(id.clone(), argv.iter().copied())).await?;
        Ok(id)
    }

    /// An error where the machine's own programs, which containers see, lack Python.
    pub(crate) async fn needs_python(&self, handle: &Handle) -> std::result::Result<(), Failure> {
        let found = self.output(handle, "look", "command -v python3 || true").await?.text();
        ensure!(!found.is_empty(), "this case needs python3: install it on the machine");
        Ok(())
    }

    /// Starts a script of the user's own shell, which is just a program here.
    pub(crate) async fn script(&self, handle: &Handle, id: &str, text: &str) -> Result<ProcessId> {
        self.start(handle, id, &["/bin/sh", "-c", text]).await
    }

    /// Starts a script and waits until it wrote a line.
    pub(crate) async fn ready(
        &self,
        handle: &Handle,
        id: &str,
        text: &str,
    ) -> std::result::Result<(ProcessId, String), Failure> {
        let line = self.first_line(handle, id, &["/bin/sh", "-c", text]).await?;
        Ok((ProcessId::new(id)?, line))
    }

    /// Starts a process and waits for the first line it writes.
    pub(crate) async fn first_line(
        &self,
        handle: &Handle,
        id: &str,
        argv: &[&str],
    ) -> std::result::Result<String, Failure> {
        let id = self.start(handle, id, argv).await?;
        let mut stream = self.driver.attach(handle, &id, OutputOffset(0)).await?;
        let mut written = Written::default();
        while !written.stdout.contains(&b'\n') {
            let Some(output) = soon("first line", stream.next()).await? else { break };
            written.add(&output?);
        }
        Ok(written.text().trim().to_owned())
    }

    /// Runs a process to its end.
    pub(crate) async fn run(
        &self,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> std::result::Result<(Exit, Written), Failure> {
        let id = spec.id.clone();
        self.driver.start(handle, spec).await?;
        let written = drain(self.driver.attach(handle, &id, OutputOffset(0)).await?).await?;
        Ok((self.exit(handle, &id).await?, written))
    }

    /// Runs a script to its end, which must be a good one.
    pub(crate) async fn output(
        &self,
        handle: &Handle,
        id: &str,
        text: &str,
    ) -> std::result::Result<Written, Failure> {
        let spec = ProcessSpec::new(ProcessId::new(id)?, ["/bin/sh", "-c", text]);
        let (exit, written) = self.run(handle, spec).await?;
        let problem = String::from_utf8_lossy(&written.stderr);
        ensure!(exit.outcome == Outcome::Code(0), "{text}: {exit:?} {problem}");
        Ok(written)
    }

    pub(crate) async fn exit(
        &self,
        handle: &Handle,
        id: &ProcessId,
    ) -> std::result::Result<Exit, Failure> {
        Ok(soon("exit", self.driver.wait(handle, id)).await??)
    }

    /// Copies an archive in.
    pub(crate) async fn unpack(
        &self,
        handle: &Handle,
        path: &str,
        tar: Vec<u8>,
        limits: archive::Limits,
    ) -> Result<archive::Summary> {
        let tar = Pin::from(Box::new(std::io::Cursor::new(tar)));
        self.driver.copy_in(handle, path, tar, limits).await
    }

    /// Copies an archive out.
    pub(crate) async fn pack(
        &self,
        handle: &Handle,
        path: &str,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let mut tar = Vec::new();
        let mut stream = self.driver.copy_out(handle, path).await?;
        soon("copy out", stream.read_to_end(&mut tar)).await??;
        Ok(tar)
    }

    /// Waits until a container has this many running processes.
    pub(crate) async fn processes(&self, handle: &Handle, wanted: u32) -> super::Verdict {
        let look = async {
            loop {
                let stats = self.driver.stats(handle).await?;
                if stats.processes == wanted {
                    return Ok(());
                }
                runtime::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(&format!("{wanted} processes"), look).await?
    }
}
