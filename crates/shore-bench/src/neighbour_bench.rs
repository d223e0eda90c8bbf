//! What an app notices of a neighbour that floods the machine: the latency of its requests, with and
//! without the flood, in turns. The server is here, the cell as `shore cell`; requests go to the
//! instance itself.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use model::{Check, CheckKind, Digest, InstanceState, Limits, ProcessSpec};
use runtime::{Stop, Tasks, mono_now};
use serde_json::{Map, Value, json};
use server::Server;
use state::{Cell, Instance};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster_bench;
use crate::deploys::Project;
use crate::one_cell::{CellProcess, healthy, image, percentile_ms, serve, wait};

/// The app whose requests are looked at: a program that answers each with a small file.
const APP: &str = "echo ok > /tmp/index.html; exec busybox httpd -f -p ${PORT} -h /tmp";
/// Requests a second, each by a connection of its own.
const RATE: u32 = 200;
/// Requests with a flood and without it, in each turn.
const REQUESTS: u32 = 1_000;
/// How often quiet and flood take turns.
const TURNS: usize = 3;
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// What a neighbour does, by name. Each goes on for ever, whatever its limits do to it.
const FLOODS: [(&str, &str); 6] = [
    ("cpu", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"),
    ("memory", "while :; do tail -c 200000000 /dev/zero | head -c 1; done"),
    ("disk", "while :; do dd if=/dev/zero of=/home/flood bs=64k; rm -f /home/flood; done"),
    ("pids", "f() { f & f & wait; }; while :; do f; done"),
    (
        "files",
        "for i in 1 2 3 4; do (while :; do perl -e \
         'while (open($f[$i++], \"<\", \"/dev/null\")) {}'; done) & done; wait",
    ),
    ("logs", "for i in 1 2; do yes 'a line that nobody will ever read' & done; wait"),
];

pub(crate) fn run() -> Result<Value, String> {
    let mut words = std::env::args().skip(2);
    let driver = match (words.next().as_deref(), words.next()) {
        (None, _) => "oci".to_owned(),
        (Some("--driver"), Some(driver)) => driver,
        _ => return Err("only --driver NAME is known".to_owned()),
    };
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let tasks = Tasks::new(Stop::new());
    let figures = cluster_bench::runtime()?.block_on(measure(&driver, dir.path(), &tasks));
    tasks.stop().stop();
    figures
}

async fn measure(driver: &str, dir: &Path, tasks: &Tasks) -> Result<Value, String> {
    let (server, url, token) = serve(dir, tasks).await?;
    let mut cell = CellProcess::start(driver, &dir.join("cell"), (&url, &token))?;
    wait(&server, |state| state.all::<Cell>().any(|cell| cell.lease_until.is_some())).await?;
    let image = image(&server).await?;
    let project = Project::make(&server, 0xbe).await?;
    let checked = Some(Check { kind: CheckKind::Tcp, ..Check::default() });
    let app = project.deploy(&server, 1, (spec(image, APP, checked), 1)).await?;
    healthy(&server, app).await?;
    let address = address(&server).await?;
    requests(address).await?;
    let mut floods = Map::new();
    let mut number = 2;
    for (name, text) in FLOODS {
        let (mut quiet, mut loud) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            quiet.extend(requests(address).await?);
            project.deploy(&server, number, (spec(image, text, None), 1)).await?;
            wait(&server, |state| state.all::<Instance>().filter(|it| runs(it)).count() == 2)
                .await?;
            loud.extend(requests(address).await?);
            project.end(&server, number).await?;
            wait(&server, |state| state.all::<Instance>().count() == 1).await?;
            number += 1;
        }
        let [quiet, loud] = [&mut quiet, &mut loud].map(|times| percentile_ms(times, 99));
        println!("{name}: p99 {quiet:.2} ms, with the flood {loud:.2} ms");
        let figures = json!({ "quiet_p99_ms": quiet, "p99_ms": loud, "ratio": loud / quiet });
        floods.insert(name.to_owned(), figures);
    }
    project.end(&server, 1).await?;
    wait(&server, |state| state.all::<Instance>().next().is_none()).await?;
    cell.end();
    let ratios = floods.values().filter_map(|figures| figures["ratio"].as_f64());
    let worst = ratios.fold(0.0, f64::max);
    Ok(json!({ "bench": "neighbour", "driver": driver, "worst_ratio": worst, "floods": floods }))
}

const fn runs(instance: &Instance) -> bool {
    matches!(instance.state, InstanceState::Running { .. })
}

/// An app with the limits a careful operator gives every app: one core is the most it gets.
fn spec(image: Digest, text: &str, check: Option<Check>) -> ProcessSpec {
    let mut spec = ProcessSpec::new(["/bin/sh", "-c", text]);
    spec.container.image = Some(image);
    spec.container.limits = Limits {
        memory_mb: Some(64),
        disk_mb: Some(64),
        cpu_shares: Some(1_024),
        pids: Some(64),
        files: Some(256),
        ..Limits::default()
    };
    spec.check = check;
    spec
}

/// Where the only instance is.
async fn address(server: &Server) -> Result<SocketAddr, String> {
    let found = server.read(|state| {
        state.all::<Instance>().find_map(|instance| match instance.state {
            InstanceState::Running { address, .. } => Some(address),
            _ => None,
        })
    });
    let found = found.await.map_err(|error| error.to_string())?;
    found.ok_or_else(|| "nothing runs".to_owned())
}

/// Asks at a steady rate, whatever the answers take, and tells how long each took.
async fn requests(address: SocketAddr) -> Result<Vec<Duration>, String> {
    let began = mono_now();
    let asked = (0..REQUESTS).map(|number| async move {
        let at = began + number * (Duration::from_secs(1) / RATE);
        runtime::sleep(at.saturating_duration_since(mono_now())).await;
        let from = mono_now();
        let answer = runtime::timeout(REQUEST_LIMIT, ask(address)).await;
        answer.ok_or("a request took too long")?.map_err(|error| error.to_string())?;
        Ok(from.elapsed())
    });
    futures_util::future::try_join_all(asked).await
}

async fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    if answer.get(8..13) == Some(b" 200 ") { Ok(()) } else { Err(std::io::Error::other("refused")) }
}
