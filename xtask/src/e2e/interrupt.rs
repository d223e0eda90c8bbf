//! Ctrl-C at any moment ends `shore up` soon and leaves nothing running; the next one goes on.

use std::path::Path;
use std::time::Duration;

use runtime::Random;
use testkit::{Dev, get, wait_for};

use super::{LIMIT, holds};
use crate::traces::processes;
use crate::{Failure, root};

/// Moments that are tried unless told otherwise.
const DEFAULT_MOMENTS: u32 = 20;
/// The latest moment after a start. A whole `up` takes about half of this.
const LATEST_MS: u64 = 1_000;
/// The latest moment after the app is live, where one wait gives way to the next.
const LATEST_AFTER_LIVE_MS: u64 = 20;
/// How long an end may take.
const END_LIMIT: Duration = Duration::from_secs(10);
/// What ended by SIGINT before it could watch for it, or before its app was live.
const INTERRUPTED: i32 = 130;
const HOST: &str = "web.moments.localhost";
const LIVE: &str = r#""event":"live""#;

pub(super) fn run(shore: &Path) -> Result<(), Failure> {
    let number = |at: usize| std::env::args().nth(at).and_then(|text| text.parse::<u64>().ok());
    let moments = number(3).and_then(|it| u32::try_from(it).ok()).unwrap_or(DEFAULT_MOMENTS);
    let seed = number(4).unwrap_or_else(|| Random::system().next_u64() % 1_000_000);
    let mut dev = Dev::start(shore)?;
    dev.stop()?;
    let random = Random::seeded(seed);
    for moment in 0..moments {
        interrupt(&mut dev, &random, moment.is_multiple_of(2))
            .map_err(|failure| format!("moment {moment} of seed {seed}: {failure}"))?;
    }
    goes_on(&mut dev)?;
    eprintln!("ok: Ctrl-C at {moments} moments, seed {seed}");
    Ok(())
}

fn up(dev: &mut Dev) -> Result<(), Failure> {
    let site = root().join("examples/static-site").display().to_string();
    dev.begin(&["up", &site, "--project", "moments", "--log", "info"])
}

fn interrupt(dev: &mut Dev, random: &Random, after_live: bool) -> Result<(), Failure> {
    let before = times_live(dev);
    up(dev)?;
    let latest = if after_live {
        wait_for("the app", LIMIT, || (times_live(dev) > before).then_some(()))?;
        LATEST_AFTER_LIVE_MS
    } else {
        LATEST_MS
    };
    let delay = Duration::from_micros(random.next_u64() % (latest * 1_000));
    runtime::pause_thread(delay);
    let ended = dev.interrupt(END_LIMIT).map_err(|late| format!("after {delay:?}: {late}"))?;
    let code = ended.and_then(|ended| ended.code()).unwrap_or(INTERRUPTED);
    if !matches!(code, 0 | INTERRUPTED) {
        return Err(format!("ended with {code} after {delay:?}:\n{}", dev.log()));
    }
    let left = processes(dev.home());
    if left.is_empty() { Ok(()) } else { Err(format!("left running:\n{}", left.join("\n"))) }
}

/// How often an app went live.
fn times_live(dev: &Dev) -> usize {
    dev.log().matches(LIVE).count()
}

/// After all that, the app comes up and goes away as if nothing had happened.
fn goes_on(dev: &mut Dev) -> Result<(), Failure> {
    let before = times_live(dev);
    up(dev)?;
    wait_for("the app", LIMIT, || (times_live(dev) > before).then_some(()))?;
    let page = get(dev.ports.http, HOST, "/").map_err(|error| error.to_string())?;
    holds(&page.body, &["static"])?;
    dev.stop()
}
