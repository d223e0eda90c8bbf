//! Which instance somebody means.

use std::sync::Arc;

use api::proto::work::Kind;
use api::proto::{Work, id_bytes};
use model::{AppId, CellId, InstanceState, Name, ProjectId};
use state::{App, Deployment, Instance, Process, Project, State};

use crate::apply::ApplyError;
use crate::sessions::{MAX_SESSIONS, MAX_SESSIONS_PER_PROJECT};

/// Which instance somebody wants to work with.
#[derive(Debug, Clone)]
pub struct SessionTarget {
    /// The app.
    pub app: Arc<App>,
    /// The workspace.
    pub workspace: Name,
    /// The deployment's number; the one that is released when absent.
    pub deployment: Option<u64>,
    /// The process; the first that runs when absent.
    pub process: Option<Name>,
    /// Which of its instances, from 0; the first that runs when absent.
    pub index: Option<u32>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionRefusal {
    /// There is no such thing.
    #[error("there is no {what} {name}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// What it is called.
        name: String,
    },
    /// Nothing of it runs.
    #[error("{0}")]
    NotRunning(String),
    /// There are too many.
    #[error(
        "there are too many sessions: a project has at most {MAX_SESSIONS_PER_PROJECT} at once, \
         a server {MAX_SESSIONS}"
    )]
    Full,
    /// The cell is not connected.
    #[error("the instance's cell is not connected")]
    CellAway,
    /// What is wanted makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The server cannot write it down.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// An instance that runs.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) work: Work,
    pub(super) cell: CellId,
    pub(super) project: ProjectId,
    pub(super) project_name: Name,
    pub(super) app: AppId,
    pub(super) app_name: Name,
    pub(super) workspace: Name,
    pub(super) deployment: u64,
    pub(super) instance: String,
}

fn not_found(what: &'static str, name: impl std::fmt::Display) -> SessionRefusal {
    SessionRefusal::NotFound { what, name: name.to_string() }
}

fn deployment<'a>(
    state: &'a State,
    target: &SessionTarget,
) -> Result<&'a Arc<Deployment>, SessionRefusal> {
    let SessionTarget { app, workspace, .. } = target;
    let Some(number) = target.deployment else {
        let id = app.released.get(workspace);
        let found = id.and_then(|id| state.get::<Deployment>(*id));
        return found.ok_or_else(|| not_found("release of app", &app.name));
    };
    let mut all = state.deployments_of(app.id);
    let found = all.find(|row| row.number == number && row.workspace == *workspace);
    found.ok_or_else(|| not_found("deployment", number))
}

pub(super) fn choose(state: &State, target: &SessionTarget) -> Result<Chosen, SessionRefusal> {
    let deployment = deployment(state, target)?;
    let processes: Vec<&Arc<Process>> = deployment
        .processes
        .iter()
        .filter_map(|id| state.get::<Process>(*id))
        .filter(|process| target.process.as_ref().is_none_or(|name| *name == process.name))
        .collect();
    if let (true, Some(name)) = (processes.is_empty(), &target.process) {
        return Err(not_found("process", name));
    }
    let mut waits = None;
    for process in processes {
        for row in state.instances_of(process) {
            if target.index.is_some_and(|index| index != row.index) {
                continue;
            }
            let name = format!("{}.{}", process.name, row.index);
            let InstanceState::Running { cell, .. } = row.state else {
                let is = row.state.name();
                waits.get_or_insert_with(|| format!("{name} does not run: it is {is}"));
                continue;
            };
            return chosen(state, target, (deployment, name), (row, cell));
        }
    }
    let number = deployment.number;
    Err(match (waits, &target.process, target.index) {
        (Some(why), ..) => SessionRefusal::NotRunning(why),
        (None, Some(process), Some(index)) => {
            not_found("instance", format!("{process}.{index} of deployment {number}"))
        }
        (None, ..) => {
            let reason = format!("deployment {number} runs nothing that was asked for");
            SessionRefusal::NotRunning(reason)
        }
    })
}

fn chosen(
    state: &State,
    target: &SessionTarget,
    (deployment, instance): (&Deployment, String),
    (row, cell): (&Instance, CellId),
) -> Result<Chosen, SessionRefusal> {
    let app = &target.app;
    let project = state.get::<Project>(app.project);
    let project = project.ok_or_else(|| not_found("project", app.project))?;
    Ok(Chosen {
        work: Work { kind: Kind::Instance.into(), id: id_bytes(row.id.0), epoch: row.epoch },
        cell,
        project: app.project,
        project_name: project.name.clone(),
        app: app.id,
        app_name: app.name.clone(),
        workspace: target.workspace.clone(),
        deployment: deployment.number,
        instance,
    })
}
