//! The command line as people type it.

mod lines;
mod usage;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use model::{HostName, Name, Role};
use store::blobs::MAX_BLOB_BYTES;

use crate::error::CliError;

pub(crate) use lines::{AuditArgs, LineArgs, LogsArgs};

/// Code to running software, on machines you own.
///
/// `shore up` builds the code in a directory, runs it, waits until it is healthy and points its
/// URL at it. Without a server it starts one in this process.
#[derive(Debug, Parser)]
#[command(name = "shore", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Environment: SHORE_TOKEN is the token that commands use instead of the context's, \
and SHORE_SERVER the server's address; without it the context's address is used. `--context` wins \
over both.\n\nExit codes: 0 done, 1 the work failed, 2 wrong command line, 3 not found, \
4 not allowed, 5 conflict, 6 invalid input, 7 server or port not available, 70 internal error."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// The command line of this process; what is wrong with it is an error for who asks for JSON, and
    /// else ends the process.
    pub(crate) fn read() -> Result<Self, CliError> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let matches = match Self::command().try_get_matches_from(&words) {
            Ok(matches) => matches,
            Err(error) => return Err(usage::told(&error, &words)),
        };
        let typed = matches.value_source("context") == Some(ValueSource::CommandLine);
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        cli.global.context_typed = typed;
        Ok(cli)
    }
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Print JSON, one object a line
    #[arg(long, global = true, env = "SHORE_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Talk to the server of this context, whatever `SHORE_TOKEN` and `SHORE_SERVER` say
    #[arg(long, global = true, env = "SHORE_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Whether the context was named on the command line, not by the environment.
    #[arg(skip)]
    pub(crate) context_typed: bool,
    /// How much the roles say of themselves: error, warn, info, debug, or a filter
    #[arg(long, global = true, env = "SHORE_LOG", value_name = "LEVEL", default_value = "warn")]
    pub(crate) log: String,
}

/// Which app.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppArgs {
    /// The project; else from shore.hcl or the directory's name
    #[arg(long, short, env = "SHORE_PROJECT")]
    pub(crate) project: Option<Name>,
    /// The app; else the only one in shore.hcl, or `web`
    #[arg(long, short, env = "SHORE_APP")]
    pub(crate) app: Option<Name>,
    /// The workspace
    #[arg(long, short, env = "SHORE_WORKSPACE", default_value = "production")]
    pub(crate) workspace: Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build, deploy and release the code in a directory
    Up(UpArgs),
    /// Run server, runner, cell and router in this process, for use from other terminals
    Dev(DevArgs),
    /// Run the server: everything else dials it
    Server(ServerArgs),
    /// Run a runner: takes jobs
    Runner(RunnerArgs),
    /// Run a cell: runs containers. Or list, show and drain cells
    Cell(CellArgs),
    /// Run a router: sends requests to instances
    Router(RouterArgs),
    /// Make, list and remove projects
    #[command(subcommand)]
    Project(ProjectCommand),
    /// List and remove apps
    #[command(subcommand)]
    App(AppCommand),
    /// List, show, follow and cancel jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// Run, list, show and cancel tasks: work that runs once
    #[command(subcommand)]
    Task(TaskCommand),
    /// List volumes and give them up
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Show what changes
    Events(EventsArgs),
    /// Show who worked in which instance, newest first
    Audit(AuditArgs),
    /// Show what an app says
    Logs(LogsArgs),
    /// Show what an app runs
    Status(StatusArgs),
    /// Deploy a build again, with today's configuration
    Deploy(DeployArgs),
    /// Point the routes at a deployment
    Release(ReleaseArgs),
    /// Point the routes at the deployment before the current one
    Rollback(AppOnly),
    /// Start what is released again, without an interruption
    Restart(RestartArgs),
    /// Set how many instances of a process run
    Scale(ScaleArgs),
    /// Run one command in an app's image, once
    Run(RunArgs),
    /// Run a command, or work in a shell, in an instance that runs
    Exec(Box<ExecArgs>),
    /// Copy files into an instance that runs, or out of it
    Cp(CpArgs),
    /// Show and change the environment of an app
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Add, list and remove SSH keys that may push
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Stop everything an app runs and withdraw its routes
    Destroy(StopArgs),
    /// Choose the server that commands talk to
    #[command(subcommand)]
    Context(ContextCommand),
    /// Show the versions of this program and of the server
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The directory with the code
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) ports: DevPorts,
}

