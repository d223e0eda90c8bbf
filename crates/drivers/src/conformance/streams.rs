//! What processes write.

use super::bench::{drain, soon};
use super::{Bench, Verdict, ensure};
use crate::driver::{ProcessState, Target};
use crate::output::OutputOffset;

/// More than any driver keeps.
const MUCH: u64 = 120_000_000;
/// What every driver must keep at least.
const KEPT_AT_LEAST: u64 = 8_000_000;
/// What no driver may keep.
const KEPT_AT_MOST: u64 = 64_000_000;

pub(super) async fn stdout_and_stderr_are_captured(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "printf 'a\\0b'; echo err >&2; printf '\\377no newline'";
    let written = bench.output(&handle, "p", text).await?;
    ensure!(written.stdout == b"a\0b\xffno newline", "{written:?}");
    ensure!(written.stderr == b"err\n", "{written:?}");
    ensure!(written.end == OutputOffset(18), "{written:?}");
    Ok(())
}

pub(super) async fn output_is_followed_live(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let (id, line) = bench.ready(&handle, "p", "echo first; sleep 1000").await?;
    ensure!(line == "first", "{line:?}");
    let info = bench.driver.inspect(&handle).await?;
    ensure!(info.processes.iter().all(|p| p.state == ProcessState::Running), "{info:?}");
    let stream = bench.driver.attach(&handle, &id, OutputOffset(6)).await?;
    let stop = bench.driver.stop(&handle, Target::All, std::time::Duration::ZERO);
    let (rest, stopped) = futures_util::future::join(drain(stream), stop).await;
    stopped?;
    ensure!(rest?.stdout.is_empty(), "read twice");
    Ok(())
}

pub(super) async fn large_output_is_whole(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "i=0; while [ $i -lt 160 ]; do head -c 65536 /dev/zero | tr '\\0' x; \
                i=$((i+1)); done; echo end >&2";
    let written = bench.output(&handle, "p", text).await?;
    ensure!(written.stdout.len() == 160 * 65_536, "{} bytes", written.stdout.len());
    ensure!(written.stdout.iter().all(|byte| *byte == b'x'), "wrong bytes");
    ensure!(written.stderr == b"end\n" && written.dropped == 0, "stderr or a gap");
    Ok(())
}

pub(super) async fn unread_output_is_bounded(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = format!("head -c {MUCH} /dev/zero; echo end >&2");
    let id = bench.script(&handle, "p", &text).await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.success(), "nobody read, so it blocked or failed: {exit:?}");
    let written = drain(bench.driver.attach(&handle, &id, OutputOffset(0)).await?).await?;
    let kept = written.stdout.len() as u64;
    ensure!((KEPT_AT_LEAST..=KEPT_AT_MOST).contains(&kept), "{kept} bytes kept");
    ensure!(kept + written.dropped == MUCH, "{kept} kept, {} dropped", written.dropped);
    ensure!(written.stderr == b"end\n", "the newest output is what counts");
    Ok(())
}

pub(super) async fn reading_resumes_at_any_offset(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "i=0; while [ $i -lt 500 ]; do echo line $i; echo error $i >&2; i=$((i+1)); done";
    let whole = bench.output(&handle, "p", text).await?;
    let id = crate::ProcessId::new("p")?;
    let driver = bench.reopen()?;
    for from in [0, 1, 7, 1000, whole.end.0 - 1, whole.end.0, whole.end.0 + 5] {
        let stream = driver.attach(&handle, &id, OutputOffset(from)).await?;
        let rest = soon("rest", drain(stream)).await??;
        let bytes = (rest.stdout.len() + rest.stderr.len()) as u64;
        ensure!(bytes == whole.end.0.saturating_sub(from), "{bytes} bytes from {from}");
        ensure!(whole.stdout.ends_with(&rest.stdout), "stdout from {from}");
        ensure!(whole.stderr.ends_with(&rest.stderr), "stderr from {from}");
    }
    Ok(())
}
