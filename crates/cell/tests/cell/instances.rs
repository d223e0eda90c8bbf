//! Instances: healthy, crashing, stopping.

use std::time::Duration;

use api::proto::Drained;
use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use model::{Check, CheckKind};
use runtime::mono_now;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bench::{Bench, TESTBED, http_check, instance, instance_work, process, stopped, web};
use crate::server::{Server, Stream};

/// The address of an instance that starts and becomes ready.
pub(crate) async fn ready(stream: &mut Stream) -> String {
    let (_, started) = stream.report().await;
    assert_eq!(started["report"], "started", "{:?}", stream.seen);
    stream.expect(json!({"report": "ready", "ready": true})).await;
    started["address"].as_str().expect("an address").to_owned()
}

/// A crash, without what changes from test to test.
async fn crash(stream: &mut Stream) -> Value {
    let (_, mut report) = stream.report().await;
    if let Some(report) = report.as_object_mut() {
        report.remove("detail");
    }
    report
}

fn crashed(reason: &str) -> Value {
    json!({"report": "crashed", "reason": reason, "never_healthy": false})
}

#[tokio::test]
async fn an_instance_becomes_ready_fast_and_stops_gracefully() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, Vec::new()).await;
    let mut times = Vec::new();
    for id in 1..=20 {
        let begin = mono_now();
        let wanted = instance(id, &web(Some(http_check())));
        stream.desire(false, vec![wanted.clone()]).await;
        ready(&mut stream).await;
        times.push(mono_now() - begin);
        stream.desire(false, vec![stopped(&wanted)]).await;
        stream.expect(json!({"report": "gone"})).await;
        stream.gone(&instance_work(id, 1)).await;
    }
    times.sort_unstable();
    println!("desired to ready: median {:?}, worst {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(60), "{times:?}");
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_instance_knows_who_it_is() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut spec = process(&["/bin/sh", "-c", "env; echo end; exec sleep 1000"], None);
    spec.container.env.insert("OWN".into(), "value".into());
    stream.desire(true, vec![instance(1, &spec)]).await;
    let address = ready(&mut stream).await;
    stream.line("end").await;
    let port = address.rsplit_once(':').expect("a port").1;
    for line in [
        &format!("PORT={port}"),
        "SHORE_APP=shop",
        "SHORE_PROJECT=acme",
        "SHORE_WORKSPACE=production",
        "SHORE_PROCESS=web",
        "SHORE_INSTANCE_INDEX=0",
        "SHORE_INSTANCE_ID=ins_00000000000000000000000001",
        "SHORE_DEPLOYMENT=7",
        "CNB_LAYERS_DIR=/layers",
        "OWN=value",
    ] {
        assert!(stream.seen.iter().any(|seen| seen == line), "{line}: {:#?}", stream.seen);
    }
    agent.stop().await;
}

#[tokio::test]
async fn the_last_lines_come_before_the_crash() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "sleep 0.1; i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; printf end; exit 3";
    stream.desire(true, vec![instance(1, &process(&["/bin/sh", "-c", text], None))]).await;
    ready(&mut stream).await;
    let (_, report) = stream.report().await;
    assert_eq!(report["reason"], "exited with status 3");
    assert_eq!(report["detail"]["exit"], json!({"code": 3}));
    let tail = report["detail"]["tail"].as_array().expect("the last lines");
    assert_eq!((tail.len(), &tail[48], &tail[49]), (50, &json!("line 4999"), &json!("end")));
    let lines: Vec<&String> = stream.seen.iter().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 5_001);
    assert!(lines.iter().take(5_000).enumerate().all(|(at, line)| **line == format!("line {at}")));
    assert_eq!(stream.seen.get(stream.seen.len() - 2).map(String::as_str), Some("end"));
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, vec![instance(1, &process(&["/no/such"], None))]).await;
    let (_, report) = stream.report().await;
    assert_eq!(report["report"], "crashed");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("cannot start \"/no/such\": no such command"), "{reason}");
    assert!(bench.containers().is_empty());
    let mut spec = web(None);
    spec.container.image = Some(model::Digest::of(b"no such image"));
    stream.desire(false, vec![instance(2, &spec)]).await;
    let (_, report) = stream.report().await;
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("cannot get image sha256:"), "{reason}");
    // Even a success is no way to end for something that is to run.
    stream.desire(false, vec![instance(3, &process(&["/bin/true"], None))]).await;
    let wanted = crashed("exited with status 0");
    let told = async { while crash(&mut stream).await != wanted {} };
    assert!(runtime::timeout(crate::server::SOON, told).await.is_some());
    agent.stop().await;
}

