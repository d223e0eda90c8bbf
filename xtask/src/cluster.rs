//! A cluster of several hosts on one machine, as an operator sets it up, and what happens to it
//! when each of its parts fails in each way: the crash matrix.
//!
//! `cargo xtask e2e cluster` runs all entries, `--only PATTERN` those whose name has the pattern in
//! it. Each host is a network namespace with a disk of its own. Needs root, `iproute2`, `iptables`,
//! `e2fsprogs` and `libfaketime`.

mod cell;
mod machine;
mod router;
mod runner;
mod server;
mod stage;
mod task;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use testkit::{Mark, Met};

use crate::Failure;
use stage::{Places, Stage};

/// Longer than the lease of a cell (15 s), after which nothing else happens where no job runs: as good
/// as a minute.
const CELL_LONG: Duration = Duration::from_secs(17);
/// How long it may take until what ran on a lost cell runs elsewhere, and until a lost job has ended.
const REPLACE_LIMIT: Duration = Duration::from_secs(30);

/// One line of the matrix: what fails, how, and what is to be seen then.
struct Entry {
    component: &'static str,
    fault: &'static str,
    run: fn(&mut Stage) -> Result<String, Failure>,
}

impl Entry {
    const fn new(
        component: &'static str,
        fault: &'static str,
        run: fn(&mut Stage) -> Result<String, Failure>,
    ) -> Self {
        Self { component, fault, run }
    }

    fn name(&self) -> String {
        format!("{} {}", self.component, self.fault)
    }
}

pub(crate) fn run(shore: &Path) -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let only = args.iter().position(|arg| arg == "--only").and_then(|at| args.get(at + 1));
    let wanted = |entry: &Entry| only.is_none_or(|only| entry.name().contains(only.as_str()));
    let entries: Vec<Entry> = all().into_iter().filter(wanted).collect();
    let began = runtime::mono_now();
    let mut stage = Stage::start(shore)?;
    eprintln!("ok: the cluster is up after {}", Seconds(began.elapsed()));
    let mut failed = 0;
    for entry in &entries {
        if let Err(failure) = play(&mut stage, entry) {
            failed += 1;
            println!("matrix {}: failed — {failure}", entry.name());
            eprintln!("{}", stage.said());
            if let Err(broken) = stage.mend() {
                eprintln!("starting again: {broken}");
                drop(stage);
                stage = Stage::start(shore)?;
            }
        }
    }
    drop(stage);
    let entries = entries.len();
    println!(
        "{}",
        serde_json::json!({
            "entries": entries, "passed": entries - failed, "failed": failed,
            "seconds": began.elapsed().as_secs(),
        })
    );
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {entries} entries failed")) }
}

fn all() -> Vec<Entry> {
    let parts =
        [server::entries(), runner::entries(), cell::entries(), router::entries(), task::entries()];
    parts.into_iter().flatten().collect()
}

fn play(stage: &mut Stage, entry: &Entry) -> Result<(), Failure> {
    stage.spread().map_err(|failure| format!("before it began: {failure}"))?;
    let began = runtime::mono_now();
    let seen = (entry.run)(stage)?;
    println!("matrix {}: ok — {seen} [{}]", entry.name(), Seconds(began.elapsed()));
    Ok(())
}

/// A duration as people read it.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

/// What requests met, in words.
struct Requests<'a>(&'a Met, &'a Mark);

impl Display for Requests<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(met, mark) = self;
        write!(f, "{} of {} requests failed", met.failed, met.requests)?;
        if let Some((first, last)) = met.window(mark) {
            write!(f, " (from {} to {})", Seconds(first), Seconds(last))?;
        }
        if met.again > 0 {
            write!(f, ", {} were sent twice", met.again)?;
        }
        write!(f, ", the slowest took {}", Seconds(met.slowest))
    }
}

/// What requests met since `mark`, of which at most `allowed` may have failed.
fn requests(stage: &Stage, mark: &Mark, allowed: u64) -> Result<String, Failure> {
    let met = stage.met(mark)?;
    let text = Requests(&met, mark).to_string();
    if met.failed <= allowed {
        return Ok(text);
    }
    let first: Vec<&str> = met.failures.iter().take(3).map(|it| it.why.as_str()).collect();
    Err(format!("{text}; {}", first.join("; ")))
}

/// Whether something came in time.
fn within(what: &str, took: Duration, limit: Duration) -> Result<(), Failure> {
    if took <= limit {
        return Ok(());
    }
    Err(format!("{what} took {}, {} are allowed", Seconds(took), Seconds(limit)))
}

/// How many instances run elsewhere or otherwise than before.
fn moved(before: &Places, after: &Places) -> usize {
    after.iter().filter(|(id, place)| before.get(*id) != Some(place)).count()
}

/// Whether everything runs where and as it ran before.
fn unmoved(before: &Places, after: &Places) -> Result<(), Failure> {
    match moved(before, after) {
        0 => Ok(()),
        moved => Err(format!("{moved} of {} instances were started again or moved", after.len())),
    }
}
