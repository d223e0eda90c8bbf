//! Making, finding and removing containers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bench::soon;
use super::{Bench, Verdict, ensure};
use crate::driver::Target;
use crate::error::DriverError;
use crate::spec::{ContainerSpec, Handle};

pub(super) async fn create_list_and_remove_are_idempotent(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let again = bench.driver.create(ContainerSpec::new(handle.clone())).await;
    ensure!(matches!(again, Err(DriverError::Exists { .. })), "second create: {again:?}");
    let listed = async || {
        let list = bench.driver.list().await?;
        Ok::<_, DriverError>(list.iter().filter(|info| info.handle == handle).count())
    };
    ensure!(listed().await? == 1, "listed once");
    bench.driver.remove(&handle).await?;
    bench.driver.remove(&handle).await?;
    ensure!(listed().await? == 0, "still listed");
    bench.driver.create(ContainerSpec::new(handle.clone())).await?;
    ensure!(listed().await? == 1, "not listed after it was made again");
    Ok(())
}

pub(super) async fn properties_come_back(bench: Bench) -> Verdict {
    let handle = bench.handle("c")?;
    let mut spec = ContainerSpec::new(handle.clone());
    spec.properties = BTreeMap::from([
        ("task".to_owned(), "7".to_owned()),
        ("odd key=\n\"".to_owned(), "ü\u{1f980}".to_owned()),
    ]);
    let properties = spec.properties.clone();
    bench.driver.create(spec.clone()).await?;
    let found = bench.reopen()?.inspect(&handle).await?;
    ensure!(found.properties == properties, "{:?}", found.properties);
    spec.handle = bench.handle("many")?;
    spec.properties = (0..1000).map(|n| (n.to_string(), String::new())).collect();
    let many = bench.driver.create(spec).await;
    ensure!(matches!(many, Err(DriverError::Invalid { .. })), "1000 properties: {many:?}");
    Ok(())
}

pub(super) async fn names_have_limits(bench: Bench) -> Verdict {
    for bad in ["", ".", "..", "a/b", "../a", "-a", "A", "a b", "a\n", &"x".repeat(81)] {
        ensure!(Handle::new(bad).is_err(), "{bad:?} was accepted");
    }
    let filled = format!("{:x<80}", bench.handle("c")?.as_str());
    let long = Handle::new(filled)?;
    bench.driver.create(ContainerSpec::new(long.clone())).await?;
    let found = bench.driver.inspect(&long).await;
    bench.driver.remove(&long).await?;
    ensure!(found.is_ok_and(|info| info.handle == long), "80 characters");
    Ok(())
}

pub(super) async fn remove_leaves_nothing(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    // Directories closed to their owner, as package managers leave them.
    let text = "mkdir -p a/b && echo x > a/b/f && chmod 500 a/b && chmod 000 a && echo done";
    bench.output(&handle, "p", text).await?;
    let path = bench.driver.host_path(&handle, "/");
    bench.driver.remove(&handle).await?;
    ensure!(path.is_none_or(|path| !path.exists()), "the root is still there");
    let gone = [
        bench.driver.inspect(&handle).await.map(drop),
        bench.driver.stats(&handle).await.map(drop),
        bench.driver.copy_out(&handle, "/").await.map(drop),
        bench.driver.stop(&handle, Target::All, Duration::ZERO).await,
        bench.script(&handle, "q", "true").await.map(drop),
    ];
    for result in gone {
        ensure!(matches!(result, Err(DriverError::NotFound { .. })), "{result:?}");
    }
    Ok(())
}

/// Deeper than a path may be.
pub(super) async fn remove_reaches_every_depth(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "perl -e 'for (1 .. 3000) { mkdir \"d\" and chdir \"d\" or die } print \"done\"'";
    let made = bench.output(&handle, "p", text).await?.text();
    ensure!(made == "done", "{made}");
    soon("remove", bench.driver.remove(&handle)).await??;
    ensure!(bench.driver.list().await?.iter().all(|it| it.handle != handle), "it is still there");
    Ok(())
}

pub(super) async fn remove_kills_what_runs(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let (id, _) = bench.ready(&handle, "p", "trap '' TERM; echo ready; sleep 1000").await?;
    let driver = bench.reopen()?;
    let waiting = async { driver.wait(&handle, &id).await };
    let removing = async { soon("remove", bench.driver.remove(&handle)).await };
    let (exit, removed) = futures_util::future::join(waiting, removing).await;
    removed??;
    // The waiter hears of the end or that the container is gone, but never of a success.
    ensure!(!exit.as_ref().is_ok_and(crate::Exit::success), "{exit:?}");
    Ok(())
}

pub(super) async fn remove_beats_a_forker(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "echo ready; while :; do (setsid sleep 1000 & sleep 1000 &) ; sleep 0.01; done";
    bench.ready(&handle, "p", text).await?;
    soon("remove", bench.driver.remove(&handle)).await??;
    Ok(())
}

pub(super) async fn containers_have_their_own_directories(bench: Bench) -> Verdict {
    let first = bench.named("first").await?;
    let second = bench.named("second").await?;
    let write = "echo x > \"$HOME/mark\"; echo x > \"$TMPDIR/mark\"; echo x > mark";
    bench.output(&first, "p", write).await?;
    let look = "ls -A . \"$HOME\" \"$TMPDIR\"";
    let seen = bench.output(&second, "p", look).await?.text();
    ensure!(!seen.contains("mark"), "the second container sees {seen}");
    let seen = bench.output(&first, "q", look).await?.text();
    ensure!(seen.matches("mark").count() == 3, "the first container sees {seen}");
    Ok(())
}

pub(super) async fn stats_count_memory_processes_and_disk(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let text = "head -c 3000000 /dev/zero > big; sleep 1000 & echo ready; wait";
    bench.ready(&handle, "p", text).await?;
    bench.processes(&handle, 2).await?;
    let stats = bench.driver.stats(&handle).await?;
    ensure!(stats.rss_bytes > 100_000, "{stats:?}");
    ensure!(stats.disk_bytes >= 3_000_000, "{stats:?}");
    bench.driver.stop(&handle, Target::All, Duration::ZERO).await?;
    bench.processes(&handle, 0).await?;
    let text = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    bench.output(&handle, "q", text).await?;
    let stats = bench.driver.stats(&handle).await?;
    ensure!(stats.cpu > Duration::from_millis(10), "{stats:?}");
    Ok(())
}
