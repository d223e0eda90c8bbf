//! End to end, as a person would: a server, the real git, the real ssh.
//!
//! `cargo xtask e2e` runs everything, `e2e git-push`, `e2e interrupt` and
//! `e2e zero-downtime` one part. `e2e cluster` is a thing of its own: see `cluster.rs`.

mod interrupt;
mod zero_downtime;

use std::path::Path;
use std::time::Duration;

use testkit::{Dev, Repo, get, wait_for};

use crate::{Failure, build_shore, cluster, root};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A server, and an app on it that works.
struct Stage {
    dev: Dev,
    repo: Repo,
}

type Scenario = fn(&Stage) -> Result<(), Failure>;

const HOST: &str = "web.shop.localhost";
/// An app that answers at once.
const GOOD: &str = include_str!("../../examples/python-web/app.py");
/// Ends before it listens.
const BROKEN: &str = "import sys\nprint('cannot find my database', flush=True)\nsys.exit(3)\n";
/// Never listens.
const SILENT: &str = "import time\nprint('thinking', flush=True)\ntime.sleep(600)\n";

pub(crate) fn run() -> Result<(), Failure> {
    let shore = build_shore()?;
    let part = std::env::args().nth(2);
    if part.as_deref() == Some("cluster") {
        return cluster::run(&shore);
    }
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("git-push") {
        git_push(&shore)?;
    }
    if wanted("interrupt") {
        interrupt::run(&shore)?;
    }
    if wanted("zero-downtime") {
        zero_downtime::run(&shore)?;
    }
    Ok(())
}

fn git_push(shore: &Path) -> Result<(), Failure> {
    let stage = Stage::start(shore)?;
    let scenarios: [(&str, Scenario); 11] = [
        ("good push", good_push),
        ("restart", restart),
        ("a variable does not undo a rollback", variable_after_rollback),
        ("one-off command with a project's token", one_off),
        ("failing build", failing_build),
        ("failing start", failing_start),
        ("failing health check", failing_health_check),
        ("cut connection", cut_connection),
        ("second push supersedes the first", superseded),
        ("push by a stranger", stranger),
        ("push without a deploy", other_branch),
    ];
    for (name, scenario) in scenarios {
        scenario(&stage).map_err(|failure| format!("{name}: {failure}\n{}", stage.dev.log()))?;
        eprintln!("ok: {name}");
    }
    Ok(())
}

impl Stage {
    fn start(shore: &Path) -> Result<Self, Failure> {
        let dev = Dev::start(shore)?;
        let public = Repo::public_key(&dev, "owner")?;
        dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
        dev.shore(&["project", "create", "shop"])?.ok("project create")?;
        let repo = Repo::new(&dev, "shop", &root().join("examples/python-web"), "owner")?;
        Ok(Self { dev, repo })
    }

    /// The page, which must be there; without digits, which tell the instances apart.
    fn page(&self) -> Result<String, Failure> {
        let page = get(self.dev.ports.http, HOST, "/").map_err(|error| error.to_string())?;
        if page.status == 200 {
            Ok(page.body.replace(|c: char| c.is_ascii_digit(), ""))
        } else {
            Err(format!("the page is {page:?}"))
        }
    }

    /// Pushes a version whose page holds `word`.
    fn push_good(&self, word: &str) -> Result<String, Failure> {
        let app = GOOD.replacen("<h1>", &format!("<h1>{word} "), 1);
        self.repo.change("app.py", &app)?;
        let ran = self.repo.git(&["push", "shore", "main"])?;
        let said = ran.err.clone();
        ran.ok("git push")?;
        Ok(said)
    }

    /// Takes back the last commit, as one does after a refused push.
    fn take_back(&self) -> Result<(), Failure> {
        self.repo.git(&["reset", "--quiet", "--hard", "HEAD~1"])?.ok("git reset").map(|_| ())
    }

