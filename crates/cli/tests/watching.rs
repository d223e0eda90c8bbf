//! What people see of what runs: logs of some of it, where it runs, who worked in it, and what goes on
//! when they look away. Everything here drives the real program.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Alone, Dev, Failure, wait_for};

const APP: [&str; 4] = ["--project", "shop", "--app", "web"];

/// How long something may take that needs no build.
const LIMIT: Duration = Duration::from_secs(30);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// The directory of an app whose processes say who they are.
fn app(home: &Path) -> Result<String, Failure> {
    let dir = home.join("shop");
    std::fs::create_dir_all(&dir).map_err(told)?;
    let file = "project = \"shop\"\napp \"web\" {\n  deploy {\n    instances = 2\n    \
                process \"worker\" { instances = 1 }\n  }\n}\n";
    std::fs::write(dir.join("shore.hcl"), file).map_err(told)?;
    std::fs::write(dir.join("Procfile"), "web: ./serve\nworker: ./work\n").map_err(told)?;
    let serve = "#!/usr/bin/env python3\nimport http.server, os\nprint('I serve', flush=True)\n\
                 host = (os.environ[\"HOST\"], int(os.environ[\"PORT\"]))\n\
                 http.server.ThreadingHTTPServer(host, http.server.SimpleHTTPRequestHandler).serve_forever()\n";
    let work = "#!/bin/sh\necho I work\nexec sleep 1000\n";
    for (name, text) in [("serve", serve), ("work", work)] {
        std::fs::write(dir.join(name), text).map_err(told)?;
        let runs = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.join(name), runs).map_err(told)?;
    }
    Ok(dir.display().to_string())
}

#[test]
fn logs_of_some_of_it_and_where_it_runs_and_who_worked_there() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    dev.shore(&["up", &app(dev.home())?])?.ok("up")?;
    let logs = |words: &[&str]| dev.shore(&[&["logs"], &APP[..], words].concat())?.ok("logs");
    wait_for("all to have said who they are", LIMIT, || {
        let said = logs(&[]).ok()?;
        let all = ["web.0", "web.1", "worker.0"].iter().all(|name| said.contains(name));
        (all && said.contains("I work")).then_some(())
    })?;
    // Words that choose, and whose lines are there then.
    let table: [(&[&str], [bool; 3]); 6] = [
        (&["--instance", "web.1"], [false, true, false]),
        (&["--instance", "0"], [true, false, true]),
        (&["--process", "worker"], [false, false, true]),
        (&["--process", "web", "--instance", "0"], [true, false, false]),
        (&["--since", "1h"], [true, true, true]),
        (&["--since", "0s"], [false, false, false]),
    ];
    for (words, wanted) in table {
        let said = logs(words)?;
        let seen = ["web.0", "web.1", "worker.0"].map(|name| said.contains(name));
        assert_eq!(seen, wanted, "{words:?}: {said}");
    }
    for (words, wanted) in [
        (&["--instance", "web"][..], "no instance"),
        (&["--instance", "web.1", "--process", "worker"], "of another process"),
        (&["--since", "yesterday"], "90s, 10m, 2h or 1d is wanted"),
    ] {
        let said = dev.shore(&[&["logs"], &APP[..], words].concat())?.failed("logs")?;
        assert!(said.contains(wanted), "{words:?}: {said}");
    }
    let status = dev.shore(&[&["status"], &APP[..]].concat())?.ok("status")?;
    let cell = dev.json(&["cell", "list"])?["spec"]["name"].clone();
    let cell = cell.as_str().ok_or("the cell has no name")?.to_owned();
    assert!(status.contains("CELL") && status.matches(&cell).count() >= 3, "{cell}: {status}");
    assert!(!status.contains("CRASHES"), "nothing crashed: {status}");
    dev.shore(&[&["exec"], &APP[..], &["--", "/bin/echo", "hello"]].concat())?.ok("exec")?;
    let audit = wait_for("the session to be written down", LIMIT, || {
        let said = dev.shore(&["audit"]).ok()?.ok("audit").ok()?;
        said.contains("ended").then_some(said)
    })?;
    assert!(audit.contains("exec /bin/echo hello") && audit.contains("shop/web"), "{audit}");
    let line = dev.json(&["audit", "-n", "1"])?;
    assert_eq!((&line["event"], &line["instance"]), (&"session_ended".into(), &"web.0".into()));
    Ok(())
}

#[test]
fn what_the_version_before_said_is_still_in_the_log() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    let dir = app(dev.home())?;
    dev.shore(&["up", &dir])?.ok("up")?;
    let logs = |words: &[&str]| dev.shore(&[&["logs"], &APP[..], words].concat());
    let said = |text: &str| {
        wait_for(text, LIMIT, || {
            let all = logs(&["-n", "1000"]).ok()?.ok("logs").ok()?;
            all.contains(text).then_some(all)
        })
    };
    said("I work")?;
    let work = "#!/bin/sh\necho I work better\nexec sleep 1000\n";
    std::fs::write(Path::new(&dir).join("work"), work).map_err(told)?;
    dev.shore(&["up", &dir])?.ok("up")?;
    let all = said("I work better")?;
    assert!(all.lines().any(|line| line.ends_with("I work")), "{all}");
    assert_eq!(logs(&["-n", "2"])?.ok("logs")?.lines().count(), 2, "of all together");
    for words in [&["--instance", "web.7"][..], &["--process", "nope"]] {
        let refused = logs(words)?.failed("logs")?;
        let names = "there are web.0 to web.1, worker.0";
        assert!(refused.contains(words[1]) && refused.contains(names), "{refused}");
    }
    Ok(())
}

#[test]
fn a_task_can_be_listened_to_after_its_end() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let script = "echo one; echo two";
    let run = ["task", "run", "-p", "shop", "--json", "--", "/bin/sh", "-c", script];
    let said = dev.shore(&run)?.ok("task run")?;
    let task = said.lines().last().ok_or("nothing was said")?;
    let task: serde_json::Value = serde_json::from_str(task).map_err(told)?;
    let id = task["id"].as_str().ok_or("no id")?;
    let logs =
        |words: &[&str]| dev.shore(&[&["task", "logs", id], words].concat())?.ok("task logs");
    let all = logs(&[])?;
    assert!(all.contains("one") && all.contains("two"), "{all}");
    let last = logs(&["-n", "1"])?;
    assert!(!last.contains("one"), "{last}");
    Ok(())
}

#[test]
fn looking_away_from_a_job_says_that_it_goes_on_and_how_to_end_it() -> Result<(), Failure> {
    // There is no runner, so the job waits.
    let server = Alone::start(program(), &[])?;
    let dir = app(server.home())?;
    let mut up = server.command(&["up", &dir]);
    up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let up = up.spawn().map_err(told)?;
    let id = wait_for("the job to be queued", LIMIT, || {
        let job = server.json(&["job", "list"]).ok()?;
        job["id"].as_str().map(str::to_owned)
    })?;
    Command::new("kill").args(["-INT", &up.id().to_string()]).status().map_err(told)?;
    let output = up.wait_with_output().map_err(told)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    let (attach, cancel) = (format!("shore job attach {id}"), format!("shore job cancel {id}"));
    for words in ["goes on on the server", &attach, &cancel] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let job = server.json(&["job", "show", &id])?;
    assert_eq!(job["state"], "queued", "{job}");
    Ok(())
}
