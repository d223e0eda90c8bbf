//! Roots from layers, mounts and users.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tar::EntryType;

use super::tars::Tar;
use super::{Bench, Verdict, ensure};
use crate::archive::Limits;
use crate::driver::Ability;
use crate::spec::{Handle, Mount, ProcessId, ProcessSpec, User};

/// A file with what tells whether it was changed: permissions, time, contents.
type Pictured = (PathBuf, u32, i64, Vec<u8>);

/// A directory of the machine for one case.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shore-conformance-{}-{number}", std::process::id());
        let at = std::env::temp_dir().join(name);
        fs::create_dir(&at)?;
        Ok(Self(at))
    }

    /// Writes a file with its directories.
    fn write(&self, path: &str, text: &str) -> std::io::Result<PathBuf> {
        let at = self.0.join(path);
        fs::create_dir_all(at.parent().unwrap_or(&self.0))?;
        fs::write(&at, text)?;
        Ok(at)
    }

    /// Everything below.
    fn picture(&self) -> std::io::Result<Vec<Pictured>> {
        let mut found = Vec::new();
        let mut next = vec![self.0.clone()];
        while let Some(path) = next.pop() {
            let metadata = fs::symlink_metadata(&path)?;
            let mut text = Vec::new();
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    next.push(entry?.path());
                }
            } else if metadata.is_file() {
                text = fs::read(&path)?;
            }
            found.push((path, metadata.mode(), metadata.mtime_nsec(), text));
        }
        found.sort_unstable();
        Ok(found)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever a case could not remove is below the system's temporary directory.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn can_lay_out(bench: &Bench) -> bool {
    bench.driver.capabilities().can(Ability::LayOut)
}

