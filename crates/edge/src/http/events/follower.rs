//! The log of an app: what the instances of its deployments said, as one stream in order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::http_types::Skipped;
use http::StatusCode;
use logbuf::{Group, Item, LogBuffer, LogError, Merge, Read, Start};
use model::{AppId, DeploymentId, InstanceId, Name};
use server::Server;
use state::{Deployment, Process, State as Control};

use super::{ApiError, BATCH, Gone, LogQuery, Only, Sink, line};

/// How often a follower of an app looks for instances that came or went.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Deployments that run nothing any more and whose lines are in an app's log: the newest that have any.
const MAX_PAST: usize = 10;
/// Logs of instances that are gone that are read together; each is held open by who follows.
const MAX_PAST_LOGS: usize = 64;

/// Whose lines are wanted.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) app: AppId,
    pub(super) workspace: Name,
    /// Only this deployment; else those that run, the newest, and past ones.
    pub(super) deployment: Option<DeploymentId>,
    /// Only these instances.
    pub(super) only: Only,
}

/// An instance of a deployment, with the name people know it by.
#[derive(Debug)]
struct Named {
    id: InstanceId,
    name: String,
    deployment: DeploymentId,
    /// Whether it is, or may come; else only its log may be left.
    is_current: bool,
}

impl Chosen {
    /// The chosen instances, those of the newest deployment first.
    fn instances(&self, state: &Control) -> Vec<Named> {
        let here: Vec<_> = self.deployments(state).collect();
        let newest = here.last().map(|row| row.id);
        let of = |row: &&Deployment| self.deployment.is_none_or(|id| row.id == id);
        let named = here.into_iter().rev().filter(of).flat_map(|row| {
            let mut processes: Vec<_> = processes(state, row).collect();
            processes.retain(|process| self.only.takes_process(&process.name));
            let runs = row.state.wants_instances()
                || [newest, self.deployment].contains(&Some(row.id))
                || processes.iter().any(|process| state.instances_of(process).next().is_some());
            processes.into_iter().flat_map(move |process| self.of_process(row.id, process, runs))
        });
        named.collect()
    }

    fn of_process(&self, deployment: DeploymentId, process: &Process, runs: bool) -> Vec<Named> {
        let indexes: Vec<u32> = match self.only.index {
            // One that was there before the process was scaled down left its log.
            Some(index) => vec![index],
            None => (0..process.instances).collect(),
        };
        let named = |index| Named {
            id: state::instance_id(process.id, index),
            name: format!("{}.{index}", process.name),
            deployment,
            is_current: runs && index < process.instances,
        };
        indexes.into_iter().map(named).collect()
    }

    /// All deployments of the app in the workspace, oldest first.
    fn deployments<'a>(&'a self, state: &'a Control) -> impl Iterator<Item = &'a Deployment> {
        let all = state.deployments_of(self.app).map(AsRef::as_ref);
        all.filter(|row: &&Deployment| row.workspace == self.workspace)
    }

    /// Refuses names that no kept deployment has, and of which nothing is left in a log. An app
    /// that was never deployed has no names yet: its follower waits for them.
    pub(super) async fn check(&self, server: &Server) -> Result<(), ApiError> {
        if self.only.process.is_none() && self.only.index.is_none() {
            return Ok(());
        }
        let chosen = self.clone();
        let look = move |state: &Control| {
            let newest = chosen.deployments(state).last()?;
            let there = processes(state, newest).map(names).collect::<Vec<_>>().join(", ");
            Some((chosen.instances(state), there))
        };
        let Some((found, there)) = server.read(look).await? else { return Ok(()) };
        let kept = |it: &Named| it.is_current || kept(server, it.id).is_some();
        // All instances of a process are wanted: it may be scaled to none.
        if found.iter().any(kept) || (self.only.index.is_none() && self.knows(server).await?) {
            return Ok(());
        }
        let message = format!("there is no {} in what is deployed", self.only);
        let hint = format!("there are {there}");
        Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message, &hint))
    }

    /// Whether a kept deployment has the process.
    async fn knows(&self, server: &Server) -> Result<bool, ApiError> {
        let chosen = self.clone();
        let look = move |state: &Control| {
            let mut rows = chosen.deployments(state);
            rows.any(|row| processes(state, row).any(|it| chosen.only.takes_process(&it.name)))
        };
        Ok(server.read(look).await?)
    }
}

fn processes<'a>(state: &'a Control, row: &'a Deployment) -> impl Iterator<Item = &'a Process> {
    row.processes.iter().filter_map(|id| state.get::<Process>(*id).map(AsRef::as_ref))
}

/// The names of the instances of a process: `web.0 to web.2`.
fn names(process: &Process) -> String {
    let name = &process.name;
    match process.instances {
        0 => format!("{name} (scaled to 0)"),
        1 => format!("{name}.0"),
        more => format!("{name}.0 to {name}.{}", more - 1),
    }
}

/// The log of an instance, if there is anything in it.
fn kept(server: &Server, id: InstanceId) -> Option<LogBuffer> {
    let log = server.logs().existing(&id.to_string()).ok().flatten()?;
    (!log.range().is_empty()).then_some(log)
}

/// Those whose log is to be read, the oldest first: what runs, and the newest of the past. May block
/// on the disk.
fn readable(server: &Server, found: Vec<Named>) -> Vec<(Named, LogBuffer)> {
    let (mut deployments, mut past) = (BTreeSet::new(), 0);
    let mut logs = Vec::new();
    for named in found {
        if !named.is_current {
            let room = past < MAX_PAST_LOGS
                && (deployments.len() < MAX_PAST || deployments.contains(&named.deployment));
            if !room || kept(server, named.id).is_none() {
                continue;
            }
            deployments.insert(named.deployment);
            past += 1;
        }
        match server.log(&named.id.to_string()) {
            Ok(log) => logs.push((named, log)),
            Err(error) => tracing::debug!(name = named.name, %error, "a log is not shown"),
        }
    }
    // Of two lines of one time, the one of the older deployment comes first.
    logs.reverse();
    logs
}

