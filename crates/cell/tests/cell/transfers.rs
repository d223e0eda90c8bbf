//! Downloads from and uploads to URLs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::proto::cell_down::Message as Down;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use model::{Action, Checksum, ChecksumAlgorithm, Digest, UploadMode};
use runtime::{Stop, Tasks};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::bench::{Bench, sh, stopped, task, task_of, task_spec, task_work, until};
use crate::server::Server;
use crate::tasks::{archive, begin, gzip};

/// What a web server was asked, and what it was sent.
#[derive(Debug, Default, Clone)]
struct Seen {
    asked: Arc<Mutex<Vec<String>>>,
    got: Arc<Mutex<Vec<Bytes>>>,
}

impl Seen {
    fn note(&self, line: String) -> usize {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(line);
        asked.len()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

const TEXT: &str = "0123456789";

/// A body that breaks after `text`.
fn broken(text: &'static str) -> Body {
    let pieces = futures_util::stream::unfold(0, move |count| async move {
        if count == 0 {
            return Some((Ok(Bytes::from_static(text.as_bytes())), 1));
        }
        runtime::sleep(Duration::from_millis(50)).await;
        Some((Err(std::io::Error::other("broke")), 2))
    });
    Body::from_stream(pieces)
}

/// An archive that never goes on in the middle of a file; the end of its connection is noted.
fn endless(seen: Seen) -> Body {
    struct Open(Seen);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.note("closed".to_owned());
        }
    }
    let mut start = archive(&[("big", &"x".repeat(4_096))]);
    start.truncate(1_024);
    let pieces = futures_util::stream::unfold((Open(seen), Some(start)), |(open, start)| async {
        let Some(start) = start else {
            open.0.note("sent".to_owned());
            return std::future::pending().await;
        };
        Some((Ok::<_, std::io::Error>(Bytes::from(start)), (open, None)))
    });
    Body::from_stream(pieces)
}

async fn answer(
    State(seen): State<Seen>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or("-");
    let line = format!("{name} {} {}", header("range"), header("authorization"));
    let count = seen.note(line);
    let response = Response::builder();
    let response = match (name.as_str(), header("range")) {
        ("resumes", "-") => response.header("etag", "\"v1\"").body(broken("0123")),
        ("resumes", range) => {
            assert_eq!(header("if-range"), "\"v1\"");
            let at: usize =
                range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a number");
            let rest = TEXT.get(at..).unwrap_or_default();
            let end = if at < 6 { broken("45") } else { Body::from(rest) };
            let range = format!("bytes {at}-9/10");
            response.status(206).header("content-range", range).body(end)
        }
        ("changes", "-") if count == 1 => response.header("etag", "\"v1\"").body(broken("01")),
        ("flaky", _) if count < 3 => response.status(503).body(Body::empty()),
        ("away", _) => response.status(302).header("location", "/plain").body(Body::empty()),
        ("inside", _) => {
            response.status(302).header("location", "http://169.254.1.1/").body(Body::empty())
        }
        ("round", _) => response.status(302).header("location", "/round").body(Body::empty()),
        ("endless", _) => response.body(endless(seen)),
        ("missing", _) => response.status(404).body(Body::empty()),
        ("tgz", _) => response.body(gzip(&archive(&[("run", "echo unpacked")])).into()),
        _ => response.body(Body::from(TEXT)),
    };
    response.expect("an answer")
}

async fn take(
    State(seen): State<Seen>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if name == "held" {
        seen.note(name);
        return std::future::pending().await;
    }
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or("-");
    seen.note(format!("put {}", header("content-length")));
    seen.got.lock().unwrap_or_else(PoisonError::into_inner).push(body);
    StatusCode::CREATED
}