pub(super) async fn layers_are_shared_and_never_modified(bench: Bench) -> Verdict {
    if !can_lay_out(&bench) {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let layer = scratch.write("lower/data/kept", "kept")?.parent().map(Path::to_owned);
    let lower = layer.as_deref().and_then(Path::parent).unwrap_or(&scratch.0).to_owned();
    scratch.write("lower/data/changed", "old")?;
    let script = scratch.write("lower/data/run", "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    let before = scratch.picture()?;
    let first = bench.with("first", |spec| spec.root.layers = vec![lower.clone()]).await?;
    let second = bench.with("second", |spec| spec.root.layers = vec![lower.clone()]).await?;
    let text = "/data/run && echo new > /data/changed && echo more >> /data/kept && \
                rm /data/run && chmod 700 /data && touch -d @0 /data/kept && cat /data/changed";
    let written = bench.output(&first, "p", text).await?.text();
    ensure!(written == "ran\nnew\n", "{written}");
    let seen =
        bench.output(&second, "p", "/data/run && cat /data/changed /data/kept").await?.text();
    ensure!(seen == "ran\noldkept", "the other container sees {seen}");
    ensure!(scratch.picture()? == before, "a layer was modified");
    bench.driver.remove(&first).await?;
    ensure!(scratch.picture()? == before, "a layer was modified when a container was removed");
    Ok(())
}

pub(super) async fn layers_remove_what_is_below(bench: Bench) -> Verdict {
    if !can_lay_out(&bench) {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    for file in ["a/gone", "a/kept", "b/old", "c/deep/old"] {
        scratch.write(&format!("lower/{file}"), file)?;
    }
    for file in ["a/.wh.gone", "b/.wh..wh..opq", "b/new", ".wh.c"] {
        scratch.write(&format!("middle/{file}"), file)?;
    }
    scratch.write("upper/c/fresh", "c/fresh")?;
    let before = scratch.picture()?;
    let layers = ["lower", "middle", "upper"].map(|name| scratch.0.join(name));
    for name in ["first", "second"] {
        let handle = bench.with(name, |spec| spec.root.layers = layers.to_vec()).await?;
        let found = bench.output(&handle, "p", "find /a /b /c -type f | sort").await?.text();
        ensure!(found == "/a/kept\n/b/new\n/c/fresh\n", "{name}: {found}");
    }
    ensure!(scratch.picture()? == before, "a layer was modified");
    Ok(())
}

pub(super) async fn a_read_only_root_is_one(bench: Bench) -> Verdict {
    if !can_lay_out(&bench) {
        return Ok(());
    }
    let made = bench.with("c", |spec| {
        spec.root.read_only = true;
        spec.root.tmp_bytes = Some(1 << 20);
    });
    let handle = made.await?;
    let text = "for at in /file /home/file /etc/hosts /usr/file /root/file; do \
                (echo x > $at) 2>/dev/null && echo wrote $at; done; echo x > /tmp/file && echo ok";
    let written = bench.output(&handle, "p", text).await?.text();
    ensure!(written == "ok\n", "{written}");
    // What the platform brings can come all the same.
    let tar = Tar::new().file("cert", b"x")?.done()?;
    bench.unpack(&handle, "/run/shore/identity", tar, Limits::default()).await?;
    let read = bench.output(&handle, "q", "cat /run/shore/identity/cert").await?.text();
    ensure!(read == "x", "{read}");
    Ok(())
}

pub(super) async fn mounts_are_what_they_say(bench: Bench) -> Verdict {
    if !can_lay_out(&bench) {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    scratch.write("shown/file", "shown")?;
    scratch.write("volume/file", "volume")?;
    let single = scratch.write("single", "single")?;
    let mount = |name: &str, target: &str, read_only| Mount {
        source: scratch.0.join(name),
        target: target.to_owned(),
        read_only,
    };
    let made = bench.with("c", |spec| {
        spec.mounts = vec![
            mount("shown", "/deep/inside/shown", true),
            mount("volume", "/volume", false),
            mount("single", "/deep/single", true),
        ];
    });
    let handle = made.await?;
    let text = "cat /deep/inside/shown/file /volume/file /deep/single; \
                for at in /deep/inside/shown/new /deep/inside/shown/file /deep/single; do \
                (echo x > $at) 2>/dev/null && echo wrote $at; done; \
                echo new > /volume/new && rm /volume/file && stat -c %u /volume/new";
    let written = bench.output(&handle, "p", text).await?.text();
    ensure!(written == "shownvolumesingle0\n", "{written}");
    ensure!(fs::read_to_string(scratch.0.join("volume/new"))? == "new\n", "the volume");
    ensure!(!scratch.0.join("volume/file").exists(), "removed from the volume");
    // Neither devices nor set-id programs come in by a mount.
    let kmsg = makedev(1, 11);
    mknodat(CWD, scratch.0.join("volume/kmsg"), FileType::CharacterDevice, Mode::RUSR, kmsg)
        .map_err(std::io::Error::from)?;
    let program = scratch.0.join("volume/id");
    fs::copy("/usr/bin/id", &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    let text = "head -c 1 /volume/kmsg >/dev/null 2>&1 && echo kmsg; /volume/id -u";
    let mut spec = ProcessSpec::new(ProcessId::new("q")?, ["/bin/sh", "-c", text]);
    spec.user = Some(User { uid: 1234, gid: 1234 });
    let (_, written) = bench.run(&handle, spec).await?;
    ensure!(written.text() == "1234\n", "as a set-id program: {}", written.text());
    let written = bench.output(&handle, "r", "head -c 1 /volume/kmsg 2>/dev/null || echo no");
    let written = written.await?.text();
    ensure!(written == "no\n", "a device on a mount: {written}");
    owners_of_mounts_are_users_inside(&bench, &handle, &scratch.0.join("volume")).await?;
    let second =
        bench.with("second", |spec| spec.mounts = vec![mount("volume", "/v", false)]).await?;
    let seen = bench.output(&second, "p", "cat /v/new && echo again >> /v/new").await?.text();
    ensure!(seen == "new\n", "the next container sees {seen}");
    let missing = bench.with("missing", |spec| {
        spec.mounts = vec![mount("none", "/none", false)];
    });
    ensure!(missing.await.is_err(), "a mount that is not there");
    bench.driver.remove(&second).await?;
    ensure!(single.exists() && scratch.0.join("volume/new").exists(), "removed with a container");
    Ok(())
}

/// What belongs to a user on the machine belongs to the user of that number inside.
async fn owners_of_mounts_are_users_inside(
    bench: &Bench,
    handle: &Handle,
    volume: &Path,
) -> Verdict {
    std::os::unix::fs::chown(volume, Some(1234), Some(1234))?;
    let text = "echo own > /volume/own && stat -c %u /volume/own";
    let mut spec = ProcessSpec::new(ProcessId::new("own")?, ["/bin/sh", "-c", text]);
    spec.user = Some(User { uid: 1234, gid: 1234 });
    let (_, written) = bench.run(handle, spec).await?;
    let told = String::from_utf8_lossy(&written.stderr);
    ensure!(written.text() == "1234\n", "as its owner: {} {told}", written.text());
    Ok(())
}

pub(super) async fn processes_run_as_who_was_asked_for(bench: Bench) -> Verdict {
    if !bench.driver.capabilities().can(Ability::Users) {
        return Ok(());
    }
    let handle = bench.with("c", |spec| spec.user = Some(User { uid: 1234, gid: 2345 })).await?;
    let text = "id -u; id -g; grep -E '^(Cap(Eff|Prm|Amb)):' /proc/self/status | cut -f2 | sort -u; \
                (echo x > /etc/x) 2>/dev/null && echo wrote; echo x > $HOME/x && echo ok";
    let seen = bench.output(&handle, "p", text).await?.text();
    ensure!(seen == "1234\n2345\n0000000000000000\nok\n", "{seen}");
    let mut spec = ProcessSpec::new(ProcessId::new("q")?, ["/bin/sh", "-c", "id -u; echo x > x"]);
    spec.user = Some(User { uid: 99, gid: 99 });
    spec.dir = Some("/made/for/it".to_owned());
    let (exit, written) = bench.run(&handle, spec).await?;
    let told = String::from_utf8_lossy(&written.stderr);
    ensure!(exit.success() && written.text() == "99\n", "{exit:?} {} {told}", written.text());
    Ok(())
}

pub(super) async fn files_copied_in_belong_to_the_user(bench: Bench) -> Verdict {
    if !bench.driver.capabilities().can(Ability::Users) {
        return Ok(());
    }
    let user = User { uid: 1234, gid: 2345 };
    for (name, user, wanted) in [("root", None, "0:0"), ("user", Some(user), "1234:2345")] {
        let handle = bench.with(name, |spec| spec.user = user).await?;
        let tar = Tar::new()
            .raw(EntryType::Regular, ("a/file", ""), 0o600, b"x")?
            .symlink("a/link", "file")?
            .raw(EntryType::Link, ("a/hard", "a/file"), 0o600, b"")?
            .done()?;
        bench.unpack(&handle, "/in", tar.clone(), Limits::default()).await?;
        let before = "mkdir -p /kept/in/a && echo old > /kept/in/a/file";
        let mut root = ProcessSpec::new(ProcessId::new("root")?, ["/bin/sh", "-c", before]);
        root.user = Some(User::ROOT);
        let (exit, _) = bench.run(&handle, root).await?;
        ensure!(exit.success(), "{name}: {exit:?}");
        bench.unpack(&handle, "/kept/in", tar, Limits::default()).await?;
        let text = "stat -c %u:%g /in /in/a /in/a/file /in/a/link /in/a/hard /kept/in/a/file && \
                    stat -c %u:%g /kept/in /kept/in/a && \
                    echo more >> /in/a/file && cat /in/a/file /kept/in/a/file";
        let seen = bench.output(&handle, "p", text).await?.text();
        // A directory that was there keeps its owner.
        let wanted = format!("{}0:0\n0:0\nxmore\nx", format!("{wanted}\n").repeat(6));
        ensure!(seen == wanted, "{name}: {seen}");
    }
    Ok(())
}
