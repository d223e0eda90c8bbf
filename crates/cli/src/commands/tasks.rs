//! `shore task`: work that runs once, without an app.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use api::Client;
use api::http_types::{LogLine, NewTask, TaskView};
use bytes::Bytes;
use futures_util::Stream;
use model::{Action, Limits, RetryPolicy, TaskSpec};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::StreamReader;

use super::Shell;
use super::access::now;
use super::apps::{lines_of, say_why, show_logs};
use crate::args::{TaskCommand, TaskRunArgs};
use crate::error::{CliError, ErrorKind, Result};
use crate::output::{Output, ago};

pub(super) async fn task(shell: &Shell, command: TaskCommand) -> Result<()> {
    match command {
        TaskCommand::Run(args) => run(shell, *args).await,
        TaskCommand::List { project, state, limit } => {
            let mut path = format!("/v1/tasks?limit={limit}");
            path += &project.map_or_else(String::new, |project| format!("&project={project}"));
            // States are words of letters; anything else would match nothing.
            let state =
                state.map(|s| s.chars().filter(char::is_ascii_alphabetic).collect::<String>());
            path += &state.map_or_else(String::new, |state| format!("&state={state}"));
            let list: Vec<TaskView> = shell.client()?.get(&path).await?;
            let header = ["id", "project", "state", "attempt", "made", "why"];
            shell.output.table(&list, &header, "there are no tasks", row);
            Ok(())
        }
        TaskCommand::Show { task } => {
            let view: TaskView = shell.client()?.get(&format!("/v1/tasks/{task}")).await?;
            shell.output.value(&view, || text(&view));
            Ok(())
        }
        TaskCommand::Logs { task, follow, lines } => {
            let path = format!("/v1/tasks/{task}/events?follow={follow}&{}", lines_of(lines));
            let show = |line: &LogLine| shell.output.app_line(line, lines.times);
            show_logs(shell, &shell.client()?, path.trim_end_matches('&'), show).await
        }
        TaskCommand::Result { task, output } => {
            let bytes = shell.client()?.get_bytes(&format!("/v1/tasks/{task}/result")).await?;
            keep(bytes, output.as_deref()).await
        }
        TaskCommand::Cancel { task } => {
            let (client, path) = (shell.client()?, format!("/v1/tasks/{task}"));
            client.delete(&path).await?;
            let view: TaskView = client.get(&path).await?;
            shell.output.done(&view, &format!("task {task} is asked to stop"));
            Ok(())
        }
    }
}

/// Writes what a task left to a file or to standard output.
async fn keep(
    bytes: impl Stream<Item = std::io::Result<Bytes>> + Send,
    to: Option<&Path>,
) -> Result<()> {
    let bytes = std::pin::pin!(bytes);
    let mut bytes = StreamReader::new(bytes);
    let Some(path) = to else {
        let written = tokio::io::copy(&mut bytes, &mut tokio::io::stdout()).await;
        let written = match written {
            Ok(_) => tokio::io::stdout().flush().await,
            Err(error) => Err(error),
        };
        // Whoever reads may have had enough.
        return match written {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(CliError::new(ErrorKind::Unavailable, format!("the result broke off: {error}")))
            }
            Ok(()) | Err(_) => Ok(()),
        };
    };
    let failed = |error: std::io::Error| CliError::file("write", path, &error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    tokio::io::copy(&mut bytes, &mut file).await.map_err(failed)?;
    file.flush().await.map_err(failed)
}

fn row(task: &TaskView) -> Vec<String> {
    let project = task.project.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    vec![
        task.id.to_string(),
        project,
        task.state.clone(),
        format!("{}/{}", task.attempt, task.attempts),
        ago(now(), task.created_at),
        task.reason.clone().unwrap_or_default(),
    ]
}

