//! Commands with pipes.

use testkit::Failure;

use crate::{World, holds};

/// What a megabyte is made of, so that every byte and none twice is told apart.
fn bytes(count: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    let next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn a_command_runs_where_the_app_does() -> Result<(), Failure> {
    let world = World::start()?;
    let sh = |text| world.exec(&[], &["/bin/sh", "-c", text], b"");
    sh("echo out; echo err >&2; exit 7")?.is(7, "out\n")?;
    holds(&sh("echo out; echo err >&2")?.err, &["err\n"])?;
    // The environment is the instance's, the terminal is nobody's.
    sh("test -t 0 || echo $SHORE_APP.$SHORE_INSTANCE_INDEX $PORT | sed 's/[0-9]\\{4,\\}/port/'")?
        .is(0, "web.0 port\n")?;
    sh("kill -TERM $$")?.is(143, "")?;
    // The end of the input is an end, and not that of the session.
    world.exec(&[], &["cat"], b"x\n")?.is(0, "x\n")?;
    world.exec(&[], &["/bin/sh", "-c", "cat; echo after"], b"")?.is(0, "after\n")?;
    world.exec(&["-e", "A=b c"], &["/bin/sh", "-c", "echo \"$A\""], b"")?.is(0, "b c\n")?;
    world
        .exec(&["--instance", "web.1"], &["printenv", "SHORE_INSTANCE_INDEX"], b"")?
        .is(0, "1\n")?;
    world.exec(&[], &["printenv", "SHORE_PROCESS"], b"")?.is(0, "web\n")?;
    // It ends although what it leaves behind has its output; that is killed.
    sh("sleep 1000 & echo done")?.is(0, "done\n")?;
    Ok(())
}

#[test]
fn ten_megabytes_come_back_as_they_went() -> Result<(), Failure> {
    let world = World::start()?;
    let sent = bytes(10 << 20);
    let said = world.exec(&[], &["cat"], &sent)?;
    assert_eq!((said.code, said.out.len()), (0, sent.len()), "{}", said.err);
    assert!(said.out == sent, "the bytes differ");
    // What is written fast and read late is whole, too.
    let said = world.exec(&[], &["head", "-c", "3000000", "/dev/zero"], b"")?;
    assert_eq!((said.code, said.out.len()), (0, 3_000_000), "{}", said.err);
    Ok(())
}

#[test]
fn what_cannot_be_is_said() -> Result<(), Failure> {
    let world = World::start()?;
    let yes = ["true"];
    world.exec(&["--instance", "web.9"], &yes, b"")?.refused(3, &["no instance web.9"])?;
    world.exec(&["--instance", "web"], &yes, b"")?.refused(6, &["is no instance"])?;
    world.exec(&["--process", "worker"], &yes, b"")?.refused(3, &["no process worker"])?;
    world.exec(&["--deployment", "77"], &yes, b"")?.refused(3, &["no deployment 77"])?;
    world.exec(&["--workspace", "other"], &yes, b"")?.refused(3, &["no release of app web"])?;
    // What cannot be started has the codes that shells have for it.
    for missing in ["nope", "/no/such/command"] {
        world.exec(&[], &[missing], b"")?.refused(127, &[missing, "was not found"])?;
    }
    world.exec(&[], &["/etc/passwd"], b"")?.refused(126, &["/etc/passwd is no executable file"])?;
    let all = ["exec", "web", "--project", "shop"];
    let none = crate::piped(world.dev.command(&all), b"")?;
    none.refused(6, &["no command was given", "shore exec APP -- COMMAND"])?;
    let other = crate::piped(world.dev.command(&["exec", "shop/none", "--", "true"]), b"")?;
    other.refused(3, &["no app none"])?;
    // A task of the app passes its exit code on, too.
    let run = ["run", "shop/web", "--", "/bin/sh", "-c", "echo said; echo wrong >&2; exit 9"];
    let ran = crate::piped(world.dev.command(&run), b"")?;
    assert_eq!(ran.code, 9, "{}", ran.err);
    // What it wrote is where it wrote it; input goes nowhere, and it says so.
    assert_eq!(ran.text(), "said\n");
    assert!(ran.err.lines().any(|line| line == "wrong"), "{}", ran.err);
    holds(&ran.err, &["`shore run` passes none"])?;
    let quiet = world.dev.shore(&run)?;
    assert_eq!((quiet.code, &*quiet.out), (9, "said\n"));
    assert!(!quiet.err.contains("passes none"), "{}", quiet.err);
    Ok(())
}

#[test]
fn only_who_may_deploy_and_it_is_written_down() -> Result<(), Failure> {
    let world = World::start()?;
    world.dev.shore(&["project", "create", "other"])?.ok("project create")?;
    let token = |args: &[&str]| -> Result<String, Failure> {
        let made = world.dev.json(&[&["token", "create"], args].concat())?;
        made["token"].as_str().map(str::to_owned).ok_or_else(|| format!("no token: {made}"))
    };
    let with = |token: &str, argv: &[&str]| {
        let all = [&["exec", "shop/web", "--"], argv].concat();
        let mut command = world.dev.command(&all);
        command.env("SHORE_TOKEN", token).env("SHORE_SERVER", world.address());
        crate::piped(command, b"")
    };
    let viewer = token(&["--role", "viewer"])?;
    with(&viewer, &["true"])?.refused(4, &["a viewer token may not change apps"])?;
    let stranger = token(&["--role", "developer", "--project", "other"])?;
    with(&stranger, &["true"])?.refused(3, &["no project shop"])?;
    let own = token(&["--role", "developer", "--project", "shop", "--label", "the one"])?;
    with(&own, &["/bin/sh", "-c", "exit 5"])?.is(5, "")?;
    let get = |token: &str| -> Result<testkit::Page, Failure> {
        let head = format!(
            "GET /v1/audit HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                            Authorization: Bearer {token}"
        );
        testkit::exchange(world.dev.ports.api, &head, b"").map_err(crate::told)
    };
    assert_eq!(get(&own)?.status, 403, "the log is the administrators'");
    let lines = testkit::wait_for("two lines", crate::LIMIT, || {
        let page = get(&world.dev.token().ok()?).ok()?;
        let lines: Vec<serde_json::Value> = serde_json::from_str(&page.body).ok()?;
        (lines.len() == 2).then_some(lines)
    })?;
    assert_eq!(lines[0]["event"], "session_ended");
    assert_eq!(lines[0]["exit"], serde_json::json!({ "code": 5 }));
    let opened = &lines[1];
    assert_eq!(opened["words"], serde_json::json!(["/bin/sh", "-c", "exit 5"]));
    assert_eq!(opened["instance"], "web.0");
    assert_eq!(opened["label"], "the one");
    assert_eq!(opened["project"], "shop");
    assert_eq!(opened["session"], lines[0]["session"]);
    Ok(())
}
