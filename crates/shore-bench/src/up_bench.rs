//! `git push` to the first page of the new version, with the real git and ssh.

use std::path::Path;
use std::time::{Duration, Instant};

use runtime::mono_now;
use serde_json::{Value, json};
use testkit::{Dev, Load, Repo, get, shore_binary};

/// Redeploys of each app; the median counts.
const REDEPLOYS: usize = 5;
/// Connections that are kept busy meanwhile.
const CONNECTIONS: usize = 4;
/// How long the first page may take.
const LIMIT: Duration = Duration::from_mins(1);

struct Figures {
    first: f64,
    redeploy: f64,
    lost: u64,
}

pub(crate) fn run() -> Result<Value, String> {
    let shore = shore_binary()?;
    let dev = Dev::start(&shore)?;
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    let fixed = measure(&dev, "static-site", "index.html")?;
    let python = measure(&dev, "python-web", "app.py")?;
    let plain = plain_push(&dev)?;
    Ok(json!({
        "bench": "up",
        "static_first_s": fixed.first,
        "static_redeploy_s": fixed.redeploy,
        "python_first_s": python.first,
        "python_redeploy_s": python.redeploy,
        "push_without_deploy_s": plain,
        "lost_requests": fixed.lost + python.lost,
    }))
}

/// Seconds since `started`, in milliseconds precision.
fn seconds(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// Puts a word into the page, and tells which.
fn mark(repo: &Repo, file: &str, version: usize) -> Result<String, String> {
    let path = repo.dir().join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let word = format!("version-{version}");
    let before = format!("version-{}", version.wrapping_sub(1));
    let text = if text.contains(&before) {
        text.replace(&before, &word)
    } else {
        text.replacen("<h1>", &format!("<h1>{word} "), 1)
    };
    repo.change(file, &text)?;
    Ok(word)
}

/// Pushes and waits for the first page with `word`; the push must succeed too.
fn push_until(dev: &Dev, repo: &Repo, host: &str, word: &str) -> Result<f64, String> {
    let started = mono_now();
    let mut push = repo.push_in_background()?;
    let mut took = None;
    while took.is_none() && started.elapsed() < LIMIT {
        let page = get(dev.ports.http, host, "/");
        if page.is_ok_and(|page| page.status == 200 && page.body.contains(word)) {
            took = Some(seconds(started));
        } else if let Ok(Some(status)) = push.try_wait()
            && !status.success()
        {
            return Err(format!("git push ended with {status}\n{}", dev.log()));
        } else {
            runtime::pause_thread(Duration::from_millis(1));
        }
    }
    let status = push.wait().map_err(|error| error.to_string())?;
    let took = took.ok_or_else(|| format!("no page with {word} in {LIMIT:?}"))?;
    if status.success() { Ok(took) } else { Err(format!("git push ended with {status}")) }
}

fn measure(dev: &Dev, name: &str, file: &str) -> Result<Figures, String> {
    dev.shore(&["project", "create", name])?.ok("project create")?;
    let repo = Repo::new(dev, name, &example(name), "owner")?;
    let host = format!("web.{name}.localhost");
    let word = mark(&repo, file, 1)?;
    let first = push_until(dev, &repo, &host, &word)?;
    let load = Load::start(dev.ports.http, &host, CONNECTIONS)?;
    let mut times = Vec::new();
    for version in 2..2 + REDEPLOYS {
        let word = mark(&repo, file, version)?;
        times.push(push_until(dev, &repo, &host, &word)?);
    }
    let loaded = load.finish();
    if loaded.bad > 0 {
        return Err(format!("{} requests of {name} failed: {:?}", loaded.bad, loaded.failures));
    }
    times.sort_unstable_by(f64::total_cmp);
    let redeploy = times.get(times.len() / 2).copied().unwrap_or(0.0);
    Ok(Figures { first, redeploy, lost: loaded.bad })
}

/// A push that starts no deploy, median of a few.
fn plain_push(dev: &Dev) -> Result<f64, String> {
    dev.shore(&["project", "create", "tiny"])?.ok("project create")?;
    let repo = Repo::new(dev, "tiny", &example("static-site"), "owner")?;
    let mut times = Vec::new();
    for number in 0..7 {
        repo.commit(&format!("commit {number}"))?;
        let started = mono_now();
        let branch = format!("main:branch-{number}");
        repo.git(&["push", "--quiet", "shore", &branch])?.ok("git push")?;
        times.push(seconds(started));
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(0.0))
}
