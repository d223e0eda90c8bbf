//! Processes that somebody works with.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::{Pid, Signal as Raw, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bench::soon;
use super::{Bench, Failure, Verdict, ensure};
use crate::driver::{Ability, Input, Outcome, Session, Signal, Terminal};
use crate::error::{DriverError, StartFault};
use crate::proc::{Table, environment_has};
use crate::spec::{Handle, ProcessId, ProcessSpec};

const SIZE: Terminal = Terminal { columns: 101, rows: 33 };

impl Bench {
    async fn session(
        &self,
        handle: &Handle,
        argv: &[&str],
        terminal: Option<Terminal>,
    ) -> Result<Session, DriverError> {
        let spec = ProcessSpec::new(ProcessId::new("session")?, argv.iter().copied());
        self.driver.session(handle, spec, terminal).await
    }
}

fn has_sessions(bench: &Bench) -> bool {
    bench.driver.capabilities().can(Ability::Sessions)
}

/// Reads until `wanted` was read.
async fn until(from: &mut Input, wanted: &str) -> Result<String, Failure> {
    let mut text = Vec::new();
    let read = async {
        let mut buffer = [0; 1024];
        loop {
            let bytes = from.read(&mut buffer).await?;
            text.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
            let seen = String::from_utf8_lossy(&text).into_owned();
            if bytes == 0 || seen.contains(wanted) {
                return Ok::<_, std::io::Error>(seen);
            }
        }
    };
    let seen = soon(wanted, read).await??;
    ensure!(seen.contains(wanted), "{wanted:?} is missing: {seen:?}");
    Ok(seen)
}

