//! `shore app`, `status`, `logs`, `scale`, `run`, `config`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use api::Client;
use api::http_types::{
    AppStatus, AppView, DeploymentView, InstanceView, LogLine, ProcessView, ProjectView,
    RunCommand, Scale, SetConfig, TaskView,
};
use futures_util::StreamExt as _;
use manifest::FILE_NAME;
use model::{DEFAULT_APP, ExitStatus, Name, Operation};
use serde_json::json;

use super::Shell;
use super::access::now;
use super::jobs::{GoesOn, queue_and_follow};
use crate::args::{
    AppArgs, AppCommand, ConfigCommand, LineArgs, LogsArgs, RunArgs, ScaleArgs, StatusArgs,
};
use crate::error::{CliError, ErrorKind, Result};
use crate::output::{ago, until};

/// Why something that is released has no URL.
pub(super) const NO_ROUTER: &str =
    "no router is connected, so nothing answers: start `shore router`";

/// What to do about instances that find no cell.
const NO_ROOM: &str =
    "they start once there is room: `shore status` shows it, another `shore cell` adds some";
/// What `shore run` says to somebody who gives it input.
const NO_INPUT: &str =
    "standard input is not passed on: `shore run` passes none, `shore exec` does";
/// How often we look why a command still waits.
const LOOK: Duration = Duration::from_secs(3);

/// Which app a command is about.
#[derive(Debug, Clone)]
pub(crate) struct Which {
    pub(crate) project: Name,
    pub(crate) app: Name,
}

impl Which {
    /// From the command line, else from `shore.hcl` in `dir` (or here), else from its name.
    pub(crate) fn find(args: &AppArgs, dir: Option<&Path>) -> Result<Self> {
        // With both named, nothing here matters; what is brought up is another thing.
        if let (None, Some(project), Some(app)) = (dir, &args.project, &args.app) {
            return Ok(Self { project: project.clone(), app: app.clone() });
        }
        let here = dir.is_none();
        let dir = dir.unwrap_or_else(|| Path::new("."));
        let path = dir.join(FILE_NAME);
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => manifest::parse(&text).map_err(|error| {
                let or = if here { ", or name both `--project` and `--app`" } else { "" };
                let hint = format!("mend the file{or}; docs/shore-hcl.md shows all it may say");
                CliError::invalid(format!("cannot use {}: {error}", dir.display())).hint(hint)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                manifest::ProjectFile::default()
            }
            Err(error) => {
                return Err(CliError::file("read", &path, &error)
                    .hint("shore.hcl is a text file in UTF-8: mend it or take it away"));
            }
        };
        let project = args.project.clone().or(file.project);
        let project = project.map_or_else(|| name_of(dir), Ok)?;
        let app = match (&args.app, file.apps.len()) {
            (Some(app), _) => Some(app.clone()),
            (None, 0) => DEFAULT_APP.parse().ok(),
            (None, 1) => file.apps.keys().next().cloned(),
            (None, _) => None,
        };
        let app = app.ok_or_else(|| {
            let names: Vec<&str> = file.apps.keys().map(Name::as_str).collect();
            CliError::invalid(format!("{FILE_NAME} has several apps: {}", names.join(", ")))
                .hint("choose one with `--app NAME`")
        })?;
        Ok(Self { project, app })
    }

    pub(super) fn path(&self, rest: &str, workspace: &Name) -> String {
        format!("/v1/projects/{}/apps/{}/{rest}workspace={workspace}", self.project, self.app)
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.project, self.app)
    }
}

fn name_of(dir: &Path) -> Result<Name> {
    let full = dir.canonicalize().map_err(|error| CliError::file("open", dir, &error))?;
    let name = full.file_name().and_then(|name| Name::suggest(&name.to_string_lossy()));
    name.ok_or_else(|| {
        CliError::invalid(format!("{} gives no project name", full.display()))
            .hint("give one with `--project NAME`, or write `project = \"name\"` into shore.hcl")
    })
}

