//! What changed, for whoever watches: every change of a row has a number of its own.
//!
//! The store wants each row once for a batch. A watcher wants every step, such as a crash that was
//! mended within the same batch, so the steps are noted here, command by command. They are not kept:
//! whoever applies commands takes them with the changed rows.

use std::collections::BTreeSet;

use model::{AppId, ProjectId};

use crate::records::{App, Deployment, Job};
use crate::tables::{AnyRow, Core, RowKey};

/// Where a row belongs; nothing for what belongs to the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    /// The project.
    pub project: Option<ProjectId>,
    /// The app.
    pub app: Option<AppId>,
}

/// One change of one row.
#[derive(Debug, Clone)]
pub struct News {
    /// The number of the change. It only grows.
    pub revision: u64,
    /// Which row.
    pub key: RowKey,
    /// The row after the change; gone when absent.
    pub row: Option<AnyRow>,
    /// Where the row belonged, when it is gone.
    pub scope: Scope,
}

/// The changes since the last time somebody took them.
#[derive(Debug, Default)]
pub(crate) struct Journalist {
    pub(crate) revision: u64,
    pub(crate) news: Vec<News>,
    /// Where the rows belonged that the current command removed.
    gone: Vec<(RowKey, Scope)>,
}

impl Core {
    /// Notes where a row belongs that is about to go.
    pub(crate) fn note_gone(&mut self, key: RowKey) {
        let scope = self.scope_of_key(key);
        self.journalist.gone.push((key, scope));
    }

    /// The current command was refused.
    pub(crate) fn forget_gone(&mut self) {
        self.journalist.gone.clear();
    }

    /// Keeps what was changed since the last call.
    pub(crate) fn keep(&mut self) {
        let mut journal = std::mem::take(&mut self.journal);
        let several = journal.len() > 1;
        let mut seen = BTreeSet::new();
        for before in journal.drain(..) {
            let key = before.key();
            if several && !seen.insert(key) {
                continue;
            }
            let row = self.any(key);
            if !before.is_news(row.as_ref()) {
                // Leases that were renewed are not worth a write: all begin afresh after a restart.
                continue;
            }
            self.changed.push(key);
            let gone = self.journalist.gone.iter().rfind(|(gone, _)| *gone == key);
            let scope = gone.filter(|_| row.is_none()).map(|(_, scope)| *scope).unwrap_or_default();
            self.journalist.revision += 1;
            let revision = self.journalist.revision;
            self.journalist.news.push(News { revision, key, row, scope });
        }
        self.journal = journal;
        self.journalist.gone.clear();
    }

    fn scope_of_key(&self, key: RowKey) -> Scope {
        self.any(key).map(|row| self.scope_of(&row)).unwrap_or_default()
    }

    /// Where a row belongs, as far as its owners are still there.
    pub(crate) fn scope_of(&self, row: &AnyRow) -> Scope {
        let project = |project| Scope { project, app: None };
        let app = |app: Option<AppId>| Scope {
            project: app.and_then(|id| self.get::<App>(id)).map(|app| app.project),
            app,
        };
        let deployment = |id| app(self.get::<Deployment>(id).map(|row| row.app));
        match row {
            AnyRow::Project(row) => project(Some(row.id)),
            AnyRow::App(row) => Scope { project: Some(row.project), app: Some(row.id) },
            AnyRow::Job(row) => Scope { project: Some(row.spec.project), app: row.spec.app },
            AnyRow::Task(row) => {
                let job = row.job.and_then(|id| self.get::<Job>(id));
                Scope { project: row.project, app: job.and_then(|job| job.spec.app) }
            }
            AnyRow::Build(row) => app(Some(row.app)),
            AnyRow::Deployment(row) => app(Some(row.app)),
            AnyRow::Process(row) => deployment(row.deployment),
            AnyRow::Instance(row) => deployment(row.deployment),
            AnyRow::Delivery(row) => project(Some(row.project)),
            AnyRow::Signing(row) => project(Some(row.id)),
            AnyRow::Volume(row) => Scope {
                project: Some(row.project),
                app: self.indexes.app_names.get(&(row.project, row.app.clone())).copied(),
            },
            AnyRow::Token(row) => project(row.project),
            AnyRow::Key(row) => project(row.project),
            AnyRow::Cell(_) | AnyRow::Runner(_) => Scope::default(),
        }
    }
}
