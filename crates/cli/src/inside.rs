//! What this binary is inside a container, by the name it is started as: the image builder, the
//! launcher of an app's process, the static file server.

use std::path::Path;
use std::process::ExitCode;

use build::{Exit, Paths, launch, lifecycle, staticserver};
use model::{CREATOR, LAUNCHER, PROGRAMS, program_name};

use crate::{env, output};

/// Runs as one of them if this program was started as one.
pub(crate) fn maybe_run() -> Option<ExitCode> {
    let mut args = std::env::args();
    let started_as = args.next()?;
    let name = Path::new(&started_as).file_name()?.to_str()?;
    let program = PROGRAMS.into_iter().find(|program| program_name(program) == name)?;
    let args: Vec<String> = args.collect();
    let done = match program {
        CREATOR => create(),
        LAUNCHER => launched(&args),
        _ => staticserver::main(&args, &env::all(), Path::new("."))
            .map_err(|error| (error.to_string(), Exit::Other)),
    };
    Some(done.map_or_else(failed, |()| ExitCode::SUCCESS))
}

type Failure = (String, Exit);

fn failed((reason, exit): Failure) -> ExitCode {
    output::inside_error(&reason);
    ExitCode::from(exit as u8)
}

fn create() -> Result<(), Failure> {
    let env = env::all();
    lifecycle::create(&Paths::from_env(&env), &env, &mut std::io::stdout())
        .map(|_| ())
        .map_err(|error| (error.to_string(), error.exit()))
}

fn launched(args: &[String]) -> Result<(), Failure> {
    launch::prepare(args, &env::all())
        .and_then(launch::exec)
        .map_err(|error| (error.to_string(), error.exit()))
}