pub(super) async fn app(shell: &Shell, command: AppCommand) -> Result<()> {
    let client = shell.client()?;
    match command {
        AppCommand::List { project } => {
            let projects = if let Some(name) = project {
                vec![name]
            } else {
                let all: Vec<ProjectView> = client.get("/v1/projects").await?;
                all.into_iter().map(|it| it.name).collect()
            };
            let mut list: Vec<AppView> = Vec::new();
            for name in projects {
                list.extend(
                    client.get::<Vec<AppView>>(&format!("/v1/projects/{name}/apps")).await?,
                );
            }
            let header = ["project", "app", "made", "released"];
            let empty = "there are no apps yet: bring one up with `shore up`";
            shell.output.table(&list, &header, empty, |it| {
                let released: Vec<String> = it
                    .released
                    .iter()
                    .map(|(place, number)| format!("{place}: {number}"))
                    .collect();
                let made = ago(now(), it.created_at);
                vec![it.project.to_string(), it.name.to_string(), made, released.join(", ")]
            });
        }
        AppCommand::Remove(args) => {
            let which = Which::find(&args.app, None)?;
            if !args.yes {
                let (project, app) = (&which.project, &which.app);
                let message = format!("this removes {project}/{app} with its history, for good");
                return Err(unconfirmed(message));
            }
            client.delete(&format!("/v1/projects/{}/apps/{}", which.project, which.app)).await?;
            let removed = json!({ "event": "removed", "project": which.project, "app": which.app });
            shell.output.done(&removed, &format!("app {} is removed", which.app));
        }
    }
    Ok(())
}

/// What cannot be undone and was not confirmed.
pub(super) fn unconfirmed(message: String) -> CliError {
    CliError::invalid(message).hint("say `--yes` if you mean it")
}

pub(super) async fn status_of(shell: &Shell, args: &AppArgs) -> Result<AppStatus> {
    let which = Which::find(args, None)?;
    Ok(shell.client()?.get(&which.path("status?", &args.workspace)).await?)
}

pub(super) async fn status(shell: &Shell, args: StatusArgs) -> Result<()> {
    let status = status_of(shell, &args.app.named(args.name.as_ref())).await?;
    if shell.output.is_json() {
        shell.output.value(&status, String::new);
        return Ok(());
    }
    let released = status.app.released.contains_key(&status.workspace);
    let nothing = if released { NO_ROUTER } else { "nothing is released yet" };
    let url = status.url.as_deref().unwrap_or(nothing);
    shell.output.value(&(), || {
        format!("{}/{} in {}: {url}", status.app.project, status.app.name, status.workspace)
    });
    let shown = |it: &&DeploymentView| {
        args.all || it.released || matches!(it.state.as_str(), "starting" | "ready")
    };
    let mut rows = Vec::new();
    for deployment in status.deployments.iter().filter(shown) {
        rows.extend(rows_of(deployment));
    }
    let header = ["deployment", "state", "instance", "is", "cell", "crashes", "since", "why"];
    shell.output.table(&rows, &header, "nothing runs", Clone::clone);
    for job in &status.jobs {
        let why = job.why_queued.as_deref().unwrap_or("");
        shell.output.say(&format!(
            "job {} ({}) is {} {why}",
            job.id,
            job.operation.name(),
            job.state
        ));
    }
    Ok(())
}

/// Why an instance is as it is, and when it starts again.
fn why(it: &InstanceView) -> String {
    let reason = it.reason.clone().or_else(|| restarted(it)).unwrap_or_default();
    match it.restart_at {
        Some(at) => format!("starts again {}: {reason}", until(now(), at)),
        None => reason,
    }
}

/// What an instance that runs again has behind it.
fn restarted(it: &InstanceView) -> Option<String> {
    let crash = it.last_crash.as_ref().filter(|_| it.crashes > 0)?;
    Some(format!("crashed {}: {}", ago(now(), crash.at), crash.reason))
}

fn rows_of(deployment: &DeploymentView) -> Vec<Vec<String>> {
    let mark = if deployment.released { " *" } else { "" };
    let number = format!("{}{mark}", deployment.number);
    let mut rows = Vec::new();
    for process in &deployment.processes {
        for it in &process.instances {
            let is = if it.ready { "healthy".to_owned() } else { it.state.clone() };
            rows.push(vec![
                number.clone(),
                deployment.state.clone(),
                format!("{}.{}", process.name, it.index),
                is,
                it.cell_name.as_ref().map_or_else(String::new, ToString::to_string),
                if it.crashes > 0 { it.crashes.to_string() } else { String::new() },
                ago(now(), it.since),
                why(it),
            ]);
        }
    }
    if rows.is_empty() {
        let reason = deployment.reason.clone().unwrap_or_default();
        let made = ago(now(), deployment.created_at);
        let (state, none) = (deployment.state.clone(), String::new);
        rows.push(vec![number, state, "-".into(), "-".into(), none(), none(), made, reason]);
    }
    rows
}

pub(super) async fn logs(shell: &Shell, args: LogsArgs) -> Result<()> {
    let which = Which::find(&args.app.named(args.name.as_ref()), None)?;
    let client = shell.client()?;
    let only = only(&args)?;
    let rest = format!("logs?follow={}&{}{only}", args.follow, lines_of(args.lines));
    let path = which.path(&rest, &args.app.workspace);
    show_logs(shell, &client, &path, |line| shell.output.app_line(line, args.lines.times)).await
}

