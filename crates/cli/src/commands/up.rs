//! `shore up`: build, deploy and release the code in a directory.

use std::path::Path;

use api::http_types::{AppStatus, BlobStored, ProcessView};
use api::{Client, ClientError};
use futures_util::StreamExt as _;
use model::{Digest, Operation, WEB};
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::apps::{NO_ROUTER, Which, log_path, show_logs};
use super::jobs::{GoesOn, queue_and_follow};
use super::{Shell, ensure_project};
use crate::args::UpArgs;
use crate::context::LOCAL;
use crate::error::{CliError, ErrorKind, Result};
use crate::roles::AllInOne;

pub(super) async fn up(shell: &Shell, args: UpArgs) -> Result<()> {
    check_dir(&args.dir)?;
    let which = Which::find(&args.app, Some(&args.dir))?;
    let packed = pack(&args.dir).await?;
    if let Some(client) = reachable(shell).await? {
        return deploy(shell, &client, &args, (&which, &packed), GoesOn::Yes).await;
    }
    shell.output.say("no server is configured: starting one in this process");
    let running = AllInOne::start(&args.ports, shell.output).await?;
    let client = running.client()?;
    let done =
        running.or_stopped(deploy(shell, &client, &args, (&which, &packed), GoesOn::No)).await;
    let done = match done {
        Ok(Some(Ok(()))) => {
            shell.output.say("following the logs; Ctrl-C stops everything");
            let logs = log_path(&which, &args.app.workspace);
            let show = |line: &_| shell.output.app_line(line, false);
            let shown = running.or_stopped(show_logs(shell, &client, &logs, show)).await;
            shown.and_then(|shown| shown.unwrap_or(Ok(())))
        }
        Ok(Some(Err(error))) | Err(error) => Err(error),
        Ok(None) => {
            let message = format!("{}/{} is not live yet", which.project, which.app);
            Err(CliError::new(ErrorKind::Interrupted, message).hint("`shore up` goes on from here"))
        }
    };
    shell.output.say("stopping");
    running.shutdown().await;
    done
}

/// The chosen server, unless it is the local one and does not run.
async fn reachable(shell: &Shell) -> Result<Option<Client>> {
    let Some((name, context)) = shell.chosen()? else { return Ok(None) };
    let client = context.client()?;
    match client.get::<api::http_types::ServerInfo>("/v1/info").await {
        Ok(_) => Ok(Some(client)),
        Err(ClientError::Unreachable { .. }) if name.as_deref() == Some(LOCAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn check_dir(dir: &Path) -> Result<()> {
    let choose = "give the directory with the code: `shore up DIR`";
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            let message = format!("cannot bring up {}: it is not a directory", dir.display());
            Err(CliError::invalid(message).hint(choose))
        }
        Err(error) => Err(CliError::file("bring up", dir, &error).hint(choose)),
    }
}

/// The source archive in a temporary file, with its digest.
struct Packed {
    file: tempfile::NamedTempFile,
    digest: Digest,
}

async fn pack(dir: &Path) -> Result<Packed> {
    let dir = dir.to_owned();
    runtime::blocking(move || {
        let file = tempfile::NamedTempFile::new()
            .map_err(|error| CliError::file("make a file in", &std::env::temp_dir(), &error))?;
        let packed =
            build::source::pack(&dir, file.as_file(), build::source::MAX).map_err(|error| {
                CliError::invalid(error).hint(".shoreignore names what to leave out")
            })?;
        if packed.content.entries == 0 {
            let message = format!("cannot bring up {}: there is nothing in it", dir.display());
            return Err(CliError::invalid(message)
                .hint("go to the directory with the code, or see what .shoreignore leaves out"));
        }
        Ok(Packed { file, digest: packed.digest })
    })
    .await
}

async fn deploy(
    shell: &Shell,
    client: &Client,
    args: &UpArgs,
    (which, packed): (&Which, &Packed),
    goes_on: GoesOn,
) -> Result<()> {
    // What cannot be sent leaves no project behind.
    upload(client, packed).await?;
    ensure_project(client, &which.project).await?;
    let operation = Operation::Up { source: packed.digest };
    let workspace = &args.app.workspace;
    queue_and_follow(shell, client, (which, workspace), operation, goes_on).await?;
    let path =
        format!("/v1/projects/{}/apps/{}/status?workspace={workspace}", which.project, which.app);
    let status: AppStatus = client.get(&path).await?;
    let (released, name) = (status.deployments.iter().find(|it| it.released), which.to_string());
    let idle = |process: &ProcessView| process.name.as_str() == WEB && process.wanted == 0;
    if released.is_some_and(|it| it.processes.iter().any(idle)) {
        let idle = json!({ "event": "idle", "project": which.project, "app": which.app });
        let text = format!(
            "\n{name} is released, but no instance of {WEB} runs, so nothing answers: \
             `shore scale {WEB}=1` changes that"
        );
        shell.output.done(&idle, &text);
    } else if let Some(url) = &status.url {
        shell.output.live(&which.project, &which.app, url);
    } else {
        shell.output.say(&format!("\n{name} is released; {NO_ROUTER}"));
    }
    Ok(())
}

async fn upload(client: &Client, packed: &Packed) -> Result<()> {
    if client.has_blob(packed.digest).await? {
        return Ok(());
    }
    let path = packed.file.path();
    let file =
        tokio::fs::File::open(path).await.map_err(|error| CliError::file("read", path, &error))?;
    let content = ReaderStream::new(file).boxed();
    let _: BlobStored = client.put_blob(Some(packed.digest), content).await?;
    Ok(())
}
