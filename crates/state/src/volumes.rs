//! Volumes: directories on cells that outlive what writes to them.
//!
//! Each instance has its own volume for each name its process mounts: `data` of `web.0` is
//! `web.0.data`. A volume is made on the cell where its instance is first placed, and from then on
//! that instance runs there or nowhere. So that nothing ever has two writers, an index belongs to the
//! deployment that was started last: the one before it lets go of the index, and the new instance is
//! held back until the old one has ended. A volume that no deployment wants is kept for a while and
//! then deleted by its cell; only what the cell has confirmed is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use auction::{PinnedWhy, Unplaced};
use model::{
    AppId, CellId, DeploymentId, InstanceEvent, InstanceId, InstanceState, Name, ProcessId,
    ProjectId, Time, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::command::{Refusal, Reply};
use crate::converge::instance_id;
use crate::indexes::one_less;
use crate::placing::failed_driver;
use crate::records::{App, Cell, Deployment, Instance, Process};
use crate::tables::Core;
use crate::work::DRAIN;

/// How long a volume is kept after nothing wants it any more.
pub const VOLUME_GRACE: Duration = Duration::from_hours(7 * 24);
/// Most volumes. Each row is a few hundred bytes.
pub const MAX_VOLUMES: usize = 100_000;
/// Most volumes of one project: a hundred projects can have as many.
pub const MAX_VOLUMES_PER_PROJECT: usize = 1_000;

/// A directory on a cell that belongs to one instance of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Identifier.
    pub id: VolumeId,
    /// The project.
    pub project: ProjectId,
    /// The name of the app. An app that is made again gets its volumes back.
    pub app: Name,
    /// The workspace.
    pub workspace: Name,
    /// The name of the process that mounts it.
    pub process: Name,
    /// Which instance of that process.
    pub index: u32,
    /// Its name in that process.
    pub name: Name,
    /// Where it lies.
    pub cell: CellId,
    /// Whether an instance ever started with it. Until then nothing is lost with it, so it binds
    /// nobody to a cell that turns out not to do.
    #[serde(default)]
    pub used: bool,
    /// Where it stands.
    #[serde(flatten)]
    pub state: VolumeState,
    /// When it was made.
    pub created_at: Time,
}

/// Where a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeState {
    /// A deployment wants it.
    Attached,
    /// No deployment wants it. It is deleted after [`VOLUME_GRACE`].
    Detached {
        /// Since when.
        since: Time,
    },
    /// Its cell is to delete it.
    Deleting {
        /// Since when.
        since: Time,
    },
}

impl VolumeState {
    /// The word shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached { .. } => "detached",
            Self::Deleting { .. } => "deleting",
        }
    }
}

impl Volume {
    /// When it is deleted unless something wants it again before.
    pub fn delete_at(&self) -> Option<Time> {
        match self.state {
            VolumeState::Detached { since } => Some(since.after(VOLUME_GRACE)),
            VolumeState::Attached | VolumeState::Deleting { .. } => None,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.delete_at()
    }

    const fn is_deleting(&self) -> bool {
        matches!(self.state, VolumeState::Deleting { .. })
    }

    fn slot(&self) -> Slot {
        Slot {
            project: self.project,
            app: self.app.clone(),
            workspace: self.workspace.clone(),
            process: self.process.clone(),
            index: self.index,
        }
    }
}

/// As people call it within its app and workspace: `web.0.data`.
impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.process, self.index, self.name)
    }
}

/// Whose volumes: one instance of a process, whichever deployment it is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    project: ProjectId,
    app: Name,
    workspace: Name,
    process: Name,
    index: u32,
}

/// Volumes by what they belong to and by where they lie.
#[derive(Debug, Default)]
pub(crate) struct VolumeIndex {
    /// Those that are not being deleted.
    slots: BTreeMap<Slot, BTreeMap<Name, VolumeId>>,
    places: BTreeSet<(ProjectId, Name, Name, VolumeId)>,
    cells: BTreeSet<(CellId, VolumeId)>,
    /// Those that their cells are to delete.
    deleting: BTreeSet<(CellId, VolumeId)>,
    counts: BTreeMap<ProjectId, usize>,
}

