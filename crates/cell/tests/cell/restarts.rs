//! Agents and servers that go away and come back.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::{DesiredWork, Drivers};
use drivers::Driver as _;
use drivers::docker::DockerDriver;
use model::{CellDrivers, CellSpec, InstanceId};

use crate::bench::{
    Bench, http_check, instance, instance_work, process, sh, task, task_spec, task_work, until, web,
};
use crate::instances::ready;
use crate::server::{Server, Stream};

#[tokio::test]
async fn a_restarted_agent_takes_over_what_runs() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let first = stream.hello.hello.clone().expect("a hello").id;
    let wanted = instance(1, &web(Some(http_check())));
    stream.desire(true, vec![wanted.clone()]).await;
    let address = ready(&mut stream).await;
    let pid = bench.pid();
    agent.stop().await;
    assert_eq!(bench.pid(), pid);
    drop(stream);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.hello.clone().expect("a hello").id, first, "the cell keeps its id");
    assert_eq!(stream.hello.holds, [instance_work(1, 1)]);
    stream.desire(true, vec![wanted]).await;
    stream.line(&format!(r#"{{"report":"started","address":"{address}"}}"#)).await;
    stream.line(r#"{"report":"ready","ready":true}"#).await;
    assert_eq!(bench.pid(), pid, "nothing was restarted");
    assert_eq!(bench.containers().len(), 1);
    stream.gone(&instance_work(1, 1)).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_ended_without_an_agent_is_reported_with_its_last_lines() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let go = bench.dir.path().join("go");
    let text =
        format!("echo up; while [ ! -e {} ]; do sleep 0.01; done; echo last; exit 9", go.display());
    let wanted = instance(1, &process(&["/bin/sh", "-c", &text], None));
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    stream.line("up").await;
    agent.stop().await;
    drop(stream);
    std::fs::write(&go, "").expect("writes");
    let exit = bench.root().with_file_name("processes").join("web/exit.json");
    until("it ended", || exit.exists()).await;
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [instance_work(1, 1)]);
    stream.desire(true, vec![wanted]).await;
    stream
        .begins(r#"{"report":"crashed","reason":"exited with status 9","never_healthy":false,"#)
        .await;
    assert!(stream.seen.contains(&"last".to_owned()), "{:?}", stream.seen);
    assert!(!stream.seen.contains(&r#"{"report":"ready","ready":true}"#.to_owned()));
    agent.stop().await;
}

#[tokio::test]
async fn leftovers_are_removed() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let sleep = process(&["/bin/sleep", "1000"], None);
    let nap = task_spec(sh("echo up; sleep 1000"));
    stream.desire(true, vec![task(1, &nap), instance(2, &sleep)]).await;
    let reports: BTreeSet<String> =
        [stream.report().await, stream.report().await, stream.report().await]
            .into_iter()
            .map(|(_, report)| report["report"].to_string())
            .collect();
    assert_eq!(reports.len(), 3, "{reports:?}");
    stream.send(Down::Claimed(task_work(1, 1))).await;
    stream.line("up").await;
    agent.stop().await;
    drop(stream);
    std::fs::create_dir_all(bench.dir.path().join("containers/damaged/root")).expect("makes");
    assert_eq!(bench.containers().len(), 3);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [instance_work(2, 1)], "a task cannot be resumed");
    assert_eq!(bench.containers().len(), 1, "nothing else is left before the server is asked");
    stream.desire(true, Vec::new()).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_comes_in_parts_ends_nothing_before_the_last_and_all_of_it_runs() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let old = instance(9, &web(Some(http_check())));
    stream.desire(true, vec![old]).await;
    ready(&mut stream).await;
    agent.stop().await;
    // Another agent, told everything in parts.
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let all: Vec<_> = (1..=2).map(|id| instance(id, &web(Some(http_check())))).collect();
    for one in &all {
        stream.desire(false, vec![one.clone()]).await;
        ready(&mut stream).await;
    }
    assert_eq!(bench.containers().len(), 3, "nothing says yet that the old one is not wanted");
    let named =
        |one: &DesiredWork| DesiredWork { work: one.work.clone(), ..DesiredWork::default() };
    stream.desire(true, all.iter().map(named).collect()).await;
    stream.meanwhile(until("the old one is gone", || bench.containers().len() == 2)).await;
    let old = InstanceId(9).to_string();
    assert!(bench.containers().iter().all(|name| !name.contains(&old)), "{old} is gone");
    stream.desire(true, Vec::new()).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_earlier_epoch_makes_room_for_the_next() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut wanted = instance(1, &web(Some(http_check())));
    stream.desire(true, vec![wanted.clone()]).await;
    let first = ready(&mut stream).await;
    wanted.work = Some(instance_work(1, 2));
    stream.desire(false, vec![wanted]).await;
    let second = ready(&mut stream).await;
    assert_ne!(first, second);
    stream.meanwhile(until("one is left", || bench.containers().len() == 1)).await;
    assert!(bench.containers()[0].ends_with("-2"));
    stream.desire(true, Vec::new()).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn logs_survive_agents_and_connections() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let mut agent = bench.start(&server);
    let text = "i=0; while :; do echo n $i; i=$((i+1)); sleep 0.005; done";
    let wanted = instance(1, &process(&["/bin/sh", "-c", text], None));
    let mut lines = Vec::new();
    for round in 0..6 {
        let mut stream = server.accept().await;
        stream.desire(true, vec![wanted.clone()]).await;
        let until = format!("n {}", (round + 1) * 50);
        stream.line(&until).await;
        lines.extend(stream.seen.iter().filter(|line| line.starts_with("n ")).cloned());
        if round % 2 == 0 {
            // What was sent and not acknowledged is sent again.
            drop(stream);
        } else {
            agent.stop().await;
            drop(stream);
            agent = bench.start(&server);
        }
    }
    agent.stop().await;
    let numbers: Vec<u32> =
        lines.iter().filter_map(|line| line.strip_prefix("n ")?.parse().ok()).collect();
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    assert!(distinct.iter().copied().eq(0..u32::try_from(distinct.len()).expect("few")), "a gap");
    // Whatever was on its way when a connection broke may come twice.
    assert!(numbers.len() - distinct.len() < 100, "{} twice", numbers.len() - distinct.len());
}

#[tokio::test]
async fn a_silent_server_does_not_block_the_app() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.keep = false;
    let done = bench.dir.path().join("done");
    let text =
        format!("yes $(printf %0200d 0) | head -c 60000000; touch {}; sleep 1000", done.display());
    let wanted = instance(1, &process(&["/bin/sh", "-c", &text], None));
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    until("the app wrote everything", || done.exists()).await;
    drop(stream);
    let mut stream = server.accept().await;
    stream.desire(true, vec![wanted]).await;
    let told = async {
        while !stream.seen.iter().any(|line| line.ends_with("bytes of output were dropped")) {
            stream.next().await;
        }
    };
    // Tens of megabytes of lines come first.
    let told = runtime::timeout(crate::server::SOON * 4, told).await;
    assert!(told.is_some(), "the gap is told; {} lines", stream.seen.len());
    agent.stop().await;
}

#[tokio::test]
async fn a_crash_while_the_server_is_away_comes_after_all_lines() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.keep = false;
    // More than fits into what may be unacknowledged.
    let text = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; kill -9 $$";
    let wanted = instance(1, &process(&["/bin/sh", "-c", text], None));
    stream.desire(true, vec![wanted.clone()]).await;
    stream.line("line 100").await;
    drop(stream);
    let exit = bench.root().with_file_name("processes").join("web/exit.json");
    until("it ended", || exit.exists()).await;
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [instance_work(1, 1)]);
    stream.desire(true, vec![wanted]).await;
    let crash = r#"{"report":"crashed","reason":"was killed by signal 9","never_healthy":false,"#;
    stream.begins(crash).await;
    let lines: Vec<String> =
        stream.seen.iter().filter(|line| line.starts_with("line ")).cloned().collect();
    assert_eq!(lines, (0..20_000).map(|at| format!("line {at}")).collect::<Vec<_>>());
    assert!(stream.seen.last().is_some_and(|last| last.starts_with(crash)));
    agent.stop().await;
}

