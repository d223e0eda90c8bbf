//! Starting supervisors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Access, access};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Supervised, locked};
use crate::error::StartFault;
use crate::proc::Id;
use crate::shim::{self, Processes, Reply, Request};
use crate::spec::{Handle, ProcessId};

/// How long a supervisor may take to start a command.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The longest reply of a supervisor.
const MAX_REPLY_BYTES: u64 = 64 << 10;
/// The name supervisors have in process lists.
const SUPERVISOR_NAME: &str = "longshore-supervisor";

/// Hides a process from `list` while its start is under way.
pub(crate) struct Starting<'a> {
    kept: &'a Supervised,
    key: (Handle, ProcessId),
}

impl<'a> Starting<'a> {
    pub(crate) fn new(kept: &'a Supervised, handle: &Handle, process: &ProcessId) -> Self {
        let key = (handle.clone(), process.clone());
        locked(&kept.starting).insert(key.clone());
        Self { kept, key }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        locked(&self.kept.starting).remove(&self.key);
    }
}

impl Supervised {
    /// Why supervisors cannot work here, if so.
    pub(crate) fn unavailable(&self) -> Option<String> {
        if access(&self.supervisor, Access::EXEC_OK).is_err() {
            return Some(format!("{} cannot be executed", self.supervisor.display()));
        }
        let own = Id::of(std::process::id().cast_signed());
        match own.map(Id::open) {
            None => Some("/proc is not mounted".to_owned()),
            Some(Err(error)) => {
                Some(format!("process descriptors (Linux 5.3) are missing: {error}"))
            }
            Some(Ok(_)) => None,
        }
    }

    /// Has a new supervisor do what is asked; `marks` is its environment.
    pub(crate) async fn supervise(
        &self,
        marks: BTreeMap<String, String>,
        request: &Request,
    ) -> Result<Processes, StartFault> {
        let ask = async {
            let log = File::create(request.state_dir.join("supervisor.log"))?;
            let mut supervisor = Command::new(&self.supervisor)
                .arg0(SUPERVISOR_NAME)
                .arg(shim::ARGUMENT)
                .env_clear()
                .envs(marks)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()?;
            let pipes = supervisor.stdin.take().zip(supervisor.stdout.take());
            let (mut stdin, stdout) = pipes.ok_or_else(|| io::Error::other("no pipes"))?;
            stdin.write_all(&serde_json::to_vec(request)?).await?;
            drop(stdin);
            let mut text = Vec::new();
            stdout.take(MAX_REPLY_BYTES).read_to_end(&mut text).await?;
            serde_json::from_slice(&text).map_err(io::Error::from)
        };
        match runtime::timeout(START_LIMIT, ask).await {
            Some(Ok(Reply::Started(processes))) => Ok(processes),
            Some(Ok(Reply::Failed(fault))) => Err(fault),
            Some(Err(error)) => Err(StartFault::Supervisor(error.to_string())),
            None => Err(StartFault::Supervisor("it does not answer".to_owned())),
        }
    }
}
