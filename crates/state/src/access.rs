//! Projects, apps, configuration, tokens and keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{
    AppId, KeyId, MAX_INSTANCES, Name, PLATFORM_ENV, ProjectId, Role, Time, TokenId, validate_env,
};

use crate::command::{NewKey, NewToken, Refusal, Reply};
use crate::records::{App, Deployment, Key, Process, Project, Token};
use crate::tables::Core;

/// Most characters of a token's or key's label.
pub const MAX_LABEL: usize = 200;
/// Most projects.
pub const MAX_PROJECTS: usize = 100_000;
/// Most workspaces in which one app runs or has variables.
pub const MAX_WORKSPACES: usize = 200;
/// Most bytes of one app's variables, in all its workspaces. Each change writes the whole row.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// Most apps.
pub const MAX_APPS: usize = 100_000;
/// Most apps of one project: a hundred projects can have as many.
pub const MAX_APPS_PER_PROJECT: usize = 1_000;

fn checked_label(label: &str) -> Result<(), Refusal> {
    if label.chars().count() > MAX_LABEL || label.chars().any(char::is_control) {
        let message = format!("a label has at most {MAX_LABEL} characters, none of them control");
        return Err(Refusal::Invalid(message));
    }
    Ok(())
}

/// Refuses one more workspace than an app may have.
pub(crate) fn checked_workspace(app: &App, workspace: &Name) -> Result<(), Refusal> {
    let known: BTreeSet<&Name> = app.config.keys().chain(app.released.keys()).collect();
    if known.contains(workspace) || known.len() < MAX_WORKSPACES {
        return Ok(());
    }
    let message = format!(
        "app {} is in {MAX_WORKSPACES} workspaces already: destroy it in one of them and unset \
         its variables there",
        app.name
    );
    Err(Refusal::Conflict(message))
}

impl Core {
    pub(crate) fn project(&self, id: ProjectId) -> Result<&Project, Refusal> {
        self.get::<Project>(id).map(|p| &**p).ok_or_else(|| Refusal::not_found("project", id))
    }

    pub(crate) fn app(&self, id: AppId) -> Result<&App, Refusal> {
        self.get::<App>(id).map(|a| &**a).ok_or_else(|| Refusal::not_found("app", id))
    }

    pub(crate) fn create_project(
        &mut self,
        now: Time,
        id: ProjectId,
        name: Name,
    ) -> Result<Reply, Refusal> {
        if self.indexes.project_names.contains_key(&name) {
            return Err(Refusal::Conflict(format!("project {name} exists already")));
        }
        if self.tables.projects.len() >= MAX_PROJECTS {
            return Err(Refusal::Conflict(format!("there are {MAX_PROJECTS} projects already")));
        }
        self.put(Project { id, name, created_at: now });
        Ok(Reply::Project(id))
    }

    pub(crate) fn ensure_app(
        &mut self,
        now: Time,
        id: AppId,
        project: ProjectId,
        name: Name,
    ) -> Result<Reply, Refusal> {
        self.project(project)?;
        if let Some(known) = self.indexes.app_names.get(&(project, name.clone())) {
            return Ok(Reply::App(*known, false));
        }
        if self.indexes.app_count(project) >= MAX_APPS_PER_PROJECT {
            let message = format!(
                "the project has {MAX_APPS_PER_PROJECT} apps already: delete some, or use another \
                 project"
            );
            return Err(Refusal::Conflict(message));
        }
        if self.tables.apps.len() >= MAX_APPS {
            return Err(Refusal::Conflict(format!("there are {MAX_APPS} apps already")));
        }
        self.put(App {
            id,
            project,
            name,
            created_at: now,
            config: BTreeMap::new(),
            scale: BTreeMap::new(),
            released: BTreeMap::new(),
            builds: 0,
            deployments: 0,
            releases: 0,
            starts: 0,
        });
        Ok(Reply::App(id, true))
    }

    pub(crate) fn delete_app(&mut self, id: AppId) -> Result<Reply, Refusal> {
        let name = self.app(id)?.name.clone();
        let deployments: Vec<_> = self.deployments_of(id).map(|d| d.id).collect();
        for deployment in &deployments {
            // One that wants no instances just now may still be released, or about to be.
            let wanted = self.deployment(*deployment)?.state.wants_instances();
            if wanted || self.runs(*deployment) {
                let message = format!("app {name} still runs: destroy it first");
                return Err(Refusal::Conflict(message));
            }
        }
        for deployment in deployments {
            let row = self.deployment(deployment)?;
            for process in &row.processes {
                self.delete::<Process>(*process);
            }
            self.delete::<Deployment>(deployment);
        }
        let builds: Vec<_> = self.builds_of(id).map(|build| build.id).collect();
        for build in builds {
            self.delete::<crate::records::Build>(build);
        }
        self.delete::<App>(id);
        Ok(Reply::Done)
    }