impl VolumeIndex {
    pub(crate) fn add(&mut self, row: &Volume) {
        let (app, workspace) = (row.app.clone(), row.workspace.clone());
        self.places.insert((row.project, app, workspace, row.id));
        self.cells.insert((row.cell, row.id));
        *self.counts.entry(row.project).or_default() += 1;
        if row.is_deleting() {
            self.deleting.insert((row.cell, row.id));
        } else {
            self.slots.entry(row.slot()).or_default().insert(row.name.clone(), row.id);
        }
    }

    pub(crate) fn remove(&mut self, row: &Volume) {
        let (app, workspace) = (row.app.clone(), row.workspace.clone());
        self.places.remove(&(row.project, app, workspace, row.id));
        self.cells.remove(&(row.cell, row.id));
        one_less(&mut self.counts, row.project);
        if row.is_deleting() {
            self.deleting.remove(&(row.cell, row.id));
            return;
        }
        let slot = row.slot();
        if let Some(own) = self.slots.get_mut(&slot) {
            own.remove(&row.name);
            if own.is_empty() {
                self.slots.remove(&slot);
            }
        }
    }
}

/// A volume id that follows from the instance, the epoch in which it was placed first, and which of
/// the volumes of its process it is. Each has bits of its own: processes and instances use others.
const fn volume_id(instance: InstanceId, epoch: u32, ordinal: usize) -> VolumeId {
    VolumeId(instance.0 ^ ((epoch as u128) << 64) ^ ((ordinal as u128 + 1) << 8))
}

/// A process of another deployment that would write to the same volume.
struct Rival {
    deployment: Arc<Deployment>,
    process: Arc<Process>,
    volume: Name,
}

/// The volume that an instance of each would write to.
fn both_write(one: &Process, other: &Process) -> Option<Name> {
    let theirs = &other.spec.container.volumes;
    let writes = |name: &Name| theirs.get(name).is_some_and(|mount| !mount.read_only);
    let own = one.spec.container.volumes.iter().filter(|(_, mount)| !mount.read_only);
    own.map(|(name, _)| name).find(|name| writes(name)).cloned().filter(|_| one.name == other.name)
}

/// Whether anything of an instance may be on a cell.
const fn is_there(row: &Instance) -> bool {
    row.state.cell().is_some() || row.before.is_some()
}

impl Rival {
    /// Whether it was started after another deployment and wants an index.
    fn is_after(&self, other: &Deployment, index: u32) -> bool {
        let own = (self.deployment.start, self.deployment.number);
        self.deployment.state.wants_instances()
            && own > (other.start, other.number)
            && index < self.process.instances
    }
}

impl Core {
    fn slot(&self, deployment: &Deployment, process: &Process, index: u32) -> Option<Slot> {
        let app = self.get::<App>(deployment.app)?;
        let (workspace, process) = (deployment.workspace.clone(), process.name.clone());
        Some(Slot { project: app.project, app: app.name.clone(), workspace, process, index })
    }

    fn slot_of(&self, row: &Instance) -> Option<(Slot, Arc<Process>)> {
        let process = self.get::<Process>(row.process)?;
        if process.spec.container.volumes.is_empty() {
            return None;
        }
        let deployment = self.get::<Deployment>(row.deployment)?;
        Some((self.slot(deployment, process, row.index)?, Arc::clone(process)))
    }

    /// The volumes that instances of a process have at an index, where there are any yet.
    fn mounted(&self, slot: &Slot, process: &Process) -> Vec<Arc<Volume>> {
        let Some(own) = self.indexes.volumes.slots.get(slot) else { return Vec::new() };
        let names = process.spec.container.volumes.keys();
        let ids = names.filter_map(|name| own.get(name));
        ids.filter_map(|id| self.get::<Volume>(*id)).cloned().collect()
    }

    fn rivals(&self, deployment: &Deployment, process: &Process) -> Vec<Rival> {
        if process.spec.container.volumes.values().all(|mount| mount.read_only) {
            return Vec::new();
        }
        let others = self
            .deployments_of(deployment.app)
            .filter(|other| other.id != deployment.id && other.workspace == deployment.workspace);
        let processes = others.flat_map(|other| other.processes.iter().map(move |id| (other, id)));
        let found = processes.filter_map(|(other, id)| {
            let theirs = self.get::<Process>(*id)?;
            let volume = both_write(process, theirs)?;
            let (deployment, process) = (Arc::clone(other), Arc::clone(theirs));
            Some(Rival { deployment, process, volume })
        });
        found.collect()
    }

