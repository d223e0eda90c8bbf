//! Tasks: at most once, with everything their actions can do.

use std::collections::BTreeMap;
use std::io::Write as _;

use api::proto::cell_down::Message as Down;
use cell::DiskUse;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::{Action, Digest, TaskSpec, UploadMode};
use serde_json::json;

use crate::bench::{Bench, sh, stopped, task, task_spec, task_work, until};
use crate::server::{Server, Stream};

pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, text.as_bytes()).expect("packs");
    }
    tar.into_inner().expect("packs")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).expect("compresses");
    gzip.finish().expect("compresses")
}

/// Offers a task and confirms its claim.
pub(crate) async fn begin(stream: &mut Stream, spec: &TaskSpec) {
    stream.desire(true, vec![task(1, spec)]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Claimed(task_work(1, 1))).await;
}

/// Runs one task to its end and gives its last report.
pub(crate) async fn outcome(spec: &TaskSpec) -> (serde_json::Value, Vec<String>) {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    begin(&mut stream, spec).await;
    let (_, report) = stream.report().await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
    (report, stream.seen)
}

#[tokio::test]
async fn a_task_downloads_runs_uploads_and_leaves_a_result() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let source = server.blobs.put(gzip(&archive(&[("main.sh", "echo made by $WHO > out\n")])));
    let plain = server.blobs.put("just bytes");
    let serial = vec![
        Action::Parallel {
            actions: vec![
                Action::download(source, "/src", true),
                Action::download(plain, "/in/plain", false),
            ],
            fail_fast: false,
        },
        Action::Run {
            argv: vec!["/bin/sh".into(), "main.sh".into()],
            env: BTreeMap::from([("WHO".into(), "me".into())]),
            dir: Some("/src".into()),
            user: None,
            files: None,
            log_source: None,
            quiet: false,
        },
        sh("mkdir -p \"$SHORE_ROOT/blobs\"; cd \"$SHORE_ROOT/blobs\"; \
            echo $CNB_APP_DIR $PATH; cp ../in/plain x; mv x $(sha256sum x | cut -c1-64); \
            printf 'new' > y; mv y $(sha256sum y | cut -c1-64)"),
        Action::upload("/src/out", UploadMode::File),
        Action::upload("/blobs", UploadMode::DigestNamed),
    ];
    let mut spec = task_spec(Action::Serial { actions: serial });
    spec.result_file = Some("/src/out".into());
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    begin(&mut stream, &spec).await;
    stream.expect(json!({"report": "succeeded", "result": "made by me\n"})).await;
    assert_eq!(stream.seen[1], "/workspace /usr/local/bin:/usr/bin:/bin:/opt/agent/bin");
    assert!(server.blobs.get(Digest::of(b"made by me\n")).is_some());
    assert!(server.blobs.get(Digest::of(b"new")).is_some());
    stream.gone(&task_work(1, 1)).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn failures_say_what_failed() {
    let parallel = |actions, fail_fast| Action::Parallel { actions, fail_fast };
    let timeout = |inner, ms| Action::Timeout { inner: Box::new(inner), ms };
    let long = || sh("sleep 1000");
    let cases = [
        (sh("echo oops >&2; exit 20"), "run `sh` exited with status 20", "run"),
        (sh("kill -9 $$"), "run `sh` was killed by signal 9", "run"),
        (
            Action::run(["/no/such"]),
            "run `such`: no such command (or its interpreter is missing)",
            "run",
        ),
        (timeout(long(), 200), "exceeded 200 ms timeout", "timeout"),
        (
            Action::Serial { actions: vec![sh("true"), timeout(sh("exit 4"), 60_000)] },
            "run `sh` exited with status 4",
            "serial[1].timeout.run",
        ),
        (
            parallel(vec![sh("exit 1"), sh("true"), sh("exit 2")], false),
            "run `sh` exited with status 1; run `sh` exited with status 2",
            "parallel[0].run",
        ),
        (
            parallel(vec![long(), sh("exit 2"), parallel(vec![long()], false)], true),
            "run `sh` exited with status 2",
            "parallel[1].run",
        ),
        (
            Action::Codependent { actions: vec![long(), sh("exit 0")] },
            "one of several actions that need each other ended",
            "codependent[1].run",
        ),
        (
            Action::Codependent { actions: vec![sh("exit 6"), long()] },
            "run `sh` exited with status 6",
            "codependent[0].run",
        ),
    ];
    for (action, reason, path) in cases {
        let (report, seen) = outcome(&task_spec(action)).await;
        assert_eq!(report["reason"], reason, "{seen:?}");
        assert_eq!(report["detail"]["action"], path, "{report}");
    }
    let (report, seen) =
        outcome(&task_spec(sh("echo out; echo oops >&2; printf last; exit 1"))).await;
    let mut lines = seen.get(1..4).expect("three lines").to_vec();
    assert_eq!(report["detail"]["tail"], json!(lines), "the tail is the end of the log");
    assert_eq!(report["detail"]["exit"], json!({"code": 1}));
    lines.sort_unstable();
    assert_eq!(lines, ["last", "oops", "out"], "all lines come before the report");
}