/// Where each log of a merged stream is, as its event ids say it: `ins_…=7,ins_…=9`.
pub(super) fn positions(id: &str) -> BTreeMap<InstanceId, u64> {
    id.split(',')
        .filter_map(|part| {
            let (id, at) = part.split_once('=')?;
            Some((id.parse().ok()?, at.parse().ok()?))
        })
        .collect()
}

/// Shows what instances said, and goes on with what they and new ones say.
pub(super) struct AppFollower {
    server: Server,
    chosen: Chosen,
    query: LogQuery,
    merge: Merge<InstanceId>,
    names: BTreeMap<InstanceId, String>,
    at: BTreeMap<InstanceId, u64>,
    /// Lines that are not shown, as more than enough come after them.
    before: u64,
}

impl AppFollower {
    pub(super) fn new(
        server: &Server,
        chosen: Chosen,
        query: LogQuery,
        at: BTreeMap<InstanceId, u64>,
    ) -> Self {
        let server = server.clone();
        let (merge, names) = (Merge::new(), BTreeMap::new());
        Self { server, chosen, query, merge, names, at, before: 0 }
    }

    pub(super) async fn run(mut self, sink: Sink) -> Result<(), Gone> {
        self.begin().await;
        loop {
            let next = if self.query.follow() {
                runtime::timeout(LOOK_AGAIN, self.next()).await.unwrap_or(Ok(None))
            } else {
                self.merge.next_now(BATCH).await
            };
            match next {
                Ok(Some(group)) => self.show(group, &sink).await?,
                Ok(None) if self.query.follow() => self.look().await,
                Ok(None) => return sink.send("end", None, &()).await,
                Err(error) => {
                    tracing::warn!(%error, "a log could not be read");
                    return Ok(());
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Group<InstanceId>>, LogError> {
        match self.merge.next(BATCH).await? {
            Some(group) => Ok(Some(group)),
            // Nothing to follow yet: the caller's time limit ends this.
            None => std::future::pending().await,
        }
    }

    async fn show(&mut self, group: Group<InstanceId>, sink: &Sink) -> Result<(), Gone> {
        let Group { key, item } = group;
        match item {
            Item::Entries(entries) => {
                for entry in &entries {
                    let entry = entry.get();
                    self.at.insert(key, entry.seq + 1);
                    if !self.query.takes(entry) {
                        continue;
                    }
                    if self.before > 0 {
                        self.before -= 1;
                        continue;
                    }
                    let name = self.names.get(&key).cloned();
                    sink.send("log", Some(self.id()), &line(entry, name)).await?;
                }
                Ok(())
            }
            Item::Skipped { from, count } => {
                self.at.insert(key, from + count);
                sink.send("skipped", Some(self.id()), &Skipped { from, count }).await
            }
            Item::Ended => Ok(()),
        }
    }

    fn id(&self) -> String {
        let parts: Vec<_> = self.at.iter().map(|(id, at)| format!("{id}={at}")).collect();
        parts.join(",")
    }

    /// Opens the logs of what runs and of what ran.
    async fn begin(&mut self) {
        let resumed = !self.at.is_empty();
        let found = self.found().await;
        let server = self.server.clone();
        let logs = self.server.tasks().blocking(move || readable(&server, found)).await;
        for (named, log) in logs {
            let at = self.follow(named, &log);
            if !resumed && let Some(tail) = self.query.tail {
                // Of one log at most `tail` lines are read, so one more than that says enough.
                let there = self.lines(&log, at).await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "a log could not be read");
                    0
                });
                self.before = self.before.saturating_add(there.min(tail));
            }
        }
        self.before = self.before.saturating_sub(self.query.tail.unwrap_or_default());
    }

    /// How many lines from `at` on are in a log now that are wanted.
    async fn lines(&self, log: &LogBuffer, at: u64) -> Result<u64, LogError> {
        let end = log.range().end;
        let mut reader = log.reader(Start::At(at));
        let mut lines = 0;
        while reader.position() < end {
            match reader.batch_now(BATCH).await? {
                Some(Read::Batch(batch)) => {
                    let wanted = batch.iter().filter(|it| it.seq < end && self.query.takes(*it));
                    lines += wanted.count() as u64;
                }
                Some(Read::Skipped { .. }) => {}
                Some(Read::Ended) | None => break,
            }
        }
        Ok(lines)
    }

    /// Follows instances that came since the last look.
    async fn look(&mut self) {
        for named in self.found().await {
            if !named.is_current || self.names.contains_key(&named.id) {
                continue;
            }
            if let Ok(log) = self.server.log(&named.id.to_string()) {
                self.follow(named, &log);
            }
        }
    }

    async fn found(&self) -> Vec<Named> {
        let chosen = self.chosen.clone();
        let found = self.server.read(move |state| chosen.instances(state)).await;
        found.unwrap_or_default()
    }

    /// Adds a log; where it is read from.
    fn follow(&mut self, named: Named, log: &LogBuffer) -> u64 {
        let reader = log.reader(self.query.start(self.at.get(&named.id).copied()));
        let at = reader.position();
        self.merge.add(named.id, reader);
        self.names.insert(named.id, named.name);
        at
    }
}

#[cfg(test)]
mod tests;