/// A web server on loopback: its port, and what it sees.
async fn web(tasks: &Tasks) -> (u16, Seen) {
    let seen = Seen::default();
    let app = Router::new().route("/{name}", get(answer).put(take)).with_state(seen.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    let stop = tasks.stop().clone();
    tasks.spawn_ok("web", async move {
        stop.or_stop(axum::serve(listener, app).into_future()).await;
    });
    (port, seen)
}

fn from(url: String) -> Action {
    let (url, to) = (Some(url), "/x".to_owned());
    Action::Download { blob: None, url, to, unpack: false, checksum: None, max_bytes: None }
}

/// Runs the action with a web server beside it; loopback is allowed when `allow` says so.
async fn outcome(allow: bool, action: impl FnOnce(u16) -> Action) -> (Value, Vec<String>, Seen) {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let tasks = Tasks::new(Stop::new());
    let (port, seen) = web(&tasks).await;
    let agent = bench.start_with(&server.url, |options| {
        if allow {
            options.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        }
    });
    let mut stream = server.accept().await;
    let show = sh("cat \"$SHORE_ROOT\"/x");
    let spec = task_spec(Action::Serial { actions: vec![action(port), show] });
    begin(&mut stream, &spec).await;
    let (_, report) = stream.report().await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
    tasks.stop().stop();
    (report, stream.seen, seen)
}

#[tokio::test]
async fn a_download_survives_what_breaks() {
    for (name, asked) in [
        ("plain", vec!["plain - -"]),
        ("resumes", vec!["resumes - -", "resumes bytes=4- -", "resumes bytes=6- -"]),
        ("changes", vec!["changes - -", "changes bytes=2- -", "changes - -"]),
        ("flaky", vec!["flaky - -"; 3]),
        ("away", vec!["away - -", "plain - -"]),
    ] {
        let (report, lines, seen) =
            outcome(true, |port| from(format!("http://127.0.0.1:{port}/{name}"))).await;
        assert_eq!(report["report"], "succeeded", "{name}: {report} {lines:?}");
        assert!(lines.contains(&TEXT.to_owned()), "{name}: {lines:?}");
        assert_eq!(seen.asked(), asked);
    }
}

#[tokio::test]
async fn a_download_that_never_ends_is_cancelled() {
    for unpack in [false, true] {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let tasks = Tasks::new(Stop::new());
        let (port, seen) = web(&tasks).await;
        let agent = bench.start_with(&server.url, |options| {
            options.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        });
        let mut stream = server.accept().await;
        let (url, to) = (Some(format!("http://127.0.0.1:{port}/endless")), "/x".to_owned());
        let action =
            Action::Download { blob: None, url, to, unpack, checksum: None, max_bytes: None };
        let spec = task_spec(action);
        begin(&mut stream, &spec).await;
        stream.meanwhile(until("it waits for more", || seen.asked().len() == 2)).await;
        assert_eq!(seen.asked(), ["endless - -", "sent"]);
        stream.desire(false, vec![stopped(&task(1, &spec))]).await;
        stream.expect(json!({"report": "cancelled"})).await;
        stream.meanwhile(bench.until_empty()).await;
        stream.meanwhile(until("it is not asked any more", || seen.asked().len() == 3)).await;
        assert_eq!(seen.asked().last().map(String::as_str), Some("closed"), "unpack: {unpack}");
        agent.stop().await;
        tasks.stop().stop();
    }
}

#[tokio::test]
async fn inner_addresses_are_never_asked() {
    let hosts = ["127.0.0.1", "localhost", "[::1]", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"];
    for host in hosts {
        let (report, _, seen) =
            outcome(false, |port| from(format!("http://{host}:{port}/plain?key=secret"))).await;
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(&format!("{host} is not a public address")), "{reason}");
        assert!(!reason.contains("secret"), "{reason}");
        assert_eq!(seen.asked(), Vec::<String>::new(), "{host}");
    }
    for (name, fault) in [
        ("inside", "169.254.1.1 is not a public address"),
        ("round", "more than 5 redirects"),
        ("missing", "/missing answered 404"),
    ] {
        let (report, ..) =
            outcome(true, |port| from(format!("http://me:secret@127.0.0.1:{port}/{name}?secret")))
                .await;
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(fault) && !reason.contains("secret"), "{reason}");
        assert_eq!(report["detail"]["action"], "serial[0].download");
    }
}

