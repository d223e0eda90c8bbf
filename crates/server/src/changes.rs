//! What watchers are told of a change.

use std::sync::Arc;

use api::http_types::{Change, InstanceChange, ProcessView, TaskView};
use serde::Serialize;
use state::{AnyRow, App, Instance, Process, Project, Scope, State};

use crate::apply::ApplyError;
use crate::auth::Action;
use crate::feed::{Feed, Kept};
use crate::{Server, views};

/// The kinds of rows that watchers are told of.
pub const EVENT_KINDS: [&str; 13] = [
    "project",
    "app",
    "token",
    "key",
    "runner",
    "cell",
    "job",
    "task",
    "build",
    "deployment",
    "process",
    "instance",
    "volume",
];

/// What is told of a change, and to whom.
#[derive(Debug)]
pub struct Told {
    /// The kind of row.
    pub kind: &'static str,
    /// Where the row belongs.
    pub scope: Scope,
    /// What its reader must be allowed to do.
    pub action: Action,
    /// A [`Change`] as JSON.
    pub json: String,
}

impl Kept {
    /// What is told of it, if anything is. Made by [`Server::tell`].
    pub fn told(&self) -> Option<&Told> {
        self.told.get().and_then(Option::as_ref)
    }
}

impl Server {
    /// The last changes.
    pub fn feed(&self) -> &Feed {
        self.apply_loop().feed()
    }

    /// Sees to it that what is told of changes is there.
    pub async fn tell(&self, kept: Vec<Arc<Kept>>) -> Result<Vec<Arc<Kept>>, ApplyError> {
        if kept.iter().all(|kept| kept.told.get().is_some()) {
            return Ok(kept);
        }
        self.read(move |state| {
            for kept in &kept {
                kept.told.get_or_init(|| told(state, kept));
            }
            kept
        })
        .await
    }
}

fn told(state: &State, kept: &Kept) -> Option<Told> {
    let news = &kept.news;
    let scope = news.row.as_ref().map_or(news.scope, |row| state.scope_of(row));
    let action = match news.key.kind() {
        "token" | "key" => Action::Administer,
        // What is inside the server only.
        "delivery" | "signing" => return None,
        "runner" | "cell" | "task" => Action::Read,
        // Its owner is gone already, and that it goes, too, is told next.
        _ if scope.project.is_none() => return None,
        _ => Action::Read,
    };
    let scope = if action == Action::Administer { Scope::default() } else { scope };
    let body = match &news.row {
        Some(row) => Some(body(state, row)?),
        None => None,
    };
    let project = scope.project.and_then(|id| state.get::<Project>(id));
    let app = scope.app.and_then(|id| state.get::<App>(id));
    let change = Change {
        revision: news.revision,
        at: kept.at,
        kind: news.key.kind().to_owned(),
        id: news.key.id_text(),
        op: if body.is_some() { "put" } else { "delete" }.to_owned(),
        project: project.map(|row| row.name.clone()),
        app: app.map(|row| row.name.clone()),
        body,
    };
    let json = serde_json::to_string(&change).ok()?;
    Some(Told { kind: news.key.kind(), scope, action, json })
}

/// A row as its list shows it, without what is large or a kind of its own.
fn body(state: &State, row: &AnyRow) -> Option<serde_json::Value> {
    fn json(view: impl Serialize) -> Option<serde_json::Value> {
        serde_json::to_value(view).ok()
    }
    match row {
        AnyRow::Project(row) => json(views::project(state, row)),
        AnyRow::App(row) => json(views::app(state, row)),
        AnyRow::Token(row) => json(views::token(state, row)),
        AnyRow::Key(row) => json(views::key(state, row)),
        AnyRow::Runner(row) => json(views::runner(row)),
        AnyRow::Cell(row) => json(views::cell(state, row)),
        AnyRow::Job(row) => json(views::job(state, row)),
        AnyRow::Task(row) => json(TaskView { result: None, ..views::task(state, row) }),
        AnyRow::Build(row) => json(views::build(row)),
        AnyRow::Deployment(row) => {
            let row = state::Deployment { processes: Vec::new(), ..(**row).clone() };
            json(views::deployment(state, &row))
        }
        AnyRow::Process(row) => {
            let (name, wanted) = (row.name.clone(), row.instances);
            let volumes = row.spec.container.volumes.keys().cloned().collect();
            json(ProcessView { name, wanted, instances: Vec::new(), volumes })
        }
        AnyRow::Instance(row) => json(instance(state, row)),
        AnyRow::Volume(row) => json(views::volume(state, row)),
        AnyRow::Delivery(_) | AnyRow::Signing(_) => None,
    }
}

fn instance(state: &State, row: &Instance) -> InstanceChange {
    InstanceChange {
        instance: views::instance(state, row),
        deployment: row.deployment,
        process: state.get::<Process>(row.process).map(|process| process.name.clone()),
    }
}