#[tokio::test]
async fn progress_and_sources_are_told() {
    let mut named = sh("echo inside");
    if let Action::Run { log_source, .. } = &mut named {
        *log_source = Some("migrate".into());
    }
    let mut quiet = sh("echo secret; exit 7");
    if let Action::Run { quiet, .. } = &mut quiet {
        *quiet = true;
    }
    let told = |inner, name: &str| Action::EmitProgress {
        inner: Box::new(inner),
        start: format!("{name} begins"),
        success: format!("{name} is done"),
        failure: format!("{name} failed"),
    };
    let actions = vec![told(named, "first"), told(quiet, "second")];
    let (report, seen) = outcome(&task_spec(Action::Serial { actions })).await;
    assert_eq!(report["reason"], "run `sh` exited with status 7");
    assert_eq!(report["detail"]["action"], "serial[1].emit_progress.run");
    assert_eq!(report["detail"].get("tail"), None, "{report}");
    let lines: Vec<&String> = seen.iter().filter(|line| !line.starts_with('{')).collect();
    let wanted = [
        "first begins",
        "[migrate] inside",
        "first is done",
        "second begins",
        "second failed: run `sh` exited with status 7",
    ];
    assert_eq!(lines, wanted);
}

#[tokio::test]
async fn what_an_ended_action_started_is_gone() {
    let text = "trap '' TERM; (trap '' TERM; echo child $$; sleep 1000) & sleep 1000";
    let inner = Box::new(sh(text));
    let timeout = Action::Timeout { inner, ms: 300 };
    let mut spec = task_spec(timeout);
    spec.timeout_ms = 60_000;
    let begin = runtime::mono_now();
    let (report, _) = outcome(&spec).await;
    assert_eq!(report["reason"], "exceeded 300 ms timeout");
    assert!(runtime::mono_now() - begin >= cell::TASK_GRACE, "it had its grace");
}