    pub(crate) fn delete_project(&mut self, now: Time, id: ProjectId) -> Result<Reply, Refusal> {
        let name = self.project(id)?.name.clone();
        let first = self.tables.apps.values().find(|app| app.project == id);
        if let Some(app) = first {
            let message = format!("project {name} still has the app {}", app.name);
            return Err(Refusal::Conflict(message));
        }
        if let Some(open) = self.indexes.open_tasks.get(&id) {
            let message = format!("project {name} still has {open} tasks that run: cancel them");
            return Err(Refusal::Conflict(message));
        }
        if let Some(volume) = self.tables.volumes.values().find(|row| row.project == id) {
            let message = format!(
                "project {name} still has the volume {volume} of app {}: `shore volume list` shows \
                 all, `shore volume remove` gives one up",
                volume.app
            );
            return Err(Refusal::Conflict(message));
        }
        self.forget_deliveries(now, id);
        self.delete::<Project>(id);
        Ok(Reply::Done)
    }

    pub(crate) fn set_config(
        &mut self,
        id: AppId,
        workspace: Name,
        vars: BTreeMap<String, Option<String>>,
    ) -> Result<Reply, Refusal> {
        let platform = |name: &str| PLATFORM_ENV.contains(&name);
        // What an earlier version took can be taken away again.
        let reserved = vars.iter().find(|(name, value)| value.is_some() && platform(name));
        if let Some((name, _)) = reserved {
            let message = format!(
                "cannot set {name}: the platform sets it for every process; choose another name"
            );
            return Err(Refusal::Invalid(message));
        }
        let mut app = self.app(id)?.clone();
        checked_workspace(&app, &workspace)?;
        let mut config = app.config.remove(&workspace).unwrap_or_default();
        for (name, value) in vars {
            match value {
                Some(value) => config.insert(name, value),
                None => config.remove(&name),
            };
        }
        validate_env(&config).map_err(|error| Refusal::Invalid(error.to_string()))?;
        if !config.is_empty() {
            app.config.insert(workspace, config);
        }
        let all = app.config.values().flatten();
        let bytes: usize = all.map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MAX_CONFIG_BYTES {
            let message = format!(
                "the variables of app {} in all its workspaces have {bytes} bytes, at most \
                 {MAX_CONFIG_BYTES} are kept: unset some",
                app.name
            );
            return Err(Refusal::Invalid(message));
        }
        self.put(app);
        Ok(Reply::Done)
    }

    /// A process of the deployment that routes point at.
    pub(crate) fn released_process(
        &self,
        id: AppId,
        workspace: &Name,
        process: &Name,
    ) -> Result<Arc<Process>, Refusal> {
        let app = self.app(id)?;
        let Some(released) = app.released.get(workspace).copied() else {
            let message =
                format!("app {} has no release in {workspace}: deploy it first", app.name);
            return Err(Refusal::Conflict(message));
        };
        let deployment = self.deployment(released)?;
        let mut rows = deployment.processes.iter().filter_map(|id| self.get::<Process>(*id));
        let row = rows.find(|row| row.name == *process).cloned();
        row.ok_or_else(|| Refusal::not_found("process", process))
    }

    pub(crate) fn scale(
        &mut self,
        id: AppId,
        workspace: Name,
        process: Name,
        instances: u32,
    ) -> Result<Reply, Refusal> {
        if instances > MAX_INSTANCES {
            let message = format!("{instances} instances are too many: at most {MAX_INSTANCES}");
            return Err(Refusal::Invalid(message));
        }
        let row = self.released_process(id, &workspace, &process)?;
        let mut app = self.app(id)?.clone();
        self.put(Process { instances, ..(*row).clone() });
        app.scale.entry(workspace).or_default().insert(process, instances);
        self.put(app);
        Ok(Reply::Done)
    }

    pub(crate) fn create_token(&mut self, now: Time, new: NewToken) -> Result<Reply, Refusal> {
        checked_label(&new.label)?;
        if let Some(project) = new.project {
            self.project(project)?;
            if matches!(new.role, Role::Runner | Role::Cell | Role::Router) {
                let message =
                    format!("a {} serves every project: leave the project out", new.role.name());
                return Err(Refusal::Invalid(message));
            }
        }
        self.put(Token {
            id: new.id,
            role: new.role,
            project: new.project,
            hash: new.hash,
            label: new.label,
            created_at: now,
            expires_at: new.ttl.map(|ttl| now.after(ttl)),
            revoked_at: None,
        });
        Ok(Reply::Done)
    }

    pub(crate) fn revoke_token(&mut self, now: Time, id: TokenId) -> Result<Reply, Refusal> {
        let token =
            self.get::<Token>(id).cloned().ok_or_else(|| Refusal::not_found("token", id))?;
        if token.revoked_at.is_none() {
            self.put(Token { revoked_at: Some(now), ..(*token).clone() });
        }
        Ok(Reply::Done)
    }

    pub(crate) fn add_key(&mut self, now: Time, new: NewKey) -> Result<Reply, Refusal> {
        checked_label(&new.label)?;
        if let Some(project) = new.project {
            self.project(project)?;
        }
        if self.indexes.public_keys.contains_key(&new.public) {
            return Err(Refusal::Conflict(format!("key {} is known already", new.fingerprint)));
        }
        let NewKey { id, project, label, public, fingerprint } = new;
        self.put(Key { id, project, label, public, fingerprint, created_at: now });
        Ok(Reply::Done)
    }

    pub(crate) fn remove_key(&mut self, id: KeyId) -> Result<Reply, Refusal> {
        self.get::<Key>(id).ok_or_else(|| Refusal::not_found("key", id))?;
        self.delete::<Key>(id);
        Ok(Reply::Done)
    }
}
