//! A server here, and one cell as `shore cell` beside it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use model::{DeploymentId, DeploymentState, Digest, JoinToken, Role};
use runtime::Tasks;
use serde_json::json;
use server::Server;
use state::{Deployment, State};
use tokio::net::TcpListener;

use crate::cluster_bench;

/// How long a step may take.
const LIMIT: Duration = Duration::from_mins(2);

/// A percentile in milliseconds; sorts the times.
pub(crate) fn percentile_ms(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A server that listens, where, and a token for a cell.
pub(crate) async fn serve(
    dir: &Path,
    tasks: &Tasks,
) -> Result<(Server, String, JoinToken), String> {
    let server = cluster_bench::open(&dir.join("server"), tasks).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.map_err(|error| error.to_string())?;
    let url = format!("http://{}", listener.local_addr().map_err(|error| error.to_string())?);
    let app = edge::router(server.clone());
    tasks.spawn_ok("http", edge::serve(listener, app, None, tasks.clone()));
    let token = server.create_token(Role::Cell, None, "cell".to_owned(), None).await;
    Ok((server, url, token.map_err(|error| error.to_string())?))
}

/// Waits until the state is as wanted.
pub(crate) async fn wait(
    server: &Server,
    is: impl Fn(&State) -> bool + Send + Sync + 'static,
) -> Result<(), String> {
    let waited = server.wait_for(move |state| is(state).then_some(()));
    let waited = runtime::timeout(LIMIT, waited).await.ok_or("it took too long")?;
    waited.map_err(|error| error.to_string())
}

pub(crate) async fn healthy(server: &Server, id: DeploymentId) -> Result<(), String> {
    let ended = move |state: &State| match &state.get::<Deployment>(id)?.state {
        DeploymentState::Ready => Some(Ok(())),
        DeploymentState::Failed { reason } => Some(Err(reason.clone())),
        DeploymentState::Starting { .. } | DeploymentState::Retired => None,
    };
    let ended = runtime::timeout(LIMIT, server.wait_for(ended)).await;
    ended.ok_or("it took too long")?.map_err(|error| error.to_string())?
}

/// An image of one small layer.
pub(crate) async fn image(server: &Server) -> Result<Digest, String> {
    let put = async |bytes: Vec<u8>| {
        let stored = server.blobs().put(bytes.as_slice()).await;
        stored.map(|stored| Digest(stored.digest)).map_err(|error| error.to_string())
    };
    // An empty archive.
    let layer = put(vec![0; 1_024]).await?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let config = put(config.to_string().into_bytes()).await?;
    let blob = |kind: &str, digest: Digest| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": digest, "size": 1 })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob("config.v1+json", config),
        "layers": [blob("layer.v1.tar", layer)],
    });
    put(manifest.to_string().into_bytes()).await
}

/// A cell in a process of its own.
pub(crate) struct CellProcess(Child);

impl CellProcess {
    pub(crate) fn start(
        driver: &str,
        dir: &Path,
        (url, token): (&str, &JoinToken),
    ) -> Result<Self, String> {
        let mut program = Program::new(testkit::shore_binary()?);
        program.args(["cell", "--driver", driver, "--data"]).arg(dir);
        program.env("SHORE_SERVER", url).env("SHORE_TOKEN", token.to_string());
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        program.spawn().map(Self).map_err(|error| error.to_string())
    }

    pub(crate) fn end(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

impl Drop for CellProcess {
    fn drop(&mut self) {
        self.end();
    }
}
