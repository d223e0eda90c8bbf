//! Containers outlive the agent that made them.

use std::time::Duration;

use rustix::process::{Pid, Signal as Raw, kill_process};

use super::bench::{drain, soon};
use super::{Bench, Failure, Verdict, ensure};
use crate::driver::{Exit, Isolation, Outcome, ProcessState, Signal, Target};
use crate::output::OutputOffset;

pub(super) async fn a_running_process_is_adopted(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "trap 'echo bye; exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    let before = bench.driver.inspect(&handle).await?;
    let driver = bench.reopen()?;
    let list = driver.list().await?;
    let info = list.into_iter().find(|info| info.handle == handle);
    let process = info.and_then(|info| info.processes.into_iter().next());
    let process = process.ok_or_else(|| Failure::new("it was not found".to_owned()))?;
    ensure!(process.id == id && process.state == ProcessState::Running, "{process:?}");
    ensure!(before.processes.iter().all(|old| old.pid == process.pid), "another pid");
    let stream = driver.attach(&handle, &id, OutputOffset(0)).await?;
    driver.signal(&handle, &id, Signal::Term).await?;
    let written = drain(stream).await?;
    ensure!(written.text() == "ready\nbye\n", "{}", written.text());
    let exit = soon("exit", driver.wait(&handle, &id)).await??;
    ensure!(exit.outcome == Outcome::Code(6), "{exit:?}");
    ensure!(exit == bench.exit(&handle, &id).await?, "both agents must see the same");
    Ok(())
}

pub(super) async fn an_unwatched_exit_is_known(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    bench.script(&handle, "p", "echo last words; sleep 0.1; exit 9").await?;
    bench.processes(&handle, 0).await?;
    let driver = bench.reopen()?;
    let look = async {
        loop {
            let info = driver.inspect(&handle).await?;
            // Its supervisor may need a moment more than the process.
            match info.processes.first().map(|process| process.state) {
                Some(ProcessState::Running) => runtime::sleep(Duration::from_millis(10)).await,
                state => return Ok::<_, crate::DriverError>(state),
            }
        }
    };
    let state = soon("its exit", look).await??;
    let known = matches!(state, Some(ProcessState::Exited(exit))
        if exit.outcome == Outcome::Code(9) && exit.at_ms.is_some());
    ensure!(known, "{state:?}");
    let id = crate::ProcessId::new("p")?;
    let written = drain(driver.attach(&handle, &id, OutputOffset(0)).await?).await?;
    ensure!(written.text() == "last words\n", "{}", written.text());
    Ok(())
}

pub(super) async fn a_killed_supervisor_is_not_a_success(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    // One descendant stays in the session, one leaves it, one also forgets its environment.
    let text = "sleep 1000 & (setsid sleep 1000 &) ; (env -i sleep 1000 &) ; \
                echo ready; exec sleep 1000";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    let info = bench.driver.inspect(&handle).await?;
    let supervisor = info.processes.first().and_then(|process| process.supervisor);
    let Some(pid) = supervisor.and_then(|pid| Pid::from_raw(pid.cast_signed())) else {
        return Ok(());
    };
    kill_process(pid, Raw::KILL).map_err(std::io::Error::from)?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit == Exit::LOST && !exit.success(), "{exit:?}");
    let info = bench.reopen()?.inspect(&handle).await?;
    let lost = |state| state == ProcessState::Exited(Exit::LOST);
    ensure!(info.processes.iter().all(|process| lost(process.state)), "{info:?}");
    let stream = bench.driver.attach(&handle, &id, OutputOffset(0)).await?;
    ensure!(drain(stream).await?.text() == "ready\n", "output before the loss");
    soon("stop", bench.driver.stop(&handle, Target::All, Duration::ZERO)).await??;
    bench.processes(&handle, 0).await
}

pub(super) async fn a_killed_supervisor_takes_its_processes_along(bench: Bench) -> Verdict {
    if bench.driver.capabilities().isolation == Isolation::None {
        return Ok(());
    }
    let handle = bench.container().await?;
    let (other, _) = bench.ready(&handle, "other", "echo ready; exec sleep 1000").await?;
    let text = "(env -i setsid sleep 1000 &) ; echo ready; exec sleep 1000";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    let info = bench.driver.inspect(&handle).await?;
    let process = info.processes.iter().find(|process| process.id == id);
    let supervisor = process.and_then(|process| process.supervisor);
    let Some(pid) = supervisor.and_then(|pid| Pid::from_raw(pid.cast_signed())) else {
        return Ok(());
    };
    kill_process(pid, Raw::KILL).map_err(std::io::Error::from)?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit == Exit::LOST, "{exit:?}");
    bench.processes(&handle, 1).await?;
    let info = bench.reopen()?.inspect(&handle).await?;
    let runs = info.processes.iter().find(|process| process.id == other);
    ensure!(runs.is_some_and(|it| it.state == ProcessState::Running), "the other one: {info:?}");
    Ok(())
}