#[tokio::test]
async fn bytes_are_held_to_their_checksum_and_size() {
    let download = |sum: Option<(ChecksumAlgorithm, &str)>, most| {
        let (max_bytes, to) = (most, "/x".to_owned());
        let checksum = sum.map(|(algorithm, value)| Checksum { algorithm, value: value.into() });
        move |port| {
            let url = Some(format!("http://me:pass@127.0.0.1:{port}/plain"));
            Action::Download { blob: None, url, to, unpack: false, checksum, max_bytes }
        }
    };
    let md5 = Some((ChecksumAlgorithm::Md5, "781e5e245d69b566979b86e28d23f2c7"));
    let (report, _, seen) = outcome(true, download(md5, Some(10))).await;
    assert_eq!(report["report"], "succeeded", "{report}");
    assert_eq!(seen.asked(), ["plain - Basic bWU6cGFzcw=="]);
    let sha1 = Some((ChecksumAlgorithm::Sha1, "0000000000000000000000000000000000000000"));
    let (report, _, seen) = outcome(true, download(sha1, None)).await;
    assert_eq!(report["reason"], "download to /x: its checksum is another one");
    assert_eq!(seen.asked().len(), 1, "asking again would not help");
    let (report, ..) = outcome(true, download(None, Some(9))).await;
    assert_eq!(report["reason"], "download to /x: it has more than 9 bytes");
}

