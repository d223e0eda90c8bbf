//! The roles as this program runs them: each alone, or all of them in this process.

mod all_in_one;
mod containers;
mod identity;
mod port;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::Endpoint;
use model::{HostName, JoinToken, Name, Role};
use runtime::{Ids, Kind, Random, SteadyClock, Stop, Tasks};
use server::{Authority, IdentityAuthority, Parts, Rebalance, Server, Settings};
use store::Store;
use store::blobs::BlobLimits;
use store::sqlite::SqliteStore;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::args::{CellArgs, DevPorts, JoinArgs, RouterArgs, RunnerArgs, ServerArgs};
use crate::commands::Shell;
use crate::context::private_dir;
use crate::env;
use crate::error::{CliError, ErrorKind, Result};

use identity::OwnToken;

pub(crate) use all_in_one::AllInOne;

/// The store's file in a server's data directory.
const STORE: &str = "store.db";
/// The parent of every app's host unless told otherwise.
pub(crate) const LOCALHOST: &str = "localhost";
/// How long everything has to end once it is asked to.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(15);

/// What the owner of a machine is told when its cell isolates nothing.
pub(crate) const NOT_ISOLATED: &str =
    "containers are not isolated from this machine: run only what you trust";

/// Sends what roles say of themselves to standard error.
pub(crate) fn log_to_stderr(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && env::colours())
        // A line that cannot be written, as on a full disk, must not end who wrote it.
        .log_internal_errors(false)
        .init();
}

/// Waits for Ctrl-C or TERM.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, "signals cannot be watched");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

