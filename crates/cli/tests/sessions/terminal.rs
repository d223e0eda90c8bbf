//! Commands with a terminal, typed at by a program that has one.

use std::process::Command;

use serde_json::{Value, json};
use testkit::Failure;

use crate::{HERE, Said, World, holds, program, told};

/// What types.
const TYPIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sessions/terminal.py");

impl World {
    /// `shore exec web ARGS` at a terminal where `steps` are taken.
    fn typed(&self, steps: &Value, args: &[&str]) -> Result<Said, Failure> {
        let all = [&["exec", "web"], &HERE[..], args].concat();
        let shore = self.dev.command(&all);
        let mut command = Command::new("python3");
        command.arg(TYPIST).arg(steps.to_string()).arg(program()).args(shore.get_args());
        for (name, value) in shore.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.env("TERM", "xterm-test").current_dir(self.dev.home());
        Ok(Said::of(command.output().map_err(told)?))
    }
}

/// It ended with this code, and the terminal was left as it was found.
fn ended(said: &Said, code: i32, words: &[&str]) -> Result<(), Failure> {
    let text = said.text();
    if said.code != code {
        return Err(format!("{}, not {code}:\n{text}\n{}", said.code, said.err));
    }
    holds(&text, words)
}

#[test]
fn a_shell_has_the_size_and_the_keys_of_the_terminal() -> Result<(), Failure> {
    let world = World::start()?;
    let steps = json!([
        ["type", "echo $((40 + 2)) $TERM; stty size\r"],
        ["wait", "42 xterm-test"],
        ["wait", "33 101"],
        ["size", 22, 77],
        ["type", "sleep 0.2; stty size\r"],
        ["wait", "22 77"],
        // Ctrl-C is for the command, not for the session.
        ["type", "echo be''gins; sleep 1000\r"],
        ["wait", "begins"],
        ["type", "\u{3}"],
        ["type", "echo inter''rupted; exit 3\r"],
        ["wait", "interrupted"]
    ]);
    ended(&world.typed(&steps, &[])?, 3, &[])?;
    // Its exit code is told, and a signal as shells do.
    let quiet = json!([]);
    ended(&world.typed(&quiet, &["--", "/bin/sh", "-c", "echo a; exit 41"])?, 41, &["a\r\n"])?;
    ended(&world.typed(&quiet, &["--", "/bin/sh", "-c", "kill -KILL $$"])?, 137, &[])?;
    // Without a terminal output and error stay as they are.
    let text = "test -t 1 || echo pipes";
    ended(&world.typed(&quiet, &["--no-tty", "--", "/bin/sh", "-c", text])?, 0, &["pipes"])
}

#[test]
fn a_tilde_and_a_dot_leave_the_session() -> Result<(), Failure> {
    let world = World::start()?;
    let pid = world.dev.home().join("pid");
    let text = format!("echo $$ > {}; echo be''gins; cat", pid.display());
    let steps = json!([
        ["wait", "begins"],
        ["type", "~~one\r"],
        ["wait", "~one"],
        ["wait", "~one"],
        ["type", "a~.b\r"],
        ["wait", "a~.b"],
        ["type", "~."]
    ]);
    let said = world.typed(&steps, &["--", "/bin/sh", "-c", &text])?;
    ended(&said, 130, &["left with `~.`"])?;
    let pid = std::fs::read_to_string(pid).map_err(told)?;
    testkit::wait_for("its end", crate::LIMIT, || (!crate::runs(&pid)).then_some(()))
}
