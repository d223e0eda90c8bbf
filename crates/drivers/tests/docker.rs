//! The docker driver against the conformance suite, and what only it promises.

#[path = "docker/daemon.rs"]
mod daemon;
#[path = "docker/place.rs"]
mod place;
#[expect(dead_code, reason = "no agent is killed here")]
mod procs;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drivers::conformance::{self, Subject};
use drivers::{
    ContainerSpec, Driver as _, DriverError, EgressRule, Mount, Network, Outcome, Output,
    OutputOffset, ProcessSpec, ProcessState, Protocol, Signal, Target, Terminal, User,
};
use futures_util::StreamExt as _;
use futures_util::stream;
use runtime::{mono_now, timeout};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use place::{Place, SOON, driver_of, handle, id, sh};
use procs::running_with;

/// A place for containers, or the end of the test where there is no Docker.
macro_rules! place {
    () => {
        match Place::new() {
            Ok(place) => place,
            Err(reason) => {
                assert!(!place::insists(), "{reason}");
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let look = async {
        while !condition() {
            runtime::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, look).await.is_some(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let place = Arc::new(place!());
    assert_eq!(place.driver().capabilities().unavailable, None);
    let verdicts: Vec<_> = stream::iter(conformance::all())
        .map(|case| {
            let place: Arc<dyn Subject> = Arc::<Place>::clone(&place);
            async move { (case.name, mono_now(), case.run(place).await, mono_now()) }
        })
        .buffer_unordered(6)
        .collect()
        .await;
    let mut failed = Vec::new();
    for (name, begin, verdict, end) in verdicts {
        println!("{:6.0} ms {name}", (end - begin).as_secs_f64() * 1000.0);
        if let Err(failure) = verdict {
            failed.push(format!("{name}: {failure}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_made_from_layers() {
    let place = place!();
    let (lower, upper) = (place.dir("lower"), place.dir("upper"));
    let write = |path: PathBuf, text: &str| {
        fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        fs::write(path, text).expect("writes");
    };
    for name in ["kept", "gone", "changed", "dir/old", "whole/old"] {
        write(lower.join(name), "lower");
    }
    std::os::unix::fs::symlink("kept", lower.join("link")).expect("links");
    for (name, text) in [
        (".wh.gone", ""),
        ("changed", "upper"),
        ("dir/new", "upper"),
        ("whole/.wh..wh..opq", ""),
        ("whole/new", "upper"),
    ] {
        write(upper.join(name), text);
    }
    let driver = place.driver();
    let mut spec = ContainerSpec::new(handle("layers"));
    spec.root.layers = vec![lower.clone(), upper];
    driver.create(spec.clone()).await.expect("creates");
    let look = "cat kept changed link dir/old dir/new whole/new; ls gone whole/old 2>/dev/null; \
                echo mine > kept; chmod 700 dir; stat -c %u:%g changed";
    let seen = place.run(&driver, &spec.handle, look).await;
    assert_eq!(seen, "lowerupperlowerlowerupperupper0:0\n");
    assert_eq!(fs::read_to_string(lower.join("kept")).expect("reads"), "lower");
    let first = place.images();
    spec.handle = handle("again");
    let begin = mono_now();
    driver.create(spec.clone()).await.expect("creates");
    println!("with a known image: {:?}", mono_now() - begin);
    assert_eq!(place.run(&driver, &spec.handle, "cat kept").await, "lower");
    assert_eq!(place.images(), first, "nothing was loaded");
    for name in ["layers", "again"] {
        assert_eq!(place.images(), first);
        driver.remove(&handle(name)).await.expect("removes");
    }
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_users_and_read_only_roots() {
    let place = place!();
    let (open, closed) = (place.dir("open"), place.dir("closed"));
    fs::write(closed.join("data"), "data").expect("writes");
    std::os::unix::fs::chown(&open, Some(1234), Some(5678)).expect("changes");
    let driver = place.driver();
    let mut spec = ContainerSpec::new(handle("mounts"));
    let mount = |source: &PathBuf, target: &str, read_only| Mount {
        source: source.clone(),
        target: target.to_owned(),
        read_only,
    };
    spec.mounts = vec![mount(&open, "/mnt/open", false), mount(&closed, "/mnt/closed", true)];
    spec.root.read_only = true;
    spec.root.tmp_bytes = Some(1 << 20);
    spec.user = Some(User { uid: 1234, gid: 5678 });
    driver.create(spec.clone()).await.expect("creates");
    let text = "id -u; id -g; id -G; cat /mnt/closed/data; echo x > /mnt/open/made; \
                echo x > /mnt/closed/made; echo x > /made; echo x > /home/made; \
                head -c 2000000 /dev/zero > /tmp/much; stat -c %s /tmp/much; rm /tmp/much";
    let seen = place.run(&driver, &spec.handle, text).await;
    assert_eq!(seen, "1234\n5678\n5678\ndata1048576\n");
    assert_eq!(fs::metadata(open.join("made")).expect("is there").uid(), 1234);
    assert!(!closed.join("made").exists());
    let mut own = sh("root", "id -u; echo x > /tmp/root && echo y");
    own.user = Some(User { uid: 0, gid: 0 });
    assert_eq!(place.run_spec(&driver, &spec.handle, own).await.1, "0\ny\n");
    driver.remove(&spec.handle).await.expect("removes");
    let mut missing = ContainerSpec::new(handle("missing"));
    missing.mounts = vec![mount(&place.dir("x").join("no"), "/x", true)];
    let refused = driver.create(missing.clone()).await.expect_err("there is no such directory");
    assert!(refused.to_string().contains("/no"), "{refused}");
    let gone = driver.inspect(&missing.handle).await;
    assert!(matches!(gone, Err(DriverError::NotFound { .. })), "{gone:?}");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let place = place!();
    let driver = place.driver();
    let mut spec = ContainerSpec::new(handle("limits"));
    spec.limits.memory_bytes = Some(48 << 20);
    spec.limits.cpu_millis = Some(200);
    spec.limits.processes = Some(40);
    driver.create(spec.clone()).await.expect("creates");
    let name = &spec.handle;
    let hungry = sh("hungry", "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c");
    driver.start(name, hungry).await.expect("starts");
    let exec = sh("oom", "exec python3 -c 'x = b\"x\" * 200_000_000; print(len(x))'");
    let (exit, _) = place.run_spec(&driver, name, exec).await;
    assert_eq!((exit.outcome, exit.oom), (Outcome::Signal(9), true), "{exit:?}");
    let (exit, _) = place.run_spec(&driver, name, sh("self", "kill -9 $$")).await;
    assert_eq!((exit.outcome, exit.oom), (Outcome::Signal(9), false), "{exit:?}");
    assert!(driver.stats(name).await.expect("measures").oom_kills > 0);
    let many = "i=0; while [ $i -lt 300 ]; do sleep 30 & i=$((i+1)); done; wait";
    driver.start(name, sh("many", many)).await.expect("starts");
    let counted = timeout(Duration::from_secs(3), async {
        loop {
            let stats = driver.stats(name).await.expect("measures");
            assert!(stats.processes <= 40, "{stats:?}");
            runtime::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(counted.await, None::<()>);
    driver.stop(name, Target::All, Duration::ZERO).await.expect("stops");
    let burn = "timeout 2 sh -c 'while :; do :; done'; echo";
    let before = driver.stats(name).await.expect("measures");
    place.run(&driver, name, burn).await;
    let after = driver.stats(name).await.expect("measures");
    let used = after.cpu.saturating_sub(before.cpu);
    assert!(used < Duration::from_millis(800) && after.throttled > before.throttled, "{used:?}");
    driver.remove(name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_restricted() {
    let place = place!();
    let driver = place.driver();
    let listener = TcpListener::bind("0.0.0.0:0").expect("listens");
    let port = listener.local_addr().expect("has one").port();
    let gateway = "10.213.0.1";
    let connect = |to: &str, port: u16| {
        format!(
            "timeout 3 bash -c 'exec 3<>/dev/tcp/{to}/{port}' 2>/dev/null && echo in || echo out"
        )
    };
    let mut spec = ContainerSpec::new(handle("neighbour"));
    driver.create(spec.clone()).await.expect("creates");
    let serve = "exec python3 -m http.server 8000 --bind 0.0.0.0";
    driver.start(&spec.handle, sh("server", serve)).await.expect("starts");
    let Network::Own(neighbour) = driver.network(&spec.handle) else {
        panic!("shares the network")
    };
    let reach = async {
        while tokio::net::TcpStream::connect((neighbour, 8000)).await.is_err() {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, reach).await.is_some(), "the machine reaches containers");
    spec.handle = handle("curious");
    driver.create(spec.clone()).await.expect("creates");
    let own = format!("{}\n", "out\n".repeat(5).trim_end());
    let text = [
        connect(gateway, port),
        connect(gateway, 22),
        connect(&neighbour.to_string(), 8000),
        connect("169.254.169.254", 80),
        connect("192.168.1.1", 80),
    ];
    assert_eq!(place.run(&driver, &spec.handle, &text.join("; ")).await, own);
    let text = "cat /proc/net/if_inet6 2>/dev/null | wc -l; \
                grep -c . /proc/net/route; (ping -c1 -W1 10.213.0.1 || echo no) 2>&1 | tail -1; \
                python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)' \
                2>&1 | tail -1";
    let seen = place.run(&driver, &spec.handle, text).await;
    assert!(seen.starts_with("0\n3\n") && seen.contains("Operation not permitted"), "{seen}");
    spec.handle = handle("allowed");
    let rule = |network: &str, port| EgressRule {
        network: network.parse().expect("an address"),
        prefix: 32,
        protocol: Protocol::Tcp,
        ports: Some((port, port)),
    };
    spec.egress = vec![rule(gateway, port), rule(&neighbour.to_string(), 8000)];
    driver.create(spec.clone()).await.expect("creates");
    let text = [
        connect(gateway, port),
        connect(gateway, 22),
        connect(&neighbour.to_string(), 8000),
        connect(&neighbour.to_string(), 8001),
    ];
    let seen = place.run(&driver, &spec.handle, &text.join("; ")).await;
    assert_eq!(seen, "in\nout\nin\nout\n");
    for name in ["neighbour", "curious", "allowed"] {
        driver.remove(&handle(name)).await.expect("removes");
    }
    let rules = place::iptables_rules();
    assert!(!rules.contains(&format!("{port} ")), "{rules}");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_another_program_removed_come_back() {
    let place = place!();
    let mut config = place.config();
    config.subnet = ([10, 215, 0, 0].into(), 16);
    let driver = driver_of(&config);
    let mut spec = ContainerSpec::new(handle("first"));
    let network = [10, 1, 2, 3].into();
    spec.egress = vec![EgressRule { network, prefix: 32, protocol: Protocol::Udp, ports: None }];
    driver.create(spec.clone()).await.expect("creates");
    let rules = || {
        let all = place::iptables_rules();
        // The bridge's name tells the chains of this subnet.
        let network = place.ask("GET", "/networks/longshore-10.215.0.0-16");
        let found: serde_json::Value = serde_json::from_str(&network).expect("parses");
        let bridge = found["Options"]["com.docker.network.bridge.name"].to_string();
        let mark = bridge.trim_matches('"').trim_start_matches("ls-").to_owned();
        let own = all.lines().filter(|line| line.contains(&mark) && line.contains("LONGSHORE"));
        own.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    assert!(
        before.iter().any(|rule| rule.contains("-d 10.1.2.3/32 -p udp -j ACCEPT")),
        "{before:?}"
    );
    let flush = |chain: &str| {
        let flushed = std::process::Command::new("iptables").args(["-w", "-F", chain]).status();
        assert!(flushed.expect("runs").success());
    };
    let chains: Vec<_> = before.iter().filter_map(|rule| rule.strip_prefix("-N ")).collect();
    assert_eq!(chains.len(), 2, "{before:?}");
    for chain in &chains {
        flush(chain);
    }
    spec.handle = handle("second");
    spec.egress.clear();
    driver.create(spec).await.expect("creates");
    assert_eq!(rules(), before, "when a container is made");
    for chain in &chains {
        flush(chain);
    }
    let again = driver_of(&config);
    let mended = async {
        while rules() != before {
            runtime::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(SOON, mended).await.is_some(), "when an agent looks: {:?}", rules());
    for name in ["first", "second"] {
        driver.remove(&handle(name)).await.expect("removes");
    }
    again.uninstall().await.expect("removes the network");
    assert!(!place::iptables_rules().contains("10.215."), "rules are left");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_do_not_see_each_others_containers() {
    let (place, other) = (place!(), place!());
    let name = handle("same");
    let (driver, stranger) = (place.driver(), other.driver());
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    stranger.create(ContainerSpec::new(name.clone())).await.expect("creates its own");
    let mark = |text: &str| sh(text, &format!("echo {text} > /mark; cat /mark"));
    assert_eq!(place.run_spec(&driver, &name, mark("a")).await.1, "a\n");
    assert_eq!(other.run_spec(&stranger, &name, mark("b")).await.1, "b\n");
    stranger.remove(&name).await.expect("removes");
    assert!(stranger.list().await.expect("lists").is_empty());
    assert_eq!(driver.list().await.expect("lists").len(), 1);
    assert_eq!(place.run(&driver, &name, "cat /mark").await, "a\n");
    // What an agent with an empty directory would call abandoned is only ever its own.
    fs::remove_dir_all(place.path().join("same")).expect("forgets");
    let reopened = place.driver();
    let gone = async {
        while !place.containers().is_empty() {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, gone).await.is_some(), "what nobody knows is removed");
    drop(reopened);
    other.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_container_is_brought_up_again() {
    let place = place!();
    let driver = place.driver();
    let name = handle("stopped");
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    assert_eq!(place.run(&driver, &name, "echo kept > /file").await, "");
    driver.start(&name, sh("lost", "exec sleep 1000")).await.expect("starts");
    // As a restart of the daemon or of the machine would.
    place.kill_all();
    let exit = timeout(SOON, driver.wait(&name, &id("lost"))).await.expect("ends");
    assert_eq!(exit.expect("waits").outcome, Outcome::Lost);
    let info = driver.inspect(&name).await.expect("is there");
    assert!(info.processes.iter().all(|one| one.state != ProcessState::Running), "{info:?}");
    assert_eq!(driver.stats(&name).await.expect("measures").processes, 0);
    assert_eq!(place.run(&driver, &name, "cat /file").await, "kept\n");
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_have_input_output_and_an_end() {
    let place = place!();
    let driver = place.driver();
    let name = handle("session");
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    let text = "read line; echo got $line; echo bad >&2; exit 3";
    let mut session = driver.session(&name, sh("s", text), None).await.expect("starts");
    session.input.write_all(b"words\n").await.expect("writes");
    let (mut output, mut error) = (String::new(), String::new());
    session.output.read_to_string(&mut output).await.expect("reads");
    session.error.read_to_string(&mut error).await.expect("reads");
    assert_eq!((output.as_str(), error.as_str()), ("got words\n", "bad\n"));
    let exit = session.control.wait().await.expect("waits");
    assert_eq!(exit.outcome, Outcome::Code(3));
    assert_eq!(session.control.wait().await.expect("waits"), exit);
    let listed = driver.inspect(&name).await.expect("is there");
    assert!(listed.processes.is_empty(), "{listed:?}");
    let dropped = driver.session(&name, sh("d", "sleep 1000"), None).await.expect("starts");
    drop(dropped);
    let ends = async {
        while driver.stats(&name).await.expect("measures").processes > 0 {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, ends).await.is_some(), "it runs without anybody");
    let failed = driver.session(&name, ProcessSpec::new(id("f"), ["/no/such"]), None).await;
    assert!(matches!(failed, Err(DriverError::Start { .. })), "{failed:?}");
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_of_a_dead_agent_left_is_ended() {
    let place = place!();
    let driver = place.driver();
    let name = handle("left");
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    // The launcher of that session was killed as well, so its processes are nobody's.
    let token = format!("LEFT_OF={}", place.path().display());
    for (id, session) in [("gone", format!("{}-1-0", i32::MAX)), ("other", "none".to_owned())] {
        let text = format!(
            "echo ready; exec env LEFT_OF={} SHORE_SESSION={session} sleep 1000",
            place.path().display()
        );
        driver.start(&name, sh(id, &text)).await.expect("starts");
    }
    until("both", || running_with(&token).len() == 2).await;
    let next = place.driver();
    until("the end of one", || running_with(&token).len() == 1).await;
    let exit = timeout(SOON, next.wait(&name, &id("gone"))).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Signal(9));
    assert!(!running_with("SHORE_SESSION=none").is_empty());
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_and_passes_keys_on() {
    let place = place!();
    let driver = place.driver();
    let name = handle("terminal");
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    let size = Terminal { columns: 100, rows: 30 };
    let text = "tty > /dev/null && stty size; trap 'stty size; exit 4' INT; echo ready; \
                while :; do sleep 0.05; done";
    let mut session = driver.session(&name, sh("t", text), Some(size)).await.expect("starts");
    let mut seen = String::new();
    let mut until = async |text: &str, seen: &mut String| {
        let mut buffer = [0; 1024];
        while !seen.contains(text) {
            let read = timeout(SOON, session.output.read(&mut buffer)).await;
            let read = read.expect("in time").expect("reads");
            assert!(read > 0, "it ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    until("ready", &mut seen).await;
    assert!(seen.starts_with("30 100\r\n"), "{seen:?}");
    session.control.resize(Terminal { columns: 40, rows: 20 }).expect("resizes");
    session.input.write_all(b"\x03").await.expect("writes");
    until("20 40", &mut seen).await;
    let exit = timeout(SOON, session.control.wait()).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Code(4));
    let signalled = sh("k", "exec sleep 1000");
    let mut session = driver.session(&name, signalled, Some(size)).await.expect("starts");
    session.control.signal(Signal::Term).expect("signals");
    let exit = timeout(SOON, session.control.wait()).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Signal(15));
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_daemon_is_survived() {
    let usual = place!();
    let name = handle("restarted");
    // Docker has the machine filter what bridges pass on when it makes its first such network.
    usual.driver().create(ContainerSpec::new(name.clone())).await.expect("creates");
    usual.driver().remove(&name).await.expect("removes");
    let arguments = ["--live-restore", "--iptables=false"];
    let own = daemon::Own::start(&arguments, "/tmp/longshore-docker-restart.lock");
    let mut daemon = own.expect("starts");
    let place = Place::at(daemon.socket());
    let mut config = place.config();
    config.subnet = ([10, 214, 0, 0].into(), 16);
    let driver = driver_of(&config);
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    let text = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
    driver.start(&name, sh("writer", text)).await.expect("starts");
    assert_eq!(driver.look_again(), None);
    daemon.stop();
    let reason = driver.look_again().expect("nobody listens");
    assert!(reason.contains("docker.sock"), "{reason}");
    assert_eq!(driver.capabilities().unavailable, Some(reason));
    let mut output = driver.attach(&name, &id("writer"), OutputOffset(0)).await.expect("attaches");
    let mut written = String::new();
    while written.lines().count() < 100 {
        let next = timeout(SOON, output.next()).await.expect("goes on without the daemon");
        let Some(Ok(Output::Chunk(chunk))) = next else { panic!("{next:?}") };
        written.push_str(&String::from_utf8_lossy(&chunk.bytes));
    }
    assert_eq!(place.run_spec(&driver, &name, sh("a", "echo a")).await.1, "a\n");
    let refused = driver.create(ContainerSpec::new(handle("other"))).await;
    let told = refused.as_ref().err().map(ToString::to_string).unwrap_or_default();
    assert!(told.contains("docker.sock"), "{refused:?}");
    daemon.begin().expect("starts again");
    assert_eq!((driver.look_again(), driver.capabilities().unavailable), (None, None));
    driver.create(ContainerSpec::new(handle("other"))).await.expect("creates");
    let info = driver.inspect(&name).await.expect("is there");
    assert!(info.processes.iter().any(|one| one.state == ProcessState::Running), "{info:?}");
    for name in [name, handle("other")] {
        driver.remove(&name).await.expect("removes");
    }
    driver.uninstall().await.expect("removes the network");
    assert!(!place::iptables_rules().contains("10.214."), "rules are left");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_out() {
    let place = place!();
    let driver = place.driver();
    let name = handle("escape");
    let mut spec = ContainerSpec::new(name.clone());
    spec.limits.memory_bytes = Some(256 << 20);
    driver.create(spec).await.expect("creates");
    let text = include_str!("docker/escape.py");
    let attempts = ProcessSpec::new(id("p"), ["python3", "-c", text]);
    let (exit, seen) = place.run_spec(&driver, &name, attempts).await;
    assert_eq!((exit.outcome, seen.as_str()), (Outcome::Code(0), "worked: nothing\n"));
    assert_eq!(place.run(&driver, &name, "echo still here").await, "still here\n");
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_first_process_is_told_nothing() {
    let place = place!();
    let driver = place.driver();
    let name = handle("false");
    driver.create(ContainerSpec::new(name.clone())).await.expect("creates");
    let text = "import os, socket\n\
                path = '/.longshore/run/init'\n\
                os.unlink(path)\n\
                server = socket.socket(socket.AF_UNIX)\n\
                server.bind(path)\n\
                server.listen()\n\
                print('ready', flush=True)\n\
                print(len(server.accept()[0].recv(100)), flush=True)\n\
                os.unlink(path)\n\
                os.symlink('/var/run/docker.sock', path)\n\
                print('ready', flush=True)\n";
    driver.start(&name, ProcessSpec::new(id("p"), ["python3", "-c", text])).await.expect("starts");
    let mut output = driver.attach(&name, &id("p"), OutputOffset(0)).await.expect("attaches");
    let mut seen = String::new();
    for wanted in ["ready\n", "ready\n0\nready\n"] {
        while seen != wanted {
            let Some(Ok(Output::Chunk(chunk))) =
                timeout(SOON, output.next()).await.expect("writes")
            else {
                panic!("{seen}")
            };
            seen.push_str(&String::from_utf8_lossy(&chunk.bytes));
        }
        let failed = driver.start(&name, sh("q", "true")).await;
        let told = failed.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(told.contains("supervisor"), "{failed:?}");
    }
    driver.remove(&name).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_made_as_the_benchmark_of_cis_asks() {
    let place = place!();
    let driver = place.driver();
    let mut spec = ContainerSpec::new(handle("cis"));
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(500);
    spec.limits.processes = Some(10);
    spec.root.read_only = true;
    driver.create(spec.clone()).await.expect("creates");
    let name = place.containers().pop().expect("one");
    let text = place.ask("GET", &format!("/containers{name}/json"));
    let found: serde_json::Value = serde_json::from_str(&text).expect("parses");
    let host = &found["HostConfig"];
    let is = |key: &str, wanted: serde_json::Value| assert_eq!(host[key], wanted, "{key}");
    is("Privileged", false.into());
    is("CapDrop", ["ALL"].as_slice().into());
    is("NetworkMode", "longshore-10.213.0.0-16".into());
    is("PublishAllPorts", false.into());
    is("PortBindings", serde_json::Value::Null);
    is("Memory", (64 << 20).into());
    is("MemorySwap", (64 << 20).into());
    is("CpuShares", 512.into());
    is("ReadonlyRootfs", true.into());
    is("PidMode", "".into());
    is("IpcMode", "private".into());
    is("UTSMode", "".into());
    is("UsernsMode", "".into());
    is("CgroupParent", "".into());
    is("Devices", serde_json::Value::Null);
    is("RestartPolicy", serde_json::json!({ "Name": "no", "MaximumRetryCount": 0 }));
    assert!(host["PidsLimit"].as_u64().is_some_and(|limit| limit < 100));
    assert!(host["CapAdd"].as_array().is_some_and(|caps| caps.len() == 8));
    let options = host["SecurityOpt"].to_string();
    assert!(options.contains("no-new-privileges") && !options.contains("unconfined"), "{options}");
    let mounts = found["Mounts"].to_string();
    assert!(!mounts.contains("docker.sock") && !mounts.contains("rshared"), "{mounts}");
    let sources = found["Mounts"].as_array().expect("a list").iter();
    let writable: Vec<_> =
        sources.filter(|one| one["RW"] == true && one["Type"] == "bind").collect();
    assert!(writable.is_empty(), "{writable:?}");
    driver.remove(&spec.handle).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_is_fast() {
    const ROUNDS: usize = 15;
    let place = place!();
    let driver = place.driver();
    let mut spec = ContainerSpec::new(handle("kept"));
    // So that the image stays.
    driver.create(spec.clone()).await.expect("creates");
    let (mut creates, mut starts, mut removes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        spec.handle = handle(&format!("c{number}"));
        let begin = mono_now();
        driver.create(spec.clone()).await.expect("creates");
        creates.push(mono_now() - begin);
        for process in 0..4 {
            let begin = mono_now();
            let started = sh(&format!("p{process}"), "exec sleep 1000");
            driver.start(&spec.handle, started).await.expect("starts");
            starts.push(mono_now() - begin);
        }
        let begin = mono_now();
        driver.remove(&spec.handle).await.expect("removes");
        removes.push(mono_now() - begin);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let start = median(&mut starts);
    println!(
        "medians: create {:?}, start {start:?}, remove {:?}",
        median(&mut creates),
        median(&mut removes)
    );
    assert!(start < Duration::from_millis(100), "{start:?}");
    driver.remove(&handle("kept")).await.expect("removes");
    place.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_daemon_is_told() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let mut config = drivers::docker::Config::new(dir.path());
    config.socket = dir.path().join("no.sock");
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let driver = drivers::docker::DockerDriver::open(&config, tasks).expect("opens all the same");
    let unavailable = driver.capabilities().unavailable.expect("says so");
    assert!(unavailable.contains("no.sock") || unavailable.contains("root"), "{unavailable}");
    let made = driver.create(ContainerSpec::new(handle("x"))).await;
    assert!(made.is_err(), "{made:?}");
    assert!(driver.list().await.expect("lists").is_empty());
}