/// What a server role needs.
pub(crate) struct ServerOptions {
    pub(crate) listen: SocketAddr,
    pub(crate) ssh: Option<SocketAddr>,
    pub(crate) dir: PathBuf,
    pub(crate) domain: HostName,
    pub(crate) names: Vec<String>,
    /// The flags that choose the address of the server and of its SSH.
    pub(crate) flags: [&'static str; 2],
    pub(crate) blobs: BlobLimits,
    pub(crate) settings: Settings,
}

/// A server that listens.
pub(crate) struct RunningServer {
    pub(crate) server: Server,
    pub(crate) url: String,
    /// The first administrator's token, when the server is new.
    pub(crate) first: Option<JoinToken>,
}

/// Opens the store and starts listening.
pub(crate) async fn start_server(options: ServerOptions, tasks: &Tasks) -> Result<RunningServer> {
    let ServerOptions { listen, ssh, dir, domain, names, flags, blobs, settings } = options;
    private_dir(&dir)?;
    let listener = port::bind("server", listen, flags[0]).await?;
    let listen = listener.local_addr().map_err(CliError::internal)?;
    let ssh = match ssh {
        Some(address) => Some(port::bind("SSH server", address, flags[1]).await?),
        None => None,
    };
    let (server, authority) = open_server(&dir, domain, (blobs, settings), tasks).await?;
    server.issues(IdentityAuthority::open(&dir).map_err(CliError::internal)?);
    let first = server.first_token().await.map_err(CliError::internal)?;
    let tls = if listen.ip().is_loopback() {
        None
    } else {
        let names = certificate_names(names, listen);
        Some(authority.server_config(names).map_err(CliError::internal)?)
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let app = edge::router(server.clone());
    tasks.spawn_ok("http", edge::serve(listener, app, tls, tasks.clone()));
    if let Some(listener) = ssh {
        serve_ssh(listener, &server, &dir, tasks)?;
    }
    Ok(RunningServer { server, url: format!("{scheme}://{listen}"), first })
}

/// Opens the data of a server. Its authority is made with it, also while it listens on loopback only,
/// so that its tokens go on working when it moves to TLS.
async fn open_server(
    dir: &Path,
    domain: HostName,
    (blobs, settings): (BlobLimits, Settings),
    tasks: &Tasks,
) -> Result<(Server, Authority)> {
    let store = open_store(dir)?;
    let authority = Authority::open(dir).map_err(CliError::internal)?;
    let clock = Arc::new(SteadyClock::new());
    let (kept, stop) = (Arc::clone(&clock), tasks.stop().clone());
    tasks.spawn_ok("clock", async move {
        stop.or_stop(kept.keep_up()).await;
    });
    let parts = Parts {
        store,
        clock,
        ids: Ids::new(Random::system()),
        tasks: tasks.clone(),
        domain: domain.to_string(),
        authority: Some(authority.fingerprint()),
        blobs,
        settings,
    };
    let server = Server::start(parts, dir).await.map_err(start_error)?;
    Ok((server, authority))
}

/// An administrator's token, made in the data directory of a server that does not run. Who can write
/// there is its owner.
pub(crate) async fn token_in(dir: &Path, role: Role, label: String) -> Result<JoinToken> {
    if !dir.join(STORE).is_file() {
        let message =
            format!("cannot make a token: there is no server's data in {}", dir.display());
        return Err(CliError::new(ErrorKind::NotFound, message)
            .hint("name the directory that holds `store.db`, as for `shore server --data`"));
    }
    let tasks = Tasks::new(Stop::new());
    let domain = LOCALHOST.parse().map_err(CliError::internal)?;
    let (server, _) =
        open_server(dir, domain, (BlobLimits::default(), Settings::default()), &tasks).await?;
    let made = server.create_token(role, None, label, None).await.map_err(CliError::invalid);
    tasks.shutdown(STOP_GRACE).await;
    made
}

fn serve_ssh(listener: TcpListener, server: &Server, dir: &Path, tasks: &Tasks) -> Result<()> {
    let port = listener.local_addr().map_err(CliError::internal)?.port();
    let git = edge::ssh::Git::open(dir, &identity::platform_exe()?, server.clone())
        .map_err(CliError::internal)?;
    server.serves_ssh(port);
    tasks.spawn(Kind::Ordinary, "ssh", git.serve(listener));
    Ok(())
}

fn open_store(dir: &Path) -> Result<Arc<dyn Store>> {
    let path = dir.join(STORE);
    match SqliteStore::open(&path) {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            let hint = error.hint();
            Err(CliError::new(ErrorKind::Unavailable, error.to_string()).hint(hint))
        }
    }
}

fn start_error(error: server::StartError) -> CliError {
    let message = format!("the server cannot start: {error}");
    match error {
        server::StartError::Store(store) => {
            CliError::new(ErrorKind::Unavailable, message).hint(store.hint())
        }
        server::StartError::Log(_)
        | server::StartError::Apply(_)
        | server::StartError::Thread(_) => CliError::internal(message),
    }
}

fn certificate_names(mut names: Vec<String>, listen: SocketAddr) -> Vec<String> {
    names.push("localhost".to_owned());
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    names
}

/// `shore dev`
pub(crate) async fn dev(shell: &Shell, ports: &DevPorts) -> Result<()> {
    let running = AllInOne::start(ports, shell.output).await?;
    let info = running.info();
    shell.output.value(&info, || {
        format!(
            "ready: server {}, apps on port {}, git push to ssh://git@localhost:{}/PROJECT\n\
             data is in {}; Ctrl-C stops everything",
            info.server, info.http_port, info.ssh_port, info.data
        )
    });
    let ended = running.or_stopped(std::future::pending::<()>()).await;
    shell.output.say("stopping");
    running.shutdown().await;
    ended.map(|_| ())
}

/// `shore server`
pub(crate) async fn server(shell: &Shell, args: ServerArgs) -> Result<()> {
    let dir = own_dir(args.data, "server")?;
    let data = dir.clone();
    let tasks = Tasks::new(Stop::new());
    let options = ServerOptions {
        listen: args.listen,
        ssh: Some(args.ssh),
        dir,
        domain: args.domain,
        names: args.names,
        flags: ["--listen", "--ssh"],
        blobs: BlobLimits { max_blob_bytes: args.max_blob_mb << 20, ..BlobLimits::default() },
        settings: Settings {
            callback_networks: args.callback_networks,
            metrics_open: args.metrics_open,
            otlp: args.otlp,
            rebalance: args.rebalance.map(|moves| Rebalance {
                moves,
                period: Duration::from_secs(args.rebalance_every),
            }),
        },
    };
    let running = start_server(options, &tasks).await?;
    let ready = serde_json::json!({
        "event": "ready",
        "server": running.url,
        "token": running.first.as_ref().map(ToString::to_string),
    });
    shell.output.value(&ready, || told_ready(&running.url, running.first.as_ref(), &data));
    until_stopped(&tasks).await
}

/// What a server says that is ready: how to get in, too.
fn told_ready(url: &str, first: Option<&JoinToken>, data: &Path) -> String {
    let access = match first {
        Some(token) => format!(
            "the first administrator's token, shown this once:\n  {token}\n\
             join components with `shore token create --role runner|cell|router`"
        ),
        None => format!(
            "tokens made before go on, also the administrator's; to make one without any, stop the \
             server and run `shore token create --role admin --data {}`",
            data.display()
        ),
    };
    format!("ready: {url}\n{access}")
}

/// Waits for a signal or for a critical task to fail, then ends everything. The failure is the error.
async fn until_stopped(tasks: &Tasks) -> Result<()> {
    let failed = tasks.stop().or_stop(interrupted()).await.is_none();
    if !tasks.shutdown(STOP_GRACE).await {
        tracing::warn!("some work did not end in time");
    }
    if failed { Err(part_failed()) } else { Ok(()) }
}

/// A part without which the others are no use.
fn part_failed() -> CliError {
    CliError::internal("a part that is needed has failed").hint("the log above says which and why")
}

fn own_dir(given: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    match given {
        Some(dir) => Ok(dir),
        None => Ok(env::data_dir()?.join(name)),
    }
}

fn joined(join: &JoinArgs, role: Role) -> Result<(Endpoint, PathBuf, OwnToken)> {
    let dir = own_dir(join.data.clone(), role.name())?;
    let token = OwnToken::find(join.token.as_deref(), &dir, role)?;
    let endpoint = endpoint(&join.server, &token.text, role)?;
    private_dir(&dir)?;
    // What runs containers is told of places in it, from wherever that runs.
    let dir = std::path::absolute(&dir)
        .map_err(|error| CliError::invalid(format!("cannot use {}: {error}", dir.display())))?;
    Ok((endpoint, dir, token))
}

/// A server as a component reaches it.
fn endpoint(url: &str, token: &str, role: Role) -> Result<Endpoint> {
    let role = role.name();
    let token: JoinToken = token.parse().map_err(|reason| {
        CliError::invalid(format!("cannot start the {role}: {reason}"))
            .hint(format!("make a token with `shore token create --role {role}`"))
    })?;
    Endpoint::new(url, token).map_err(CliError::address)
}

/// `shore runner`
pub(crate) async fn runner(shell: &Shell, args: RunnerArgs) -> Result<()> {
    let (endpoint, dir, token) = joined(&args.join, Role::Runner)?;
    let tasks = Tasks::new(Stop::new());
    let name = identity::name(args.join.name, "runner")?;
    let options = identity::runner(&dir, name, args.labels.into_iter().collect(), args.jobs)?;
    let ended = tasks.stop().clone();
    let ready = Ready::new("runner", &options.name, &endpoint, &token);
    let joined = options.joined.clone();
    let running = runner::run(options, endpoint, tasks.clone());
    let done = tokio::select! {
        done = running => done.map_err(|error| match error {
            runner::RunnerError::Refused(reason) => refused("runner", &args.join.server, &reason, &token),
            runner::RunnerError::Client(error) => CliError::from(error),
        }),
        () = ready.once(&joined, shell) => Ok(()),
        () = interrupted() => Ok(()),
    };
    ended.stop();
    tasks.shutdown(STOP_GRACE).await;
    done
}

/// `shore cell`
pub(crate) async fn cell(shell: &Shell, args: CellArgs) -> Result<()> {
    let (endpoint, dir, token) = joined(&args.join, Role::Cell)?;
    let tasks = Tasks::new(Stop::new());
    let name = identity::name(args.join.name.clone(), "cell")?;
    let mut options = identity::cell(&dir, name)?;
    options.zone = args.zone.to_string();
    options.tags = args.tags.iter().cloned().collect();
    options.required_tags = args.required_tags.iter().cloned().collect();
    options.address = args.address;
    // Where no certificate vouches for the server, everything is on one machine.
    let is_apart = endpoint.url.scheme_str() == Some("https") && !args.address.is_loopback();
    options.gate = is_apart.then(|| SocketAddr::new(args.address, args.gate_port));
    options.allowed_networks.clone_from(&args.allow_networks);
    options.max_log_rate = args.log_rate << 10;
    options.capacity = Some(capacity(&args, &dir));
    options.default_limits =
        cell::DefaultLimits { memory_mb: args.default_memory, disk_mb: args.default_disk };
    let at = containers::Place { dir: &dir, memory_mb: args.memory };
    let (drivers, chosen) = containers::drivers(&args.drivers, at, &tasks)?;
    options.drivers = drivers;
    shell.output.say(&chosen);
    let ready = Ready::new("cell", &options.name, &endpoint, &token);
    let joined = options.joined.clone();
    if !options.isolates() {
        shell.output.say(NOT_ISOLATED);
    }
    let running = cell::Cell::run(options, endpoint, tasks.clone());
    let done = tokio::select! {
        done = running => done.map_err(|error| match error {
            cell::CellError::Refused(reason) => refused("cell", &args.join.server, &reason, &token),
            other => CliError::new(ErrorKind::Unavailable, other.to_string()),
        }),
        () = ready.once(&joined, shell) => Ok(()),
        () = interrupted() => Ok(()),
    };
    tasks.stop().stop();
    tasks.shutdown(STOP_GRACE).await;
    done
}

/// What the machine has, and the operator's word where that is different.
fn capacity(args: &CellArgs, dir: &Path) -> cell::Capacity {
    let machine = cell::Capacity::of_machine(dir);
    cell::Capacity {
        memory_mb: args.memory.unwrap_or(machine.memory_mb),
        disk_mb: args.disk.unwrap_or(machine.disk_mb),
        containers: args.containers.unwrap_or(machine.containers),
        cpu_shares: args.cpu_shares,
        pids: args.pids,
    }
}

/// `shore router`
pub(crate) async fn router(shell: &Shell, args: RouterArgs) -> Result<()> {
    let (endpoint, dir, token) = joined(&args.join, Role::Router)?;
    let tasks = Tasks::new(Stop::new());
    let mut options = identity::router(&dir, vec![args.listen], args.threads)?;
    options.shares = args.share_port;
    let metrics = match args.metrics {
        Some(address) => Some(port::bind("metrics", address, "--metrics").await?),
        None => None,
    };
    let (joined, kept, stop) = (options.joined.clone(), token.clone(), tasks.stop().clone());
    tasks.spawn_ok("token", async move {
        if stop.or_stop(joined.stopped()).await.is_some() {
            kept.keep();
        }
    });
    let router = router::Router::start(options, Some(endpoint), &tasks)
        .map_err(|error| router_error(&error, "--listen"))?;
    if let Some(listener) = metrics {
        router.serve_metrics(listener, &tasks);
    }
    let ready = serde_json::json!({ "event": "ready", "listen": router.addresses() });
    shell.output.value(&ready, || format!("ready: {}", args.listen));
    let ended = until_stopped(&tasks).await;
    match router.refusal() {
        Some(reason) => Err(refused("router", &args.join.server, &reason, &token)),
        None => ended,
    }
}

/// What a component that joins says once it has.
struct Ready {
    role: &'static str,
    name: Name,
    server: String,
    token: OwnToken,
}

impl Ready {
    fn new(role: &'static str, name: &Name, endpoint: &Endpoint, token: &OwnToken) -> Self {
        Self { role, name: name.clone(), server: endpoint.shown(), token: token.clone() }
    }

