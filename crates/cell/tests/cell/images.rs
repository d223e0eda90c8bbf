//! Containers made from images.

use model::Digest;
use serde_json::json;

use crate::bench::{Bench, instance, instance_work, process};
use crate::instances::ready;
use crate::server::{Blobs, Server};
use crate::tasks::{archive, gzip};

pub(crate) fn image(blobs: &Blobs, layers: &[Vec<u8>]) -> Digest {
    let run = json!({"Env": ["FROM=image", "PATH=/own/bin:/bin"], "WorkingDir": "/workspace"});
    let rootfs = json!({"type": "layers", "diff_ids": []});
    let config = json!({"architecture": "amd64", "os": "linux", "config": run, "rootfs": rootfs});
    let config = blobs.put(config.to_string());
    let blob = |kind: &str, digest: Digest| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": digest, "size": 1})
    };
    let layers = layers.iter().map(|layer| blob("layer.v1.tar+gzip", blobs.put(layer.clone())));
    let layers: Vec<_> = layers.collect();
    let manifest =
        json!({"schemaVersion": 2, "config": blob("config.v1+json", config), "layers": layers});
    blobs.put(manifest.to_string())
}

#[tokio::test]
async fn layers_are_fetched_once_and_laid_over_each_other() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let lower = gzip(&archive(&[("workspace/run", "#!/bin/sh\necho old\n"), ("workspace/x", "")]));
    let script = "#!/bin/sh\npwd; ls; echo $FROM $PATH\nexec sleep 1000\n";
    let upper = archive(&[("workspace/run", script), ("workspace/.wh.x", "")]);
    let image = image(&server.blobs, &[lower, upper]);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    let mut spec = process(&["/workspace/run"], None);
    spec.container.image = Some(image);
    stream.desire(true, vec![instance(1, &spec), instance(2, &spec), instance(3, &spec)]).await;
    for _ in 0..3 {
        stream.line("image /own/bin:/bin:/opt/agent/bin").await;
        let at = stream.seen.iter().position(|line| line.starts_with("image ")).expect("is there");
        stream.seen.remove(at);
    }
    assert_eq!(stream.seen.iter().filter(|line| *line == "run").count(), 3, "{:#?}", stream.seen);
    assert!(stream.seen.iter().any(|line| line.ends_with("root/workspace")));
    let reads = server.blobs.reads();
    let layers = bench.dir.path().join("layers");
    let unpacked = std::fs::read_dir(layers).expect("lists").flatten();
    assert_eq!(unpacked.filter(|entry| entry.path().is_dir()).count(), 2);
    assert!(reads.len() <= 8, "the layers are read once: {reads:?}");
    agent.stop().await;
    drop(stream);
    let agent = bench.start(&server);
    let mut stream = server.accept().await;
    stream.desire(true, vec![instance(4, &spec)]).await;
    ready(&mut stream).await;
    let reads = server.blobs.reads();
    assert_eq!(reads.len(), 2, "only manifest and configuration: {reads:?}");
    stream.gone(&instance_work(4, 1)).await;
    stream.meanwhile(bench.until_empty()).await;
    agent.stop().await;
}
