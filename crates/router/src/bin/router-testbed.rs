//! What the tests start as a gate: nothing but one.

use std::process::ExitCode;

fn main() -> ExitCode {
    gate::maybe_run().unwrap_or(ExitCode::FAILURE)
}
