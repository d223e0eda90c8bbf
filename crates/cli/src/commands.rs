//! One function for each command. They talk to the server through the HTTP API only.

mod access;
mod apps;
mod cells;
mod contexts;
mod copy;
mod events;
mod jobs;
mod sessions;
mod tasks;
mod up;
mod volumes;

use std::process::ExitCode;

use api::Client;
use api::http_types::{ProjectView, ServerInfo};
use clap::CommandFactory as _;

use crate::args::{CellArgs, Cli, Command, Global};
use crate::context::{Context, Contexts};
use crate::env;
use crate::error::{CliError, ErrorKind, Result};
use crate::output::Output;
use crate::roles;

/// What commands share.
#[derive(Debug, Clone)]
pub(crate) struct Shell {
    pub(crate) output: Output,
    context: Option<String>,
    /// The environment has no say in which server is meant.
    context_typed: bool,
}

impl Shell {
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            output: Output::new(global.json),
            context: global.context.clone(),
            context_typed: global.context_typed,
        }
    }

    /// A client of the chosen server.
    pub(crate) fn client(&self) -> Result<Client> {
        match self.chosen()? {
            Some((_, context)) => context.client(),
            None => Err(CliError::new(ErrorKind::NotFound, "no server is configured")
                .hint("start one with `shore dev`, or name one with `shore context set`")),
        }
    }

    /// The chosen server: what the environment says, else a context, with its name.
    pub(crate) fn chosen(&self) -> Result<Option<(Option<String>, Context)>> {
        let contexts = Contexts::load()?;
        let found = contexts.find(self.context.as_deref());
        let given = if self.context_typed { (None, None) } else { env::server_and_token() };
        if let Some(url) = given.0.as_ref().filter(|url| !url.contains("://")) {
            return Err(no_scheme(url));
        }
        match given {
            (None, None) => {
                Ok(found?.map(|(name, context)| (Some(name.to_owned()), context.clone())))
            }
            (Some(url), Some(token)) => Ok(Some((None, Context { url, token }))),
            (None, Some(token)) => {
                let context = found?.map(|(_, context)| context).ok_or_else(no_address)?;
                Ok(Some((None, Context { url: context.url.clone(), token })))
            }
            // A token goes to no server but its own.
            (Some(url), None) => {
                let named = found.ok().flatten().map(|(_, context)| context);
                let mut all = named.into_iter().chain(contexts.contexts.values());
                let known = all.find(|context| context.url == url);
                let context = known.cloned().ok_or_else(|| no_token(&url))?;
                Ok(Some((None, context)))
            }
        }
    }
}

fn no_address() -> CliError {
    CliError::invalid("cannot use SHORE_TOKEN: no server is known")
        .hint("set SHORE_SERVER to the server's address, or unset SHORE_TOKEN")
}

fn no_scheme(url: &str) -> CliError {
    CliError::invalid(format!(
        "cannot use SHORE_SERVER: {url} does not begin with http:// or https://"
    ))
    .hint(format!("set it to `http://{url}`, or to `https://{url}` for a server that speaks TLS"))
}

fn no_token(url: &str) -> CliError {
    CliError::invalid(format!("cannot use SHORE_SERVER: no token for {url} is known"))
        .hint("set SHORE_TOKEN to a token of that server, or unset SHORE_SERVER")
}

/// Carries out a command.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let shell = Shell::new(&cli.global);
    match cli.command {
        Command::Exec(args) => Box::pin(sessions::exec(&shell, *args)).await,
        other => plain(&shell, other).await.map(|()| ExitCode::SUCCESS),
    }
}

/// Those that have no exit code of their own.
async fn plain(shell: &Shell, command: Command) -> Result<()> {
    match command {
        Command::Up(args) => up::up(shell, args).await,
        Command::Dev(args) => roles::dev(shell, &args.ports).await,
        Command::Server(args) => roles::server(shell, args).await,
        Command::Runner(args) => roles::runner(shell, args).await,
        Command::Cell(CellArgs { command: Some(command), .. }) => cells::cell(shell, command).await,
        Command::Cell(args) => roles::cell(shell, args).await,
        Command::Router(args) => roles::router(shell, args).await,
        Command::Project(command) => access::project(shell, command).await,
        Command::App(command) => apps::app(shell, command).await,
        Command::Job(command) => jobs::job(shell, command).await,
        Command::Task(command) => tasks::task(shell, command).await,
        Command::Volume(command) => volumes::volume(shell, command).await,
        Command::Events(args) => events::events(shell, args).await,
        Command::Audit(args) => access::audit(shell, args).await,
        Command::Logs(args) => apps::logs(shell, args).await,
        Command::Status(args) => apps::status(shell, args).await,
        Command::Deploy(args) => jobs::deploy(shell, args).await,
        Command::Release(args) => jobs::release(shell, args).await,
        Command::Rollback(args) => jobs::rollback(shell, args).await,
        Command::Restart(args) => jobs::restart(shell, args).await,
        Command::Scale(args) => apps::scale(shell, args).await,
        Command::Run(args) => apps::run(shell, args).await,
        Command::Cp(args) => copy::cp(shell, args).await,
        // It has.
        Command::Exec(_) => Ok(()),
        Command::Config(command) => apps::config(shell, command).await,
        Command::Key(command) => access::key(shell, command).await,
        Command::Token(command) => access::token(shell, command).await,
        Command::Destroy(args) => jobs::destroy(shell, args).await,
        Command::Context(command) => contexts::context(shell, command).await,
        Command::Version => version(shell).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shore", &mut script);
            crate::output::raw(&script);
            Ok(())
        }
    }
}

async fn version(shell: &Shell) -> Result<()> {
    let server = match shell.client() {
        Ok(client) => client.get::<ServerInfo>("/v1/info").await.ok(),
        Err(_) => None,
    };
    let server_version = server.as_ref().map(|info| info.version.clone());
    let both = serde_json::json!({ "client": api::VERSION, "server": server_version });
    shell.output.value(&both, || {
        let server = server_version.as_deref().unwrap_or("none reached");
        format!("client {}\nserver {server}", api::VERSION)
    });
    Ok(())
}

/// Makes a project unless it exists.
pub(crate) async fn ensure_project(client: &Client, name: &model::Name) -> Result<()> {
    let path = format!("/v1/projects/{name}");
    match client.get::<ProjectView>(&path).await {
        Ok(_) => Ok(()),
        Err(error) if error.status() == Some(http_not_found()) => {
            let create = api::http_types::Create { name: name.clone() };
            client.post::<_, ProjectView>("/v1/projects", &create).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

const fn http_not_found() -> tonic::codegen::http::StatusCode {
    tonic::codegen::http::StatusCode::NOT_FOUND
}
