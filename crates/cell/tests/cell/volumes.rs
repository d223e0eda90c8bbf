//! Volumes: kept over instances, one writer at a time, removed on the server's word only.

use std::path::PathBuf;

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::{Desired, id_bytes, id_from};
use model::{ProcessSpec, VolumeId};
use serde_json::json;

use crate::bench::{Bench, VOLUME, instance, instance_work, process, stopped};
use crate::instances::ready;
use crate::server::{Server, Stream};

fn with_volume(text: &str) -> ProcessSpec {
    let mut spec = process(&["/bin/sh", "-c", text], None);
    let mount = model::VolumeMount { path: "/data".into(), read_only: false };
    spec.container.volumes.insert("files".parse().expect("a name"), mount);
    spec
}

fn dir(bench: &Bench) -> PathBuf {
    let name = format!("acme.shop.production.web.0.files.{VOLUME}");
    bench.dir.path().join("volumes").join(name)
}

fn kept(bench: &Bench) -> String {
    std::fs::read_to_string(dir(bench).join("n")).unwrap_or_default()
}

async fn delete(stream: &Stream) {
    let delete_volumes = vec![id_bytes(VOLUME.0)];
    stream.send(Down::Desired(Desired { delete_volumes, ..Desired::default() })).await;
}

/// Goes on until the cell says that a volume is gone; how many reports came before.
async fn gone(stream: &mut Stream) -> usize {
    let mut reports = 0;
    loop {
        match stream.next().await {
            Up::VolumeGone(gone) => {
                assert_eq!(VolumeId(id_from(&gone.id).expect("an id")), VOLUME);
                return reports;
            }
            Up::Report(_) => reports += 1,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_volume_outlives_its_instances() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let text = "cd \"$SHORE_ROOT\"/data; cat n; echo x >> n; echo end; exec sleep 1000";
    for id in 1..=2 {
        let wanted = instance(id, &with_volume(text));
        stream.desire(false, vec![wanted.clone()]).await;
        ready(&mut stream).await;
        stream.line("end").await;
        stream.seen.retain(|line| line != "end");
        stream.desire(false, vec![stopped(&wanted)]).await;
        stream.expect(json!({"report": "gone"})).await;
    }
    assert!(stream.seen.contains(&"x".to_owned()), "{:?}", stream.seen);
    assert_eq!(kept(&bench), "x\nx\n");
    agent.stop().await;
}

#[tokio::test]
async fn the_next_writer_waits_for_the_end_of_the_one_before() {
    for restarted in [false, true] {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let mut agent = bench.start(&server);
        let mut stream = server.accept().await;
        // It takes its time to end, and writes a last line.
        let text = "cd \"$SHORE_ROOT\"/data; trap 'sleep 0.3; echo old >> n; exit' TERM; echo up; \
                    while true; do sleep 0.01; done";
        let old = instance(1, &with_volume(text));
        stream.desire(false, vec![old.clone()]).await;
        ready(&mut stream).await;
        stream.line("up").await;
        if restarted {
            agent.stop().await;
            drop(stream);
            agent = bench.start(&server);
            stream = server.accept().await;
            assert_eq!(stream.hello.holds, [instance_work(1, 1)]);
        }
        let text = "cd \"$SHORE_ROOT\"/data; echo new >> n; echo begun; exec sleep 1000";
        let new = instance(2, &with_volume(text));
        stream.desire(false, vec![new, stopped(&old)]).await;
        stream.line("begun").await;
        assert_eq!(kept(&bench), "old\nnew\n", "restarted: {restarted}");
        agent.stop().await;
    }
}

#[tokio::test]
async fn an_instance_whose_volume_nobody_names_does_not_start() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut wanted = instance(1, &with_volume("sleep 1000"));
    wanted.volumes.clear();
    stream.desire(false, vec![wanted]).await;
    let (_, report) = stream.report().await;
    let reason = "could not start: the server does not say which volume files is";
    assert_eq!(report["reason"], reason);
    assert!(!bench.dir.path().join("volumes").exists());
    agent.stop().await;
}

#[tokio::test]
async fn a_volume_is_deleted_once_no_container_has_it() {
    for restarted in [false, true] {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let mut agent = bench.start(&server);
        let mut stream = server.accept().await;
        let text = "cd \"$SHORE_ROOT\"/data; mkdir closed; echo x > n; echo x > closed/n; \
                    chmod 0 closed; echo up; exec sleep 1000";
        let wanted = instance(1, &with_volume(text));
        stream.desire(false, vec![wanted.clone()]).await;
        ready(&mut stream).await;
        stream.line("up").await;
        if restarted {
            agent.stop().await;
            drop(stream);
            agent = bench.start(&server);
            stream = server.accept().await;
            stream.desire(true, vec![wanted.clone()]).await;
        }
        delete(&stream).await;
        delete(&stream).await;
        // It is read after the request to delete, so the agent knows of that by now.
        stream.desire(false, vec![instance(2, &process(&["/bin/sleep", "1000"], None))]).await;
        while stream.report().await.0 != instance_work(2, 1) {}
        assert_eq!(kept(&bench), "x\n", "somebody has it");
        stream.desire(false, vec![stopped(&wanted)]).await;
        gone(&mut stream).await;
        let left = std::fs::read_dir(bench.dir.path().join("volumes")).expect("lists").count();
        assert_eq!(left, 0, "restarted: {restarted}");
        delete(&stream).await;
        gone(&mut stream).await;
        agent.stop().await;
    }
}
