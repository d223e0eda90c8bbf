//! From a deployment's command to an instance that passes its check: the server here, a cell as
//! `shore cell`, and the driver that is asked for. The image is on the cell already.

mod bare;

use std::path::Path;

use model::{Check, CheckKind, Digest, ProcessSpec};
use runtime::{Stop, Tasks, mono_now};
use serde_json::{Value, json};
use state::{Cell, Instance};

use crate::cluster_bench;
use crate::deploys::Project;
use crate::one_cell::{CellProcess, healthy, image, percentile_ms, serve, wait};

/// Instances that start one after the other, and as many that start at once.
const INSTANCES: u32 = 50;
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

fn spec(image: Digest) -> ProcessSpec {
    let mut spec = ProcessSpec::new(["/bin/sh", "-c", APP]);
    spec.container.image = Some(image);
    spec.container.limits.memory_mb = Some(64);
    spec.container.limits.disk_mb = Some(64);
    spec.check = Some(Check { kind: CheckKind::Tcp, ..Check::default() });
    spec
}
