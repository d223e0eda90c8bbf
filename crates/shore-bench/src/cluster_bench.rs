//! Everything but containers: a server in a process of its own, and cells that connect to it as
//! real ones do and claim that whatever they are told to run runs. Apps are deployed by jobs once
//! all cells are there.

mod cell;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::time::Duration;

use model::{JoinToken, Role};
use runtime::{Ids, Random, SteadyClock, Stop, Tasks, mono_now};
use serde_json::{Value, json};
use server::{Parts, Server, Settings};
use state::Instance;
use store::blobs::BlobLimits;
use store::sqlite::SqliteStore;
use tokio::net::TcpListener;

use crate::options::Options;
use crate::{deploys, workload};

/// The name of the process that is the server.
pub(crate) const SERVER: &str = "cluster-server";
/// How long everything may take.
const LIMIT: Duration = Duration::from_mins(10);
/// How often the server looks whether everything runs.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().map_err(|error| error.to_string())
}

pub(crate) fn run(options: &Options) -> Result<Value, String> {
    let dir = tempfile::tempdir_in(".").map_err(|error| error.to_string())?;
    let mut server = Process::start(dir.path())?;
    let url = server.line()?;
    let token = server.line()?.parse::<JoinToken>()?;
    let tasks = Tasks::new(Stop::new());
    let figures = runtime()?.block_on(async {
        let began = mono_now();
        let cells = cell::Cells::join(&url, token, options.cells, &tasks).await?;
        let joined = began.elapsed();
        println!("{} cells are there after {joined:.2?}", options.cells);
        let began = mono_now();
        server.tell(options)?;
        let deployed = server.figure()?;
        let running = server.figure()?;
        let whole = began.elapsed();
        println!("{} instances run after {whole:.2?}", options.instances);
        Ok::<_, String>(json!({
            "bench": "cluster",
            "cells": options.cells,
            "instances": options.instances,
            "join_s": joined.as_secs_f64(),
            "seconds_to_deployed": deployed,
            "seconds_to_running": running,
            "server_rss_mb": crate::idle_bench::rss_mb(server.child.id())?,
            "server_peak_rss_mb": crate::idle_bench::peak_rss_mb(server.child.id())?,
            "reports": cells.reports(),
            "lost_connections": cells.lost(),
        }))
    });
    tasks.stop().stop();
    figures
}

/// The server's process; it ends when this does.
struct Process {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(dir: &Path) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut child = Program::new(program)
            .arg(SERVER)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let out = BufReader::new(child.stdout.take().ok_or("it has no output")?);
        Ok(Self { child, out })
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.out.read_line(&mut line).map_err(|error| error.to_string())?;
        match line.trim() {
            "" => Err("the server ended".to_owned()),
            line => Ok(line.to_owned()),
        }
    }

    /// Tells it what to deploy.
    fn tell(&mut self, options: &Options) -> Result<(), String> {
        let input = self.child.stdin.as_mut().ok_or("it has no input")?;
        writeln!(input, "{} {}", options.seed, options.instances).map_err(|error| error.to_string())
    }

    fn figure(&mut self) -> Result<f64, String> {
        let line = tokio::task::block_in_place(|| self.line())?;
        line.parse().map_err(|_| line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// What the server's process does: it listens, deploys what it is told to, and says when.
pub(crate) fn serve() -> Result<Value, String> {
    let dir = std::env::args().nth(2).ok_or("a directory is missing")?;
    runtime()?.block_on(async {
        let tasks = Tasks::new(Stop::new());
        let server = open(Path::new(&dir), &tasks).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|error| error.to_string())?;
        let address: SocketAddr = listener.local_addr().map_err(|error| error.to_string())?;
        let app = edge::router(server.clone());
        tasks.spawn_ok("http", edge::serve(listener, app, None, tasks.clone()));
        let token = server.create_token(Role::Cell, None, "cells".to_owned(), None).await;
        let token = token.map_err(|error| error.to_string())?;
        println!("http://{address}\n{token}");
        let mut line = String::new();
        let read = tokio::task::block_in_place(|| std::io::stdin().read_line(&mut line));
        read.map_err(|error| error.to_string())?;
        let (seed, instances) = line.trim().split_once(' ').ok_or("nothing to deploy")?;
        let wanted: u32 = instances.parse().map_err(|_| "no number")?;
        let apps = workload::apps(seed.parse().map_err(|_| "no number")?, wanted);
        let began = mono_now();
        deploys::all(&server, &apps).await?;
        println!("{}", began.elapsed().as_secs_f64());
        while !all_run(&server, wanted).await? {
            if began.elapsed() > LIMIT {
                return Err("not everything runs in time".to_owned());
            }
            runtime::sleep(LOOK).await;
        }
        println!("{}", began.elapsed().as_secs_f64());
        // It is killed once its memory was looked at.
        std::future::pending::<()>().await;
        Ok(Value::Null)
    })
}

pub(crate) async fn open(dir: &Path, tasks: &Tasks) -> Result<Server, String> {
    std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    let store = SqliteStore::open(&dir.join("store.db")).map_err(|error| error.to_string())?;
    let parts = Parts {
        store: Arc::new(store),
        clock: Arc::new(SteadyClock::new()),
        ids: Ids::new(Random::system()),
        tasks: tasks.clone(),
        domain: "localhost".to_owned(),
        authority: None,
        blobs: BlobLimits::default(),
        settings: Settings::default(),
    };
    Server::start(parts, dir).await.map_err(|error| error.to_string())
}

/// Whether so many instances run and pass their checks.
async fn all_run(server: &Server, wanted: u32) -> Result<bool, String> {
    let counts = server.read(|state| state.counts().instances).await;
    let running = counts.map_err(|error| error.to_string())?.get("running").copied().unwrap_or(0);
    if running < u64::from(wanted) {
        return Ok(false);
    }
    let ready = |row: &&Arc<Instance>| row.state.ready_address().is_some();
    let count = server.read(move |state| state.all::<Instance>().filter(ready).count()).await;
    Ok(count.map_err(|error| error.to_string())? == wanted as usize)
}
