//! Limits that a driver says it enforces.

use std::time::Duration;

use super::bench::soon;
use super::{Bench, Verdict, ensure};
use crate::driver::{Ability, LimitKind, Outcome, Target};
use crate::spec::{Handle, ProcessId, ProcessSpec};

const MEGABYTE: u64 = 1 << 20;

impl Bench {
    fn enforces(&self, limit: LimitKind) -> bool {
        self.driver.capabilities().enforced.contains(&limit)
    }

    /// How many bytes a file of a container has.
    async fn size(&self, handle: &Handle, id: &str, path: &str) -> Result<u64, super::Failure> {
        let text = self.output(handle, id, &format!("wc -c < {path}")).await?.text();
        text.trim().parse().map_err(|_| super::Failure::new(format!("size of {path}: {text}")))
    }
}

pub(super) async fn memory_runs_out_and_is_reported(bench: Bench) -> Verdict {
    if !bench.enforces(LimitKind::Memory) {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.limits.memory_bytes = Some(48 * MEGABYTE)).await?;
    let (other, _) = bench.ready(&handle, "other", "echo ready; exec sleep 1000").await?;
    // It keeps the last line, which never ends.
    let id = bench.start(&handle, "p", &["tail", "/dev/zero"]).await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(exit.outcome == Outcome::Signal(9), "{exit:?}");
    let reports = bench.driver.capabilities().can(Ability::ReportOom);
    ensure!(!reports || exit.oom, "it is not reported: {exit:?}");
    let stats = bench.driver.stats(&handle).await?;
    ensure!(!reports || stats.oom_kills > 0, "{stats:?}");
    // What is killed by the driver later on did not run out of memory.
    bench.driver.stop(&handle, Target::One(other.clone()), Duration::ZERO).await?;
    let exit = bench.exit(&handle, &other).await?;
    ensure!(exit.outcome == Outcome::Signal(9) && !exit.oom, "killed by us: {exit:?}");
    bench.output(&handle, "after", "true").await?;
    Ok(())
}

pub(super) async fn without_a_limit_memory_is_free(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    // It keeps all of it until its input ends.
    let text = "head -c 100000000 /dev/zero | tail -c 100000000 | wc -c";
    let written = bench.output(&handle, "p", text).await?.text();
    ensure!(written.trim() == "100000000", "{written}");
    let stats = bench.driver.stats(&handle).await?;
    ensure!(stats.oom_kills == 0, "{stats:?}");
    Ok(())
}

pub(super) async fn memory_files_count_as_memory(bench: Bench) -> Verdict {
    if !bench.enforces(LimitKind::Memory) || !bench.driver.capabilities().can(Ability::LayOut) {
        return Ok(());
    }
    let made = bench.with("c", |spec| {
        spec.limits.memory_bytes = Some(32 * MEGABYTE);
        spec.root.tmp_bytes = Some(256 * MEGABYTE);
    });
    let handle = made.await?;
    let id = bench.script(&handle, "p", "exec head -c 100000000 /dev/zero > /tmp/big").await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(!exit.success(), "100 MB in 32 MB of memory: {exit:?}");
    Ok(())
}

pub(super) async fn a_fork_bomb_is_contained(bench: Bench) -> Verdict {
    const MOST: u32 = 40;
    if !bench.enforces(LimitKind::Processes)
        || bench.driver.capabilities().isolation == crate::Isolation::None
    {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.limits.processes = Some(MOST.into())).await?;
    let neighbour = bench.named("neighbour").await?;
    let text = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let id = bench.script(&handle, "p", text).await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(!exit.success(), "200 processes: {exit:?}");
    let running = bench.driver.stats(&handle).await?.processes;
    ensure!(running > 10 && running <= MOST, "{running} processes");
    bench.output(&neighbour, "p", "true").await?;
    let text = "bomb() { bomb | bomb & }; bomb; echo ready; sleep 1000";
    let bombed = bench.with("bombed", |spec| spec.limits.processes = Some(MOST.into())).await?;
    bench.script(&bombed, "p", text).await?;
    bench.output(&neighbour, "q", "true").await?;
    soon("stop", bench.driver.stop(&bombed, Target::All, Duration::ZERO)).await??;
    bench.processes(&bombed, 0).await
}

