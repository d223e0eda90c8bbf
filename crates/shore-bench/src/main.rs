//! Measurements. `shore-bench NAME` prints, last, one JSON object on one line.
#![expect(clippy::print_stdout, reason = "printing figures is what this program is for")]
#![expect(clippy::cast_precision_loss, reason = "figures need no more than 52 bits")]

mod idle_bench;
mod jobs_bench;
mod logs_bench;
mod options;
mod processes_bench;
mod router_bench;
mod state_bench;
mod up_bench;
mod workload;

use std::process::ExitCode;

/// The one that `shore` has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let figures = match name.as_str() {
        "router" => router_bench::run(),
        "state" => state_bench::run(),
        "jobs" => jobs_bench::run(),
        "logs" => logs_bench::run(),
        "idle" => idle_bench::run(),
        "processes" => {
            let usual = options::Options { cells: 500, instances: 50_000, seed: 1 };
            options::Options::read(usual).and_then(|options| processes_bench::run(&options))
        }
        "up" => up_bench::run(),
        _ => Err(format!(
            "unknown benchmark `{name}`: there are idle, jobs, logs, processes, router, state and up"
        )),
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