    /// What a rival has at an index.
    fn rival_instance(&self, rival: &Rival, index: u32) -> Option<&Arc<Instance>> {
        self.get::<Instance>(instance_id(rival.process.id, index))
    }

    /// Indices that a process lets go of, because a deployment that was started later has them now.
    /// While the cell of the volumes could not take the later one, what runs there goes on.
    pub(crate) fn taken_over(
        &self,
        deployment: &Deployment,
        process: &Process,
        wanted: u32,
    ) -> BTreeSet<u32> {
        let rivals = self.rivals(deployment, process).into_iter();
        let later = rivals.filter(|rival| (0..wanted).any(|at| rival.is_after(deployment, at)));
        let later: Vec<_> = later
            .map(|rival| {
                let others = self.rivals(&rival.deployment, &rival.process);
                (rival, others)
            })
            .collect();
        let takes = |index: &u32| {
            let mut after = later.iter().filter(|(rival, _)| rival.is_after(deployment, *index));
            after.any(|(rival, others)| {
                self.rival_instance(rival, *index).is_some_and(|row| is_there(row))
                    || self.obstacle(&rival.deployment, (&rival.process, *index), others).is_none()
            })
        };
        (0..wanted).filter(takes).collect()
    }

    /// Why an instance could not start even if its rivals had ended.
    fn obstacle(
        &self,
        deployment: &Deployment,
        (process, index): (&Process, u32),
        rivals: &[Rival],
    ) -> Option<String> {
        let slot = self.slot(deployment, process, index)?;
        let volumes = self.mounted(&slot, process);
        if let Some(why) = self.never(process, &volumes) {
            return Some(why);
        }
        let volume = volumes.first()?;
        let placing = self.indexes.placing.as_ref()?;
        let ending = rivals.iter().filter_map(|rival| self.rival_instance(rival, index));
        let why = placing.why_not_after(volume.cell, process.id, ending.map(Arc::as_ref))?;
        Some(self.say_pinned(volume, &why))
    }

    /// Whether a deployment that was started later has anything this one wants.
    pub(crate) fn gave_way(&self, deployment: &Deployment) -> bool {
        let processes = deployment.processes.iter().filter_map(|id| self.get::<Process>(*id));
        processes
            .into_iter()
            .any(|process| !self.taken_over(deployment, process, process.instances).is_empty())
    }

    /// Brings what waits at the indices of a process to where it may go, or holds it back.
    pub(crate) fn converge_slots(
        &mut self,
        now: Time,
        deployment: &Deployment,
        process: &Process,
    ) -> Result<(), Refusal> {
        if process.spec.container.volumes.is_empty() {
            return Ok(());
        }
        let rivals = self.rivals(deployment, process);
        let waits = |row: &&Arc<Instance>| matches!(row.state, InstanceState::Unclaimed { .. });
        let waiting: Vec<_> = self.instances_of(process.id).filter(waits).cloned().collect();
        for row in waiting {
            let Some(slot) = self.slot(deployment, process, row.index) else { continue };
            let volumes = self.mounted(&slot, process);
            let pinned = volumes.first().map(|volume| volume.cell);
            let why = self.why_held(deployment, (process, row.index), (&rivals, &volumes));
            let held = why.is_some();
            let now_at = Instance { pinned, held, ..(*row).clone() };
            match why {
                Some(reason) => {
                    self.change_instance(now, &now_at, &InstanceEvent::Reject { reason })?;
                }
                None if row.held => {
                    let state = InstanceState::Unclaimed { reason: None };
                    self.put(Instance { state, ..now_at });
                }
                None => {}
            }
            let row = self.instance(row.id)?;
            if (row.pinned, row.held) != (pinned, held) {
                self.put(Instance { pinned, held, ..row });
            }
        }
        Ok(())
    }

