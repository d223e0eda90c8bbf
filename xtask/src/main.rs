//! Developer commands.
//!
//! - `cargo xtask test` runs everything that is tested.
//! - `cargo xtask e2e` uses the product as a person would; `e2e git-push`, `e2e interrupt` and
//!   `e2e zero-downtime` are its parts. `e2e cluster` is a cluster of several hosts and its crash
//!   matrix; it needs root and is not part of `test`.
//! - `cargo xtask chaos --kills N` kills roles with `kill -9` at random moments and counts the damage;
//!   `--roles server,router` only those.
//! - `cargo xtask examples` brings every example up with `shore up` and asks each for a page.
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a developer's command talks to its terminal"
)]

mod chaos;
mod cluster;
mod e2e;
mod examples;
mod traces;

use std::path::Path;
use std::process::{Command, ExitCode};

/// Why a command failed.
pub(crate) type Failure = String;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let done = match name.as_str() {
        "test" => test(),
        "examples" => examples::run(),
        "e2e" => e2e::run(),
        "chaos" => chaos::run(),
        _ => Err(format!("unknown command `{name}`: there are test, e2e, chaos and examples")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// Runs cargo and shows what it does.
pub(crate) fn cargo(args: &[&str]) -> Result<(), Failure> {
    eprintln!("== cargo {}", args.join(" "));
    let status = Command::new("cargo").args(args).current_dir(root()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cargo {} ended with {status}", args.join(" "))),
        Err(error) => Err(format!("cargo cannot be started: {error}")),
    }
}

/// Kills in every test run; more by hand.
const CI_KILLS: u32 = 20;

fn test() -> Result<(), Failure> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    let has_nextest = Command::new("cargo").args(["nextest", "--version"]).output();
    if has_nextest.is_ok_and(|output| output.status.success()) {
        let nextest =
            ["nextest", "run", "--workspace", "--profile", "ci", "--status-level", "slow"];
        cargo(&nextest)?;
    } else {
        cargo(&["test", "--workspace", "--quiet"])?;
    }
    examples::run()?;
    e2e::run()?;
    chaos::round(CI_KILLS, 1)
}

/// Builds the program and tells where it is.
pub(crate) fn build_shore() -> Result<std::path::PathBuf, Failure> {
    cargo(&["build", "--package", "cli", "--quiet"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), std::path::PathBuf::from);
    Ok(target.join("debug/shore"))
}
