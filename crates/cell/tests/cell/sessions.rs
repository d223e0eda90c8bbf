//! People who work in containers.

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::session_down::Message;
use api::proto::session_open::What;
use api::proto::session_up::Message as News;
use api::proto::{
    SessionClose, SessionCredit, SessionData, SessionDown, SessionEnd, SessionExec,
    SessionInputEnd, SessionOpen, Terminal, id_bytes,
};
use bytes::Bytes;
use runtime::Tasks;

use crate::bench::{Agent, Bench, instance, instance_work, process, until};
use crate::instances::ready;
use crate::layout::pretender;
use crate::server::{SOON, Server, Stream};
use crate::tasks::archive;

async fn order(stream: &Stream, id: u128, message: Message) {
    let down = SessionDown { id: id_bytes(id), message: Some(message) };
    stream.send(Down::Session(down)).await;
}

async fn open(stream: &Stream, id: u128, credit: u32, what: What) {
    let work = Some(instance_work(1, 1));
    order(stream, id, Message::Open(SessionOpen { work, credit, what: Some(what) })).await;
}

fn sh(text: &str) -> What {
    let argv = ["/bin/sh", "-c", text].map(str::to_owned).into();
    let terminal = Some(Terminal { columns: 80, rows: 24 });
    What::Exec(SessionExec { argv, terminal, ..SessionExec::default() })
}

async fn input(stream: &Stream, id: u128, text: impl Into<Bytes>) {
    let data = SessionData { channel: 0, bytes: text.into() };
    order(stream, id, Message::Data(data)).await;
}

/// The next news of a session that is no credit.
async fn news(stream: &mut Stream, id: u128) -> News {
    let next = async {
        loop {
            if let Up::Session(up) = stream.next().await {
                assert_eq!(up.id, id_bytes(id));
                match up.message.expect("says something") {
                    News::Credit(_) => {}
                    other => return other,
                }
            }
        }
    };
    runtime::timeout(SOON, next).await.expect("some news")
}

/// What a session says up to its end, and how that is.
async fn all(stream: &mut Stream, id: u128) -> (Vec<u8>, Vec<u8>, SessionEnd) {
    let (mut output, mut error) = (Vec::new(), Vec::new());
    loop {
        match news(stream, id).await {
            News::Started(_) | News::Credit(_) => {}
            News::Data(SessionData { channel: 1, bytes }) => output.extend_from_slice(&bytes),
            News::Data(SessionData { bytes, .. }) => error.extend_from_slice(&bytes),
            News::End(end) => return (output, error, end),
        }
    }
}

fn exit(end: &SessionEnd) -> &str {
    let json = end.exit_json.as_ref().expect("an exit");
    std::str::from_utf8(json).expect("text")
}

async fn start() -> (Bench, Server, Agent, Stream, Tasks) {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (driver, tasks) = pretender(&bench);
    let agent = bench.start_with(&server.url, |options| options.drivers = vec![driver]);
    let mut stream = server.accept().await;
    let spec = process(&["/bin/sleep", "1000"], None);
    stream.desire(true, vec![instance(1, &spec)]).await;
    ready(&mut stream).await;
    (bench, server, agent, stream, tasks)
}

