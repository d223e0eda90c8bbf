//! Starting, signalling and ending processes.

use std::time::Duration;

use super::bench::soon;
use super::{Bench, Verdict, ensure};
use crate::driver::{LimitKind, Outcome, Signal, Target};
use crate::error::{DriverError, StartFault};
use crate::spec::{ProcessId, ProcessSpec};

pub(super) async fn exit_codes_and_signals_are_told_apart(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let wanted = [
        ("exit 0", Outcome::Code(0)),
        ("exit 1", Outcome::Code(1)),
        ("exit 255", Outcome::Code(255)),
        ("kill -9 $$", Outcome::Signal(9)),
        ("kill -15 $$", Outcome::Signal(15)),
    ];
    for (number, (text, outcome)) in wanted.into_iter().enumerate() {
        let id = bench.script(&handle, &format!("p{number}"), text).await?;
        let exit = bench.exit(&handle, &id).await?;
        ensure!(exit.outcome == outcome, "{text}: {exit:?}");
        ensure!(exit == bench.exit(&handle, &id).await?, "{text}: a second wait differs");
    }
    Ok(())
}

pub(super) async fn arguments_are_literal(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let odd = ["$(id)", "`id`", ";", "a b", "x\ny", "", "*", "-n", "'", "\"", "\\", "$HOME", "ü"];
    let id = ProcessId::new("p")?;
    let spec = ProcessSpec::new(id, ["printf", "[%s]"].into_iter().chain(odd));
    let (exit, written) = bench.run(&handle, spec).await?;
    let wanted = format!("[{}]", odd.join("]["));
    ensure!(exit.success() && written.text() == wanted, "{exit:?} {}", written.text());
    Ok(())
}

pub(super) async fn the_environment_is_clean(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let mut spec = ProcessSpec::new(ProcessId::new("p")?, ["env"]);
    spec.env.insert("GIVEN".to_owned(), "$(id) ; x".to_owned());
    spec.env.insert("HOME".to_owned(), "/given".to_owned());
    let (_, written) = bench.run(&handle, spec).await?;
    let text = written.text();
    let known = ["GIVEN", "HOME", "PATH", "TMPDIR", "HOSTNAME", "PWD", "_", "SHLVL"];
    for line in text.lines() {
        let key = line.split('=').next().unwrap_or_default();
        ensure!(known.contains(&key) || key.starts_with("SHORE_"), "unexpected {line:?}");
    }
    ensure!(text.contains("GIVEN=$(id) ; x\n"), "{text}");
    ensure!(text.contains("HOME=/given\n") && text.contains("PATH="), "{text}");
    Ok(())
}

pub(super) async fn the_working_directory_is_made(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let mut spec = ProcessSpec::new(ProcessId::new("p")?, ["/bin/sh", "-c", "echo here > note"]);
    spec.dir = Some("/box/a b".to_owned());
    let (exit, _) = bench.run(&handle, spec).await?;
    ensure!(exit.success(), "{exit:?}");
    let tar = bench.pack(&handle, "/box/a b/note").await?;
    ensure!(tar.windows(5).any(|bytes| bytes == b"here\n"), "the file is not where it should be");
    Ok(())
}

pub(super) async fn nothing_else_is_inherited(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "cat; umask; ulimit -c; for fd in /proc/$$/fd/*; do echo ${fd##*/}; done";
    let seen = bench.output(&handle, "p", text).await?.text();
    let lines: Vec<&str> = seen.lines().collect();
    let (settings, open) = lines.split_at(lines.len().min(2));
    ensure!(settings == ["0022", "0"], "umask and core size: {settings:?}");
    let extra: Vec<_> = open.iter().filter(|fd| fd.parse().is_ok_and(|fd: u32| fd > 2)).collect();
    // Shells keep a copy of their own above 9 at most.
    ensure!(extra.len() <= 1, "open descriptors: {open:?}");
    Ok(())
}

pub(super) async fn a_start_that_fails_says_why(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "echo '#!/no/such' > script; echo 'plain' > plain; chmod +x script plain; echo > no";
    bench.output(&handle, "setup", text).await?;
    let wanted = [
        ("no-such-command", StartFault::Missing),
        ("/no/such/command", StartFault::Missing),
        ("./script", StartFault::Missing),
        ("./no", StartFault::Denied),
        ("./plain", StartFault::Format),
        ("/", StartFault::Denied),
    ];
    for (command, wanted) in wanted {
        let failed = bench.start(&handle, "p", &[command]).await;
        let told = matches!(&failed, Err(DriverError::Start { command: told, fault })
            if fault == &wanted && told == command);
        ensure!(told, "{command}: {failed:?}");
    }
    // Nothing ran, so the name is still free and nothing is listed.
    let info = bench.driver.inspect(&handle).await?;
    ensure!(info.processes.len() == 1, "{:?}", info.processes);
    bench.output(&handle, "p", "true").await?;
    Ok(())
}

