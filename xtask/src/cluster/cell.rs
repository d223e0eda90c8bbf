//! What happens when a cell fails.

use std::time::Duration;

use testkit::Mark;

use super::stage::{Places, Stage};
use super::{CELL_LONG, Entry, REPLACE_LIMIT, Seconds, moved, requests, unmoved, within};
use crate::Failure;

/// How long an agent that was killed may take to have its containers again.
const ADOPT_LIMIT: Duration = Duration::from_secs(5);
/// How long requests are watched where nothing has to pass.
const WATCH: Duration = Duration::from_secs(4);
/// The slow link, in kbit/s, and bytes that have to go over it.
const SLOW: u32 = 1_000;
/// See [`SLOW`].
const PAYLOAD: usize = 500 << 10;
/// Requests that may fail when everything on a machine dies at once: those it was working on.
pub(super) const UNDER_WAY: u64 = 6;

pub(super) fn entries() -> Vec<Entry> {
    vec![
        Entry::new("cell", "kill -9 and restart", killed),
        Entry::new("cell", "kill -9 for good", gone),
        Entry::new("cell", "power off", powered_off),
        Entry::new("cell", "SIGSTOP", stopped),
        Entry::new("cell", "disk full", disk_full),
        Entry::new("cell", "partitioned from the server", apart_from_server),
        Entry::new("cell", "partitioned from the routers", apart_from_routers),
        Entry::new("cell", "slow link", slow),
        Entry::new("cell", "clock wrong by an hour", clocks),
        Entry::new("cell", "drain", drained),
    ]
}

fn killed(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[0].kill()?;
    let began = runtime::mono_now();
    stage.cells[0].start()?;
    let after = stage.settled()?;
    let back = began.elapsed();
    within("taking over", back, ADOPT_LIMIT)?;
    unmoved(&before, &after)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("all containers again after {}, none was started again, {seen}", Seconds(back)))
}

/// Waits until the cell's instances run elsewhere; how long after `mark` that was.
fn replaced(stage: &Stage, cell: usize, mark: &Mark) -> Result<Duration, Failure> {
    let name = stage.cells[cell].name();
    stage.without(name, 2 * REPLACE_LIMIT)?;
    let took = mark.elapsed();
    within("replacing its instances", took, REPLACE_LIMIT)?;
    Ok(took)
}

/// Waits until the surplus on a cell that came back is gone; how long that took, and what became of
/// the instances.
fn back(stage: &Stage, before: &Places) -> Result<String, Failure> {
    let began = runtime::mono_now();
    let after = stage.settled()?;
    Ok(format!(
        "{} of {} instances had moved, its surplus was gone {} after it was back",
        moved(before, &after),
        after.len(),
        Seconds(began.elapsed())
    ))
}

fn gone(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[2].kill()?;
    let took = replaced(stage, 2, &mark)?;
    stage.cells[2].start()?;
    let back = back(stage, &before)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("its instances ran elsewhere after {}, {back}, {seen}", Seconds(took)))
}

fn powered_off(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[2].power_off()?;
    let took = replaced(stage, 2, &mark)?;
    let met = stage.met(&mark)?;
    if let Some((_, last)) = met.window(&mark) {
        within("the time in which requests failed", last, took)?;
    }
    stage.cells[2].start()?;
    let back = back(stage, &before)?;
    let seen = requests(stage, &mark, UNDER_WAY)?;
    Ok(format!("its instances ran elsewhere after {}, {back}, {seen}", Seconds(took)))
}

fn stopped(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[1].freeze()?;
    let took = replaced(stage, 1, &mark)?;
    stage.cells[1].thaw()?;
    let back = back(stage, &before)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "stopped past its lease of 15 s, its instances served until others did after {}, {back}, \
         {seen}",
        Seconds(took)
    ))
}

fn disk_full(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[0].disk.fill()?;
    stage.write_app("other", &[("index.html", "<h1>other</h1>")])?;
    let began = runtime::mono_now();
    let ran = stage.up("other")?;
    let took = began.elapsed();
    let said = ran.out + &ran.err;
    let names_it = |line: &&str| line.contains("disk is full") || line.contains("No space left");
    let how = match said.lines().find(names_it) {
        _ if ran.code == 0 => "it went through".to_owned(),
        Some(why) => format!("it was refused: \"{}\"", why.trim()),
        None => return Err(format!("a deployment failed without the reason:\n{said}")),
    };
    stage.pass(WATCH)?;
    stage.cells[0].disk.make_room()?;
    stage.up("other")?.ok("a deployment with room again")?;
    stage.shore(&["destroy", "--project", "other", "--yes"])?.ok("destroy")?;
    unmoved(&before, &stage.settled()?)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "what ran went on; a deployment meanwhile took {}: {how}; one with room again worked, {seen}",
        Seconds(took)
    ))
}

fn apart_from_server(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[0].host.cut(&stage.server.host)?;
    let took = replaced(stage, 0, &mark)?;
    stage.cells[0].host.heal()?;
    let back = back(stage, &before)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("its instances served until others did after {}, {back}, {seen}", Seconds(took)))
}

fn apart_from_routers(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    for router in &stage.routers {
        stage.cells[1].host.cut(&router.host)?;
    }
    stage.pass(2 * WATCH)?;
    stage.cells[1].host.heal()?;
    unmoved(&before, &stage.settled()?)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("routers used the other instances for {}, {seen}", Seconds(2 * WATCH)))
}

/// Gives the static site another large file, so that there is something to send.
fn load_up(stage: &Stage) -> Result<(), Failure> {
    let mut bytes = vec![0; PAYLOAD];
    runtime::Random::system().fill(&mut bytes);
    let file = stage.client.home().join("site/payload");
    std::fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))
}

fn slow(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    load_up(stage)?;
    let began = runtime::mono_now();
    stage.up("site")?.ok("shore up")?;
    let usual = began.elapsed();
    stage.settled()?;
    let mark = stage.mark()?;
    load_up(stage)?;
    stage.cells[0].host.slow(SLOW)?;
    let began = runtime::mono_now();
    stage.up("site")?.ok("shore up")?;
    let took = began.elapsed();
    stage.cells[0].host.heal()?;
    stage.settled()?;
    let file = stage.client.home().join("site/payload");
    std::fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "a deployment over {SLOW} kbit/s took {}, {} without, {seen}",
        Seconds(took),
        Seconds(usual)
    ))
}

fn clocks(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.cells[0].restart_with_clock(Some("+1h"))?;
    stage.cells[1].restart_with_clock(Some("-1h"))?;
    stage.pass(CELL_LONG)?;
    unmoved(&before, &stage.settled()?)?;
    let whole = stage.whole_way()?;
    for cell in &mut stage.cells[..2] {
        cell.restart_with_clock(None)?;
    }
    stage.settled()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "one an hour ahead, one behind, for longer than a lease: no instance moved, a deployment \
         took {}, {seen}",
        Seconds(whole)
    ))
}

fn drained(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    let name = stage.cells[1].name().to_owned();
    stage.shore(&["cell", "drain", &name])?.ok("cell drain")?;
    let began = runtime::mono_now();
    stage.without(&name, REPLACE_LIMIT)?;
    let took = began.elapsed();
    stage.settled()?;
    stage.shore(&["cell", "undrain", &name])?.ok("cell undrain")?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("its instances ran elsewhere after {}, {seen}", Seconds(took)))
}
