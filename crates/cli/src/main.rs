//! The one binary: every command, every role, and what runs inside containers.

mod args;
mod commands;
mod context;
mod env;
mod error;
mod inside;
mod output;
mod roles;
mod terminal;

use std::process::ExitCode;

/// Rows are made on one thread and freed on another, which the C library's allocator answers with
/// system calls: a job costs a fifth less CPU with this one (docs/decisions/0010).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // In a container this binary is the supervisor of one process, the image builder, the launcher
    // or the static file server; in front of all of them it is the gate. None of those may pay for anything else.
    if let Some(code) = drivers::shim::maybe_run() {
        return code;
    }
    if let Some(code) = cell::maybe_run_gate() {
        return code;
    }
    if let Some(code) = edge::ssh::hook::maybe_run() {
        return code;
    }
    if let Some(code) = inside::maybe_run() {
        return code;
    }
    let cli = match args::Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            output::Output::new(true).error(&error);
            return ExitCode::from(error.exit_code());
        }
    };
    roles::log_to_stderr(&cli.global.log);
    let output = output::Output::new(cli.global.json);
    // Every role holds connections or files; here is the one place that all of them pass.
    if let Err(error) = drivers::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&error::CliError::internal(format!("cannot start: {error}")));
            return ExitCode::from(error::ErrorKind::Internal.exit_code());
        }
    };
    let done = runtime.block_on(commands::run(cli));
    // What still blocks in the background ends with the process.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
