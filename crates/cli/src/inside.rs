//! What this binary is inside a container, by the name it is started as: the image builder, the
//! launcher of an app's process, the static file server.

use std::path::Path;
use std::process::ExitCode;

use build::{Exit, Paths, launch, lifecycle, staticserver};

use crate::{env, output};

/// Runs as one of them if this program was started as one.
pub(crate) fn maybe_run() -> Option<ExitCode> {
    let mut args = std::env::args();
    let started_as = args.next()?;
    let name = Path::new(&started_as).file_name()?.to_str()?;
    let done = match name {
        "creator" => create(),
        "launcher" => launched(&args.collect::<Vec<_>>()),
        launch::STATIC_SERVER => {
            staticserver::main(&args.collect::<Vec<_>>(), &env::all(), Path::new("."))
                .map_err(|error| (error.to_string(), Exit::Other))
        }
        _ => return None,
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
