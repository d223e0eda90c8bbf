//! The route table, derived from releases and healthy instances.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use model::{AppId, CellId, HostName, Name, Route, RouteGate, RouteTable, RouteTarget, Time, WEB};

use crate::records::{App, Cell, Deployment, Instance, Process, Project, Routed};
use crate::tables::Core;

/// The workspace that needs no name in a host.
pub const PRODUCTION: &str = "production";
/// How many changes are kept for routers that are behind; one further back gets the whole table.
pub const KEPT_CHANGES: usize = 1_024;

/// How far ahead of the clock a generation may be that a router serves.
const FARTHEST: Duration = Duration::from_hours(24 * 365);

/// What changed from one generation to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChange {
    /// The generation after the change.
    pub generation: u64,
    /// The host.
    pub host: HostName,
    /// Its route now; gone when absent.
    pub route: Option<Route>,
}

/// All routes and the last changes.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// The parent of every host, as in `localhost`.
    pub(crate) domain: String,
    generation: u64,
    by_host: BTreeMap<HostName, Route>,
    by_app: BTreeMap<AppId, BTreeSet<HostName>>,
    changes: VecDeque<RouteChange>,
}

impl Routes {
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn len(&self) -> usize {
        self.by_host.len()
    }

    pub(crate) fn table(&self) -> RouteTable {
        let routes = self.by_host.values().cloned().collect();
        RouteTable { generation: self.generation, routes }
    }

    /// The changes after `generation`; `None` when they are not kept any more.
    pub(crate) fn since(&self, generation: u64) -> Option<Vec<RouteChange>> {
        if generation == self.generation {
            return Some(Vec::new());
        }
        let known = self.changes.iter().position(|change| change.generation > generation)?;
        let oldest = self.changes.front()?.generation;
        if known == 0 && oldest > generation + 1 {
            return None;
        }
        Some(self.changes.iter().skip(known).cloned().collect())
    }

    /// Goes on after a generation that was told of before the state was loaded again.
    pub(crate) fn go_on_after(&mut self, served: u64) {
        if served > 0 {
            self.generation = self.generation.max(served + 1);
        }
    }

    /// Goes on after a generation that a router serves already, so that it takes what comes. One that
    /// no clock can have made is passed over: it would leave nothing to count on with.
    pub(crate) fn catch_up(&mut self, now: Time, served: u64) {
        if served > self.generation && served <= now.after(FARTHEST).0 {
            self.generation = served + 1;
        }
    }

    fn set(&mut self, now: Time, host: HostName, route: Option<Route>) {
        let before = self.by_host.get(&host);
        if before == route.as_ref() {
            return;
        }
        match &route {
            Some(route) => self.by_host.insert(host.clone(), route.clone()),
            None => self.by_host.remove(&host),
        };
        // Follows the wall clock, so that it grows across restarts without being stored.
        self.generation = (self.generation + 1).max(now.0);
        self.changes.push_back(RouteChange { generation: self.generation, host, route });
        if self.changes.len() > KEPT_CHANGES {
            self.changes.pop_front();
        }
    }
}

/// The host of an app: `app.project.domain`, with the workspace in front unless it is production.
pub(crate) fn host(domain: &str, project: &Name, app: &Name, workspace: &Name) -> Option<HostName> {
    let host = if workspace.as_str() == PRODUCTION {
        format!("{app}.{project}.{domain}")
    } else {
        format!("{workspace}.{app}.{project}.{domain}")
    };
    host.parse().ok()
}

impl Core {
    /// Brings the routes of all touched apps up to date.
    pub(crate) fn refresh_routes(&mut self, now: Time) {
        if self.routes.generation == 0 {
            // Even an empty table is newer than what routers were told before a restart.
            self.routes.generation = now.0;
        }
        while let Some(id) = self.indexes.dirty_routes.pop_first() {
            let wanted = self.routes_of(id);
            let known = self.routes.by_app.remove(&id).unwrap_or_default();
            for host in known.iter().filter(|host| !wanted.contains_key(host)) {
                self.routes.set(now, host.clone(), None);
            }
            if !wanted.is_empty() {
                self.routes.by_app.insert(id, wanted.keys().cloned().collect());
            }
            for (host, route) in wanted {
                self.routes.set(now, host, Some(route));
            }
        }
    }

    fn routes_of(&self, id: AppId) -> BTreeMap<HostName, Route> {
        let Some(app) = self.get::<App>(id) else { return BTreeMap::new() };
        let Some(project) = self.get::<Project>(app.project) else { return BTreeMap::new() };
        app.released
            .iter()
            .filter_map(|(workspace, deployment)| {
                let host = host(&self.routes.domain, &project.name, &app.name, workspace)?;
                let targets = self.targets(self.get::<Deployment>(*deployment)?)?;
                Some((host.clone(), Route { host, deployment: *deployment, targets }))
            })
            .collect()
    }

    /// Where the web process listens; `None` when there is no such process.
    fn targets(&self, deployment: &Deployment) -> Option<Vec<RouteTarget>> {
        let rows = deployment.processes.iter().filter_map(|id| self.get::<Process>(*id));
        let web = rows.into_iter().find(|row| row.name.as_str() == WEB)?;
        let targets = self.instances_of(web.id).filter_map(|row| {
            let Routed { cell, address, epoch } = row.routed()?;
            let gate = self.get::<Cell>(cell).and_then(|cell| cell.spec.gate);
            let gate = gate.map(|address| RouteGate { address, epoch });
            Some(RouteTarget { instance: row.id, address, gate })
        });
        Some(targets.collect())
    }

    /// The instances of a cell are reached another way from now on.
    pub(crate) fn reroute(&mut self, cell: CellId) {
        for id in self.instances_on(cell) {
            let app = self.get::<Instance>(id).and_then(|row| {
                let process = self.get::<Process>(row.process)?;
                Some(self.get::<Deployment>(process.deployment)?.app)
            });
            self.indexes.dirty_routes.extend(app);
        }
    }
}