fn text(task: &TaskView) -> String {
    let mut lines = vec![row(task).join("  ")];
    let mut add = |what: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("{what}: {value}")));
    };
    add("attempt before", task.retry_of.map(|id| id.to_string()));
    add("attempt after", task.followed_by.map(|id| id.to_string()));
    add("callback", task.callback.clone());
    let read = |digest| format!("{digest}, read it with `shore task result {}`", task.id);
    add("artifact", task.artifact.map(read));
    add("result", task.result.clone());
    lines.extend(task.tail.iter().map(|line| format!("| {line}")));
    lines.join("\n")
}

/// The spec from a file, or from the words of the command line.
fn spec(args: &TaskRunArgs) -> Result<TaskSpec> {
    if let Some(file) = &args.file {
        let text = read(file)?;
        return serde_json::from_str(&text).map_err(|error| {
            CliError::invalid(format!("cannot use {}: {error}", file.display()))
                .hint("a task's spec as JSON is wanted; see docs/openapi.json")
        });
    }
    let mut spec = TaskSpec::new(Action::run(args.argv.iter().cloned()), args.timeout * 1_000);
    spec.container.image = args.image;
    spec.container.driver.clone_from(&args.driver);
    spec.container.limits = Limits { memory_mb: args.memory, ..Limits::default() };
    spec.container.env = args.env.iter().cloned().collect();
    spec.result_file.clone_from(&args.result_file);
    spec.start_timeout_ms = args.start_timeout.map(|secs| secs * 1_000);
    spec.callback.clone_from(&args.callback);
    spec.annotation.clone_from(&args.annotation);
    spec.retry = args
        .attempts
        .map(|attempts| RetryPolicy { attempts, pause_ms: args.retry_pause.saturating_mul(1_000) });
    Ok(spec)
}

fn read(file: &Path) -> Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| CliError::file("read", file, &error))?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|error| CliError::file("read", file, &error))
}

async fn run(shell: &Shell, args: TaskRunArgs) -> Result<()> {
    let client = shell.client()?;
    let new = NewTask { id: None, idempotency_key: args.key.clone(), spec: spec(&args)? };
    let path = format!("/v1/projects/{}/tasks", args.project);
    let made: TaskView = client.post(&path, &new).await?;
    if args.detach {
        shell.output.value(&made, || made.id.to_string());
        return Ok(());
    }
    let ended = follow(shell, &client, made).await?;
    if ended.state == "succeeded" {
        // Whoever keeps what the command wrote gets nothing else with it.
        if std::io::stdout().is_terminal() || shell.output.is_json() {
            shell.output.value(&ended, || text(&ended));
        } else {
            shell.output.say(&text(&ended));
        }
        return Ok(());
    }
    let reason = ended.reason.unwrap_or_else(|| "somebody asked for its end".to_owned());
    let message = format!("task {} {}: {reason}", ended.id, ended.state);
    Err(CliError::new(ErrorKind::Failed, message))
}

/// A line of a task: with the platform's own on a terminal, else as the command wrote it.
fn show(output: Output, line: &LogLine) {
    if std::io::stdout().is_terminal() {
        output.app_line(line, false);
    } else {
        output.command_line(line);
    }
}

/// Shows what a task says until it ends, also why it waits, and the attempts that follow it.
async fn follow(shell: &Shell, client: &Client, mut task: TaskView) -> Result<TaskView> {
    loop {
        let events = format!("/v1/tasks/{}/events", task.id);
        let what = format!("task {}", task.id);
        let mut waits = None;
        tokio::select! {
            never = say_why(shell, client, (&task, &what), &mut waits) => match never {},
            shown = show_logs(shell, client, &events, |line| show(shell.output, line)) => shown?,
            () = crate::roles::interrupted() => {
                client.delete(&format!("/v1/tasks/{}", task.id)).await?;
            }
        }
        task = client.get(&format!("/v1/tasks/{}?wait_ms=30000", task.id)).await?;
        if let Some(next) = task.followed_by {
            let reason = task.reason.as_deref().unwrap_or_default();
            let (attempt, attempts) = (task.attempt + 1, task.attempts);
            shell.output.say(&format!("{reason}: attempt {attempt} of {attempts} follows"));
            task = client.get(&format!("/v1/tasks/{next}")).await?;
        } else if task.ended {
            return Ok(task);
        }
    }
}