    /// Why an instance may not be placed although there may be room.
    fn why_held(
        &self,
        deployment: &Deployment,
        (process, index): (&Process, u32),
        (rivals, volumes): (&[Rival], &[Arc<Volume>]),
    ) -> Option<String> {
        let called = format!("{}.{index}", process.name);
        let has_it =
            |rival: &&Rival| self.rival_instance(rival, index).is_some_and(|row| is_there(row));
        if let Some(rival) = rivals.iter().find(has_it) {
            let number = rival.deployment.number;
            if let Some(why) = self.why_let_be(deployment, (process, index), (rivals, rival)) {
                return Some(format!(
                    "{why}; {called} of deployment {number} is let be until then"
                ));
            }
            return Some(format!(
                "waits until {called} of deployment {number} has ended, because both write to volume \
                 {}",
                rival.volume
            ));
        }
        if let Some(rival) = rivals.iter().find(|rival| rival.is_after(deployment, index)) {
            return Some(format!(
                "deployment {} was started later and has volume {} of {called}",
                rival.deployment.number, rival.volume
            ));
        }
        self.never(process, volumes)
    }

    /// Why a rival that was started before does not end yet.
    fn why_let_be(
        &self,
        deployment: &Deployment,
        (process, index): (&Process, u32),
        (rivals, rival): (&[Rival], &Rival),
    ) -> Option<String> {
        let row = self.rival_instance(rival, index)?;
        let ends = matches!(row.state, InstanceState::Stopping { .. })
            || !rival.deployment.state.wants_instances()
            || rival.is_after(deployment, index);
        if ends { None } else { self.obstacle(deployment, (process, index), rivals) }
    }

    /// Why no cell could take an instance with these volumes.
    fn never(&self, process: &Process, volumes: &[Arc<Volume>]) -> Option<String> {
        if let Some(other) =
            volumes.iter().find(|row| Some(row.cell) != volumes.first().map(|it| it.cell))
        {
            let first = volumes.first().unwrap_or(other);
            return Some(format!(
                "its volumes lie on different cells: {first} on {}, {other} on {}; \
                 `shore volume remove --force` deletes one of them, and the data in it is lost",
                self.cell_name(first.cell),
                self.cell_name(other.cell)
            ));
        }
        let missing = process.spec.container.volumes.len().saturating_sub(volumes.len());
        if missing == 0 {
            return None;
        }
        let remove = "`shore volume list` shows them, `shore volume remove` gives one up";
        let app = self.get::<Deployment>(process.deployment).map(|row| row.app);
        let project = app.and_then(|app| self.get::<App>(app)).map(|app| app.project);
        let own = project.and_then(|project| self.indexes.volumes.counts.get(&project));
        let (own, all) = (own.copied().unwrap_or(0), self.tables.volumes.len());
        if own + missing > MAX_VOLUMES_PER_PROJECT {
            return Some(format!(
                "its project has {own} volumes already, at most {MAX_VOLUMES_PER_PROJECT} are \
                 kept: {remove}"
            ));
        }
        let is_full = all + missing > MAX_VOLUMES;
        is_full.then(|| format!("there are {all} volumes already: {remove}"))
    }

    /// Why no cell could take an instance with its volumes.
    pub(crate) fn no_volumes_for(&self, row: &Instance) -> Option<String> {
        let (slot, process) = self.slot_of(row)?;
        self.never(&process, &self.mounted(&slot, &process))
    }

    fn cell_name(&self, id: CellId) -> String {
        self.get::<Cell>(id).map_or_else(|| id.to_string(), |row| row.spec.name.to_string())
    }

    /// The row of an instance that is placed on a cell, once it has all its volumes there.
    pub(crate) fn with_volumes(&mut self, now: Time, row: Instance, cell: CellId) -> Instance {
        let Some((slot, process)) = self.slot_of(&row) else { return row };
        for (ordinal, name) in process.spec.container.volumes.keys().enumerate() {
            let own = self.indexes.volumes.slots.get(&slot);
            if own.is_some_and(|own| own.contains_key(name)) {
                continue;
            }
            self.put(Volume {
                id: volume_id(row.id, row.epoch, ordinal),
                project: slot.project,
                app: slot.app.clone(),
                workspace: slot.workspace.clone(),
                process: slot.process.clone(),
                index: slot.index,
                name: name.clone(),
                cell,
                used: false,
                state: VolumeState::Attached,
                created_at: now,
            });
        }
        Instance { pinned: Some(cell), ..row }
    }

