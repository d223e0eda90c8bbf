//! Archives into and out of containers.

use tar::EntryType;

use super::tars::{Tar, contents};
use super::{Bench, Verdict, ensure};
use crate::archive::{Limits, Summary};
use crate::driver::Outcome;
use crate::error::DriverError;
use crate::spec::{ProcessId, ProcessSpec};

pub(super) async fn a_tree_goes_in_and_out(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let sevens = vec![7; 100_000];
    let tar = Tar::new()
        .raw(EntryType::Directory, ("./", ""), 0o755, b"")?
        .raw(EntryType::Directory, ("empty/", ""), 0o750, b"")?
        .raw(EntryType::Regular, ("./a/b/run", ""), 0o755, b"#!/bin/sh\n")?
        .file("a/data", &sevens)?
        .raw(EntryType::GNULongName, ("././@LongLink", ""), 0, long.as_bytes())?
        .file("short", b"long")?
        .symlink("a/link", "../empty")?
        .symlink("abs", "/etc/passwd")?
        .raw(EntryType::Link, ("hard", "a/data"), 0o644, b"")?
        .file("a/data", b"replaced")?
        .done()?;
    let summary = bench.unpack(&handle, "/in/to", tar, Limits::default()).await?;
    ensure!(summary.entries == 10, "{summary:?}");
    let found = contents(&bench.pack(&handle, "/in/to").await?)?;
    let file = |name: &str| found.iter().find(|entry| entry.0 == name);
    let is = |name: &str, kind, mode, data: &[u8]| {
        file(name).is_some_and(|entry| (entry.1, entry.2, &*entry.3) == (kind, mode, data))
    };
    let names: Vec<_> = found.iter().map(|entry| (&entry.0, entry.2)).collect();
    ensure!(is("empty", EntryType::Directory, 0o750, b""), "empty: {names:?}");
    ensure!(is("a/b/run", EntryType::Regular, 0o755, b"#!/bin/sh\n"), "run: {names:?}");
    ensure!(is("a/data", EntryType::Regular, 0o644, b"replaced"), "data: {names:?}");
    ensure!(is("hard", EntryType::Regular, 0o644, &sevens), "hard: {names:?}");
    ensure!(is(&long, EntryType::Regular, 0o644, b"long"), "long: {names:?}");
    ensure!(file("a/link").is_some_and(|entry| entry.3 == b"../empty"), "link: {names:?}");
    ensure!(file("abs").is_some_and(|entry| entry.3 == b"/etc/passwd"), "abs: {names:?}");
    Ok(())
}

pub(super) async fn a_copied_program_runs(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let script = b"#!/bin/sh\nprintf '%s|' \"$@\"\nexit 5\n";
    let tar = Tar::new().raw(EntryType::Regular, ("run", ""), 0o755, script)?.done()?;
    bench.unpack(&handle, "/app", tar, Limits::default()).await?;
    for (id, command, dir) in [("a", "/app/run", "/"), ("b", "./run", "/app")] {
        let mut spec = ProcessSpec::new(ProcessId::new(id)?, [command, "x y"]);
        spec.dir = Some(dir.to_owned());
        let (exit, written) = bench.run(&handle, spec).await?;
        ensure!(exit.outcome == Outcome::Code(5), "{command}: {exit:?}");
        ensure!(written.text() == "x y|", "{command}: {}", written.text());
    }
    Ok(())
}

pub(super) async fn a_single_file_comes_out(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    bench.output(&handle, "p", "mkdir -p d && echo data > d/file && ln -s d/file link").await?;
    let found = contents(&bench.pack(&handle, "/d/file").await?)?;
    let one = [("file".to_owned(), EntryType::Regular, 0o644, b"data\n".to_vec())];
    ensure!(found == one, "{found:?}");
    for missing in ["/d/none", "/none/file", "/link/file"] {
        let result = bench.driver.copy_out(&handle, missing).await.map(drop);
        ensure!(matches!(result, Err(DriverError::NotFound { .. })), "{missing}: {result:?}");
    }
    let outside = bench.driver.copy_out(&handle, "/../etc").await.map(drop);
    ensure!(matches!(outside, Err(DriverError::Invalid { .. })), "{outside:?}");
    Ok(())
}

