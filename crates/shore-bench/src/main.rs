//! Measurements. `shore-bench NAME` prints, last, one JSON object on one line.
#![expect(clippy::print_stdout, reason = "printing figures is what this program is for")]

mod state_bench;

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let figures = match name.as_str() {
        "state" => state_bench::run(),
        _ => Err(format!("unknown benchmark `{name}`: there is state")),
    };
    match figures {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", serde_json::json!({ "error": error }));
            ExitCode::FAILURE
        }
    }
}
