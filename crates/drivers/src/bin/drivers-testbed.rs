//! A supervisor, and agents to be killed, for this crate's tests.

use std::path::PathBuf;
use std::process::ExitCode;

use drivers::process::ProcessDriver;
use drivers::{ContainerSpec, Driver, Handle, Limits, ProcessId, ProcessSpec, oci, process};
use runtime::{Stop, Tasks};

fn main() -> ExitCode {
    if let Some(code) = drivers::shim::maybe_run() {
        return code;
    }
    let mut arguments = std::env::args_os().skip(1);
    let Some(base) = arguments.next().map(PathBuf::from) else { return ExitCode::FAILURE };
    let what = arguments.next().unwrap_or_else(|| "process".into());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let ran = runtime.map_err(drivers::conformance::Failure::from).and_then(|runtime| {
        let ended = runtime.block_on(async {
            match what.to_str() {
                Some("oci") => writer(&containers(base)?).await,
                Some("churn") => churn(&containers(base)?).await,
                Some("oci-session") => session(&containers(base)?).await,
                Some("process-session") => {
                    session(&ProcessDriver::open(&process::Config::new(base), tasks())?).await
                }
                _ => writer(&ProcessDriver::open(&process::Config::new(base), tasks())?).await,
            }
        });
        Ok(ended?)
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tasks() -> Tasks {
    Tasks::new(Stop::new())
}

fn containers(base: PathBuf) -> drivers::Result<oci::OciDriver> {
    let base_mounts = oci::Config::machine_base();
    oci::OciDriver::open(&oci::Config { base_mounts, ..oci::Config::new(base) }, tasks())
}

/// Starts a process that writes for ever, then waits to be killed.
async fn writer(driver: &dyn Driver) -> drivers::Result<()> {
    let handle = Handle::new("kept")?;
    driver.create(ContainerSpec::new(handle.clone())).await?;
    let text =
        "trap 'echo end; exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let spec = ProcessSpec::new(ProcessId::new("writer")?, ["/bin/sh", "-c", text]);
    driver.start(&handle, spec).await?;
    std::future::pending().await
}

/// Starts a session that does not end by itself, then waits to be killed.
async fn session(driver: &dyn Driver) -> drivers::Result<()> {
    let handle = Handle::new("kept")?;
    driver.create(ContainerSpec::new(handle.clone())).await?;
    let text = "trap '' TERM HUP; (setsid sleep 1000 &); while :; do sleep 1000; done";
    let mut spec = ProcessSpec::new(ProcessId::new("session")?, ["/bin/sh", "-c", text]);
    let token = std::process::id().to_string();
    spec.env.insert("SESSION_OF".to_owned(), token);
    let _session = driver.session(&handle, spec, None).await?;
    std::future::pending().await
}

/// Makes and removes containers until it is killed.
async fn churn(driver: &dyn Driver) -> drivers::Result<()> {
    for number in 0_u64.. {
        let handle = Handle::new(format!("churn-{number}"))?;
        let mut spec = ContainerSpec::new(handle.clone());
        spec.limits = Limits { disk_bytes: Some(8 << 20), ..Limits::default() };
        driver.create(spec).await?;
        let spec = ProcessSpec::new(ProcessId::new("p")?, ["/bin/sh", "-c", "exec sleep 1000"]);
        driver.start(&handle, spec).await?;
        driver.remove(&handle).await?;
    }
    Ok(())
}
