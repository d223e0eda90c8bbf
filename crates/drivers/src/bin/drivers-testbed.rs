//! A supervisor, and an agent to be killed, for this crate's tests.

use std::process::ExitCode;

use drivers::process::{Config, ProcessDriver};
use drivers::{ContainerSpec, Driver as _, Handle, ProcessId, ProcessSpec};
use runtime::{Stop, Tasks};

fn main() -> ExitCode {
    if let Some(code) = drivers::shim::maybe_run() {
        return code;
    }
    let Some(base) = std::env::args_os().nth(1) else { return ExitCode::FAILURE };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = runtime.map_err(drivers::conformance::Failure::from);
    match ran.and_then(|runtime| Ok(runtime.block_on(agent(base.into()))?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Starts a process that writes for ever, then waits to be killed.
async fn agent(base: std::path::PathBuf) -> drivers::Result<()> {
    let driver = ProcessDriver::open(&Config::new(base), Tasks::new(Stop::new()))?;
    let handle = Handle::new("kept")?;
    driver.create(ContainerSpec::new(handle.clone())).await?;
    let text =
        "trap 'echo end; exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let spec = ProcessSpec::new(ProcessId::new("writer")?, ["/bin/sh", "-c", text]);
    driver.start(&handle, spec).await?;
    std::future::pending().await
}
