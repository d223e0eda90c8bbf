//! What happens when the server fails.

use std::time::Duration;

use testkit::wait_for;

use super::stage::{COMMAND_LIMIT, Places, SETTLE_LIMIT, Stage};
use super::{CELL_LONG, Entry, Seconds, moved, requests, unmoved, within};
use crate::Failure;
use crate::e2e::holds;

/// How long a server that was killed may take until it answers again.
const BACK_LIMIT: Duration = Duration::from_secs(2);
/// How long a command may take to say that it cannot reach the server.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(20);
/// How long the server may take to do things again once it can.
const AGAIN_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a large variable, and more writes of it than the files of the store have room for.
const BIG: usize = 120 << 10;
/// See [`BIG`].
const MANY: usize = 500;

/// How long a server with a wrong clock is watched.
const SKEW_WATCH: Duration = Duration::from_secs(2);

pub(super) fn entries() -> Vec<Entry> {
    vec![
        Entry::new("server", "kill -9", killed),
        Entry::new("server", "SIGSTOP", stopped),
        Entry::new("server", "disk full", disk_full),
        Entry::new("server", "partitioned", partitioned),
        Entry::new("server", "clock wrong by an hour", clock),
    ]
}

/// Waits until a command succeeds; how long that took.
fn until_it_answers(stage: &Stage, limit: Duration) -> Result<Duration, Failure> {
    let began = runtime::mono_now();
    let asks = || stage.shore(&["project", "list"]).ok().filter(|ran| ran.code == 0);
    wait_for("the server to answer", limit, asks)?;
    Ok(began.elapsed())
}

fn killed(stage: &mut Stage) -> Result<String, Failure> {
    stage.write_app("other", &[("index.html", "<h1>other</h1>")])?;
    let before = stage.settled()?;
    let mark = stage.mark()?;
    let dir = stage.client.home().join("other").display().to_string();
    let up = stage.begin(&["up", &dir, "--project", "other"])?;
    let begun =
        || stage.json(&["job", "list", "--state", "running"]).ok().filter(|it| !it.is_empty());
    wait_for("a job to run", SETTLE_LIMIT, begun)?;
    stage.server.kill()?;
    let down = runtime::mono_now();
    stage.server.launch()?;
    until_it_answers(stage, SETTLE_LIMIT)?;
    let back = down.elapsed();
    within("the server", back, BACK_LIMIT)?;
    up.end(COMMAND_LIMIT)?.ok("the `shore up` that was under way")?;
    stage.shore(&["destroy", "--project", "other", "--yes"])?.ok("destroy")?;
    unmoved(&before, &stage.settled()?)?;
    let whole = stage.whole_way()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "answers again after {}, a deployment under way went through, a new one took {}, {seen}",
        Seconds(back),
        Seconds(whole)
    ))
}

fn stopped(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.server.freeze()?;
    stage.pass(CELL_LONG)?;
    stage.server.thaw()?;
    let back = until_it_answers(stage, AGAIN_LIMIT)?;
    unmoved(&before, &stage.settled()?)?;
    let whole = stage.whole_way()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "stopped for {}, longer than the lease of a cell, answers {} later, no instance moved, \
         a deployment took {}, {seen}",
        Seconds(CELL_LONG),
        Seconds(back),
        Seconds(whole)
    ))
}

/// Sets a large variable again and again until the server refuses it, as long as its files still have
/// room inside; what it says then.
fn write_until_refused(stage: &Stage) -> Result<String, Failure> {
    for number in 0..MANY {
        let variable = format!("BIG={number}{}", "x".repeat(BIG));
        let set = ["config", "set", "--project", "site", "--no-deploy", &variable];
        let ran = stage.shore(&set)?;
        if ran.code != 0 {
            return Ok(ran.out + &ran.err);
        }
    }
    Err(format!("{MANY} writes went through"))
}

/// Removes it again.
fn remove_written(stage: &Stage) -> Result<(), Failure> {
    // None may have gone through.
    let unset = ["config", "unset", "--project", "site", "--no-deploy", "BIG"];
    stage.shore(&unset).map(|_| ())
}

fn disk_full(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.server.disk.fill()?;
    let filled = runtime::mono_now();
    let said = write_until_refused(stage)?;
    holds(&said, &["the disk is full"])?;
    stage.shore(&["status", "--project", "site"])?.ok("reading")?;
    stage.up("site")?.failed("shore up")?;
    stage.pass(CELL_LONG.saturating_sub(filled.elapsed()))?;
    let full = filled.elapsed();
    stage.server.disk.make_room()?;
    let began = runtime::mono_now();
    let writes = || stage.shore(&["project", "create", "room"]).ok().filter(|it| it.code == 0);
    wait_for("a write", AGAIN_LIMIT, writes)?;
    let again = began.elapsed();
    remove_written(stage)?;
    stage.shore(&["project", "remove", "room"])?.ok("project remove")?;
    unmoved(&before, &stage.settled()?)?;
    let whole = stage.whole_way()?;
    let seen = requests(stage, &mark, 0)?;
    let said = said.lines().next().unwrap_or_default();
    Ok(format!(
        "full for {}: \"{said}\", reading goes on; writes {} after there is room, no instance \
         moved, a deployment took {}, {seen}",
        Seconds(full),
        Seconds(again),
        Seconds(whole)
    ))
}

fn partitioned(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    stage.server.host.cut_off()?;
    let asking = stage.begin(&["project", "list"])?;
    let asked = runtime::mono_now();
    let said = asking.end(GIVE_UP_LIMIT)?.failed("a command")?;
    let gave_up = asked.elapsed();
    holds(&said, &["cannot reach"])?;
    stage.pass(CELL_LONG.saturating_sub(gave_up))?;
    stage.server.host.heal()?;
    let healed = runtime::mono_now();
    let after = stage.settled()?;
    let whole = healed.elapsed();
    let seen = requests(stage, &mark, 0)?;
    let said = said.lines().next().unwrap_or_default();
    Ok(format!(
        "cut off for {}: commands say \"{said}\" after {}; settled {} after it was healed, {} of {} \
         instances were replaced, {seen}",
        Seconds(CELL_LONG),
        Seconds(gave_up),
        Seconds(whole),
        moved(&before, &after),
        after.len()
    ))
}

/// Where the instances of one app are.
fn of(places: &Places, project: &str) -> Places {
    let mut places = places.clone();
    places.retain(|_, place| place.project == project);
    places
}

fn clock(stage: &mut Stage) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    let mut steps = Vec::new();
    for skew in [Some("+1h"), Some("-1h"), None] {
        stage.server.restart_with_clock(skew)?;
        stage.pass(SKEW_WATCH)?;
        unmoved(&of(&before, "python"), &of(&stage.settled()?, "python"))?;
        steps.push(stage.whole_way()?);
    }
    let seen = requests(stage, &mark, 0)?;
    let slowest = steps.into_iter().max().unwrap_or_default();
    Ok(format!(
        "started an hour ahead, an hour behind and right again: no instance moved, each time \
         routers took the next deployment, the slowest of which took {}, {seen}",
        Seconds(slowest)
    ))
}
