//! `shore context`.

use api::http_types::ServerInfo;
use serde::Serialize;

use super::Shell;
use crate::args::ContextCommand;
use crate::context::{Context, Contexts};
use crate::error::{CliError, ErrorKind, Result};

#[derive(Serialize)]
struct Row {
    name: String,
    url: String,
    current: bool,
}

pub(super) async fn context(shell: &Shell, command: ContextCommand) -> Result<()> {
    let mut contexts = Contexts::load()?;
    match command {
        ContextCommand::Set { name, server, token } => {
            let context = Context { url: server, token };
            let info: ServerInfo = context.client()?.get("/v1/info").await?;
            contexts.contexts.insert(name.to_string(), context);
            contexts.current = Some(name.to_string());
            contexts.save()?;
            shell.output.value(&info, || {
                format!("context {name}: server {}, role {}", info.version, info.role.name())
            });
        }
        ContextCommand::Use { name } => {
            contexts.find(Some(&name))?;
            contexts.current = Some(name.clone());
            contexts.save()?;
            let used = serde_json::json!({ "event": "used", "context": name });
            shell.output.done(&used, &format!("commands talk to context {name} now"));
        }
        ContextCommand::Remove { name } => {
            if contexts.contexts.remove(&name).is_none() {
                let message = format!("there is no context `{name}`");
                return Err(CliError::new(ErrorKind::NotFound, message));
            }
            if contexts.current.as_ref() == Some(&name) {
                contexts.current = None;
            }
            contexts.save()?;
            let removed = serde_json::json!({ "event": "removed", "context": name });
            shell.output.done(&removed, &format!("context {name} is forgotten"));
        }
        ContextCommand::List => {
            let row = |(name, context): (&String, &Context)| Row {
                name: name.clone(),
                url: context.url.clone(),
                current: contexts.current.as_ref() == Some(name),
            };
            let rows: Vec<Row> = contexts.contexts.iter().map(row).collect();
            let header = ["current", "name", "server"];
            shell.output.table(&rows, &header, "there are no contexts yet", |row| {
                let mark = if row.current { "*" } else { "" };
                vec![mark.to_owned(), row.name.clone(), row.url.clone()]
            });
        }
    }
    Ok(())
}