pub(super) async fn processor_time_is_limited(bench: Bench) -> Verdict {
    const SHARE: u64 = 50;
    if !bench.enforces(LimitKind::Cpu) {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.limits.cpu_millis = Some(SHARE)).await?;
    bench.ready(&handle, "p", "echo ready; while :; do :; done").await?;
    let begin = runtime::mono_now();
    let before = bench.driver.stats(&handle).await?;
    runtime::sleep(Duration::from_secs(1)).await;
    let throttled = async {
        loop {
            let now = bench.driver.stats(&handle).await?;
            if now.throttled > before.throttled {
                return Ok::<_, crate::DriverError>(now);
            }
            runtime::sleep(Duration::from_millis(100)).await;
        }
    };
    let after = soon("throttling", throttled).await??;
    let wall = (runtime::mono_now() - begin).as_millis();
    let share = after.cpu.saturating_sub(before.cpu).as_millis() * 1000 / wall.max(1);
    ensure!(share < 150, "{share} thousandths of a processor instead of {SHARE}");
    Ok(())
}

pub(super) async fn a_full_disk_is_only_its_own(bench: Bench) -> Verdict {
    if !bench.enforces(LimitKind::Disk) {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.limits.disk_bytes = Some(16 * MEGABYTE)).await?;
    let neighbour = bench.named("neighbour").await?;
    let begin = runtime::mono_now();
    let id = bench.script(&handle, "p", "exec head -c 200000000 /dev/zero > /home/big").await?;
    let exit = bench.exit(&handle, &id).await?;
    ensure!(!exit.success(), "200 MB on a disk of 16 MB: {exit:?}");
    ensure!(runtime::mono_now() - begin < Duration::from_secs(5), "it was stopped too late");
    let size = bench.size(&handle, "q", "/home/big").await?;
    ensure!(size > 12 * MEGABYTE && size < 18 * MEGABYTE, "{size} bytes");
    let text = "i=0; while : > /home/f$i; do i=$((i+1)); done";
    let id = bench.script(&handle, "inodes", text).await?;
    ensure!(!bench.exit(&handle, &id).await?.success(), "files without end");
    let stats = bench.driver.stats(&handle).await?;
    ensure!(stats.disk_bytes > 12 * MEGABYTE, "{stats:?}");
    bench.output(&neighbour, "p", "head -c 20000000 /dev/zero > /home/big").await?;
    bench.output(&handle, "r", "rm /home/big && head -c 1000000 /dev/zero > /home/again").await?;
    Ok(())
}

pub(super) async fn a_file_has_a_largest_size(bench: Bench) -> Verdict {
    if !bench.enforces(LimitKind::FileSize) {
        return Ok(());
    }
    let handle = bench.container().await?;
    let text = "trap '' XFSZ; head -c 3000000 /dev/zero > big";
    let mut spec = ProcessSpec::new(ProcessId::new("p")?, ["/bin/sh", "-c", text]);
    spec.limits.file_bytes = Some(MEGABYTE);
    spec.dir = Some("/home".to_owned());
    let (exit, _) = bench.run(&handle, spec).await?;
    ensure!(!exit.success(), "{exit:?}");
    let spec = ProcessSpec::new(ProcessId::new("q")?, ["/bin/sh", "-c", "wc -c < big"]);
    let (_, written) =
        bench.run(&handle, ProcessSpec { dir: Some("/home".to_owned()), ..spec }).await?;
    ensure!(written.text().trim() == MEGABYTE.to_string(), "{}", written.text());
    Ok(())
}

pub(super) async fn temporary_files_have_their_own_limit(bench: Bench) -> Verdict {
    if !bench.driver.capabilities().can(Ability::LayOut) {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.root.tmp_bytes = Some(MEGABYTE)).await?;
    let id = bench.script(&handle, "p", "exec head -c 3000000 /dev/zero > /tmp/big").await?;
    ensure!(!bench.exit(&handle, &id).await?.success(), "3 MB in 1 MB");
    let size = bench.size(&handle, "q", "/tmp/big").await?;
    ensure!(size <= MEGABYTE, "{size} bytes");
    Ok(())
}