#[tokio::test]
async fn archives_of_urls_are_unpacked() {
    let unpack = |port| Action::Serial {
        actions: vec![
            Action::Download {
                blob: None,
                url: Some(format!("http://127.0.0.1:{port}/tgz")),
                to: "/src".into(),
                unpack: true,
                checksum: None,
                max_bytes: None,
            },
            sh("mv \"$SHORE_ROOT\"/src/run \"$SHORE_ROOT\"/x"),
        ],
    };
    let (report, lines, _) = outcome(true, unpack).await;
    assert_eq!(report["report"], "succeeded", "{report}");
    assert!(lines.contains(&"echo unpacked".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_damaged_archive_is_a_failure_even_behind_its_end() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let mut bytes = archive(&[("run", "echo unpacked")]);
    bytes.resize(bytes.len() + 20_480, 0);
    let damaged = server.blobs.put(bytes.clone());
    bytes.push(1);
    server.blobs.damage(damaged, Bytes::from(bytes).to_vec().leak());
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    begin(&mut stream, &task_spec(Action::download(damaged, "/src", true))).await;
    let (_, report) = stream.report().await;
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(reason.ends_with("is damaged"), "{report}");
    agent.stop().await;
}

#[tokio::test]
async fn files_and_archives_go_where_they_are_wanted() {
    let upload = |mode, from: &str, max_bytes| {
        let from = from.to_owned();
        move |port| {
            let url = Some(format!("http://127.0.0.1:{port}/up?sig=secret"));
            let make = sh("mkdir \"$SHORE_ROOT\"/d; cd \"$SHORE_ROOT\"; echo hi | tee x d/f");
            let upload = Action::Upload { from, mode, url, max_bytes };
            Action::Serial { actions: vec![make, upload] }
        }
    };
    let (report, _, seen) = outcome(true, upload(UploadMode::File, "/x", None)).await;
    assert_eq!(report["report"], "succeeded", "{report}");
    assert_eq!(seen.asked(), ["put 3"]);
    let (report, _, seen) = outcome(true, upload(UploadMode::Archive, "/d", None)).await;
    assert_eq!(report["report"], "succeeded", "{report}");
    let got = seen.got.lock().unwrap_or_else(PoisonError::into_inner)[0].clone();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(got.as_ref()));
    let names = tar
        .entries()
        .expect("reads")
        .map(|entry| entry.expect("is whole").path().expect("a path").display().to_string());
    assert!(names.collect::<Vec<_>>().contains(&"f".to_owned()));
    for (mode, from) in [(UploadMode::File, "/x"), (UploadMode::Archive, "/d")] {
        let (report, ..) = outcome(true, upload(mode, from, Some(2))).await;
        let reason = report["reason"].as_str().unwrap_or_default().to_owned();
        assert_eq!(reason, format!("upload of {from}: it has more than 2 bytes"));
        let (report, _, seen) = outcome(false, upload(mode, from, None)).await;
        let reason = report["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains("is not a public address") && !reason.contains("secret"));
        assert_eq!(seen.asked(), Vec::<String>::new());
    }
}

/// As many uploads to URLs as one project has under way at once.
const SENDS: usize = cell::PROJECT_TURNS;

#[tokio::test]
async fn slow_servers_do_not_keep_the_blob_store_waiting() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let tasks = Tasks::new(Stop::new());
    let (port, seen) = web(&tasks).await;
    let agent = bench.start_with(&server.url, |options| {
        options.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    });
    let mut stream = server.accept().await;
    let make = || sh("echo hi > \"$SHORE_ROOT\"/x");
    let send = || Action::Upload {
        from: "/x".into(),
        mode: UploadMode::File,
        url: Some(format!("http://127.0.0.1:{port}/held")),
        max_bytes: None,
    };
    let sends = Action::Parallel { actions: vec![send(); SENDS + 1], fail_fast: false };
    let slow = task_spec(Action::Serial { actions: vec![make(), sends] });
    begin(&mut stream, &slow).await;
    stream.meanwhile(until("all places are taken", || seen.asked().len() == SENDS)).await;
    let store = Action::upload("/x", UploadMode::File);
    let quick = task_spec(Action::Serial { actions: vec![make(), store] });
    stream.desire(false, vec![task(2, &quick)]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Claimed(task_work(2, 1))).await;
    let stored = || server.blobs.get(Digest::of(b"hi\n")).is_some();
    stream.meanwhile(until("the blob store has it", stored)).await;
    assert_eq!(seen.asked().len(), SENDS, "the last one waits for a place");
    stream.desire(false, vec![stopped(&task(1, &slow))]).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
    tasks.stop().stop();
}

#[tokio::test]
async fn an_archive_goes_into_the_blob_store() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let make = sh("mkdir \"$SHORE_ROOT\"/d; echo hi > \"$SHORE_ROOT\"/d/f");
    let upload = Action::upload("/d", UploadMode::Archive);
    let spec = task_spec(Action::Serial { actions: vec![make, upload] });
    begin(&mut stream, &spec).await;
    let (_, report) = stream.report().await;
    assert_eq!(report["report"], "succeeded", "{report}");
    let packed = server.blobs.all().into_iter().any(|(digest, bytes)| {
        bytes.starts_with(&[0x1f, 0x8b]) && digest == Digest::of(&bytes).to_string()
    });
    assert!(packed);
    agent.stop().await;
}

#[tokio::test]
async fn a_project_with_slow_servers_does_not_keep_others_waiting() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let tasks = Tasks::new(Stop::new());
    let (port, seen) = web(&tasks).await;
    let agent = bench.start_with(&server.url, |options| {
        options.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    });
    let mut stream = server.accept().await;
    let fetch = |name| task_spec(from(format!("http://127.0.0.1:{port}/{name}")));
    let slow = 2 * cell::MAX_FETCHES as u128;
    for number in 1..=slow {
        let name = if number % 2 == 0 { "greedy" } else { "greedy/below" };
        stream.desire(false, vec![task_of(name, number, &fetch("endless"))]).await;
        stream.expect(json!({"report": "claim"})).await;
        stream.send(Down::Claimed(task_work(number, 1))).await;
    }
    let sent = || seen.asked().iter().filter(|line| *line == "sent").count();
    stream.meanwhile(until("slow ones are under way", || sent() == cell::PROJECT_TURNS)).await;
    stream.desire(false, vec![task_of("other", slow + 1, &fetch("plain"))]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Claimed(task_work(slow + 1, 1))).await;
    stream.expect(json!({"report": "succeeded", "result": null})).await;
    assert_eq!(sent(), cell::PROJECT_TURNS);
    agent.stop().await;
    tasks.stop().stop();
}
