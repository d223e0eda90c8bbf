//! Projects, tokens, keys, runners.

use std::time::Duration;

use api::http_types::{
    AddKey, Create, CreateToken, KeyView, ProjectView, RunnerView, ServerInfo, TokenCreated,
    TokenView,
};
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use model::{KeyId, PROTOCOL, ProjectId, TokenId};
use server::{Action, Server, views};
use sha2::{Digest as _, Sha256};
use state::{Command, Key, NewKey, Project, Runner, Token};

use super::caller::{Body, Caller, Path, id, name};
use super::{ApiError, ApiResult, ReadResult};

/// Who the server is and who it thinks you are.
#[utoipa::path(get, path = "/v1/info", responses((status = 200, body = ServerInfo)))]
pub(crate) async fn info(server: State<Server>, caller: Caller) -> ApiResult<ServerInfo> {
    let limited = caller.limited_to();
    let project = server
        .read(move |state| state.get::<Project>(limited?).map(|project| project.name.clone()))
        .await?;
    let ports = server.ports();
    Ok(Json(ServerInfo {
        version: api::VERSION.to_owned(),
        protocol_min: PROTOCOL.min,
        protocol_current: PROTOCOL.current,
        domain: server.domain().to_owned(),
        role: caller.role(),
        project,
        router_port: ports.router,
        ssh_port: ports.ssh,
    }))
}

/// The projects you may look at.
#[utoipa::path(get, path = "/v1/projects", responses((status = 200, body = Vec<ProjectView>)))]
pub(crate) async fn list_projects(
    server: State<Server>,
    caller: Caller,
) -> ReadResult<Vec<ProjectView>> {
    let list = server.read_at(move |state| {
        let mine = state.all::<Project>().filter(|row| caller.can(Action::Read, Some(row.id)));
        mine.map(|row| views::project(state, row)).collect()
    });
    Ok(list.await?.into())
}

/// Makes a project.
#[utoipa::path(post, path = "/v1/projects", request_body = Create,
    responses((status = 200, body = ProjectView), (status = 409, body = api::http_types::ErrorBody)))]
pub(crate) async fn create_project(
    server: State<Server>,
    caller: Caller,
    Body(create): Body<Create>,
) -> ApiResult<ProjectView> {
    caller.require(Action::Change)?;
    let id = ProjectId(server.fresh_id());
    server.apply(Command::CreateProject { id, name: create.name }).await?;
    let view = server.read(move |state| state.get(id).map(|row| views::project(state, row)));
    view.await?.map(Json).ok_or_else(|| ApiError::not_found("project", id))
}

/// A project.
#[utoipa::path(get, path = "/v1/projects/{project}", responses((status = 200, body = ProjectView)))]
pub(crate) async fn get_project(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult<ProjectView> {
    let row = caller.project(&server, Action::Read, &name("project", &project)?).await?;
    Ok(Json(server.read(move |state| views::project(state, &row)).await?))
}

/// Removes a project without apps.
#[utoipa::path(delete, path = "/v1/projects/{project}", responses((status = 200)))]
pub(crate) async fn delete_project(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult<()> {
    let row = caller.project(&server, Action::Change, &name("project", &project)?).await?;
    server.apply(Command::DeleteProject(row.id)).await?;
    Ok(Json(()))
}

/// Every token, without secrets.
#[utoipa::path(get, path = "/v1/tokens", responses((status = 200, body = Vec<TokenView>)))]
pub(crate) async fn list_tokens(
    server: State<Server>,
    caller: Caller,
) -> ReadResult<Vec<TokenView>> {
    caller.require(Action::Administer)?;
    let list = server.read_at(|state| {
        state.all::<Token>().map(|row| views::token(state, row)).collect::<Vec<_>>()
    });
    Ok(list.await?.into())
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", request_body = CreateToken,
    responses((status = 200, body = TokenCreated)))]
pub(crate) async fn create_token(
    server: State<Server>,
    caller: Caller,
    Body(create): Body<CreateToken>,
) -> ApiResult<TokenCreated> {
    caller.require(Action::Administer)?;
    let project = match &create.project {
        Some(name) => Some(caller.project(&server, Action::Administer, name).await?.id),
        None => None,
    };
    let ttl = create.ttl_ms.map(Duration::from_millis);
    let token = server.create_token(create.role, project, create.label, ttl).await?;
    let id = token.id;
    let view = server.read(move |state| state.get(id).map(|row| views::token(state, row))).await?;
    let view = view.ok_or_else(|| ApiError::not_found("token", id))?;
    Ok(Json(TokenCreated { token: token.to_string(), view }))
}

/// Takes a token back; it stops working at once.
#[utoipa::path(delete, path = "/v1/tokens/{token}", responses((status = 200)))]
pub(crate) async fn revoke_token(
    server: State<Server>,
    caller: Caller,
    Path(token): Path<String>,
) -> ApiResult<()> {
    caller.require(Action::Administer)?;
    server.apply(Command::RevokeToken(id::<TokenId>(&token)?)).await?;
    Ok(Json(()))
}

/// Every SSH key.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = Vec<KeyView>)))]
pub(crate) async fn list_keys(server: State<Server>, caller: Caller) -> ReadResult<Vec<KeyView>> {
    caller.require(Action::Administer)?;
    let list = server
        .read_at(|state| state.all::<Key>().map(|row| views::key(state, row)).collect::<Vec<_>>());
    Ok(list.await?.into())
}

/// Adds an SSH public key that may push.
#[utoipa::path(post, path = "/v1/keys", request_body = AddKey,
    responses((status = 200, body = KeyView)))]