    /// An instance has left the state of being claimed by a cell: it has started with its volumes,
    /// or it leaves those behind that were made for it.
    pub(crate) fn claim_ended(&mut self, now: Time, row: &Instance, next: &InstanceState) {
        let InstanceState::Claimed { cell } = row.state else { return };
        let Some((slot, process)) = self.slot_of(row) else { return };
        let gives_up = !self.is_shared(row, &process, cell);
        for volume in self.mounted(&slot, &process) {
            if volume.used || volume.cell != cell {
                continue;
            }
            let volume = (*volume).clone();
            match next {
                InstanceState::Running { .. } => self.put(Volume { used: true, ..volume }),
                InstanceState::Unclaimed { .. } | InstanceState::Crashed { .. } if gives_up => {
                    let state = VolumeState::Deleting { since: now };
                    self.put(Volume { state, ..volume });
                }
                InstanceState::Unclaimed { .. }
                | InstanceState::Crashed { .. }
                | InstanceState::Claimed { .. }
                | InstanceState::Stopping { .. }
                | InstanceState::Stopped => {}
            }
        }
    }

    /// Whether an instance of another deployment has the same volumes on a cell: those who only read
    /// them do not wait for each other.
    fn is_shared(&self, row: &Instance, process: &Process, cell: CellId) -> bool {
        let Some(own) = self.get::<Deployment>(row.deployment) else { return false };
        let others = self
            .deployments_of(own.app)
            .filter(|other| other.id != own.id && other.workspace == own.workspace);
        others.flat_map(|other| &other.processes).any(|id| {
            let is_same = self.get::<Process>(*id).is_some_and(|it| it.name == process.name);
            let other = self.get::<Instance>(instance_id(*id, row.index));
            is_same && other.is_some_and(|it| it.state.cell() == Some(cell))
        })
    }

    /// What shares volumes with a deployment that changed is looked at, too; and what no deployment
    /// wants any more is marked, as is what one wants again.
    pub(crate) fn converge_volumes(
        &mut self,
        now: Time,
        deployment: &Deployment,
    ) -> Result<(), Refusal> {
        let own = deployment.processes.iter().filter_map(|id| self.get::<Process>(*id));
        let own = own.filter(|process| !process.spec.container.volumes.is_empty());
        let own: Vec<_> = own.cloned().collect();
        for process in own {
            for rival in self.rivals(deployment, &process) {
                self.converge_process(now, rival.process.id, &rival.deployment)?;
            }
        }
        self.attach(now, deployment);
        Ok(())
    }

    fn attach(&mut self, now: Time, deployment: &Deployment) {
        if self.indexes.volumes.places.is_empty() {
            return;
        }
        let Some(app) = self.get::<App>(deployment.app) else { return };
        let place = (app.project, app.name.clone(), deployment.workspace.clone());
        let rows: Vec<_> = self.volumes_in(&place).filter(|row| !row.is_deleting()).collect();
        if rows.is_empty() {
            return;
        }
        let wanting = self
            .deployments_of(app.id)
            .filter(|row| row.workspace == deployment.workspace && row.state.wants_instances());
        let processes = wanting.flat_map(|row| &row.processes);
        let mounts = processes.filter_map(|id| self.get::<Process>(*id)).flat_map(|process| {
            let names = process.spec.container.volumes.keys();
            names.map(|name| (process.name.clone(), name.clone()))
        });
        let wanted: BTreeSet<(Name, Name)> = mounts.collect();
        for row in rows {
            let is_wanted = wanted.contains(&(row.process.clone(), row.name.clone()));
            let state = match row.state {
                VolumeState::Attached if !is_wanted => VolumeState::Detached { since: now },
                VolumeState::Detached { .. } if is_wanted => VolumeState::Attached,
                VolumeState::Attached
                | VolumeState::Detached { .. }
                | VolumeState::Deleting { .. } => continue,
            };
            self.put(Volume { state, ..(*row).clone() });
        }
    }