#[tokio::test]
async fn a_deaf_instance_is_never_healthy() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let check = Check { kind: CheckKind::Tcp, start_timeout_ms: 300, ..http_check() };
    stream.desire(true, vec![instance(1, &process(&["/bin/sleep", "1000"], Some(check)))]).await;
    let (_, started) = stream.report().await;
    let address = started["address"].as_str().expect("an address");
    let port = address.rsplit_once(':').expect("a port").1;
    let reason =
        format!("was never healthy in 300 ms; last check: connection refused on port {port}");
    let wanted = json!({"report": "crashed", "reason": reason, "never_healthy": true});
    assert_eq!(crash(&mut stream).await, wanted);
    assert!(bench.containers().is_empty(), "it is removed first");
    agent.stop().await;
}

#[tokio::test]
async fn an_instance_that_fails_its_checks_crashes() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, vec![instance(1, &web(Some(http_check())))]).await;
    let address = ready(&mut stream).await;
    let mut break_it = tokio::net::TcpStream::connect(&address).await.expect("connects");
    break_it.write_all(b"GET /fail HTTP/1.1\r\n\r\n").await.expect("asks");
    stream.expect(json!({"report": "ready", "ready": false})).await;
    let port = address.rsplit_once(':').expect("a port").1;
    let reason = format!(
        "became unhealthy: 2 checks in a row failed, the last: GET / on port {port} answered 500"
    );
    assert_eq!(crash(&mut stream).await, crashed(&reason));
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_graceful_stop_lets_the_app_say_goodbye() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let wanted = instance(1, &process(&["/bin/sh", "-c", text], None));
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    stream.line("up").await;
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.expect(json!({"report": "gone"})).await;
    // The shell tells standard error that its `sleep` was terminated too.
    stream.seen.retain(|line| line != "Terminated");
    let last = stream.seen.len();
    assert_eq!(stream.seen.get(last - 2..).expect("two"), ["bye", r#"{"report":"gone"}"#]);
    assert!(bench.containers().is_empty(), "gone means that nothing is left");
    agent.stop().await;
}

#[tokio::test]
async fn what_ignores_a_stop_is_killed() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut spec = process(&["/bin/sh", "-c", text], None);
    spec.stop_grace_ms = 100;
    let wanted = instance(1, &spec);
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    stream.line("up").await;
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.expect(json!({"report": "gone"})).await;
    // Stopping what is not there is an end, too.
    stream.desire(false, vec![stopped(&instance(9, &spec))]).await;
    stream.expect(json!({"report": "gone"})).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_ignores_a_stop_serves_until_its_grace_is_over() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    // The app ignores the signal; the shell beside it says when it came.
    let text = format!("trap '' TERM; {TESTBED} & trap 'echo asked' TERM; wait; wait");
    let mut spec = process(&["/bin/sh", "-c", &text], Some(http_check()));
    spec.stop_grace_ms = 2_000;
    let wanted = instance(1, &spec);
    stream.desire(true, vec![wanted.clone()]).await;
    let address = ready(&mut stream).await;
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.line("asked").await;
    let text = answer(&address).await.expect("it serves");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    stream.expect(json!({"report": "gone"})).await;
    let killed = "did not end within 2 s of being asked: killed".to_owned();
    assert!(stream.seen.contains(&killed), "{:?}", stream.seen);
    assert!(answer(&address).await.is_err(), "nobody listens");
    assert!(bench.containers().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn what_vanishes_behind_the_agents_back_crashes_and_its_next_epoch_starts() {
    for killed in [&["command"][..], &["supervisor"], &["supervisor", "command"]] {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let agent = bench.start(&server);
        let mut stream = server.accept().await;
        let mut wanted = instance(1, &web(Some(http_check())));
        stream.desire(true, vec![wanted.clone()]).await;
        let address = ready(&mut stream).await;
        bench.vanish(killed);
        let (work, report) = stream.report().await;
        assert_eq!((work, &report["report"]), (instance_work(1, 1), &json!("crashed")), "{report}");
        assert_eq!(report["detail"]["exit"], "lost", "{report}");
        let silent = async { while answer(&address).await.is_ok() {} };
        assert!(runtime::timeout(crate::server::SOON, silent).await.is_some(), "{killed:?}");
        stream.gone(&instance_work(1, 1)).await;
        wanted.work = Some(instance_work(1, 2));
        stream.desire(false, vec![wanted]).await;
        ready(&mut stream).await;
        assert!(bench.containers()[0].ends_with("-2"), "{:?}", bench.containers());
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_cell_that_leaves_serves_until_nothing_is_left_to_move() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, vec![instance(1, &web(Some(http_check())))]).await;
    ready(&mut stream).await;
    agent.leave.stop();
    let left = runtime::timeout(crate::server::SOON, async {
        while !matches!(stream.next().await, Up::Leave(_)) {}
    });
    assert!(left.await.is_some());
    // It takes orders until then, and says once more that it leaves after the connection broke.
    drop(stream);
    let mut stream = server.accept().await;
    let left = async { while !matches!(stream.next().await, Up::Leave(_)) {} };
    assert!(runtime::timeout(crate::server::SOON, left).await.is_some());
    stream.desire(false, vec![instance(2, &web(Some(http_check())))]).await;
    ready(&mut stream).await;
    stream.send(Down::Drained(Drained {})).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

/// What is answered to a request.
async fn answer(address: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn ask(address: &str, path: &str) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asks");
}

#[tokio::test]
async fn readiness_comes_and_goes() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let liveness = Check { kind: CheckKind::Tcp, ..http_check() };
    let mut spec = web(Some(liveness));
    spec.startup = Some(http_check());
    spec.readiness = Some(http_check());
    stream.desire(true, vec![instance(1, &spec)]).await;
    let address = ready(&mut stream).await;
    for (path, wanted) in [("/fail", false), ("/mend", true), ("/fail", false), ("/mend", true)] {
        ask(&address, path).await;
        stream.expect(json!({"report": "ready", "ready": wanted})).await;
    }
    stream.begins("takes no requests: 2 checks in a row failed, the last: GET / on port ").await;
    assert_eq!(bench.containers().len(), 1, "it never crashed");
    agent.stop().await;
    drop(stream);
    // The next agent goes on with all checks.
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, vec![instance(1, &spec)]).await;
    let again =
        async { while stream.report().await.1 != json!({"report": "ready", "ready": true}) {} };
    assert!(runtime::timeout(crate::server::SOON, again).await.is_some());
    ask(&address, "/fail").await;
    stream.expect(json!({"report": "ready", "ready": false})).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_command_says_how_an_instance_is() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "test \"$OWN\" = value || exit 9; \
                test ! -e \"$SHORE_ROOT\"/ill || { echo quiet; echo it is ill; exit 3; }";
    let argv = ["/bin/sh", "-c", text].map(str::to_owned).into();
    let check = Check { kind: CheckKind::Command { argv }, ..http_check() };
    let mut spec = process(&["/bin/sleep", "1000"], Some(check));
    spec.container.env.insert("OWN".into(), "value".into());
    stream.desire(true, vec![instance(1, &spec)]).await;
    ready(&mut stream).await;
    std::fs::write(bench.root().join("ill"), "").expect("writes");
    stream.expect(json!({"report": "ready", "ready": false})).await;
    let reason = "became unhealthy: 2 checks in a row failed, the last: `sh` exited with status 3: \
                  quiet; it is ill";
    assert_eq!(crash(&mut stream).await, crashed(reason));
    let said = stream.seen.iter().any(|line| line == "quiet");
    assert!(!said, "what a check says is not the app's: {:?}", stream.seen);
    agent.stop().await;
}

#[tokio::test]
async fn a_slow_command_is_ended() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let argv = ["/bin/sleep", "1000"].map(str::to_owned).into();
    let check = Check {
        kind: CheckKind::Command { argv },
        timeout_ms: 100,
        start_timeout_ms: 300,
        ..http_check()
    };
    let spec = process(&["/bin/sleep", "1000"], Some(check));
    stream.desire(true, vec![instance(1, &spec)]).await;
    assert_eq!(stream.report().await.1["report"], "started");
    let (_, report) = stream.report().await;
    let reason = "was never healthy in 300 ms; last check: `sleep` did not end within 100 ms";
    assert_eq!(report["reason"], reason);
    assert!(bench.containers().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn the_hook_comes_first_and_the_signal_is_the_apps_own() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "trap 'echo never' TERM; trap 'echo quits; exit 0' QUIT; echo up; \
                while :; do sleep 0.05; done";
    let mut spec = process(&["/bin/sh", "-c", text], None);
    spec.stop_signal = model::StopSignal::Quit;
    spec.pre_stop =
        Some(["/bin/sh", "-c", "echo hook $SHORE_APP; exit 4"].map(str::to_owned).into());
    let wanted = instance(1, &spec);
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    stream.line("up").await;
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.expect(json!({"report": "gone"})).await;
    stream.seen.retain(|line| !line.starts_with('{') && line != "Quit");
    let wanted = ["up", "[pre-stop] hook shop", "pre-stop: exited with status 4", "quits"];
    assert_eq!(stream.seen, wanted);
    agent.stop().await;
}

#[tokio::test]
async fn hook_and_process_share_one_grace() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut spec = process(&["/bin/sh", "-c", "trap '' TERM; echo up; sleep 1000"], None);
    spec.pre_stop = Some(["/bin/sleep", "1000"].map(str::to_owned).into());
    spec.stop_grace_ms = 500;
    let wanted = instance(1, &spec);
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    stream.line("up").await;
    let begin = mono_now();
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.expect(json!({"report": "gone"})).await;
    let took = mono_now() - begin;
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    for line in
        ["pre-stop: did not end within 500 ms", "did not end within 500 ms of being asked: killed"]
    {
        assert!(stream.seen.iter().any(|seen| seen == line), "{line}: {:?}", stream.seen);
    }
    assert!(bench.containers().is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn what_the_driver_cannot_do_is_refused() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut other = web(None);
    other.container.driver = Some("oci".parse().expect("a name"));
    let mut user = web(None);
    user.container.user = Some("1000".into());
    for (id, spec, reason) in [
        (1, other, "the cell has no driver oci"),
        (2, user, "the process driver runs nothing as another user"),
    ] {
        stream.desire(false, vec![instance(id, &spec)]).await;
        stream.expect(json!({"report": "reject", "reason": reason})).await;
    }
    let mut spec = web(None);
    spec.container.driver = Some("process".parse().expect("a name"));
    stream.desire(false, vec![instance(3, &spec)]).await;
    ready(&mut stream).await;
    agent.stop().await;
}

#[tokio::test]
async fn the_operators_limit_of_log_lines_wins() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start_with(&server.url, |options| options.max_log_rate = 20_000);
    let mut stream = server.accept().await;
    let text = "i=0; while [ $i -lt 20000 ]; do echo spam number $i; i=$((i+1)); done; \
                exec sleep 1000";
    let mut greedy = process(&["/bin/sh", "-c", text], None);
    greedy.container.limits.log_bytes = Some(1 << 20);
    stream.desire(true, vec![instance(1, &greedy)]).await;
    stream.begins("longshore: ").await;
    let said = stream.seen.iter().find(|line| line.starts_with("longshore: ")).expect("is there");
    assert!(said.ends_with(" dropped: over 19 KB/s"), "{said}");
    agent.stop().await;
}

#[tokio::test]
async fn a_spammer_is_cut_short_and_nobody_else() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "i=0; while [ $i -lt 20000 ]; do echo spam number $i; i=$((i+1)); done; echo done; \
                exec sleep 1000";
    let mut spammer = process(&["/bin/sh", "-c", text], None);
    spammer.container.limits.log_bytes = Some(20_000);
    let text = "i=0; while [ $i -lt 300 ]; do echo quiet $i; sleep 0.01; i=$((i+1)); done; \
                echo all; exec sleep 1000";
    let quiet = process(&["/bin/sh", "-c", text], None);
    stream.desire(true, vec![instance(1, &spammer), instance(2, &quiet)]).await;
    stream.line("all").await;
    stream.begins("longshore: ").await;
    let said = stream.seen.iter().find(|line| line.starts_with("longshore: ")).expect("is there");
    assert!(said.ends_with(" dropped: over 19 KB/s"), "{said}");
    let count = |what: &str| stream.seen.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!(count("quiet "), 300);
    assert!(count("spam ") >= 80_000 / 18 && count("spam ") < 15_000, "{}", count("spam "));
    agent.stop().await;
}
