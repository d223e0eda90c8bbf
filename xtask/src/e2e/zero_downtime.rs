//! No request fails while one version of an app takes over from the other.

use std::path::Path;
use std::process::Command;

use testkit::{Dev, Load, Repo, get, wait_for};

use super::{LIMIT, holds};
use crate::{Failure, root};

/// Redeploys of each example unless told otherwise; 20 by hand.
const DEFAULT_REDEPLOYS: u32 = 4;
/// Connections that are kept busy.
const BUSY: usize = 32;

/// An example, the file that holds its page, and what is replaced in it.
struct Subject {
    example: &'static str,
    file: &'static str,
    before: &'static str,
    /// What must be on the machine.
    needs: Option<&'static str>,
}

const SUBJECTS: [Subject; 3] = [
    Subject { example: "static-site", file: "index.html", before: "<h1>", needs: None },
    Subject { example: "python-web", file: "app.py", before: "<h1>", needs: Some("python3") },
    Subject { example: "node-web", file: "server.js", before: "<h1>", needs: Some("node") },
];

pub(super) fn run(shore: &Path) -> Result<(), Failure> {
    let redeploys = std::env::args().nth(3).and_then(|text| text.parse().ok());
    let only = std::env::args().nth(4);
    let dev = Dev::start(shore)?;
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    for subject in SUBJECTS {
        let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !subject.needs.is_none_or(there) {
            eprintln!("skipped: {}, it is not on this machine", subject.example);
        } else if only.as_deref().is_none_or(|only| only == subject.example) {
            subject.redeploy(&dev, redeploys.unwrap_or(DEFAULT_REDEPLOYS))?;
        }
    }
    Ok(())
}

impl Subject {
    fn redeploy(&self, dev: &Dev, redeploys: u32) -> Result<(), Failure> {
        let example = self.example;
        dev.shore(&["project", "create", example])?.ok("project create")?;
        let from = root().join("examples").join(example);
        let repo = Repo::new(dev, example, &from, "owner")?;
        repo.push()?.ok("git push")?;
        let host = format!("web.{example}.localhost");
        let text = std::fs::read_to_string(from.join(self.file));
        let text = text.map_err(|error| format!("{example}/{}: {error}", self.file))?;
        let load = Load::start(dev.ports.http, &host, BUSY)?;
        for version in 0..redeploys {
            let word = format!("version {version}");
            let changed = text.replace(self.before, &format!("{}{word} ", self.before));
            repo.change(self.file, &changed)?;
            repo.push()?.ok("git push")?;
            let page = get(dev.ports.http, &host, "/").map_err(|error| error.to_string())?;
            holds(&page.body, &[&word])?;
        }
        self.scale(dev, 4)?;
        self.scale(dev, 1)?;
        let met = load.finish();
        dev.shore(&["destroy", "--project", example, "--yes"])?.ok("destroy")?;
        if met.bad > 0 {
            let (bad, good) = (met.bad, met.good);
            return Err(format!(
                "{example}: {bad} requests failed, {good} did not: {:?}",
                met.failures
            ));
        }
        eprintln!(
            "ok: {redeploys} redeploys of {example} under {BUSY} connections, 0 of {} failed",
            met.good
        );
        Ok(())
    }

    /// Brings the app to so many instances, and waits until as many run and are healthy.
    fn scale(&self, dev: &Dev, instances: usize) -> Result<(), Failure> {
        let project = ["--project", self.example];
        let wanted = format!("web={instances}");
        dev.shore(&[&["scale", &wanted], &project[..]].concat())?.ok("scale")?;
        let done = || {
            let status = dev.json(&[&["status"], &project[..]].concat()).ok()?;
            let released =
                status["deployments"].as_array()?.iter().find(|it| it["released"] == true)?;
            let all = released["processes"][0]["instances"].as_array()?;
            (all.len() == instances && all.iter().all(|it| it["ready"] == true)).then_some(())
        };
        wait_for("as many healthy instances", LIMIT, done)
    }
}
