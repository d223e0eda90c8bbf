//! Measurements. `shore-bench NAME` prints, last, one JSON object on one line.
#![expect(clippy::print_stdout, reason = "printing figures is what this program is for")]
#![expect(clippy::cast_precision_loss, reason = "figures need no more than 52 bits")]

mod auction_bench;
mod cluster_bench;
mod deploys;
mod idle_bench;
mod jobs_bench;
mod logs_bench;
mod neighbour_bench;
mod one_cell;
mod options;
mod processes_bench;
mod router_bench;
mod start_bench;
mod state_bench;
mod up_bench;
mod workload;

use std::process::ExitCode;

use options::Options;

/// The one that `shore` has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn read(cells: u32, instances: u32, constraints: Option<bool>) -> Result<Options, String> {
    Options::read(Options { cells, instances, seed: 1, constraints })
}

fn main() -> ExitCode {
    if let Some(code) = testkit::gate::maybe_run() {
        return code;
    }
    let name = std::env::args().nth(1).unwrap_or_default();
    let figures = match name.as_str() {
        "auction" => read(1_000, 100_000, Some(false)).and_then(|it| auction_bench::run(&it)),
        "router" => router_bench::run(),
        "start" => start_bench::run(),
        "state" => state_bench::run(),
        "jobs" => jobs_bench::run(),
        "logs" => logs_bench::run(),
        "idle" => idle_bench::run(),
        "cluster" => read(1_000, 100_000, None).and_then(|it| cluster_bench::run(&it)),
        cluster_bench::SERVER => cluster_bench::serve(),
        "processes" => read(500, 50_000, None).and_then(|it| processes_bench::run(&it)),
        "neighbour" => neighbour_bench::run(),
        "up" => up_bench::run(),
        _ => Err(format!(
            "unknown benchmark `{name}`: there are auction, cluster, idle, jobs, logs, neighbour, \
             processes, router, start, state and up"
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