/// How many lines are shown unless somebody says otherwise.
const TAIL: u64 = 100;

/// Which lines, as the server wants it said.
pub(super) fn lines_of(args: LineArgs) -> String {
    let tail = args.tail.or_else(|| args.since.is_none().then_some(TAIL));
    let since =
        args.since.map(|since| now().0.saturating_sub(since.as_secs().saturating_mul(1_000)));
    let said = |name: &str, value: Option<u64>| value.map(|value| format!("{name}={value}&"));
    [said("tail", tail), said("since", since)].into_iter().flatten().collect()
}

/// Which instances, as the server wants it said.
fn only(args: &LogsArgs) -> Result<String> {
    let instance = args.instance.as_deref().unwrap_or_default();
    let (process, index) = match instance.rsplit_once('.') {
        Some((process, index)) => (Some(process), index),
        None => (None, instance),
    };
    let wrong =
        || CliError::invalid(format!("`{instance}` is no instance, as `web.0` and `0` are"));
    let own = process.map(|it| Name::parse("process", it)).transpose().map_err(|_| wrong())?;
    let index = Some(index).filter(|it| !it.is_empty());
    let index = index.map(str::parse::<u32>).transpose().map_err(|_| wrong())?;
    if instance.is_empty() != index.is_none() {
        return Err(wrong());
    }
    if args.process.is_some() && own.is_some() && args.process != own {
        return Err(CliError::invalid(format!("instance {instance} is of another process")));
    }
    let process = own.as_ref().or(args.process.as_ref()).map(|it| format!("process={it}&"));
    let index = index.map(|it| format!("index={it}&"));
    Ok([process, index].into_iter().flatten().collect())
}

/// Shows the lines of a log until they end.
pub(super) async fn show_logs(
    shell: &Shell,
    client: &Client,
    path: &str,
    show: impl Fn(&LogLine),
) -> Result<()> {
    let mut events = Box::pin(client.events(path, None).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        match event.name.as_str() {
            "log" => {
                if let Ok(line) = serde_json::from_str::<LogLine>(&event.data) {
                    show(&line);
                }
            }
            "skipped" => shell.output.say("some lines are not kept any more"),
            _ => {}
        }
    }
    Ok(())
}

/// The path of an app's log from now on.
pub(super) fn log_path(which: &Which, workspace: &Name) -> String {
    which.path("logs?follow=true&tail=20&", workspace)
}

pub(super) async fn scale(shell: &Shell, args: ScaleArgs) -> Result<()> {
    let which = Which::find(&args.app, None)?;
    let client = shell.client()?;
    for (process, count) in &args.counts {
        let process = Name::parse("process", process).map_err(CliError::invalid)?;
        let instances = count.parse().map_err(|_| {
            CliError::invalid(format!("`{count}` is no number of instances for {process}"))
        })?;
        let scale = Scale { process: process.clone(), instances };
        client.post::<_, ()>(&which.path("scale?", &args.app.workspace), &scale).await?;
        let noun = if instances == 1 { "instance" } else { "instances" };
        let scaled = json!({ "event": "scaled", "process": process, "instances": instances });
        shell.output.done(&scaled, &format!("{process} is to have {instances} {noun}"));
    }
    let status: AppStatus = client.get(&which.path("status?", &args.app.workspace)).await?;
    let released = status.deployments.iter().find(|it| it.released);
    let processes = released.map_or(&[][..], |it| &it.processes);
    let asked =
        processes.iter().filter(|it| args.counts.iter().any(|(name, _)| name == it.name.as_str()));
    for why in asked.filter_map(ProcessView::unplaced) {
        shell.output.say(&format!("{why}\nhint: {NO_ROOM}"));
    }
    Ok(())
}

pub(super) async fn run(shell: &Shell, args: RunArgs) -> Result<()> {
    let which = Which::find(&args.app.named(args.name.as_ref()), None)?;
    let client = shell.client()?;
    if has_input(io::stdin().as_fd()) {
        shell.output.say(NO_INPUT);
    }
    let command = RunCommand { argv: args.argv };
    let task: TaskView = client.post(&which.path("run?", &args.app.workspace), &command).await?;
    let path = format!("/v1/tasks/{}/events", task.id);
    let mut waits = None;
    tokio::select! {
        shown = show_logs(shell, &client, &path, |line| shell.output.command_line(line)) => shown?,
        never = say_why(shell, &client, (&task, "the command"), &mut waits) => match never {},
        () = crate::roles::interrupted() => {
            let cancel = format!("/v1/tasks/{}/cancel", task.id);
            client.post::<_, ()>(&cancel, &()).await?;
        }
    }
    let task: TaskView = client.get(&format!("/v1/tasks/{}?wait_ms=30000", task.id)).await?;
    match task.state.as_str() {
        "succeeded" => Ok(()),
        state => {
            let reason = task.reason.unwrap_or_else(|| match waits {
                Some(why) => format!("it never ran: {why}"),
                None => "somebody asked for its end".to_owned(),
            });
            let message = format!("task {} {state}: {reason}", task.id);
            let exit = task.exit.filter(|_| state == "failed").and_then(exit_code);
            Err(CliError { exit, ..CliError::new(ErrorKind::Failed, message) })
        }
    }
}