#[tokio::test]
async fn a_stranger_is_told_so() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let mut options =
        cell::Options::new("x".parse().expect("a name"), bench.dir.path(), crate::bench::TESTBED);
    options.drivers = vec![std::sync::Arc::new(bench.driver(&tasks))];
    let mut token = crate::server::token();
    token.secret = [9; 32];
    let endpoint = api::Endpoint::new(&server.url, token).expect("a good address");
    let refused = cell::Cell::run(options.clone(), endpoint.clone(), tasks.clone()).await;
    assert!(matches!(refused, Err(cell::CellError::Refused(_))), "{refused:?}");
    // Two agents in one directory would fight.
    let agent = bench.start(&server);
    let _stream = server.accept().await;
    let refused = Box::pin(async {
        while !matches!(
            cell::Cell::run(options.clone(), endpoint.clone(), tasks.clone()).await,
            Err(cell::CellError::InUse(_))
        ) {}
    });
    assert!(runtime::timeout(crate::server::SOON, refused).await.is_some());
    agent.stop().await;
}

#[tokio::test]
async fn a_cell_whose_only_driver_is_unavailable_does_not_start() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let mut config = drivers::docker::Config::new(bench.dir.path().join("docker"));
    config.socket = bench.dir.path().join("no.sock");
    let driver = DockerDriver::open(&config, tasks.clone()).expect("opens all the same");
    let reason = driver.capabilities().unavailable.expect("nobody listens there");
    let mut options =
        cell::Options::new("x".parse().expect("a name"), bench.dir.path(), crate::bench::TESTBED);
    options.drivers = vec![std::sync::Arc::new(driver)];
    let endpoint = api::Endpoint::new(&server.url, crate::server::token()).expect("an address");
    let refused = cell::Cell::run(options.clone(), endpoint, tasks.clone()).await;
    let Err(cell::CellError::NoDriver(said)) = refused else { panic!("{refused:?}") };
    assert_eq!(said, format!("docker: {reason}"));
    // With one that works beside it, it starts.
    let broken = options.drivers.remove(0);
    let agent = bench.start_with(&server.url, |options| options.drivers.push(broken));
    server.accept().await;
    agent.stop().await;
}

