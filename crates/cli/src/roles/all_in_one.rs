//! Server, runner, cell and router in this process: what `shore dev` and a first `shore up` run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use api::{Client, Endpoint};
use model::{JoinToken, Role};
use runtime::{Kind, Stop, Tasks};
use serde::{Deserialize, Serialize};
use server::{Server, Settings};
use store::blobs::BlobLimits;

use super::{
    LOCALHOST, NOT_ISOLATED, STOP_GRACE, ServerOptions, identity, interrupted, part_failed, port,
    router_error, start_server,
};
use crate::args::DevPorts;
use crate::context::{Context, Contexts, LOCAL, private_dir, write_private};
use crate::env;
use crate::error::{CliError, Result};
use crate::output::Output;

/// Jobs the runner works on at once.
const JOBS: u32 = 4;

/// The tokens of the parts, kept between starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tokens {
    admin: String,
    runner: String,
    cell: String,
    router: String,
}

/// What is told once everything is ready.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Info {
    event: &'static str,
    pub(crate) server: String,
    pub(crate) http_port: u16,
    pub(crate) ssh_port: u16,
    pub(crate) data: String,
}

/// All four roles. They end in the order that loses nothing.
pub(crate) struct AllInOne {
    server: Tasks,
    workers: Tasks,
    router: Tasks,
    cell: Tasks,
    /// The cell leaves for good: its containers end.
    leave: Stop,
    /// Fires with the first signal, also one that comes between two waits.
    interrupted: Stop,
    endpoint: Endpoint,
    info: Info,
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl AllInOne {
    /// Starts everything and makes it the current context.
    pub(crate) async fn start(ports: &DevPorts, output: Output) -> Result<Self> {
        let data = env::data_dir()?;
        // The router comes last; that its port is used is said before anything is made.
        drop(port::bind("router", loopback(ports.http_port), "--http-port").await?);
        let tasks = || Tasks::new(Stop::new());
        let (server, workers, router, cell) = (tasks(), tasks(), tasks(), tasks());
        let signalled = Stop::new();
        let (fire, end) = (signalled.clone(), server.stop().clone());
        server.spawn_ok("signals", async move {
            if end.or_stop(interrupted()).await.is_some() {
                fire.stop();
            }
        });
        let options = ServerOptions {
            listen: loopback(ports.port),
            ssh: Some(loopback(ports.ssh_port)),
            dir: data.join("server"),
            domain: LOCALHOST.parse().map_err(CliError::internal)?,
            names: Vec::new(),
            flags: ["--port", "--ssh-port"],
            blobs: BlobLimits::default(),
            settings: Settings::default(),
        };
        let running = start_server(options, &server).await?;
        for part in ["runner", "cell", "router"] {
            private_dir(&data.join(part))?;
        }
        let tokens = tokens(&running.server, &data.join("tokens.json")).await?;
        let endpoint = |token: &str| {
            let token: JoinToken = token.parse().map_err(CliError::invalid)?;
            Endpoint::new(&running.url, token).map_err(CliError::invalid)
        };
        let listen = vec![loopback(ports.http_port)];
        let options = identity::router(&data.join("router"), listen, None)?;
        router::Router::start(options, Some(endpoint(&tokens.router)?), &router)
            .map_err(|error| router_error(&error, "--http-port"))?;
        let leave = start_cell(&data.join("cell"), endpoint(&tokens.cell)?, &cell, output)?;
        let name = identity::name(None, "runner")?;
        let options = identity::runner(&data.join("runner"), name, [].into(), JOBS)?;
        let running_runner = runner::run(options, endpoint(&tokens.runner)?, workers.clone());
        workers.spawn(Kind::Critical, "runner", running_runner);
        remember(&running.url, &tokens.admin)?;
        let info = Info {
            event: "ready",
            server: running.url.clone(),
            http_port: ports.http_port,
            ssh_port: ports.ssh_port,
            data: data.display().to_string(),
        };
        let endpoint = endpoint(&tokens.admin)?;
        Ok(Self { server, workers, router, cell, leave, interrupted: signalled, endpoint, info })
    }

    /// What to tell once it is ready.
    pub(crate) fn info(&self) -> Info {
        self.info.clone()
    }

    /// A client with the owner's rights.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(self.endpoint.clone())?)
    }

    /// Runs `work` until a signal comes, which gives `None`, or a part fails, which is an error.
    pub(crate) async fn or_stopped<T>(&self, work: impl Future<Output = T>) -> Result<Option<T>> {
        tokio::select! {
            done = work => return Ok(Some(done)),
            () = self.interrupted.stopped() => return Ok(None),
            () = self.server.stop().stopped() => {}
            () = self.workers.stop().stopped() => {}
            () = self.router.stop().stopped() => {}
            () = self.cell.stop().stopped() => {}
        }
        Err(part_failed())
    }

    /// Ends everything: first jobs, then containers, then the ways in, then the server.
    pub(crate) async fn shutdown(self) {
        let ended = [
            ("jobs", self.workers.shutdown(STOP_GRACE).await),
            ("containers", self.end_containers().await),
            ("router", self.router.shutdown(STOP_GRACE).await),
            ("server", self.server.shutdown(STOP_GRACE).await),
        ];
        for (what, in_time) in ended {
            if !in_time {
                tracing::warn!("{what} did not end in time");
            }
        }
    }

    async fn end_containers(&self) -> bool {
        self.leave.stop();
        // The cell's run ends by itself once its containers have.
        let ended = runtime::timeout(STOP_GRACE, self.cell.stop().stopped()).await;
        self.cell.shutdown(STOP_GRACE).await && ended.is_some()
    }
}

fn start_cell(dir: &Path, endpoint: Endpoint, tasks: &Tasks, output: Output) -> Result<Stop> {
    let options = identity::cell(dir, identity::name(None, "cell")?)?;
    if !options.isolates() {
        output.say(NOT_ISOLATED);
    }
    let leave = options.leave.clone();
    let (all, ended) = (tasks.clone(), tasks.stop().clone());
    tasks.spawn(Kind::Critical, "cell", async move {
        let done = cell::Cell::run(options, endpoint, all).await;
        ended.stop();
        done
    });
    Ok(leave)
}

/// The tokens of an earlier start if they still work, else new ones.
async fn tokens(server: &Server, path: &Path) -> Result<Tokens> {
    let kept = std::fs::read_to_string(path).ok();
    if let Some(tokens) = kept.and_then(|text| serde_json::from_str::<Tokens>(&text).ok()) {
        let known = server.authenticate(&tokens.admin).await.map_err(CliError::internal)?;
        if known.is_ok() {
            return Ok(tokens);
        }
    }
    let make = async |role: Role| {
        let label = format!("{} of the all-in-one server", role.name());
        let token = server.create_token(role, None, label, None).await;
        token.map(|token| token.to_string()).map_err(CliError::internal)
    };
    let tokens = Tokens {
        admin: make(Role::Admin).await?,
        runner: make(Role::Runner).await?,
        cell: make(Role::Cell).await?,
        router: make(Role::Router).await?,
    };
    let text = serde_json::to_string_pretty(&tokens).map_err(CliError::internal)?;
    write_private(path, &text)?;
    Ok(tokens)
}

/// Makes the server the current context, so that other terminals find it.
fn remember(url: &str, token: &str) -> Result<()> {
    let mut contexts = Contexts::load()?;
    let context = Context { url: url.to_owned(), token: token.to_owned() };
    contexts.contexts.insert(LOCAL.to_owned(), context);
    contexts.current = Some(LOCAL.to_owned());
    contexts.save()
}