/// Whether something is given to this program to read: a pipe, or a file that is not empty.
fn has_input(stdin: BorrowedFd<'_>) -> bool {
    let known = stdin.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    known.is_ok_and(|it| it.file_type().is_fifo() || (it.is_file() && it.len() > 0))
}

/// What a shell would exit with for a command that ended so, if that is known and no success.
pub(super) fn exit_code(exit: ExitStatus) -> Option<u8> {
    match exit {
        // The system keeps eight bits.
        ExitStatus::Code(code) => u8::try_from(code & 0xff).ok().filter(|code| *code != 0),
        ExitStatus::Signal(signal) => u8::try_from(128 + (signal & 0x7f)).ok(),
        ExitStatus::OutOfMemory => Some(137),
        ExitStatus::Lost => None,
    }
}

/// Says why a task waits for a cell, and again when the reason changes; `waits` holds it as long as it
/// does. Never ends.
pub(super) async fn say_why(
    shell: &Shell,
    client: &Client,
    (task, what): (&TaskView, &str),
    waits: &mut Option<String>,
) -> Infallible {
    let path = format!("/v1/tasks/{}", task.id);
    let mut said = None;
    loop {
        // A call that fails says nothing; the log's stream tells what is wrong with the server.
        if let Ok(now) = client.get::<TaskView>(&path).await {
            *waits = now.reason.filter(|_| !now.ended);
            if waits.is_some() && *waits != said {
                said.clone_from(waits);
                let why = waits.as_deref().unwrap_or_default();
                shell.output.say(&format!("{what} waits for a cell: {why}"));
            }
        }
        runtime::sleep(LOOK).await;
    }
}

pub(super) async fn config(shell: &Shell, command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::List(args) => {
            let which = Which::find(&args.app, None)?;
            let path = which.path("config?", &args.app.workspace);
            let vars: BTreeMap<String, String> = shell.client()?.get(&path).await?;
            let rows: Vec<(String, String)> = vars.into_iter().collect();
            shell.output.table(
                &rows,
                &["name", "value"],
                "no variables are set",
                |(name, value)| vec![name.clone(), value.clone()],
            );
            Ok(())
        }
        ConfigCommand::Set(args) => {
            let vars = args.vars.into_iter().map(|(name, value)| (name, Some(value))).collect();
            set(shell, &args.app, vars, args.no_deploy).await
        }
        ConfigCommand::Unset(args) => {
            if !is_any_set(shell, &args.app, &args.names).await? {
                let names = args.names.join(", ");
                let unchanged = json!({ "event": "unchanged", "names": args.names });
                let text = format!("{names}: not set, so nothing has changed");
                shell.output.done(&unchanged, &text);
                return Ok(());
            }
            let vars = args.names.into_iter().map(|name| (name, None)).collect();
            set(shell, &args.app, vars, args.no_deploy).await
        }
    }
}

/// Whether an app has any of these variables.
async fn is_any_set(shell: &Shell, args: &AppArgs, names: &[String]) -> Result<bool> {
    let path = Which::find(args, None)?.path("config?", &args.workspace);
    let vars: BTreeMap<String, String> = shell.client()?.get(&path).await?;
    Ok(names.iter().any(|name| vars.contains_key(name)))
}

async fn set(
    shell: &Shell,
    args: &AppArgs,
    vars: BTreeMap<String, Option<String>>,
    no_deploy: bool,
) -> Result<()> {
    let which = Which::find(args, None)?;
    let client = shell.client()?;
    let path = which.path("config?", &args.workspace);
    client.patch::<_, ()>(&path, &SetConfig { vars }).await?;
    let app: AppView =
        client.get(&format!("/v1/projects/{}/apps/{}", which.project, which.app)).await?;
    if no_deploy || !app.released.contains_key(&args.workspace) {
        let kept = json!({ "event": "set", "project": which.project, "app": which.app });
        shell.output.done(&kept, "the next deployment has it");
        return Ok(());
    }
    // What is released with the new variables: not a newer build that was rolled back or refused.
    let operation = Operation::Restart;
    let place = (&which, &args.workspace);
    queue_and_follow(shell, &client, place, operation, GoesOn::Yes).await
}