/// What a cell says next of its drivers.
async fn drivers(stream: &mut Stream) -> CellDrivers {
    loop {
        if let Up::Drivers(Drivers { drivers_json }) = stream.next().await {
            return serde_json::from_slice(&drivers_json).expect("drivers");
        }
    }
}

#[tokio::test]
async fn a_driver_that_fails_and_recovers_is_told() {
    let daemon = Path::new("/var/run/docker.sock");
    if !daemon.exists() || !rustix::process::geteuid().is_root() {
        let mut out = std::io::stdout();
        return writeln!(out, "skipped: no Docker").expect("writes");
    }
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let socket = bench.dir.path().join("docker.sock");
    std::os::unix::fs::symlink(daemon, &socket).expect("links");
    let mut config = drivers::docker::Config::new(bench.dir.path().join("docker"));
    (config.socket, config.supervisor) = (socket.clone(), crate::bench::TESTBED.into());
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let docker = DockerDriver::open(&config, tasks.clone()).expect("opens");
    let agent = bench.start_with(&server.url, |options| {
        options.drivers.push(std::sync::Arc::new(docker));
        options.driver_look = std::time::Duration::from_millis(20);
    });
    let mut stream = server.accept().await;
    let spec = |stream: &Stream| -> CellSpec {
        serde_json::from_slice(&stream.hello.spec_json).expect("a spec")
    };
    let both = ["docker", "process"].map(|name| name.parse().expect("a name"));
    let [docker, process_driver] = both.clone();
    assert_eq!(spec(&stream).drivers, both.clone().into());
    assert!(spec(&stream).unavailable.is_empty());
    std::fs::remove_file(&socket).expect("is there");
    let told = drivers(&mut stream).await;
    assert_eq!(told.drivers, [process_driver.clone()].into());
    assert!(told.unavailable[&docker].contains("docker.sock"), "{told:?}");
    // What is for it all the same is given back; what is not goes on.
    let mut spec_for_it = process(&["/bin/sleep", "1000"], None);
    spec_for_it.container.driver = Some(docker.clone());
    let other = instance(2, &process(&["/bin/sh", "-c", "echo up; sleep 1000"], None));
    stream.desire(true, vec![instance(1, &spec_for_it), other.clone()]).await;
    let reason = "driver docker does not work at the moment: ";
    stream.begins(&format!(r#"{{"report":"reject","reason":"{reason}"#)).await;
    stream.line("up").await;
    // A server that comes back hears it with the hello.
    drop(stream);
    let mut stream = server.accept().await;
    assert_eq!(spec(&stream).drivers, [process_driver].into());
    assert!(spec(&stream).unavailable.contains_key(&docker));
    stream.desire(true, vec![other]).await;
    std::os::unix::fs::symlink(daemon, &socket).expect("links");
    let told = drivers(&mut stream).await;
    assert_eq!((told.drivers, told.unavailable.len()), (both.into(), 0));
    agent.stop().await;
    assert!(tasks.shutdown(crate::server::SOON).await);
}

#[tokio::test]
async fn without_its_server_a_task_ends_and_an_instance_goes_on() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let lease = std::time::Duration::from_millis(500);
    let agent = bench.start_with(&server.url, |options| options.task_lease = lease);
    let mut stream = server.accept().await;
    let spec = task_spec(sh("echo up; sleep 1000"));
    let sleep = instance(2, &process(&["/bin/sleep", "1000"], None));
    stream.desire(true, vec![task(1, &spec), sleep.clone()]).await;
    while stream.report().await.1["report"] != "claim" {}
    stream.send(Down::Claimed(task_work(1, 1))).await;
    stream.line("up").await;
    drop(stream);
    until("the task is over", || bench.containers().len() == 1).await;
    let mut stream = server.accept().await;
    stream.desire(true, vec![task(1, &spec), sleep]).await;
    stream.begins(r#"{"report":"failed","reason":"the server was out of reach for 500 ms""#).await;
    assert_eq!(bench.containers().len(), 1, "the instance still runs");
    agent.stop().await;
}