    /// Pushes what must be refused; what the pusher was told.
    fn push_bad(&self) -> Result<String, Failure> {
        let before = self.page()?;
        let said = self.repo.git(&["push", "shore", "main"])?.failed("git push")?;
        let same = self.page()? == before;
        self.take_back()?;
        if same { Ok(said) } else { Err("the page changed with a refused push".to_owned()) }
    }
}

pub(crate) fn holds(said: &str, words: &[&str]) -> Result<(), Failure> {
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{word}` is missing in:\n{said}")),
    }
}

fn good_push(stage: &Stage) -> Result<(), Failure> {
    let said = stage.push_good("first")?;
    let url = format!("http://{HOST}:{}", stage.dev.ports.http);
    holds(&said, &["==> Build", "==> Deploy", "==> Release", &url])?;
    holds(&stage.page()?, &["first"])
}

fn restart(stage: &Stage) -> Result<(), Failure> {
    let number = || -> Result<u64, Failure> {
        let status = stage.dev.json(&["status", "--project", "shop"])?;
        let all = status["deployments"].as_array().cloned().unwrap_or_default();
        let released = all.iter().find(|it| it["released"] == true);
        released.and_then(|it| it["number"].as_u64()).ok_or_else(|| format!("{status}"))
    };
    let (before, page) = (number()?, stage.page()?);
    stage.dev.shore(&["restart", "--project", "shop"])?.ok("restart")?;
    if number()? <= before || stage.page()? != page {
        return Err("the same version should run as a new deployment".to_owned());
    }
    let said = stage.dev.shore(&["restart", "--project", "shop", "--workspace", "staging"])?;
    holds(&said.failed("restart of nothing")?, &["no release in staging", "deploy it first"])
}

fn variable_after_rollback(stage: &Stage) -> Result<(), Failure> {
    let before = stage.page()?;
    stage.push_good("better")?;
    holds(&stage.page()?, &["better"])?;
    stage.dev.shore(&["rollback", "--project", "shop"])?.ok("rollback")?;
    stage.dev.shore(&["config", "set", "--project", "shop", "MOOD=calm"])?.ok("config set")?;
    if stage.page()? == before { Ok(()) } else { Err("the newer version is back".to_owned()) }
}

fn one_off(stage: &Stage) -> Result<(), Failure> {
    let made = stage.dev.json(&["token", "create", "--role", "developer", "--project", "shop"])?;
    let url = format!("http://127.0.0.1:{}", stage.dev.ports.api);
    let token = text(&made, "token");
    stage
        .dev
        .shore(&["context", "set", "limited", "--server", &url, "--token", token])?
        .ok("set")?;
    let ran = stage.dev.shore(&["run", "--project", "shop", "--", "echo", "hello from a task"]);
    let other = stage.dev.shore(&["project", "create", "not-mine"]);
    stage.dev.shore(&["context", "use", "local"])?.ok("context use")?;
    holds(&ran?.ok("shore run")?, &["hello from a task"])?;
    other?.failed("a project made with a project's token").map(|_| ())
}

fn failing_build(stage: &Stage) -> Result<(), Failure> {
    std::fs::remove_file(stage.repo.dir().join("app.py")).map_err(|error| error.to_string())?;
    drop(std::fs::remove_file(stage.repo.dir().join("requirements.txt")));
    drop(std::fs::remove_file(stage.repo.dir().join("Procfile")));
    stage.repo.commit("nothing to build")?;
    let said = stage.push_bad()?;
    holds(&said, &["no buildpack matches", "hint:", "rejected"])
}

fn failing_start(stage: &Stage) -> Result<(), Failure> {
    stage.repo.change("app.py", BROKEN)?;
    let said = stage.push_bad()?;
    holds(
        &said,
        &["status 3", "cannot find my database", "what is released stays as it is", "rejected"],
    )
}

fn failing_health_check(stage: &Stage) -> Result<(), Failure> {
    let file =
        "app \"web\" {\n  deploy {\n    check {\n      start_timeout = \"2s\"\n    }\n  }\n}\n";
    std::fs::write(stage.repo.dir().join("shore.hcl"), file).map_err(|error| error.to_string())?;
    stage.repo.change("app.py", SILENT)?;
    let said = stage.push_bad()?;
    holds(
        &said,
        &["never healthy", "refused", "thinking", "what is released stays as it is", "rejected"],
    )
}

/// An app that needs `seconds` before it answers.
fn slow(word: &str, seconds: u32) -> String {
    let app = GOOD.replacen("<h1>", &format!("<h1>{word} "), 1);
    format!("import time\ntime.sleep({seconds})\n{app}")
}

/// The newest job.
fn newest(stage: &Stage) -> Result<serde_json::Value, Failure> {
    stage.dev.json(&["job", "list", "--limit", "1"])
}

fn text<'a>(value: &'a serde_json::Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

fn running(stage: &Stage, before: &str) -> Result<String, Failure> {
    wait_for("the push's job", LIMIT, || {
        let job = newest(stage).ok()?;
        (text(&job, "id") != before && text(&job, "state") == "running")
            .then(|| text(&job, "id").to_owned())
    })
}

fn cut_connection(stage: &Stage) -> Result<(), Failure> {
    let before = text(&newest(stage)?, "id").to_owned();
    stage.repo.change("app.py", &slow("survivor", 3))?;
    let mut push = stage.repo.push_in_background()?;
    let job = running(stage, &before)?;
    Repo::cut(&mut push)?;
    let said = stage.dev.shore(&["job", "attach", &job])?.ok("job attach")?;
    holds(&said, &["==> Deploy", "==> Release"])?;
    holds(&stage.page()?, &["survivor"])?;
    // The branch was not moved; the next push brings it along.
    stage.push_good("after the cut").map(|_| ())
}

fn superseded(stage: &Stage) -> Result<(), Failure> {
    let before = text(&newest(stage)?, "id").to_owned();
    stage.repo.change("app.py", &slow("too late", 20))?;
    let first = stage.repo.push_in_background()?;
    running(stage, &before)?;
    stage.push_good("winner")?;
    let ended = first.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    if ended.status.success() {
        return Err(format!("the first push succeeded:\n{said}"));
    }
    holds(&said, &["rejected"])?;
    holds(&stage.page()?, &["winner"])
}

fn stranger(stage: &Stage) -> Result<(), Failure> {
    let before = text(&newest(stage)?, "id").to_owned();
    let repo = Repo::new(&stage.dev, "shop", &root().join("examples/static-site"), "stranger")?;
    let said = repo.push()?.failed("a stranger's push")?;
    holds(&said, &["Permission denied (publickey)"])?;
    if text(&newest(stage)?, "id") != before {
        return Err("a stranger's push started a job".to_owned());
    }
    // A key that is limited to another project does not even learn that this one exists.
    stage.dev.shore(&["project", "create", "other"])?.ok("project create")?;
    let public = Repo::public_key(&stage.dev, "guest")?;
    let public = public.display().to_string();
    stage.dev.shore(&["key", "add", &public, "--project", "other"])?.ok("key add")?;
    let guest = Repo::new(&stage.dev, "shop", &root().join("examples/static-site"), "guest")?;
    let said = guest.push()?.failed("a guest's push")?;
    holds(&said, &["there is no project shop"])
}

fn other_branch(stage: &Stage) -> Result<(), Failure> {
    let before = text(&newest(stage)?, "id").to_owned();
    let ran = stage.repo.git(&["push", "shore", "main:feature"])?;
    let said = ran.err.clone();
    ran.ok("git push")?;
    holds(&said, &["only pushes to main are deployed"])?;
    if text(&newest(stage)?, "id") == before {
        return Ok(());
    }
    Err("a push to another branch started a job".to_owned())
}