/// Where an all-in-one server listens.
#[derive(Debug, Clone, Args)]
pub(crate) struct DevPorts {
    /// Port of the server, when this starts one
    #[arg(long, default_value_t = api::SERVER_PORT, env = "SHORE_PORT")]
    pub(crate) port: u16,
    /// Port of the router, when this starts one
    #[arg(long, default_value_t = 8080, env = "SHORE_HTTP_PORT")]
    pub(crate) http_port: u16,
    /// Port for git over SSH, when this starts a server
    #[arg(long, default_value_t = api::SSH_PORT, env = "SHORE_SSH_PORT")]
    pub(crate) ssh_port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    #[command(flatten)]
    pub(crate) ports: DevPorts,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Address to listen on; anything but loopback gets TLS
    #[arg(long, default_value = "127.0.0.1:7420")]
    pub(crate) listen: SocketAddr,
    /// Address for git over SSH
    #[arg(long, default_value = "127.0.0.1:7422")]
    pub(crate) ssh: SocketAddr,
    /// Where everything is kept; `$XDG_DATA_HOME/longshore/server` when absent
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// The parent of every app's host
    #[arg(long, default_value = crate::roles::LOCALHOST)]
    pub(crate) domain: HostName,
    /// Host names and addresses under which others reach this server, for its certificate
    #[arg(long = "name", value_name = "HOST", value_parser = host)]
    pub(crate) names: Vec<String>,
    /// The largest source archive or image layer it takes, in MiB
    #[arg(long, value_name = "MIB", default_value_t = MAX_BLOB_BYTES >> 20,
        value_parser = clap::value_parser!(u64).range(1..=MAX_BLOB_MB))]
    pub(crate) max_blob_mb: u64,
    /// A network that callbacks of tasks may reach although it is not public, as in `10.0.0.0/8`
    #[arg(long = "callback-allow", value_name = "NETWORK")]
    pub(crate) callback_networks: Vec<server::Network>,
    /// Show metrics to whoever asks, without a token
    #[arg(long)]
    pub(crate) metrics_open: bool,
    /// Push metrics to this OpenTelemetry collector, as in `http://127.0.0.1:4318/v1/metrics`
    #[arg(long, value_name = "URL", value_parser = url)]
    pub(crate) otlp: Option<server::Url>,
    /// Move instances to even out how full cells are, at most so many at once; off when absent
    #[arg(long, value_name = "INSTANCES",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(server::MAX_MOVES)))]
    pub(crate) rebalance: Option<u32>,
    /// How often moves are begun
    #[arg(long, value_name = "SECONDS", requires = "rebalance",
        default_value_t = server::REBALANCE_PERIOD.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) rebalance_every: u64,
}

