//! Directories and project files that are missing or wrong.

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::{Alone, Dev, Failure, Ran};

use crate::{holds, program, refused, told};

const UNKNOWN_WORD: &str = "project = \"a\"\napp \"web\" {\n  biuld {}\n}\n";
const NOT_CLOSED: &str = "project = \"a\"\napp \"web\" {\n  deploy {\n";
const WRONG_TYPE: &str = "app \"web\" {\n  deploy {\n    instances = \"many\"\n  }\n}\n";
const WRONG_NAME: &str = "project = \"a b\"\n";

/// `shore up DIR` where no server is known.
fn up(home: &Path, dir: &Path) -> Result<Ran, Failure> {
    let output = Command::new(program())
        .arg("up")
        .arg(dir)
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(told)?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn what_cannot_be_brought_up_is_refused_before_a_server_starts() -> Result<(), Failure> {
    let home = tempfile::tempdir().map_err(told)?;
    let dir = |name: &str| home.path().join(name);
    for name in ["empty", "binary", "directory/shore.hcl", "ignored", "link"] {
        std::fs::create_dir_all(dir(name)).map_err(told)?;
    }
    std::fs::write(dir("file"), "text").map_err(told)?;
    std::fs::write(dir("binary/shore.hcl"), [0xff, 0xfe]).map_err(told)?;
    std::fs::write(dir("ignored/.shoreignore"), "*\n").map_err(told)?;
    std::os::unix::fs::symlink("/etc/hostname", dir("link/name")).map_err(told)?;
    let cases: [(&str, i32, &[&str]); 7] = [
        ("nowhere", 3, &["cannot bring up", "nowhere", "hint: give the directory"]),
        ("file", 6, &["not a directory", "hint: give the directory"]),
        ("empty", 6, &["there is nothing in it", "hint: go to the directory"]),
        ("ignored", 6, &["there is nothing in it", ".shoreignore"]),
        ("binary", 6, &["binary/shore.hcl", "UTF-8", "hint: "]),
        ("directory", 6, &["directory/shore.hcl", "directory", "hint: "]),
        ("link", 6, &["name is a symbolic link to /etc/hostname", "hint: "]),
    ];
    for (name, code, words) in cases {
        refused(up(home.path(), &dir(name))?, code, words)
            .map_err(|failure| format!("{name}: {failure}"))?;
    }
    for (text, words) in [
        (UNKNOWN_WORD, ["shore.hcl:3:3: `biuld`", "`build` and `deploy`"]),
        (NOT_CLOSED, ["shore.hcl:3:", "expected"]),
        (WRONG_TYPE, ["shore.hcl:3:17: `instances`", "hint: "]),
        (WRONG_NAME, ["shore.hcl:1:11: ", "a-z, 0-9"]),
    ] {
        std::fs::write(dir("empty/shore.hcl"), text).map_err(told)?;
        refused(up(home.path(), &dir("empty"))?, 6, &words)?;
    }
    if dir("data").exists() {
        return Err("a server was started for nothing".to_owned());
    }
    Ok(())
}

#[test]
fn a_broken_file_is_of_no_concern_to_who_names_the_app() -> Result<(), Failure> {
    let server = Alone::start(program(), &[])?;
    let dir = server.home().join("broken");
    std::fs::create_dir(&dir).map_err(told)?;
    std::fs::write(dir.join("shore.hcl"), UNKNOWN_WORD).map_err(told)?;
    let run = |words: &[&str]| -> Result<Ran, Failure> {
        let output = server.command(words).current_dir(&dir).output().map_err(told)?;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    };
    let named: [&[&str]; 4] = [
        &["exec", "notes/web", "--", "true"],
        &["logs", "notes/web"],
        &["status", "notes/web"],
        &["config", "list", "-p", "notes", "-a", "web"],
    ];
    for words in named {
        refused(run(words)?, 3, &["there is no project notes"])
            .map_err(|failure| format!("{words:?}: {failure}"))?;
    }
    refused(run(&["logs", "-p", "notes"])?, 6, &["shore.hcl:3:3", "`--project` and `--app`"])
}

#[test]
fn source_that_nothing_matches_fails_with_that_reason() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    let dir = dev.home().join("letters");
    std::fs::create_dir(&dir).map_err(told)?;
    std::fs::write(dir.join("letter.txt"), "Dear reader").map_err(told)?;
    let ran = dev.shore(&["up", &dir.display().to_string()])?;
    let reason = "(up) failed: no buildpack matches this source\nhint:";
    refused(ran, 1, &["node: no package.json", "Procfile", reason, "hint: "])?;
    let status = dev.shore(&["status", "--project", "letters"])?.ok("status")?;
    holds(&status, &["nothing is released yet"])
}
