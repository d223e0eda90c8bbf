//! `shore project`, `shore key`, `shore token`.

use api::http_types::{
    AddKey, AuditView, Create, CreateToken, KeyView, ProjectView, TokenCreated, TokenView,
};
use model::{ExitStatus, Time};
use runtime::{Clock as _, SystemClock};
use serde_json::json;

use super::Shell;
use crate::args::{AuditArgs, KeyCommand, ProjectCommand, TokenCommand};
use crate::error::{CliError, Result};
use crate::output::{ago, until};

pub(super) async fn audit(shell: &Shell, args: AuditArgs) -> Result<()> {
    let before = args.before.map_or_else(String::new, |line| format!("&before={line}"));
    let path = format!("/v1/audit?limit={}{before}", args.limit);
    let list: Vec<AuditView> = shell.client()?.get(&path).await?;
    let header = ["line", "when", "who", "where", "instance", "what"];
    shell.output.table(&list, &header, "the audit log is empty", audited);
    Ok(())
}

/// A line of the audit log. What somebody typed is last, so that it is cut first.
fn audited(line: &AuditView) -> Vec<String> {
    let who = if line.label.is_empty() { line.token.to_string() } else { line.label.clone() };
    let place = format!("{}/{}", line.project, line.app);
    let production = line.workspace.as_str() == "production";
    let place = if production { place } else { format!("{place} in {}", line.workspace) };
    let what = match &line.action {
        Some(action) => format!("{action} {}", line.words.join(" ")),
        None => ended(line),
    };
    let at = ago(now(), line.at);
    let who = format!("{who} ({})", line.role.name());
    vec![line.line.to_string(), at, who, place, line.instance.clone(), what.trim_end().to_owned()]
}

/// How a session ended, as far as that is known.
fn ended(line: &AuditView) -> String {
    let how = match line.exit {
        Some(ExitStatus::Code(code)) => format!("ended with {code}"),
        Some(ExitStatus::Signal(signal)) => format!("ended by signal {signal}"),
        Some(ExitStatus::OutOfMemory) => "ended out of memory".to_owned(),
        Some(ExitStatus::Lost) | None => "ended".to_owned(),
    };
    match &line.reason {
        Some(reason) => format!("{how}: {reason}"),
        None => how,
    }
}

/// Wall time, for tables.
pub(super) fn now() -> Time {
    Time(SystemClock.now_ms())
}

pub(super) async fn project(shell: &Shell, command: ProjectCommand) -> Result<()> {
    let client = shell.client()?;
    match command {
        ProjectCommand::Create { name } => {
            let create = Create { name };
            let made: ProjectView = client.post("/v1/projects", &create).await?;
            shell.output.value(&made, || format!("project {} is made", made.name));
        }
        ProjectCommand::List => {
            let list: Vec<ProjectView> = client.get("/v1/projects").await?;
            let empty = "there are no projects yet: make one with `shore project create`";
            shell.output.table(&list, &["name", "made", "apps"], empty, |it| {
                let apps: Vec<&str> = it.apps.iter().map(model::Name::as_str).collect();
                vec![it.name.to_string(), ago(now(), it.created_at), apps.join(", ")]
            });
        }
        ProjectCommand::Remove { name, yes: _ } => {
            client.delete(&format!("/v1/projects/{name}")).await?;
            let removed = json!({ "event": "removed", "project": name });
            shell.output.done(&removed, &format!("project {name} is removed"));
        }
    }
    Ok(())
}

pub(super) async fn key(shell: &Shell, command: KeyCommand) -> Result<()> {
    let client = shell.client()?;
    match command {
        KeyCommand::Add { file, project } => {
            let public = std::fs::read_to_string(&file)
                .map_err(|error| CliError::file("read", &file, &error))?;
            let made: KeyView = client.post("/v1/keys", &AddKey { public, project }).await?;
            shell.output.value(&made, || format!("key {} may push now", made.fingerprint));
        }
        KeyCommand::List => {
            let list: Vec<KeyView> = client.get("/v1/keys").await?;
            let header = ["id", "fingerprint", "project", "added", "comment"];
            let empty = "there are no keys yet: add one with `shore key add ~/.ssh/id_ed25519.pub`";
            shell.output.table(&list, &header, empty, |it| {
                let project =
                    it.project.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string);
                let (id, added) = (it.id.to_string(), ago(now(), it.created_at));
                vec![id, it.fingerprint.clone(), project, added, it.label.clone()]
            });
        }
        KeyCommand::Remove { key } => {
            client.delete(&format!("/v1/keys/{key}")).await?;
            let removed = json!({ "event": "removed", "key": key });
            shell.output.done(&removed, "the key may not push any more");
        }
    }
    Ok(())
}

/// When a token stops working; nothing for one that did.
fn expires(token: &TokenView, now: Time) -> String {
    match (token.revoked_at, token.expires_at) {
        (None, None) => "never".to_owned(),
        (None, Some(at)) if at > now => until(now, at),
        (None | Some(_), None | Some(_)) => String::new(),
    }
}

pub(super) async fn token(shell: &Shell, command: TokenCommand) -> Result<()> {
    if let TokenCommand::Create { role, label, data: Some(dir), .. } = command {
        let token = crate::roles::token_in(&dir, role, label).await?.to_string();
        shell.output.value(&json!({ "token": token }), || token.clone());
        return Ok(());
    }
    let client = shell.client()?;
    match command {
        TokenCommand::Create { role, project, label, hours, data: _ } => {
            let ttl_ms = hours.map(|hours| hours.saturating_mul(3_600_000));
            let create = CreateToken { role, project, label, ttl_ms };
            let made: TokenCreated = client.post("/v1/tokens", &create).await?;
            shell.output.value(&made, || made.token.clone());
        }
        TokenCommand::List => {
            let list: Vec<TokenView> = client.get("/v1/tokens").await?;
            let header = ["id", "role", "project", "state", "expires", "made", "for"];
            shell.output.table(&list, &header, "there are no tokens", |it| {
                let project =
                    it.project.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string);
                let state = match (it.revoked_at, it.expires_at) {
                    (Some(_), _) => "revoked",
                    (None, Some(at)) if at <= now() => "expired",
                    (None, _) => "good",
                };
                let (id, made) = (it.id.to_string(), ago(now(), it.created_at));
                let role = it.role.name().to_owned();
                let expires = expires(it, now());
                vec![id, role, project, state.to_owned(), expires, made, it.label.clone()]
            });
        }
        TokenCommand::Revoke { token } => {
            client.delete(&format!("/v1/tokens/{token}")).await?;
            let revoked = json!({ "event": "revoked", "token": token });
            shell.output.done(&revoked, "the token does not work any more");
        }
    }
    Ok(())
}
