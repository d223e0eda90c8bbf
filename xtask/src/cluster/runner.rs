//! What happens when the runner fails.

use std::path::Path;

use testkit::wait_for;

use super::stage::{Running, SETTLE_LIMIT, Stage};
use super::{Entry, REPLACE_LIMIT, Seconds, requests, unmoved};
use crate::Failure;
use crate::e2e::holds;

/// An app whose build leaves a mark and then takes longer than anything here.
const PACKAGE: &str = r#"{"scripts": {"build": "node build.js", "start": "node build.js"}}"#;

pub(super) fn entries() -> Vec<Entry> {
    vec![
        Entry::new("runner", "kill -9", killed),
        Entry::new("runner", "SIGSTOP", stopped),
        Entry::new("runner", "disk full", disk_full),
        Entry::new("runner", "partitioned", partitioned),
    ]
}

fn marks(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Begins a deployment and waits until its build runs.
fn begin(stage: &Stage, project: &str) -> Result<Running, Failure> {
    let path = stage.marks(project);
    let build = format!(
        "require('fs').appendFileSync({:?}, 'built\\n'); setTimeout(() => {{}}, 120000)\n",
        path.display().to_string()
    );
    stage.write_app(project, &[("package.json", PACKAGE), ("build.js", &build)])?;
    let dir = stage.client.home().join(project).display().to_string();
    let up = stage.begin(&["up", &dir, "--project", project])?;
    wait_for("the build to run", SETTLE_LIMIT, || (marks(&path) > 0).then_some(()))?;
    Ok(up)
}

/// Something that is done to the runner.
type Deed = fn(&mut Stage) -> Result<(), Failure>;

/// What is to be seen when the runner is away with a job: the job ends with a reason in time, it
/// never runs again, and the apps do not notice. `back` brings the runner back.
fn lost(stage: &mut Stage, project: &str, (strike, back): (Deed, Deed)) -> Result<String, Failure> {
    let before = stage.settled()?;
    let mark = stage.mark()?;
    let up = begin(stage, project)?;
    strike(stage)?;
    let struck = runtime::mono_now();
    let said = up.end(REPLACE_LIMIT)?.failed("a deployment without its runner")?;
    let ended = struck.elapsed();
    holds(&said, &["runner"])?;
    back(stage)?;
    unmoved(&before, &stage.settled()?)?;
    let whole = stage.whole_way()?;
    if marks(&stage.marks(project)) != 1 {
        return Err(format!("the build ran {} times", marks(&stage.marks(project))));
    }
    let running = stage.json(&["job", "list", "--state", "running"])?.len();
    if running > 0 {
        return Err(format!("{running} jobs are still running"));
    }
    let reason = said.lines().rfind(|line| line.contains("runner")).unwrap_or_default().trim();
    Ok(format!(
        "its job ended after {}: \"{reason}\", the build ran once, the next deployment took {}, {}",
        Seconds(ended),
        Seconds(whole),
        requests(stage, &mark, 0)?
    ))
}

fn killed(stage: &mut Stage) -> Result<String, Failure> {
    let strike = |stage: &mut Stage| {
        stage.runner.kill()?;
        stage.runner.start().map(|_| ())
    };
    lost(stage, "killed", (strike, |_| Ok(())))
}

fn stopped(stage: &mut Stage) -> Result<String, Failure> {
    let seen = lost(stage, "stopped", (|it| it.runner.freeze(), |it| it.runner.thaw()))?;
    Ok(format!("stopped until its lease of 20 s had ended, {seen}"))
}

fn disk_full(stage: &mut Stage) -> Result<String, Failure> {
    stage.settled()?;
    let mark = stage.mark()?;
    stage.runner.disk.fill()?;
    let began = runtime::mono_now();
    stage.up("site")?.ok("shore up")?;
    let took = began.elapsed();
    stage.runner.disk.make_room()?;
    stage.settled()?;
    let seen = requests(stage, &mark, 0)?;
    Ok(format!("it keeps nothing, a whole deployment took {}, {seen}", Seconds(took)))
}

fn partitioned(stage: &mut Stage) -> Result<String, Failure> {
    let seen = lost(stage, "apart", (|it| it.runner.host.cut_off(), |it| it.runner.host.heal()))?;
    Ok(format!("cut off until its lease had ended, {seen}"))
}