pub(super) async fn a_process_id_is_used_once(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    bench.output(&handle, "p", "true").await?;
    let again = bench.script(&handle, "p", "true").await;
    ensure!(matches!(again, Err(DriverError::Exists { .. })), "{again:?}");
    Ok(())
}

pub(super) async fn many_start_at_once(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let starts = (0..30).map(|number| {
        let (bench, handle) = (&bench, &handle);
        async move { bench.output(handle, &format!("p{number}"), &format!("echo {number}")).await }
    });
    let outputs = futures_util::future::join_all(starts).await;
    for (number, output) in outputs.into_iter().enumerate() {
        ensure!(output?.text() == format!("{number}\n"), "output of {number}");
    }
    ensure!(bench.driver.inspect(&handle).await?.processes.len() == 30, "listed");
    Ok(())
}

pub(super) async fn open_files_are_limited(bench: Bench) -> Verdict {
    if !bench.driver.capabilities().enforced.contains(&LimitKind::OpenFiles) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let mut spec = ProcessSpec::new(ProcessId::new("p")?, ["/bin/sh", "-c", "ulimit -n -H"]);
    spec.limits.open_files = Some(64);
    let (_, written) = bench.run(&handle, spec).await?;
    ensure!(written.text().trim() == "64", "{}", written.text());
    Ok(())
}

pub(super) async fn a_signal_reaches_the_group(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "sh -c 'trap \"echo child; exit\" USR1; while :; do sleep 0.05; done' & \
                trap 'echo parent; wait; exit 3' USR1; sleep 0.2; echo ready; while :; do wait; done";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    bench.driver.signal(&handle, &id, Signal::Usr1).await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.outcome == Outcome::Code(3), "{exit:?}");
    let written =
        super::bench::drain(bench.driver.attach(&handle, &id, crate::OutputOffset(0)).await?)
            .await?
            .text();
    ensure!(written.contains("parent") && written.contains("child"), "{written}");
    Ok(())
}

pub(super) async fn a_signal_after_the_end_is_an_error(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let id = bench.script(&handle, "p", "true").await?;
    bench.exit(&handle, &id).await?;
    let late = bench.driver.signal(&handle, &id, Signal::Term).await;
    ensure!(matches!(late, Err(DriverError::NotRunning { .. })), "{late:?}");
    let unknown = bench.driver.signal(&handle, &ProcessId::new("q")?, Signal::Term).await;
    ensure!(matches!(unknown, Err(DriverError::NotFound { .. })), "{unknown:?}");
    Ok(())
}

pub(super) async fn stop_lets_a_process_end_itself(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "trap 'sleep 0.2; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    let begin = runtime::mono_now();
    let grace = Duration::from_secs(15);
    bench.driver.stop(&handle, Target::All, grace).await?;
    ensure!(runtime::mono_now() - begin < grace, "it waited for the whole grace period");
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.outcome == Outcome::Code(4), "{exit:?}");
    bench.driver.stop(&handle, Target::All, grace).await?;
    Ok(())
}

pub(super) async fn stop_kills_what_ignores_it(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let (id, _) = bench.ready(&handle, "p", text).await?;
    let begin = runtime::mono_now();
    let grace = Duration::from_millis(400);
    soon("stop", bench.driver.stop(&handle, Target::All, grace)).await??;
    ensure!(runtime::mono_now() - begin >= grace, "it did not wait for the grace period");
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.outcome == Outcome::Signal(9), "{exit:?}");
    bench.processes(&handle, 0).await
}

pub(super) async fn stop_one_leaves_the_others(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let (first, _) = bench.ready(&handle, "a", "echo ready; exec sleep 1000").await?;
    bench.ready(&handle, "b", "echo ready; exec sleep 1000").await?;
    let target = Target::One(first.clone());
    bench.driver.stop(&handle, target, Duration::from_secs(5)).await?;
    let exit = bench.exit(&handle, &first).await?;
    ensure!(exit.outcome == Outcome::Signal(15), "{exit:?}");
    bench.processes(&handle, 1).await
}

pub(super) async fn a_daemon_is_killed(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "(setsid sh -c 'trap \"\" TERM HUP; cd /; (sleep 1000 & sleep 1000); sleep 1000' \
                >/dev/null 2>&1 &) ; (env -i setsid sleep 1000 >/dev/null 2>&1 &) ; sleep 0.2";
    let id = bench.script(&handle, "p", text).await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.success(), "{exit:?}");
    // It outlives its parent, as it would on any machine ...
    let left = bench.driver.stats(&handle).await?.processes;
    ensure!(left >= 3, "{left} processes left");
    // ... but not its container.
    soon("stop", bench.driver.stop(&handle, Target::All, Duration::from_millis(100))).await??;
    bench.processes(&handle, 0).await
}

pub(super) async fn a_background_child_does_not_delay_the_exit(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let begin = runtime::mono_now();
    let written = bench.output(&handle, "p", "sleep 1000 & echo out").await?;
    ensure!(runtime::mono_now() - begin < Duration::from_secs(10), "too slow");
    ensure!(written.text() == "out\n", "{written:?}");
    Ok(())
}