pub(super) async fn escapes_are_refused(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let place = bench.named("outside").await?;
    let outside = bench.driver.host_path(&place, "/").unwrap_or_else(|| "/tmp".into());
    let outside = outside.to_str().unwrap_or("/tmp");
    let absolute = format!("{outside}/made");
    let through = || Tar::new().symlink("way", outside);
    let bad = [
        ("parent", Tar::new().file("../made", b"x")?),
        ("hidden parent", Tar::new().file("a/../../made", b"x")?),
        ("parent directory", Tar::new().raw(EntryType::Directory, ("../made", ""), 0o755, b"")?),
        ("absolute", Tar::new().file(&absolute, b"x")?),
        ("through a link", through()?.file("way/made", b"x")?),
        ("directory through a link", {
            through()?.raw(EntryType::Directory, ("way/made", ""), 0o755, b"")?
        }),
        ("link through a link", through()?.symlink("way/made", "x")?),
        ("up through a link", Tar::new().symlink("a", "..")?.file("a/made", b"x")?),
        ("hard link up", Tar::new().raw(EntryType::Link, ("made", "../x"), 0o644, b"")?),
        ("hard link out", Tar::new().raw(EntryType::Link, ("made", "/etc/passwd"), 0o644, b"")?),
        ("hard link through", through()?.raw(EntryType::Link, ("h", "way/x"), 0o644, b"")?),
        ("hard link to a link", through()?.raw(EntryType::Link, ("h", "way"), 0o644, b"")?),
        ("device", Tar::new().raw(EntryType::Char, ("made", ""), 0o666, b"")?),
        ("disk", Tar::new().raw(EntryType::Block, ("made", ""), 0o666, b"")?),
        ("pipe", Tar::new().raw(EntryType::Fifo, ("made", ""), 0o666, b"")?),
    ];
    for (number, (name, tar)) in bad.into_iter().enumerate() {
        let path = format!("/in{number}");
        let result = bench.unpack(&handle, &path, tar.done()?, Limits::default()).await;
        let refused = matches!(result, Err(DriverError::Archive { .. }));
        ensure!(refused, "{name}: {result:?}");
    }
    let tar = Tar::new().symlink("way", outside)?.done()?;
    bench.unpack(&handle, "/", tar, Limits::default()).await?;
    let tar = || Tar::new().file("made", b"x")?.done();
    let below = bench.unpack(&handle, "/way", tar()?, Limits::default()).await;
    ensure!(matches!(below, Err(DriverError::Invalid { .. })), "below a link: {below:?}");
    let above = bench.unpack(&handle, "/../x", tar()?, Limits::default()).await;
    ensure!(matches!(above, Err(DriverError::Invalid { .. })), "above the root: {above:?}");
    let found = contents(&bench.pack(&place, "/").await?)?;
    ensure!(found.iter().all(|entry| !entry.0.contains("made")), "escaped: {found:?}");
    // A file in the way of a link is replaced, never written through.
    let tar = Tar::new().symlink("f", &absolute)?.file("f", b"x")?.done()?;
    bench.unpack(&handle, "/last", tar, Limits::default()).await?;
    ensure!(!std::path::Path::new(&absolute).exists(), "written through a link");
    Ok(())
}

pub(super) async fn set_id_bits_are_dropped(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let tar = Tar::new()
        .raw(EntryType::Regular, ("file", ""), 0o7755, b"x")?
        .raw(EntryType::Directory, ("dir", ""), 0o7055, b"")?
        .done()?;
    bench.unpack(&handle, "/in", tar, Limits::default()).await?;
    let text = "test ! -u in/file && test ! -g in/file && test ! -k in/file && test -x in/file \
                && test ! -u in/dir && test ! -g in/dir && test ! -k in/dir && test -w in/dir";
    bench.output(&handle, "p", text).await?;
    Ok(())
}

pub(super) async fn limits_hold(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let mut tar = Tar::new();
    for number in 0..20 {
        tar = tar.file(&number.to_string(), &[0; 1000])?;
    }
    let tar = tar.done()?;
    let enough = Limits { bytes: 20_000, entries: 20 };
    let summary = bench.unpack(&handle, "/a", tar.clone(), enough).await?;
    ensure!(summary == Summary { bytes: 20_000, entries: 20 }, "{summary:?}");
    for less in [Limits { entries: 19, ..enough }, Limits { bytes: 19_999, ..enough }] {
        let result = bench.unpack(&handle, "/b", tar.clone(), less).await;
        ensure!(matches!(result, Err(DriverError::Archive { .. })), "{less:?}: {result:?}");
    }
    let deep = "d/".repeat(45);
    let many = format!("{}f", deep.repeat(8));
    let tar = Tar::new()
        .raw(EntryType::GNULongName, ("././@LongLink", ""), 0, many.as_bytes())?
        .file("x", b"")?
        .done()?;
    let result = bench.unpack(&handle, "/c", tar, enough).await;
    ensure!(matches!(result, Err(DriverError::Archive { .. })), "deep: {result:?}");
    let name = vec![b'x'; 2 << 20];
    let tar = Tar::new().raw(EntryType::GNULongName, ("././@LongLink", ""), 0, &name)?.done()?;
    let result = bench.unpack(&handle, "/d", tar, Limits::default()).await;
    ensure!(matches!(result, Err(DriverError::Archive { .. })), "long name: {result:?}");
    Ok(())
}

pub(super) async fn broken_archives_are_refused(bench: Bench) -> Verdict {
    let handle = bench.container().await?;
    let tar = Tar::new().file("a", &[1; 5000])?.done()?;
    let mut cut = tar.clone();
    cut.truncate(2000);
    let mut changed = tar;
    changed.iter_mut().take(10).for_each(|byte| *byte = b'z');
    for (name, bytes) in [("cut", cut), ("changed", changed), ("noise", vec![b'n'; 2048])] {
        let result = bench.unpack(&handle, "/in", bytes, Limits::default()).await;
        ensure!(result.is_err(), "{name}: {result:?}");
    }
    Ok(())
}
