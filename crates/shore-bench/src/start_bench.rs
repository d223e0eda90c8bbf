//! From a deployment's command to an instance that passes its check: the server here, a cell as
//! `shore cell`, and the driver that is asked for. The image is on the cell already.

mod bare;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use model::{
    Check, CheckKind, DeploymentId, DeploymentState, Digest, JoinToken, ProcessSpec, Role,
};
use runtime::{Stop, Tasks, mono_now};
use serde_json::{Value, json};
use server::Server;
use state::{Cell, Deployment, Instance, State};
use tokio::net::TcpListener;

use crate::cluster_bench;
use crate::deploys::Project;

/// Instances that start one after the other, and as many that start at once.
const INSTANCES: u32 = 50;
/// How long a step may take.
const LIMIT: Duration = Duration::from_mins(2);
/// What answers. It needs nothing but what is on every machine with busybox.
const APP: &str = "exec busybox httpd -f -p ${PORT} -h /";

struct Options {
    driver: String,
    count: u32,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self { driver: "oci".to_owned(), count: INSTANCES };
        let mut words = std::env::args().skip(2);
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--driver" => options.driver = value,
                "--n" => {
                    let count = value.parse().ok().filter(|count| *count > 0);
                    options.count = count.ok_or("--n wants a number from 1 on")?;
                }
                _ => return Err(format!("{word} is not known: --driver and --n are")),
            }
        }
        Ok(options)
    }
}

pub(crate) fn run() -> Result<Value, String> {
    let options = Options::read()?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let tasks = Tasks::new(Stop::new());
    let figures = cluster_bench::runtime()?.block_on(measure(&options, dir.path(), &tasks));
    tasks.stop().stop();
    figures
}

async fn measure(options: &Options, dir: &Path, tasks: &Tasks) -> Result<Value, String> {
    let (server, url, token) = serve(dir, tasks).await?;
    let mut cell = CellProcess::start(&options.driver, &dir.join("cell"), (&url, &token))?;
    wait(&server, |state| state.all::<Cell>().any(|cell| cell.lease_until.is_some())).await?;
    let spec = spec(image(&server).await?);
    let project = Project::make(&server, 0xbe).await?;
    // The first one fetches the image and whatever is found out once.
    healthy(&server, project.deploy(&server, 1, (spec.clone(), 1)).await?).await?;
    let last = u128::from(options.count) + 2;
    let (mut times, mut bare) = (Vec::new(), Vec::new());
    for number in 2..last {
        bare.push(bare::start(&options.driver, &dir.join("bare"), number)?);
        let began = mono_now();
        let deployment = project.deploy(&server, number, (spec.clone(), 1)).await?;
        healthy(&server, deployment).await?;
        times.push(began.elapsed());
    }
    println!("{} instances started one after the other", options.count);
    let began = mono_now();
    healthy(&server, project.deploy(&server, last, (spec, options.count)).await?).await?;
    let together = began.elapsed();
    for number in 1..=last {
        project.end(&server, number).await?;
    }
    wait(&server, |state| state.all::<Instance>().next().is_none()).await?;
    cell.end();
    Ok(json!({
        "bench": "start",
        "driver": options.driver,
        "n": options.count,
        "p50_ms": percentile_ms(&mut times, 50),
        "p95_ms": percentile_ms(&mut times, 95),
        "bare_runtime_p50_ms": percentile_ms(&mut bare, 50),
        "together_ms": together.as_secs_f64() * 1e3,
    }))
}

fn percentile_ms(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A server that listens, where, and a token for a cell.
async fn serve(dir: &Path, tasks: &Tasks) -> Result<(Server, String, JoinToken), String> {
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
async fn wait(
    server: &Server,
    is: impl Fn(&State) -> bool + Send + Sync + 'static,
) -> Result<(), String> {
    let waited = server.wait_for(move |state| is(state).then_some(()));
    let waited = runtime::timeout(LIMIT, waited).await.ok_or("it took too long")?;
    waited.map_err(|error| error.to_string())
}

async fn healthy(server: &Server, id: DeploymentId) -> Result<(), String> {
    let ended = move |state: &State| match &state.get::<Deployment>(id)?.state {
        DeploymentState::Ready => Some(Ok(())),
        DeploymentState::Failed { reason } => Some(Err(reason.clone())),
        DeploymentState::Starting { .. } | DeploymentState::Retired => None,
    };
    let ended = runtime::timeout(LIMIT, server.wait_for(ended)).await;
    ended.ok_or("it took too long")?.map_err(|error| error.to_string())?
}

fn spec(image: Digest) -> ProcessSpec {
    let mut spec = ProcessSpec::new(["/bin/sh", "-c", APP]);
    spec.container.image = Some(image);
    spec.container.limits.memory_mb = Some(64);
    spec.container.limits.disk_mb = Some(64);
    spec.check = Some(Check { kind: CheckKind::Tcp, ..Check::default() });
    spec
}

/// An image of one small layer.
async fn image(server: &Server) -> Result<Digest, String> {
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
struct CellProcess(Child);

impl CellProcess {
    fn start(driver: &str, dir: &Path, (url, token): (&str, &JoinToken)) -> Result<Self, String> {
        let mut program = Program::new(testkit::shore_binary()?);
        program.args(["cell", "--driver", driver, "--data"]).arg(dir);
        program.env("SHORE_SERVER", url).env("SHORE_TOKEN", token.to_string());
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        program.spawn().map(Self).map_err(|error| error.to_string())
    }

    fn end(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

impl Drop for CellProcess {
    fn drop(&mut self) {
        self.end();
    }
}