#[tokio::test]
async fn a_task_ends_in_time() {
    let mut spec = task_spec(sh("trap 'echo asked; exit 0' TERM; while :; do sleep 0.05; done"));
    spec.timeout_ms = 300;
    let (report, seen) = outcome(&spec).await;
    assert_eq!(report["reason"], "exceeded 300 ms timeout");
    assert!(seen.contains(&"asked".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn failures_can_be_ignored() {
    let action = Action::Serial {
        actions: vec![Action::Try { inner: Box::new(sh("exit 3")) }, sh("echo on")],
    };
    let (report, seen) = outcome(&task_spec(action)).await;
    assert_eq!(report, json!({"report": "succeeded", "result": null}));
    assert!(seen.contains(&"on".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn what_is_no_short_text_is_kept_as_a_blob_before_the_end_is_reported() {
    let whole = vec![b'x'; model::MAX_TASK_RESULT];
    let five = [&[0_u8, 159, 146, 150][..], &vec![7; 5 << 20]].concat();
    let table: [(&str, Option<Vec<u8>>); 4] = [
        ("head -c 1048576 /dev/zero | tr '\\0' x", None),
        ("head -c 1048577 /dev/zero | tr '\\0' x", Some([&whole[..], b"x"].concat())),
        ("printf '\\377\\376'", Some(vec![255, 254])),
        ("printf '\\000\\237\\222\\226'; head -c 5242880 /dev/zero | tr '\\0' '\\7'", Some(five)),
    ];
    for (script, wanted) in table {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let mut spec = task_spec(sh(&format!("({script}) > \"$SHORE_ROOT/left\"")));
        spec.result_file = Some("/left".into());
        let agent = bench.start(&server);
        let mut stream = server.accept().await;
        begin(&mut stream, &spec).await;
        let (_, report) = stream.report().await;
        assert_eq!(report["report"], "succeeded", "{script}: {}", report["reason"]);
        match wanted {
            None => assert_eq!(report["result"], String::from_utf8(whole.clone()).expect("text")),
            Some(bytes) => {
                let digest = Digest::of(&bytes);
                assert_eq!(report["artifact"], digest.to_string(), "{script}");
                assert_eq!(report["result"], serde_json::Value::Null, "{script}");
                assert!(server.blobs.get(digest).is_some_and(|kept| kept == bytes), "{script}");
            }
        }
        stream.meanwhile(bench.until_empty()).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_result_that_is_too_large_fails_the_task_and_says_so() {
    let mut spec = task_spec(sh("truncate -s 1073741825 \"$SHORE_ROOT/left\""));
    spec.result_file = Some("/left".into());
    let (report, _) = outcome(&spec).await;
    let reason = "its result /left cannot be kept: it has more than 1073741824 bytes";
    assert_eq!(report["reason"], reason, "{report}");
}

#[tokio::test]
async fn damaged_and_missing_bytes_are_failures() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let damaged = server.blobs.put("what it was");
    server.blobs.damage(damaged, b"what it is");
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let missing = Digest::of(b"nobody has this");
    for (number, blob) in [(1, damaged), (2, missing)] {
        let action = Action::download(blob, "/x", false);
        stream.desire(false, vec![task(number, &task_spec(action))]).await;
        stream.expect(json!({"report": "claim"})).await;
        stream.send(Down::Claimed(task_work(number, 1))).await;
        let (_, report) = stream.report().await;
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("download to /x: "), "{report}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_cancelled_task_is_ended_gracefully() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let spec = task_spec(sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"));
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    begin(&mut stream, &spec).await;
    stream.line("up").await;
    stream.desire(false, vec![stopped(&task(1, &spec))]).await;
    stream.expect(json!({"report": "cancelled"})).await;
    assert!(stream.seen.contains(&"bye".to_owned()), "{:?}", stream.seen);
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_claim_starts_nothing() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let spec = task_spec(sh("touch /tmp/never; echo started"));
    stream.desire(true, vec![task(1, &spec)]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Refused(task_work(1, 1))).await;
    // A late confirmation of what was refused must not start it either.
    stream.send(Down::Claimed(task_work(1, 1))).await;
    // What runs through after it shows that nothing of it came first.
    stream.desire(false, vec![task(2, &task_spec(sh("echo second")))]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Claimed(task_work(2, 1))).await;
    stream.expect(json!({"report": "succeeded", "result": null})).await;
    assert!(!stream.seen.contains(&"started".to_owned()), "{:?}", stream.seen);
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_claim_is_void_with_its_connection() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let spec = task_spec(sh("echo started"));
    stream.desire(true, vec![task(1, &spec)]).await;
    stream.expect(json!({"report": "claim"})).await;
    drop(stream);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [], "what was not started is not held");
    stream.send(Down::Claimed(task_work(1, 1))).await;
    assert!(bench.containers().is_empty());
    // Offered once more, it is claimed once more.
    begin(&mut stream, &spec).await;
    stream.expect(json!({"report": "succeeded", "result": null})).await;
    assert_eq!(stream.seen.iter().filter(|line| *line == "started").count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_end_that_was_not_heard_is_told_again() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let go = bench.dir.path().join("go");
    let wait = format!("echo up; while [ ! -e {} ]; do sleep 0.01; done", go.display());
    let spec = task_spec(sh(&wait));
    begin(&mut stream, &spec).await;
    stream.line("up").await;
    drop(stream);
    std::fs::write(&go, "").expect("writes");
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [task_work(1, 1)]);
    stream.desire(true, vec![task(1, &spec)]).await;
    stream.expect(json!({"report": "succeeded", "result": null})).await;
    drop(stream);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds, [task_work(1, 1)]);
    stream.desire(true, vec![task(1, &spec)]).await;
    stream.expect(json!({"report": "succeeded", "result": null})).await;
    stream.gone(&task_work(1, 1)).await;
    stream.desire(false, vec![stopped(&task(1, &spec))]).await;
    // The cell knows nothing of it any more.
    stream.expect(json!({"report": "cancelled"})).await;
    drop(stream);
    assert_eq!(server.accept().await.hello.holds, []);
    agent.stop().await;
}

#[tokio::test]
async fn caches_outlive_their_containers() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut spec =
        task_spec(sh("cat \"$SHORE_ROOT/var/cache/n\"; echo x >> \"$SHORE_ROOT/var/cache/n\""));
    spec.container.caches.insert("deps".into(), "/var/cache".into());
    for number in 1..=3 {
        stream.desire(false, vec![task(number, &spec)]).await;
        stream.expect(json!({"report": "claim"})).await;
        stream.send(Down::Claimed(task_work(number, 1))).await;
        stream.expect(json!({"report": "succeeded", "result": null})).await;
    }
    until("the caches hold", || {
        std::fs::read_to_string(bench.dir.path().join("caches/deps/n"))
            .is_ok_and(|n| n == "x\nx\nx\n")
    })
    .await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}

/// Runs a task with a cache on a cell that uses its disk like this; gives its report as text.
async fn with_a_cache(used: impl FnOnce(&mut DiskUse), script: &str) -> String {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start_with(&server.url, |options| {
        let mut own = DiskUse { reserve: 0, ..DiskUse::of(10 << 30) };
        used(&mut own);
        options.disk_use = Some(own);
    });
    let mut stream = server.accept().await;
    let mut spec = task_spec(sh(script));
    spec.container.caches.insert("deps".into(), "/var/cache".into());
    begin(&mut stream, &spec).await;
    let (_, report) = stream.report().await;
    stream.gone(&task_work(1, 1)).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
    report["reason"].as_str().expect("it failed").to_owned()
}

#[tokio::test]
async fn a_task_ends_whose_cache_outgrows_its_limit_or_the_disk() {
    let fill = "head -c 4194304 /dev/zero > \"$SHORE_ROOT/var/cache/large\"; sleep 60";
    let reason = with_a_cache(|own| own.cache = 1 << 20, fill).await;
    assert_eq!(reason, "its cache grew beyond the 1 MiB one may have here");
    let reason = with_a_cache(|own| own.reserve = u64::MAX, "true").await;
    assert!(reason.starts_with("cannot give it a cache: the cell's disk is full: "), "{reason}");
}