    fn volumes_in(
        &self,
        (project, app, workspace): &(ProjectId, Name, Name),
    ) -> impl Iterator<Item = Arc<Volume>> {
        let key = |id| (*project, app.clone(), workspace.clone(), VolumeId(id));
        let range = self.indexes.volumes.places.range(key(0)..=key(u128::MAX));
        range.filter_map(|(.., id)| self.get::<Volume>(*id).cloned())
    }

    pub(crate) fn volumes_on(&self, cell: CellId) -> impl Iterator<Item = &Arc<Volume>> {
        let range = (cell, VolumeId(0))..=(cell, VolumeId(u128::MAX));
        let ids = self.indexes.volumes.cells.range(range);
        ids.filter_map(|(_, id)| self.get::<Volume>(*id))
    }

    /// Deployments of the app of a volume in its workspace.
    fn users(&self, volume: &Volume) -> Vec<DeploymentId> {
        let app = self.indexes.app_names.get(&(volume.project, volume.app.clone()));
        let rows = app.into_iter().flat_map(|app| self.deployments_of(*app));
        rows.filter(|row| row.workspace == volume.workspace).map(|row| row.id).collect()
    }

    /// A cell takes work again: what waits for volumes on it may go on.
    pub(crate) fn look_at_volumes_on(&mut self, cell: CellId) {
        let users: BTreeSet<_> = self.volumes_on(cell).flat_map(|row| self.users(row)).collect();
        self.indexes.dirty.extend(users);
    }

    /// How much longer a deployment may take to start that waits for the one before it to end.
    pub(crate) fn hand_over(
        &self,
        (app, workspace): (AppId, &Name),
        processes: &[ProcessId],
    ) -> Duration {
        let writes =
            |row: &&Arc<Process>| row.spec.container.volumes.values().any(|mount| !mount.read_only);
        let grace = |ids: &[ProcessId]| {
            let rows = ids.iter().filter_map(|id| self.get::<Process>(*id)).filter(writes);
            rows.map(|row| row.spec.stop_grace_ms).max()
        };
        let Some(own) = grace(processes) else { return Duration::ZERO };
        let others = self.deployments_of(app).filter(|row| row.workspace == *workspace);
        let longest = others.filter_map(|row| grace(&row.processes)).fold(own, u64::max);
        DRAIN + Duration::from_millis(longest)
    }

    fn volume(&self, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.get::<Volume>(id).cloned().ok_or_else(|| Refusal::not_found("volume", id))
    }

    /// Nobody wanted it for as long as it is kept.
    pub(crate) fn volume_due(&mut self, now: Time, id: VolumeId) -> Result<(), Refusal> {
        let row = self.volume(id)?;
        self.put(Volume { state: VolumeState::Deleting { since: now }, ..(*row).clone() });
        Ok(())
    }

    /// Instances that have a volume mounted, may have, or wait for it.
    fn users_of(&self, volume: &Volume) -> Vec<Arc<Instance>> {
        let deployments = self.users(volume).into_iter();
        let rows = deployments.filter_map(|id| self.get::<Deployment>(id));
        let processes = rows.flat_map(|row| &row.processes).filter(|id| {
            self.get::<Process>(**id).is_some_and(|row| {
                row.name == volume.process && row.spec.container.volumes.contains_key(&volume.name)
            })
        });
        let instances =
            processes.filter_map(|id| self.get::<Instance>(instance_id(*id, volume.index)));
        instances.cloned().collect()
    }

    /// Why a volume is not removed without force.
    fn why_kept(&self, volume: &Volume, users: &[Arc<Instance>]) -> Option<String> {
        let (user, there) = users
            .iter()
            .map(|user| (user, is_there(user)))
            .max_by_key(|(user, there)| (*there, user.index))?;
        let called = format!("{}.{}", volume.process, user.index);
        let lost = "then the data is lost for good";
        Some(match (self.is_connected(volume.cell), there) {
            (true, true) => format!(
                "volume {volume} is in use by {called}: `--force` ends that first, {lost}, and it \
                 begins anew with an empty volume"
            ),
            (false, true) => format!(
                "volume {volume} lies on cell {}, which is not connected, and {called} may still \
                 serve from it there: with `--force` it begins elsewhere with an empty volume, and \
                 {lost}",
                self.cell_name(volume.cell)
            ),
            (_, false) => format!(
                "{called} waits for volume {volume}: with `--force` it begins with an empty volume, \
                 and {lost}"
            ),
        })
    }