#[tokio::test]
async fn a_command_is_worked_with() {
    let (_bench, _server, agent, mut stream, _tasks) = start().await;
    open(&stream, 7, 1 << 16, sh("read a; echo got $a $SIZE; cat; echo oops >&2; exit 3")).await;
    input(&stream, 7, "first\n").await;
    input(&stream, 7, "second\n").await;
    order(&stream, 7, Message::InputEnd(SessionInputEnd {})).await;
    let (output, error, end) = all(&mut stream, 7).await;
    assert_eq!(String::from_utf8_lossy(&output), "got first 80\nsecond\n");
    assert_eq!(String::from_utf8_lossy(&error), "oops\n");
    assert_eq!(exit(&end), r#"{"code":3}"#);
    open(&stream, 8, 1 << 16, sh("echo up; exec sleep 1000")).await;
    assert!(matches!(news(&mut stream, 8).await, News::Started(_)));
    assert!(matches!(news(&mut stream, 8).await, News::Data(_)));
    order(&stream, 8, Message::Signal("term".into())).await;
    let (.., end) = all(&mut stream, 8).await;
    assert_eq!(exit(&end), r#"{"signal":15}"#);
    agent.stop().await;
}

#[tokio::test]
async fn nobody_is_sent_more_than_there_is_credit_for() {
    let (_bench, _server, agent, mut stream, _tasks) = start().await;
    open(&stream, 7, 10_000, sh("head -c 300000 /dev/zero")).await;
    assert!(matches!(news(&mut stream, 7).await, News::Started(_)));
    let (mut got, mut spent, mut granted) = (0, 0, 10_000);
    while got < 300_000 {
        match news(&mut stream, 7).await {
            // A small message costs as much as 256 bytes.
            News::Data(data) => {
                (got, spent) = (got + data.bytes.len(), spent + data.bytes.len().max(256));
            }
            other => unreachable!("unexpected {other:?}"),
        }
        assert!(spent <= granted, "{spent} of {granted}");
        if granted - spent < 512 {
            granted += 100_000;
            order(&stream, 7, Message::Credit(SessionCredit { bytes: 100_000 })).await;
        }
    }
    let (rest, _, end) = all(&mut stream, 7).await;
    assert_eq!((rest.len(), exit(&end)), (0, r#"{"code":0}"#));
    agent.stop().await;
}

#[tokio::test]
async fn a_session_ends_with_whoever_is_interested() {
    let (bench, mut server, agent, mut stream, _tasks) = start().await;
    let file = |name: &str| bench.dir.path().join(name);
    let alive = |name: &str| sh(&format!("echo $$ > {}; exec sleep 1000", file(name).display()));
    let pid = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_default();
    open(&stream, 1, 1 << 16, alive("closed")).await;
    open(&stream, 2, 1 << 16, alive("lost")).await;
    until("both run", || pid("closed").ends_with('\n') && pid("lost").ends_with('\n')).await;
    let runs = |name: &str| {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid(name).trim()));
        state.is_ok_and(|state| !state.contains(") Z "))
    };
    assert!(runs("closed") && runs("lost"));
    order(&stream, 1, Message::Close(SessionClose {})).await;
    stream.meanwhile(until("it is killed", || !runs("closed"))).await;
    assert!(runs("lost"));
    drop(stream);
    until("it is killed with its stream", || !runs("lost")).await;
    let stream = &mut server.accept().await;
    stream.desire(true, vec![instance(1, &process(&["/bin/sleep", "1000"], None))]).await;
    let other = Some(instance_work(2, 1));
    let what = Some(sh("true"));
    let wrong = SessionOpen { work: other, credit: 1_000, what };
    order(stream, 3, Message::Open(wrong)).await;
    let (.., end) = all(stream, 3).await;
    assert_eq!(end.error.as_deref(), Some("it does not run on this cell"));
    agent.stop().await;
}

#[tokio::test]
async fn files_go_in_and_out() {
    let (bench, _server, agent, mut stream, _tasks) = start().await;
    let tar = archive(&[("a", "first"), ("b", &"second".repeat(10_000))]);
    open(&stream, 1, 1 << 16, What::CopyIn("/in".into())).await;
    for piece in tar.chunks(50_000) {
        input(&stream, 1, piece.to_vec()).await;
    }
    order(&stream, 1, Message::InputEnd(SessionInputEnd {})).await;
    let (.., end) = all(&mut stream, 1).await;
    assert_eq!(end, SessionEnd::default());
    let read = std::fs::read_to_string(bench.root().join("in/a"));
    assert_eq!(read.expect("is there"), "first");
    open(&stream, 2, 1 << 20, What::CopyOut("/in/a".into())).await;
    let (packed, _, end) = all(&mut stream, 2).await;
    assert_eq!(end, SessionEnd::default());
    let mut tar = tar::Archive::new(packed.as_slice());
    let names = tar
        .entries()
        .expect("reads")
        .map(|entry| entry.expect("is whole").path().expect("a path").display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["a"]);
    open(&stream, 3, 1 << 16, What::CopyOut("/none".into())).await;
    let (.., end) = all(&mut stream, 3).await;
    assert!(end.error.is_some(), "{end:?}");
    open(&stream, 4, 1 << 16, What::CopyIn("/half".into())).await;
    input(&stream, 4, archive(&[("c", "third")])[..600].to_vec()).await;
    order(&stream, 4, Message::Close(SessionClose {})).await;
    let (.., end) = all(&mut stream, 4).await;
    assert!(end.error.is_some_and(|error| error.contains("it was closed")));
    agent.stop().await;
}
