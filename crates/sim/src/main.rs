//! Lives through many seeded worlds and stops at the first in which an invariant does not hold.
#![expect(clippy::print_stdout, reason = "the result is what this program is for")]

use std::process::ExitCode;

use clap::Parser;
use sim::Options;

/// Lives through seeded worlds and checks invariants.
#[derive(Debug, Parser)]
struct Args {
    /// How many worlds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Most events before faults stop.
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// Lines of the transcript that a failure shows.
    #[arg(long, default_value_t = Options::default().lines)]
    lines: usize,
    /// How many worlds may fail before it stops.
    #[arg(long, default_value_t = 1)]
    failures: u64,
    /// Plants one of the named bugs; without a name, one after the other, each in a process of its own.
    #[arg(long, num_args = 0..=1, default_missing_value = ALL)]
    planted: Option<String>,
}

/// Every bug that can be planted.
const ALL: &str = "all";
/// How many of them may escape.
const ESCAPES: usize = 1;

/// Plants every bug in a process of its own, and says which are found, by what, and how soon.
fn plant_all(args: &Args) -> ExitCode {
    let mut found = 0;
    for name in sim::NAMES {
        let (seeds, start) = (args.seeds.to_string(), args.start.to_string());
        let output = std::env::current_exe().and_then(|program| {
            let mut run = std::process::Command::new(program);
            run.args(["--seeds", &seeds, "--start", &start, "--lines", "1", "--planted", name]);
            run.output()
        });
        let text = match output {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => {
                println!("cannot run the simulator with {name}: {error}");
                return ExitCode::from(2);
            }
        };
        let what = text.lines().find(|line| line.starts_with("seed ") && line.contains("not hold"));
        found += usize::from(what.is_some());
        println!("{name}: {}", what.or_else(|| text.lines().last()).unwrap_or("nothing was said"));
    }
    println!("planted={} found={found}", sim::NAMES.len());
    if found + ESCAPES >= sim::NAMES.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.planted.as_deref() == Some(ALL) {
        return plant_all(&args);
    }
    if let Some(name) = &args.planted
        && let Err(error) = sim::plant(name)
    {
        println!("{error}");
        return ExitCode::from(2);
    }
    let options = Options { steps: args.steps, lines: args.lines };
    let (mut steps, mut failures, mut rest) = (0, 0, 0);
    for seed in args.start..args.start.saturating_add(args.seeds) {
        let outcome = sim::run(seed, options);
        steps += outcome.steps;
        rest = rest.max(outcome.rest);
        let Some(failure) = outcome.failure else { continue };
        for line in &failure.transcript {
            println!("{line}");
        }
        println!("seed {seed}: {} does not hold: {}", failure.invariant, failure.detail);
        let planted =
            args.planted.as_ref().map(|name| format!(" --features planted -- --planted {name}"));
        let planted = planted.unwrap_or_else(|| " --".to_owned());
        let usual = args.steps == Options::default().steps;
        let steps = if usual { String::new() } else { format!(" --steps {}", args.steps) };
        println!("replay: cargo run --release -p sim{planted} --seeds 1 --start {seed}{steps}");
        failures += 1;
        if failures == args.failures {
            return ExitCode::FAILURE;
        }
    }
    println!("seeds={} failures={failures} steps={steps} longest_rest_ms={rest}", args.seeds);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