    pub(crate) fn remove_volume(
        &mut self,
        now: Time,
        id: VolumeId,
        force: bool,
    ) -> Result<Reply, Refusal> {
        let row = self.volume(id)?;
        let (is_connected, cell) = (self.is_connected(row.cell), self.cell_name(row.cell));
        if row.is_deleting() {
            if is_connected {
                return Ok(Reply::Done);
            }
            if force {
                self.delete::<Volume>(id);
                return Ok(Reply::Done);
            }
            return Err(Refusal::Conflict(format!(
                "volume {row} is to be deleted once cell {cell} is connected; if that never comes \
                 back, `--force` forgets the volume"
            )));
        }
        let users = self.users_of(&row);
        if let Some(why) = self.why_kept(&row, &users).filter(|_| !force) {
            return Err(Refusal::Conflict(why));
        }
        self.put(Volume { state: VolumeState::Deleting { since: now }, ..(*row).clone() });
        for user in users.into_iter().filter(|user| is_there(user)) {
            if is_connected {
                self.stop_instance(now, &user)?;
            } else {
                // A cell that comes back with it ends it.
                self.drop_before(&user);
            }
        }
        let users = self.users(&row);
        self.indexes.dirty.extend(users);
        Ok(Reply::Done)
    }

    pub(crate) fn volume_gone(&mut self, cell: CellId, id: VolumeId) -> Result<Reply, Refusal> {
        let row = self.volume(id)?;
        if row.cell != cell || !row.is_deleting() {
            return Err(Refusal::stale("volume", id));
        }
        self.delete::<Volume>(id);
        Ok(Reply::Done)
    }

    /// Why an instance that is pinned to a cell has no place.
    pub(crate) fn why_pinned(&self, row: &Instance, reason: &Unplaced) -> Option<String> {
        let Unplaced::Pinned { why, .. } = reason else { return None };
        let (slot, process) = self.slot_of(row)?;
        let volume = self.mounted(&slot, &process).into_iter().next()?;
        Some(self.say_pinned(&volume, why))
    }

    fn say_pinned(&self, volume: &Volume, why: &PinnedWhy) -> String {
        let (name, cell) = (&volume.name, self.cell_name(volume.cell));
        let row = self.get::<Cell>(volume.cell);
        let fault = match why {
            PinnedWhy::NotAccepting => row.and_then(|row| failed_driver(row, None)),
            PinnedWhy::Unfit(needs) => {
                row.and_then(|row| failed_driver(row, Some(needs.driver.as_ref()?)))
            }
            PinnedWhy::Away | PinnedWhy::Short { .. } | PinnedWhy::Overfull => None,
        };
        if let Some(fault) = fault {
            return format!("its volume {name} lies on cell {cell}, where {fault}");
        }
        match why {
            PinnedWhy::Away => format!(
                "its volume {name} lies on cell {cell}, which is not connected: it starts when that \
                 is back. If that never comes back, `shore volume remove --force {volume}` lets it \
                 start elsewhere, and the data is lost"
            ),
            PinnedWhy::NotAccepting
            | PinnedWhy::Unfit(_)
            | PinnedWhy::Short { .. }
            | PinnedWhy::Overfull => format!("its volume {name} lies on cell {cell}, {why}"),
        }
    }
}

impl State {
    /// The volumes of an instance by the names its process has for them.
    pub fn volumes_of(&self, row: &Instance) -> BTreeMap<Name, VolumeId> {
        let Some((slot, process)) = self.core.slot_of(row) else { return BTreeMap::new() };
        let mounted = self.core.mounted(&slot, &process);
        mounted.into_iter().map(|row| (row.name.clone(), row.id)).collect()
    }

    /// What a cell is to delete.
    pub fn volumes_to_delete(&self, cell: CellId) -> Vec<VolumeId> {
        let range = (cell, VolumeId(0))..=(cell, VolumeId(u128::MAX));
        self.core.indexes.volumes.deleting.range(range).map(|(_, id)| *id).collect()
    }
}