    /// Says it when `joined` fires; never ends.
    async fn once(&self, joined: &Stop, shell: &Shell) {
        joined.stopped().await;
        self.token.keep();
        let Self { role, name, server, token: _ } = self;
        let ready = serde_json::json!({
            "event": "ready", "role": role, "name": name, "server": server
        });
        shell.output.value(&ready, || format!("ready: {role} {name} joined {server}"));
        std::future::pending::<()>().await;
    }
}

/// A component the server does not want, or which does not want the server.
fn refused(role: &str, server: &str, reason: &str, token: &OwnToken) -> CliError {
    let message = if reason == api::OTHER_AUTHORITY {
        format!("cannot use the server at {server}: {reason}")
    } else {
        format!("the server refused this {role}: {reason}")
    };
    let hint = token.hint().unwrap_or_else(|| {
        format!("check `--server` and the token: `shore token create --role {role}`")
    });
    CliError::new(ErrorKind::Denied, message).hint(hint)
}

/// A router that does not start.
pub(crate) fn router_error(error: &router::StartError, flag: &str) -> CliError {
    match error {
        router::StartError::Listen { address, error } => {
            port::refused("router", *address, flag, error)
        }
        other => CliError::internal(format!("the router cannot start: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_over_old_data_says_how_to_get_in() {
        let said = told_ready("http://127.0.0.1:7420", None, Path::new("/srv/shore"));
        assert!(said.starts_with("ready: http://127.0.0.1:7420\ntokens made before go on"));
        assert!(said.ends_with("`shore token create --role admin --data /srv/shore`"), "{said}");
    }
}
