//! Files into an instance and out of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use testkit::Failure;

use crate::{World, told};

/// A tree with everything that is copied.
fn tree(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("deep/er"))?;
    fs::write(dir.join("empty"), "")?;
    fs::write(dir.join("deep/er/blob"), vec![7_u8; 700_000])?;
    fs::write(dir.join("run.sh"), "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o751))?;
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o600))?;
    symlink("deep/er/blob", dir.join("link"))?;
    symlink("/etc/passwd", dir.join("outside"))
}

/// Names, modes, targets and contents of a tree.
fn listed(dir: &Path) -> Result<String, Failure> {
    let script = "cd \"$1\" && find . -printf '%P %y %m %l\\n' | sort && \
                  find . -type f -exec sha256sum {} + | sort";
    let listed = Command::new("sh").args(["-c", script, "sh"]).arg(dir).output().map_err(told)?;
    // The directory itself is whatever it is.
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(text.lines().filter(|line| !line.starts_with(" d ")).collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_directory_comes_back_as_it_went() -> Result<(), Failure> {
    let world = World::start()?;
    let home = world.dev.home();
    let (from, back) = (home.join("from"), home.join("back"));
    tree(&from).map_err(told)?;
    let (from_text, back_text) = (from.display().to_string(), back.display().to_string());
    let said = world.cp(&[&from_text, "web:/data/tree"], b"")?;
    said.is(0, "")?;
    world.exec(&[], &["/bin/sh", "-c", "$SHORE_ROOT/data/tree/run.sh"], b"")?.is(0, "ran\n")?;
    world.cp(&["web:/data/tree", &back_text], b"")?.is(0, "")?;
    let (sent, got) = (listed(&from)?, listed(&back)?);
    assert_eq!(sent, got);
    assert!(sent.contains("run.sh f 751") && sent.contains("outside l 777 /etc/passwd"), "{sent}");
    let mode = fs::metadata(&back).map_err(told)?.permissions().mode() & 0o777;
    assert_eq!(mode & 0o700, 0o700);
    // Into a directory that is there, through archives, and of an instance that is named.
    fs::create_dir(home.join("there")).map_err(told)?;
    let there = home.join("there").display().to_string();
    world.cp(&["web:/data/tree", &there], b"")?.is(0, "")?;
    assert_eq!(listed(&home.join("there"))?, sent);
    let packed = world.cp(&["web:/data/tree", "-"], b"")?;
    assert_eq!(packed.code, 0, "{}", packed.err);
    world.cp(&["-", "web:/data/again", "--instance", "web.1"], &packed.out)?.is(0, "")?;
    let second = home.join("second").display().to_string();
    world.cp(&["web:/data/again", &second, "--instance", "web.1"], b"")?.is(0, "")?;
    assert_eq!(listed(Path::new(&second))?, sent);
    let left: Vec<_> =
        fs::read_dir(home).map_err(told)?.flatten().map(|it| it.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("shore-cp")), "{left:?}");
    Ok(())
}

#[test]
fn files_get_the_names_they_are_to_have() -> Result<(), Failure> {
    let world = World::start()?;
    let file = world.dev.home().join("note");
    fs::write(&file, "first").map_err(told)?;
    let (own, home) = (file.display().to_string(), world.dev.home().to_owned());
    world.cp(&[&own, "shop/web:/notes/"], b"")?.is(0, "")?;
    world.cp(&[&own, ":/notes/other"], b"")?.is(0, "")?;
    let text = "cd $SHORE_ROOT/notes; cat note other; ls | wc -l";
    world.exec(&[], &["/bin/sh", "-c", text], b"")?.is(0, "firstfirst2\n")?;
    let path = |name: &str| home.join(name).display().to_string();
    world.cp(&["web:/notes/other", &path("renamed")], b"")?.is(0, "")?;
    world.cp(&["web:/notes/other", &path("")], b"")?.is(0, "")?;
    for name in ["renamed", "other"] {
        assert_eq!(fs::read_to_string(home.join(name)).map_err(told)?, "first", "{name}");
    }
    // One that is there is replaced by a file, and never by a directory.
    fs::write(home.join("renamed"), "old").map_err(told)?;
    world.cp(&["web:/notes/note", &path("renamed")], b"")?.is(0, "")?;
    assert_eq!(fs::read_to_string(home.join("renamed")).map_err(told)?, "first");
    world.cp(&["web:/notes", &path("renamed")], b"")?.refused(5, &["is no directory"])?;
    Ok(())
}

#[test]
fn nothing_is_written_outside_of_what_was_named() -> Result<(), Failure> {
    let world = World::start()?;
    let home = world.dev.home();
    let outside = home.join("outside");
    fs::create_dir_all(&outside).map_err(told)?;
    fs::write(home.join("note"), "new").map_err(told)?;
    let note = home.join("note").display().to_string();
    // Links of an instance lead nowhere, and names do not lead up.
    let text = format!("ln -s {} $SHORE_ROOT/way", outside.display());
    world.exec(&[], &["/bin/sh", "-c", &text], b"")?.is(0, "")?;
    world.cp(&[&note, "web:/way/note"], b"")?.refused(1, &["symbolic links are not followed"])?;
    world.cp(&[&note, "web:/a/../../note"], b"")?.refused(1, &["'..'"])?;
    world.cp(&["web:/../tmp", "-"], b"")?.refused(1, &["'..'"])?;
    world.cp(&["web:/none", "-"], b"")?.refused(1, &["no path"])?;
    // An archive that leads up or through a link is refused there, and by this program here.
    let up = archive(&[("../note", b'0', "")])?;
    world.cp(&["-", "web:/in"], &up)?.refused(1, &["'..'"])?;
    let through = archive(&[("d", b'2', &outside.display().to_string()), ("d/note", b'0', "")])?;
    world.cp(&["-", "web:/in"], &through)?.refused(1, &["symbolic links are not followed"])?;
    // The start of an archive is no archive.
    let half = &archive(&[("a", b'0', ""), ("b", b'0', "")])?[..700];
    assert_ne!(world.cp(&["-", "web:/in"], half)?.code, 0);
    // A link that is here already leads nowhere, either.
    let here = home.join("here");
    fs::create_dir(&here).map_err(told)?;
    symlink(&outside, here.join("d")).map_err(told)?;
    world.exec(
        &[],
        &["/bin/sh", "-c", "mkdir -p $SHORE_ROOT/o/d; echo x > $SHORE_ROOT/o/d/note"],
        b"",
    )?;
    let here = here.display().to_string();
    world.cp(&["web:/o", &here], b"")?.refused(1, &["symbolic links are not followed"])?;
    assert_eq!(fs::read_dir(&outside).map_err(told)?.count(), 0);
    // The name of a directory: it says how to put a file into that.
    world.cp(&[&note, "web:/o"], b"")?.refused(1, &["`web:/o/` puts it into the directory"])?;
    world.cp(&[&note, "also"], b"")?.refused(6, &["neither FROM nor TO"])?;
    world.cp(&["web:/a", "web:/b"], b"")?.refused(6, &["both FROM and TO"])
}

/// An archive whose entries are not what a well-meaning program writes.
fn archive(entries: &[(&str, u8, &str)]) -> Result<Vec<u8>, Failure> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().ok_or("a header")?.name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o644);
        let data: &[u8] = if *kind == b'0' { b"evil" } else { b"" };
        if !target.is_empty() {
            header.set_link_name(target).map_err(told)?;
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).map_err(told)?;
    }
    builder.into_inner().map_err(told)
}