pub(crate) async fn add_key(
    server: State<Server>,
    caller: Caller,
    Body(add): Body<AddKey>,
) -> ApiResult<KeyView> {
    caller.require(Action::Administer)?;
    let project = match &add.project {
        Some(name) => Some(caller.project(&server, Action::Administer, name).await?.id),
        None => None,
    };
    let (public, fingerprint, label) = parse_public(&add.public)?;
    let id = KeyId(server.fresh_id());
    server.apply(Command::AddKey(NewKey { id, project, label, public, fingerprint })).await?;
    let view = server.read(move |state| state.get(id).map(|row| views::key(state, row))).await?;
    view.map(Json).ok_or_else(|| ApiError::not_found("key", id))
}

/// Algorithm and key, fingerprint, comment of a line of an OpenSSH `.pub` file.
fn parse_public(line: &str) -> Result<(String, String, String), ApiError> {
    let wrong = |why: &str| {
        let message = format!("this is no OpenSSH public key: {why}");
        let hint = "send the one line of a file like ~/.ssh/id_ed25519.pub";
        ApiError::new(http::StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, hint)
    };
    if line.contains("PRIVATE KEY") {
        return Err(wrong("it is a private key, which must never leave its machine"));
    }
    let mut words = line.trim().splitn(3, ' ');
    let algorithm = words.next().unwrap_or_default();
    let key = words.next().ok_or_else(|| wrong("`algorithm base64 comment` is wanted"))?;
    let comment: String =
        words.next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
    let blob = STANDARD.decode(key).map_err(|_| wrong("its second word is not base 64"))?;
    // The blob repeats the algorithm's name, as a length of four bytes and the text.
    let named = blob.get(4..4 + algorithm.len()) == Some(algorithm.as_bytes());
    let known = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
    ];
    if !named || !known.contains(&algorithm) {
        return Err(wrong("its algorithm is unknown, or is not the one inside the key"));
    }
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob)));
    Ok((format!("{algorithm} {key}"), fingerprint, comment))
}

/// Removes an SSH key.
#[utoipa::path(delete, path = "/v1/keys/{key}", responses((status = 200)))]
pub(crate) async fn remove_key(
    server: State<Server>,
    caller: Caller,
    Path(key): Path<String>,
) -> ApiResult<()> {
    caller.require(Action::Administer)?;
    server.apply(Command::RemoveKey(id::<KeyId>(&key)?)).await?;
    Ok(Json(()))
}

/// Every runner.
#[utoipa::path(get, path = "/v1/runners", responses((status = 200, body = Vec<RunnerView>)))]
pub(crate) async fn list_runners(
    server: State<Server>,
    caller: Caller,
) -> ReadResult<Vec<RunnerView>> {
    caller.require(Action::Read)?;
    let list = server
        .read_at(|state| state.all::<Runner>().map(|row| views::runner(row)).collect::<Vec<_>>());
    Ok(list.await?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_checked() {
        let good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@host";
        let (public, fingerprint, comment) = parse_public(good).expect("a good key");
        assert!(public.starts_with("ssh-ed25519 AAAA") && !public.contains("me@host"));
        assert_eq!(fingerprint, "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        assert_eq!(comment, "me@host");
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIA==",
            "ssh-ed25519 !!!",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(parse_public(bad).is_err(), "{bad}");
        }
    }
}