/// How a component joins.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArgs {
    /// The server's address
    #[arg(long, default_value = "http://127.0.0.1:7420", env = "SHORE_SERVER")]
    pub(crate) server: String,
    /// The join token that `shore token create --role …` printed; the one it joined with before when
    /// absent
    #[arg(long, env = "SHORE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Where this component keeps what is its own; below `$XDG_DATA_HOME/longshore` when absent
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Its name
    #[arg(long)]
    pub(crate) name: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct RunnerArgs {
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    /// How many jobs it works on at once
    #[arg(long, default_value_t = 4)]
    pub(crate) jobs: u32,
    /// A label, as in `region=eu`; jobs may ask for it
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CellArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CellCommand>,
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    /// Its failure domain
    #[arg(long, default_value = "default")]
    pub(crate) zone: Name,
    /// A word that apps may ask for
    #[arg(long = "tag")]
    pub(crate) tags: Vec<Name>,
    /// A word that apps must ask for to run on it
    #[arg(long = "required-tag", value_name = "TAG")]
    pub(crate) required_tags: Vec<Name>,
    /// The address under which routers reach its instances
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) address: std::net::IpAddr,
    /// The port at that address where instances prove to routers who they are; unused while cell
    /// and server are on one machine
    #[arg(long, value_name = "PORT", default_value_t = cell::GATE_PORT)]
    pub(crate) gate_port: u16,
    /// A way to run containers, the best first: `process`, `oci` or `docker`. Absent: `oci` for root
    /// where it works, else `process`
    #[arg(long = "driver", value_name = "DRIVER")]
    pub(crate) drivers: Vec<DriverKind>,
    /// MiB of memory for containers; the machine's when absent. The `oci` driver keeps all of them
    /// together within it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MOST_MIB))]
    pub(crate) memory: Option<u64>,
    /// MiB of disk for containers; what is free when absent
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MOST_MIB))]
    pub(crate) disk: Option<u64>,
    /// MiB of memory of a container that names no limit, where its driver enforces one
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MOST_MIB))]
    pub(crate) default_memory: Option<u64>,
    /// MiB of disk of a container that names no limit, where its driver enforces one
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=MOST_MIB))]
    pub(crate) default_disk: Option<u64>,
    /// How many containers at most
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) containers: Option<u32>,
    /// Shares of processor time it gives away, 1024 to a core; not limited when absent
    #[arg(long, value_name = "SHARES", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) cpu_shares: Option<u64>,
    /// Processes and threads of all containers; not limited when absent
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1 << 22))]
    pub(crate) pids: Option<u64>,
    /// KiB of log lines a second that a container may write at most, whatever its app says
    #[arg(long, value_name = "KIB", default_value_t = model::MAX_LOG_RATE >> 10,
        value_parser = clap::value_parser!(u64).range(1..=model::MAX_LOG_RATE >> 10))]
    pub(crate) log_rate: u64,
    /// A network that is not public and that downloads and uploads of tasks may reach, and containers
    /// whose `egress` asks for it, as in `10.1.0.0/16`
    #[arg(long = "allow-network", value_name = "NETWORK")]
    pub(crate) allow_networks: Vec<cell::Network>,
}

/// More MiB than any machine has: 1 PiB.
const MOST_MIB: u64 = 1 << 30;

/// A way to run containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DriverKind {
    /// Plain processes, nothing between them and the machine
    Process,
    /// Containers of the kernel, made by an OCI runtime
    Oci,
    /// Containers of a Docker daemon
    Docker,
}