async fn rest(from: &mut Input) -> Result<String, Failure> {
    let mut text = Vec::new();
    soon("end of output", from.read_to_end(&mut text)).await??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

pub(super) async fn a_session_has_three_streams(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let text = "test -t 0 && echo terminal; cat; echo problem >&2; exit 7";
    let mut session = bench.session(&handle, &["/bin/sh", "-c", text], None).await?;
    session.input.write_all(b"one\ntwo\n").await?;
    until(&mut session.output, "two\n").await?;
    session.input.shutdown().await?;
    drop(session.input);
    ensure!(rest(&mut session.output).await?.is_empty(), "more output");
    ensure!(rest(&mut session.error).await? == "problem\n", "standard error");
    let exit = soon("exit", session.control.wait()).await??;
    ensure!(exit.outcome == Outcome::Code(7), "{exit:?}");
    let again = soon("exit", session.control.wait()).await??;
    ensure!(again == exit, "a second wait differs: {again:?}");
    let info = bench.driver.inspect(&handle).await?;
    ensure!(info.processes.is_empty(), "a session is listed: {info:?}");
    bench.processes(&handle, 0).await
}

pub(super) async fn a_session_has_a_terminal(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let text = "test -t 0 && test -t 1 && test -t 2 && stty size; \
                trap 'stty size; echo resized' WINCH; echo ready; \
                while :; do read line || continue; echo got $line; \
                test \"$line\" = end && exit 3; done";
    let command = ["/bin/sh", "-c", text];
    let mut session = bench.session(&handle, &command, Some(SIZE)).await?;
    let seen = until(&mut session.output, "ready").await?;
    ensure!(seen.contains("33 101"), "its size: {seen:?}");
    session.control.resize(Terminal { columns: 77, rows: 22 })?;
    session.input.write_all(b"hello\n").await?;
    let seen = until(&mut session.output, "got hello").await?;
    let seen =
        if seen.contains("resized") { seen } else { until(&mut session.output, "resized").await? };
    ensure!(seen.contains("22 77"), "its new size: {seen:?}");
    session.input.write_all(b"end\n").await?;
    let exit = soon("exit", session.control.wait()).await??;
    ensure!(exit.outcome == Outcome::Code(3), "{exit:?}");
    ensure!(rest(&mut session.error).await?.is_empty(), "a terminal has no standard error");
    Ok(())
}

pub(super) async fn a_terminal_interrupts(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let command = ["/bin/sh", "-c", "echo ready; exec sleep 1000"];
    let mut session = bench.session(&handle, &command, Some(SIZE)).await?;
    until(&mut session.output, "ready").await?;
    session.input.write_all(&[3]).await?;
    let exit = soon("exit", session.control.wait()).await??;
    ensure!(exit.outcome == Outcome::Signal(2), "{exit:?}");
    let mut session = bench.session(&handle, &command, None).await?;
    until(&mut session.output, "ready").await?;
    session.control.signal(Signal::Term)?;
    let exit = soon("exit", session.control.wait()).await??;
    ensure!(exit.outcome == Outcome::Signal(15), "{exit:?}");
    Ok(())
}

pub(super) async fn a_dropped_session_is_killed(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let text = "trap '' TERM HUP; (setsid sleep 1000 &); echo ready; while :; do sleep 1000; done";
    for terminal in [None, Some(SIZE)] {
        let mut session = bench.session(&handle, &["/bin/sh", "-c", text], terminal).await?;
        until(&mut session.output, "ready").await?;
        ensure!(bench.driver.stats(&handle).await?.processes >= 2, "it runs");
        drop(session);
        bench.processes(&handle, 0).await?;
    }
    Ok(())
}

pub(super) async fn a_killed_keeper_takes_its_session_along(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    bench.start(&handle, "app", &["/bin/sh", "-c", "exec sleep 1000"]).await?;
    let text = "trap '' TERM HUP; (setsid sleep 1000 &); sleep 1000 & echo ready; \
                while :; do sleep 1000; done";
    for terminal in [None, Some(SIZE)] {
        let token = format!("KEEPER_TEST={}-{}", handle, terminal.is_some());
        let id = ProcessId::new("session-0")?;
        let mut spec = ProcessSpec::new(id, ["/bin/sh", "-c", text]);
        let (name, value) = token.split_once('=').unwrap_or_default();
        spec.env.insert(name.to_owned(), value.to_owned());
        let mut session = bench.driver.session(&handle, spec, terminal).await?;
        until(&mut session.output, "ready").await?;
        let runs = || running_with(&token);
        let all_run = async {
            while runs()?.len() < 4 {
                runtime::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(())
        };
        soon("all of the session", all_run).await??;
        // The command has children, and its own parent keeps it.
        let found = runs()?;
        let command = found.iter().find(|(pid, parent)| {
            !found.contains_key(parent) && found.values().any(|other| other == *pid)
        });
        let keeper = command.and_then(|(_, parent)| Pid::from_raw(*parent));
        let keeper = keeper.ok_or_else(|| Failure::new("nobody keeps it".to_owned()))?;
        kill_process(keeper, Raw::KILL).map_err(std::io::Error::from)?;
        let exit = soon("exit", session.control.wait()).await??;
        ensure!(exit.outcome == Outcome::Lost, "{exit:?}");
        let none_runs = async {
            while !runs()?.is_empty() {
                runtime::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(())
        };
        soon("the end of all", none_runs).await??;
        // What is no part of it goes on.
        bench.processes(&handle, 1).await?;
    }
    Ok(())
}

/// The processes of the machine with this in their environment, and the parent of each.
fn running_with(token: &str) -> Result<BTreeMap<i32, i32>, Failure> {
    let mut found = BTreeMap::new();
    for entry in Table::read()?.running() {
        if environment_has(entry.id.pid, &[token.to_owned()]) {
            found.insert(entry.id.pid, entry.parent);
        }
    }
    Ok(found)
}

pub(super) async fn a_session_that_fails_says_why(bench: Bench) -> Verdict {
    if !has_sessions(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    for terminal in [None, Some(SIZE)] {
        let failed = bench.session(&handle, &["/no/such/command"], terminal).await;
        let told = matches!(&failed, Err(DriverError::Start { fault: StartFault::Missing, .. }));
        ensure!(told, "{failed:?}");
    }
    let unknown = Handle::new("no-such-container")?;
    let failed = bench.session(&unknown, &["true"], None).await;
    ensure!(matches!(failed, Err(DriverError::NotFound { .. })), "{failed:?}");
    // Removing a container ends its sessions.
    let mut session = bench.session(&handle, &["/bin/sh", "-c", "echo ready; cat"], None).await?;
    until(&mut session.output, "ready").await?;
    bench.driver.remove(&handle).await?;
    let exit = runtime::timeout(Duration::from_secs(10), session.control.wait()).await;
    let ended = matches!(exit, Some(Ok(exit)) if !exit.success());
    ensure!(ended, "after its container was removed: {exit:?}");
    Ok(())
}
