//! A task is never run a second time, whatever happens to the cell that has it.

use testkit::wait_for;

use super::stage::{Running, SETTLE_LIMIT, Stage};
use super::{Entry, REPLACE_LIMIT, Seconds, requests};
use crate::Failure;
use crate::e2e::holds;
use crate::traces::processes;

/// Tasks that are started in search of one on another cell.
const TRIES: usize = 4;

pub(super) fn entries() -> Vec<Entry> {
    vec![Entry::new("task", "at most once", at_most_once)]
}

/// A task that runs, and where.
struct Begun {
    running: Running,
    name: String,
    cell: usize,
}

/// Begins a task that leaves a mark and goes on for long.
fn begin(stage: &Stage, name: &str) -> Result<Begun, Failure> {
    let script = format!("echo ran >> {}; sleep 600", stage.marks(name).display());
    let args = ["run", "--project", "site", "--", "/bin/sh", "-c", &script];
    let running = stage.begin(&args)?;
    let cell = wait_for("the task to run", SETTLE_LIMIT, || {
        // The mark is there, and the shell that left it still runs.
        stage.marks(name).exists().then_some(())?;
        let has_it = |cell: &super::machine::Machine| {
            processes(cell.home()).iter().any(|line| line.contains(&script))
        };
        stage.cells.iter().position(has_it)
    })?;
    Ok(Begun { running, name: name.to_owned(), cell })
}

/// A task on another cell than `first`. Those that are not end with their commands' cluster.
fn begin_elsewhere(stage: &Stage, first: usize) -> Result<Begun, Failure> {
    for number in 0..TRIES {
        let begun = begin(stage, &format!("elsewhere-{number}"))?;
        if begun.cell != first {
            return Ok(begun);
        }
    }
    Err(format!("{TRIES} tasks were put on the same cell"))
}

impl Begun {
    /// Waits for its end, which must be a failure with a reason; the reason.
    fn fails(self, stage: &Stage) -> Result<String, Failure> {
        let said = self.running.end(REPLACE_LIMIT)?.failed("a task whose cell is away")?;
        holds(&said, &["cell"])?;
        let times = std::fs::read_to_string(stage.marks(&self.name)).unwrap_or_default();
        if times.lines().count() != 1 {
            return Err(format!("it ran {} times", times.lines().count()));
        }
        Ok(said.lines().find(|line| line.contains("cell")).unwrap_or_default().trim().to_owned())
    }
}

fn at_most_once(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    let killed = begin(stage, "killed-task")?;
    let cut = begin_elsewhere(stage, killed.cell)?;
    let (off, apart) = (killed.cell, cut.cell);
    let struck = runtime::mono_now();
    stage.cells[off].power_off()?;
    stage.cells[apart].host.cut(&stage.server.host)?;
    let reason = killed.fails(stage)?;
    cut.fails(stage)?;
    let took = struck.elapsed();
    stage.cells[off].start()?;
    stage.cells[apart].host.heal()?;
    stage.settled()?;
    let left = || {
        let all = stage.cells.iter().flat_map(|cell| processes(cell.home()));
        let tasks: Vec<String> = all.filter(|line| line.contains("sleep 600")).collect();
        tasks.is_empty().then_some(())
    };
    wait_for("what is left of the tasks to end", REPLACE_LIMIT, left)?;
    for name in ["killed-task", "elsewhere-0"] {
        let text = std::fs::read_to_string(stage.marks(name)).unwrap_or_default();
        if text.lines().count() != 1 {
            return Err(format!("{name} ran {} times", text.lines().count()));
        }
    }
    let met = requests(stage, &mark, super::cell::UNDER_WAY)?;
    Ok(format!(
        "one on a cell that lost power and one on a cell that was cut off: both failed within {} \
         (\"{reason}\"), each ran once, nothing of them is left, {met}",
        Seconds(took)
    ))
}