/// The name or id of a cell.
fn cell_ref(text: &str) -> Result<String, String> {
    let is_id = text.parse::<model::CellId>().is_ok();
    match text.parse::<Name>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) if is_id => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum CellCommand {
    /// List cells
    List,
    /// Show a cell
    Show {
        /// Its name or id
        #[arg(value_parser = cell_ref)]
        cell: String,
    },
    /// Empty a cell: what serves there serves until another copy does
    Drain {
        /// Its name or id
        #[arg(value_parser = cell_ref)]
        cell: String,
        /// How many seconds its tasks may run on
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
        /// Do not wait until nothing is left that can move
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a drained cell take work again
    Undrain {
        /// Its name or id
        #[arg(value_parser = cell_ref)]
        cell: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RouterArgs {
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    /// Address to take requests on
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Address to answer with metrics on, at `/metrics`, to whoever asks; nowhere when absent
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Let other routers on this machine listen on the same address, each with a `--data` of its own
    #[arg(long)]
    pub(crate) share_port: bool,
    /// Threads; one per core when absent
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Make a project
    Create {
        /// Its name: a-z, 0-9 and `-`, at most 40
        name: Name,
    },
    /// List projects
    List,
    /// Remove a project that has no apps
    Remove {
        /// Its name
        name: Name,
        /// As for other removals; a project without apps goes without it, too
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// List the apps of a project
    List {
        /// The project; all of them when absent
        #[arg(long, short)]
        project: Option<Name>,
    },
    /// Remove an app that runs nothing, with its history
    Remove(DestroyArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List the volumes of a project, also those that nothing uses any more
    List {
        /// The project; all of them when absent
        #[arg(long, short)]
        project: Option<Name>,
    },
    /// Delete a volume and everything in it
    Remove(VolumeRemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRemoveArgs {
    /// Its name, as in `web.0.data`, or its id
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Although an instance uses it or waits for it, which then begins anew with an empty one; or,
    /// when it is being deleted already, although its cell never comes back to do it
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Only this instance, as in `web.2`: it ends, and another takes its place
    #[arg(long)]
    pub(crate) instance: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AppOnly {
    #[command(flatten)]
    pub(crate) app: AppArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List jobs, newest first
    List {
        /// Only this project's
        #[arg(long, short)]
        project: Option<Name>,
        /// Only this app's
        #[arg(long, short)]
        app: Option<Name>,
        /// Only those in this state
        #[arg(long)]
        state: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a job
    Show {
        /// Its id
        job: model::JobId,
    },
    /// Follow a job to its end
    Attach {
        /// Its id
        job: model::JobId,
    },
    /// Ask a job to end
    Cancel {
        /// Its id
        job: model::JobId,
        /// Without waiting for its runner
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Run a command once in a container of its own
    Run(Box<TaskRunArgs>),
    /// List tasks, newest first; those that ended are kept for ten minutes
    List {
        /// Only this project's
        #[arg(long, short)]
        project: Option<Name>,
        /// Only those in this state
        #[arg(long)]
        state: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a task, with what it left
    Show {
        /// Its id
        task: model::TaskId,
    },
    /// Show what a task says
    Logs {
        /// Its id
        task: model::TaskId,
        /// Go on with lines that come later
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        lines: LineArgs,
    },
    /// Write what a task left in its result file to standard output, or to a file
    Result {
        /// Its id
        task: model::TaskId,
        /// The file; it is made anew
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Ask a task to end
    Cancel {
        /// Its id
        task: model::TaskId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TaskRunArgs {
    /// The project
    #[arg(long, short, env = "SHORE_PROJECT")]
    pub(crate) project: Name,
    /// A task's spec as JSON instead of a command; `-` is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "argv")]
    pub(crate) file: Option<PathBuf>,
    /// The OCI image manifest in the blob store, as in `sha256:…`; an empty root when absent
    #[arg(long, value_name = "DIGEST")]
    pub(crate) image: Option<model::Digest>,
    /// The driver it must run on
    #[arg(long)]
    pub(crate) driver: Option<Name>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) memory: Option<u64>,
    /// A variable of its environment
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 3_600,
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECS))]
    pub(crate) timeout: u64,
    /// How long it may wait for a cell, in seconds; 30 minutes when absent
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=MAX_SECS))]
    pub(crate) start_timeout: Option<u64>,
    /// A file whose content is its result
    #[arg(long, value_name = "PATH")]
    pub(crate) result_file: Option<String>,
    /// Try it so often while it fails
    #[arg(long, value_name = "TIMES")]
    pub(crate) attempts: Option<u32>,
    /// The pause before the second attempt, in seconds; it doubles
    #[arg(long, value_name = "SECS", default_value_t = 5)]
    pub(crate) retry_pause: u64,
    /// Who is told how it ended, with a signed `POST`
    #[arg(long, value_name = "URL")]
    pub(crate) callback: Option<String>,
    /// Words that are handed back with its end
    #[arg(long)]
    pub(crate) annotation: Option<String>,
    /// The same words again are the same task
    #[arg(long, value_name = "WORDS")]
    pub(crate) key: Option<String>,
    /// Print its id and do not wait for its end
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// The command and its arguments
    #[arg(last = true, required_unless_present = "file")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what comes later
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only rows of these kinds, as in `job,task,instance`
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    pub(crate) kinds: Vec<String>,
    /// Only this project's
    #[arg(long, short)]
    pub(crate) project: Option<Name>,
    /// Only this app's
    #[arg(long, short, requires = "project")]
    pub(crate) app: Option<Name>,
    /// What came after this revision
    #[arg(long, value_name = "REVISION")]
    pub(crate) after: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The app, as in `web` or `PROJECT/web`; else as with `--app`
    #[arg(value_name = "APP")]
    pub(crate) name: Option<AppName>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Show every deployment that is kept
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// The build's number; the newest when absent
    #[arg(long)]
    pub(crate) build: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// The deployment's number
    pub(crate) deployment: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// A process and how many, as in `web=3`
    #[arg(value_name = "PROCESS=N", value_parser = scaled, required = true)]
    pub(crate) counts: Vec<(String, String)>,
}

/// An app as it is named in one word: `web`, or `shop/web` with its project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppName {
    pub(crate) project: Option<Name>,
    pub(crate) app: Name,
}

impl std::str::FromStr for AppName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        match text.split_once('/') {
            Some((project, app)) => Ok(Self { project: Some(name(project)?), app: name(app)? }),
            None => Ok(Self { project: None, app: name(text)? }),
        }
    }
}

impl AppArgs {
    /// The same app unless another one is named in one word.
    pub(crate) fn named(&self, name: Option<&AppName>) -> Self {
        let mut named = self.clone();
        if let Some(name) = name {
            named.app = Some(name.app.clone());
            named.project = name.project.clone().or(named.project);
        }
        named
    }
}

/// Which instance.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceArgs {
    /// The instance, as in `web.2`; the first that runs when absent
    #[arg(long)]
    pub(crate) instance: Option<String>,
    /// The process; the first that runs when absent
    #[arg(long, conflicts_with = "instance")]
    pub(crate) process: Option<Name>,
    /// The deployment's number; what is released when absent
    #[arg(long)]
    pub(crate) deployment: Option<u64>,
}

/// Whether a command has a terminal.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TerminalArgs {
    /// Give the command a terminal; so it is anyway where input and output are one
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Give the command pipes
    #[arg(long, short = 'T', conflicts_with = "tty")]
    pub(crate) no_tty: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The app, as in `web` or `PROJECT/web`; else as with `--app`
    #[arg(value_name = "APP")]
    pub(crate) name: Option<AppName>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) which: InstanceArgs,
    #[command(flatten)]
    pub(crate) terminal: TerminalArgs,
    /// Pass on what is typed although the command has no terminal
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// A variable of its environment
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// The command and its arguments; `/bin/sh` when absent, on a terminal
    #[arg(last = true)]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "One of FROM and TO is `APP:PATH`, as in `web:/workspace/data`; `:PATH` is of the \
app that `--app` means. `-` is a tar archive on standard input or output.\n\nOf a directory, what is in it \
is copied to what is named, which is made when missing. A file gets the name that is given, or keeps its \
own below a path that ends with `/`. Symbolic links are copied and never followed."
)]
pub(crate) struct CpArgs {
    /// What to copy
    #[arg(value_name = "FROM", allow_hyphen_values = true)]
    pub(crate) from: String,
    /// Where to
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    #[command(flatten)]
    pub(crate) which: InstanceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The app, as in `web` or `PROJECT/web`; else as with `--app`
    #[arg(value_name = "APP")]
    pub(crate) name: Option<AppName>,
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// List names and values
    List(AppOnly),
    /// Set variables and deploy with them
    Set(ConfigSet),
    /// Remove variables and deploy without them
    Unset(ConfigUnset),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigSet {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// A name and a value
    #[arg(value_name = "NAME=VALUE", value_parser = key_value, required = true)]
    pub(crate) vars: Vec<(String, String)>,
    /// Leave the running deployment as it is
    #[arg(long)]
    pub(crate) no_deploy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigUnset {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// A name
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    /// Leave the running deployment as it is
    #[arg(long)]
    pub(crate) no_deploy: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Add a public key
    Add {
        /// The file, as in `~/.ssh/id_ed25519.pub`
        file: PathBuf,
        /// Limit it to one project
        #[arg(long, short)]
        project: Option<Name>,
    },
    /// List keys
    List,
    /// Remove a key
    Remove {
        /// Its id
        key: model::KeyId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown this once
    Create {
        /// admin, developer, viewer, runner, cell or router
        #[arg(long, default_value = "developer")]
        role: Role,
        /// Limit it to one project
        #[arg(long, short)]
        project: Option<Name>,
        /// What it is for
        #[arg(long, default_value = "")]
        label: String,
        /// How long it works, in hours; for ever when absent
        #[arg(long, value_name = "HOURS")]
        hours: Option<u64>,
        /// Make it in the data directory of a server that is stopped, for want of a token
        #[arg(long, value_name = "DIR", conflicts_with_all = ["project", "hours"])]
        data: Option<PathBuf>,
    },
    /// List tokens
    List,
    /// Take a token back
    Revoke {
        /// Its id
        token: model::TokenId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DestroyArgs {
    #[command(flatten)]
    pub(crate) app: AppArgs,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) destroy: DestroyArgs,
    /// Do not wait until its instances have ended
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Add or change a context and use it
    Set {
        /// Its name
        name: Name,
        /// The server's address
        #[arg(long)]
        server: String,
        /// A token
        #[arg(long, env = "SHORE_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Use a context
    Use {
        /// Its name
        name: String,
    },
    /// List contexts
    List,
    /// Forget a context
    Remove {
        /// Its name
        name: String,
    },
}

/// The longest a task may take or wait: a day.
const MAX_SECS: u64 = 86_400;
/// Most MiB that `--max-blob-mb` takes: 1 TiB.
const MAX_BLOB_MB: u64 = 1 << 20;

/// A host name or an address, as a certificate may name it.
fn host(text: &str) -> Result<String, String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    text.parse::<HostName>().map(|host| host.to_string()).map_err(|error| error.to_string())
}

/// Letters only, as kinds of rows are.
fn kind(text: &str) -> Result<String, String> {
    if server::EVENT_KINDS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("there is no kind `{text}`; there are {}", server::EVENT_KINDS.join(", ")))
}

fn scaled(text: &str) -> Result<(String, String), String> {
    let given = text.split_once('=').filter(|(process, _)| !process.is_empty());
    let (process, count) = given
        .ok_or_else(|| format!("`{text}` says no number: PROCESS=N is wanted, as in `web=3`"))?;
    Ok((process.to_owned(), count.to_owned()))
}

fn url(text: &str) -> Result<server::Url, String> {
    server::Url::parse(text).map_err(|failure| failure.to_string())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("`{text}` has no `=`: NAME=VALUE is wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_counts_say_what_is_wanted() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["shore"], words].concat());
        let said = |words: &[&str]| parse(words).expect_err("is refused").to_string();
        let both = parse(&["events", "--kind", "instance,volume"]).expect("is fine").command;
        assert!(matches!(both, Command::Events(args) if args.kinds == ["instance", "volume"]));
        let unknown = said(&["events", "--kind", "job,nonsense"]);
        assert!(unknown.contains("no kind `nonsense`") && unknown.contains("deployment, "));
        for words in [["scale", "web"], ["scale", "=3"]] {
            assert!(said(&words).contains("PROCESS=N is wanted"));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_may_hold_equal_signs() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(key_value("=x").is_err() && key_value("x").is_err());
    }
}
