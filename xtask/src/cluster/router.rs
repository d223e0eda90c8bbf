//! What happens when a router fails. There are two, and clients know both.

use std::time::Duration;

use testkit::wait_for;

use super::stage::{SETTLE_LIMIT, Stage};
use super::{Entry, Seconds, requests, within};
use crate::Failure;

/// How long a router may take to serve after it was started.
const SERVE_LIMIT: Duration = Duration::from_secs(1);
/// How long it is stopped or cut off. Nothing has to pass: routers have no lease.
const AWAY: Duration = Duration::from_secs(6);

pub(super) fn entries() -> Vec<Entry> {
    vec![
        Entry::new("router", "kill -9 while the server is down", killed),
        Entry::new("router", "SIGSTOP", stopped),
        Entry::new("router", "disk full", disk_full),
        Entry::new("router", "partitioned from the server", partitioned),
    ]
}

/// Waits until the first router gives a page; how long that took.
fn until_it_serves(stage: &Stage) -> Result<Duration, Failure> {
    let began = runtime::mono_now();
    let serves = || stage.ask(&stage.routers[0], "site").ok().filter(|page| page.status == 200);
    wait_for("the router to serve", SETTLE_LIMIT, serves)?;
    Ok(began.elapsed())
}

fn killed(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    stage.server.kill()?;
    stage.routers[0].kill()?;
    stage.routers[0].launch()?;
    let took = until_it_serves(stage)?;
    within("serving again", took, SERVE_LIMIT)?;
    stage.server.start()?;
    stage.settled()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("serves its kept table after {}, {seen}", Seconds(took)))
}

fn stopped(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    stage.routers[0].freeze()?;
    stage.pass(AWAY)?;
    let whole = stage.whole_way()?;
    stage.routers[0].thaw()?;
    until_it_serves(stage)?;
    stage.settled()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "the other one served for {}, a deployment meanwhile took {}, {seen}",
        Seconds(AWAY),
        Seconds(whole)
    ))
}

fn disk_full(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    stage.routers[0].disk.fill()?;
    let whole = stage.whole_way()?;
    stage.settled()?;
    until_it_serves(stage)?;
    stage.routers[0].disk.make_room()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("it took the routes of a new deployment, which took {}, {seen}", Seconds(whole)))
}

fn partitioned(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    stage.routers[0].host.cut(&stage.server.host)?;
    stage.pass(AWAY)?;
    until_it_serves(stage)?;
    stage.routers[0].host.heal()?;
    let whole = stage.whole_way()?;
    stage.settled()?;
    until_it_serves(stage)?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!(
        "served its last table for {}, took the routes of the next deployment, which took {}, {seen}",
        Seconds(AWAY),
        Seconds(whole)
    ))
}
