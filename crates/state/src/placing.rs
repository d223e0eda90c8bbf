//! Placement: what waits for a cell, how full cells are, and who goes where.
//!
//! [`Placing`] follows every change of a row, as the other indexes do, so a roll-back keeps it right.
//! It is made from the tables at the first command, because rows load in any order. What waits is
//! kept by shape: all that asks for the same. Of a shape that fits nowhere nothing fits, so an event
//! costs as much as there are shapes that wait and as it places, however many wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auction::{
    Budget, CellInfo, Cells, DEFAULT_DISK_MB, DEFAULT_MEMORY_MB, Item, Move, Needs, Offers,
    PinnedWhy, Request, Room, Stage, Turn, Unplaced,
};
use model::{
    CellId, ContainerSpec, InstanceEvent, InstanceId, InstanceState, Name, ProcessId, TaskEvent,
    TaskId, TaskState, Time,
};

use crate::command::Refusal;
use crate::records::{Cell, Instance, PredecessorKind, Process, Task};
use crate::tables::Core;
use crate::view::CellLoad;

/// How much of one shape is looked at in one go.
const BATCH: usize = 1_000;

/// Something that waits for a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Waiter {
    Instance(InstanceId),
    Task(TaskId),
}

/// Whose turn it is: first copies, then tasks, then further copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wait {
    round: u8,
    index: u32,
    waiter: Waiter,
}

/// All that asks for the same finds a place, or none of it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    amounts: [u64; 4],
    needs: Option<Arc<Needs>>,
    pinned: Option<CellId>,
}

/// What is known of places and of what waits for one.
#[derive(Debug, Default)]
pub(crate) struct Placing {
    cells: Cells,
    infos: BTreeMap<CellId, CellInfo>,
    requests: BTreeMap<ProcessId, Request>,
    waiting: BTreeMap<Shape, BTreeSet<Wait>>,
    /// What began to wait, and nobody has said why.
    fresh: BTreeMap<Waiter, Shape>,
    /// What has given a place back.
    freed: BTreeSet<(CellId, Waiter)>,
    /// Whether a cell came or changed.
    changed: bool,
    /// Cells with a driver that does not work.
    failing: BTreeSet<CellId>,
    /// What is held back from the cell of its volumes.
    held_back: BTreeSet<(CellId, InstanceId)>,
    /// What has given a place back on a cell from which something is held back.
    roomier: BTreeSet<(CellId, Waiter)>,
}

fn request(container: &ContainerSpec, group: u128) -> Request {
    let limits = &container.limits;
    let needs = Needs {
        driver: container.driver.clone(),
        tags: container.tags.clone(),
        ..Needs::default()
    };
    Request {
        group,
        memory_mb: limits.memory_mb.unwrap_or(DEFAULT_MEMORY_MB),
        disk_mb: limits.disk_mb.unwrap_or(DEFAULT_DISK_MB),
        cpu_shares: limits.cpu_shares.unwrap_or(0),
        pids: limits.pids.unwrap_or(0),
        needs: (needs != Needs::default()).then(|| Arc::new(needs)),
        ..Request::default()
    }
}

fn task_request(row: &Task) -> Request {
    request(&row.spec.container, row.id.0)
}

fn process_request(row: &Process) -> Request {
    let stays = !row.spec.container.volumes.is_empty();
    Request { spread: true, stays, ..request(&row.spec.container, row.id.0) }
}

fn info(row: &Cell) -> CellInfo {
    let spec = &row.spec;
    CellInfo {
        zone: spec.zone.clone(),
        room: Room {
            memory_mb: spec.memory_mb,
            disk_mb: spec.disk_mb,
            containers: spec.containers,
            cpu_shares: spec.cpu_shares,
            pids: spec.pids,
        },
        offers: Offers {
            required_tags: spec.required_tags.clone(),
            optional_tags: spec.tags.clone(),
            drivers: spec.drivers.clone(),
            volumes: BTreeSet::new(),
        },
        accepting: row.accepts(),
    }
}

/// What is wrong with the driver of a cell that is wanted, or with the first where none works.
pub(crate) fn failed_driver(cell: &Cell, wanted: Option<&Name>) -> Option<String> {
    let unavailable = &cell.spec.unavailable;
    let (driver, fault) = match wanted {
        Some(wanted) => unavailable.get_key_value(wanted)?,
        None if cell.spec.has_driver() => return None,
        None => unavailable.first_key_value()?,
    };
    Some(format!("driver {driver} does not work at the moment: {fault}"))
}

fn shape(request: &Request) -> Shape {
    let Request { memory_mb, disk_mb, cpu_shares, pids, .. } = *request;
    let amounts = [memory_mb, disk_mb, cpu_shares, pids];
    Shape { amounts, needs: request.needs.clone(), pinned: request.pinned }
}

/// Where copies of an instance take room.
fn held_by(row: &Instance) -> impl Iterator<Item = (CellId, Stage)> {
    let stage = match row.state {
        InstanceState::Claimed { .. } => Stage::Starting,
        InstanceState::Unclaimed { .. }
        | InstanceState::Running { .. }
        | InstanceState::Crashed { .. }
        | InstanceState::Stopping { .. }
        | InstanceState::Stopped => Stage::Running,
    };
    let current = row.state.cell().map(|cell| (cell, stage));
    let there = row.before.filter(|it| it.kind != PredecessorKind::Suspect);
    current.into_iter().chain(there.map(|it| (it.cell, Stage::Running)))
}

/// Whether it may be offered now.
const fn task_waits(row: &Task) -> bool {
    matches!(row.state, TaskState::Pending { .. }) && row.paused_until.is_none()
}

/// Whether it may be placed now.
fn waits(row: &Instance) -> bool {
    matches!(row.state, InstanceState::Unclaimed { .. }) && row.retry_at.is_none() && !row.held
}

fn instance_wait(row: &Instance) -> Wait {
    let round = if row.index == 0 { 0 } else { 2 };
    Wait { round, index: row.index, waiter: Waiter::Instance(row.id) }
}

const fn task_wait(row: &Task) -> Wait {
    Wait { round: 1, index: 0, waiter: Waiter::Task(row.id) }
}

impl Placing {
    pub(crate) fn add_cell(&mut self, row: &Cell) {
        if row.lease_until.is_none() {
            return self.remove_cell(row.id);
        }
        if row.spec.unavailable.is_empty() {
            self.failing.remove(&row.id);
        } else {
            self.failing.insert(row.id);
        }
        let info = info(row);
        if self.infos.get(&row.id) != Some(&info) {
            self.cells.put_cell(row.id, info.clone());
            self.infos.insert(row.id, info);
            self.changed = true;
        }
    }

    fn remove_cell(&mut self, id: CellId) {
        self.failing.remove(&id);
        if self.infos.remove(&id).is_some() {
            self.cells.remove_cell(id);
        }
    }

    pub(crate) fn add_process(&mut self, row: &Process) {
        self.requests.insert(row.id, process_request(row));
    }

    pub(crate) fn remove_process(&mut self, id: ProcessId) {
        self.requests.remove(&id);
    }

    fn hold(&mut self, (cell, stage): (CellId, Stage), request: &Request, waiter: Waiter) {
        self.cells.hold(cell, request, stage);
        self.freed.remove(&(cell, waiter));
        self.roomier.remove(&(cell, waiter));
    }

    fn release(&mut self, (cell, stage): (CellId, Stage), request: &Request, waiter: Waiter) {
        self.cells.release(cell, request, stage);
        self.freed.insert((cell, waiter));
        if self.held_back_from(cell).next().is_some() {
            self.roomier.insert((cell, waiter));
        }
    }

    fn held_back_from(&self, cell: CellId) -> impl Iterator<Item = InstanceId> {
        let range = (cell, InstanceId(0))..=(cell, InstanceId(u128::MAX));
        self.held_back.range(range).map(|(_, id)| *id)
    }

    fn wait(&mut self, request: &Request, wait: Wait) {
        let shape = shape(request);
        self.waiting.entry(shape.clone()).or_default().insert(wait);
        self.fresh.insert(wait.waiter, shape);
    }

    fn wait_no_more(&mut self, request: &Request, wait: Wait) {
        let shape = shape(request);
        if let Some(same) = self.waiting.get_mut(&shape) {
            same.remove(&wait);
            if same.is_empty() {
                self.waiting.remove(&shape);
            }
        }
        self.fresh.remove(&wait.waiter);
    }

    fn instance_request(&self, row: &Instance) -> Option<Request> {
        let request = self.requests.get(&row.process)?;
        Some(Request { pinned: row.pinned, ..request.clone() })
    }

    pub(crate) fn add_instance(&mut self, row: &Instance) {
        let Some(request) = self.instance_request(row) else { return };
        for held in held_by(row) {
            self.hold(held, &request, Waiter::Instance(row.id));
        }
        if waits(row) {
            self.wait(&request, instance_wait(row));
        }
        if let Some(cell) = row.pinned.filter(|_| row.held) {
            self.held_back.insert((cell, row.id));
        }
    }

    pub(crate) fn remove_instance(&mut self, row: &Instance) {
        let Some(request) = self.instance_request(row) else { return };
        for held in held_by(row) {
            self.release(held, &request, Waiter::Instance(row.id));
        }
        if waits(row) {
            self.wait_no_more(&request, instance_wait(row));
        }
        if let Some(cell) = row.pinned.filter(|_| row.held) {
            self.held_back.remove(&(cell, row.id));
        }
    }

    pub(crate) fn add_task(&mut self, row: &Task) {
        if let Some(cell) = row.state.cell() {
            self.hold((cell, Stage::Running), &task_request(row), Waiter::Task(row.id));
        } else if task_waits(row) {
            self.wait(&task_request(row), task_wait(row));
        }
    }

    pub(crate) fn remove_task(&mut self, row: &Task) {
        if let Some(cell) = row.state.cell() {
            self.release((cell, Stage::Running), &task_request(row), Waiter::Task(row.id));
        } else if task_waits(row) {
            self.wait_no_more(&task_request(row), task_wait(row));
        }
    }

    /// Nothing has changed since whatever fits was placed.
    pub(crate) fn settled(&mut self) {
        self.fresh.clear();
        self.freed.clear();
        self.changed = false;
    }

    /// What is held back from a cell that gave a place back since this was last asked.
    pub(crate) fn take_roomier(&mut self) -> BTreeSet<InstanceId> {
        let roomier = std::mem::take(&mut self.roomier);
        let cells: BTreeSet<CellId> = roomier.into_iter().map(|(cell, _)| cell).collect();
        cells.into_iter().flat_map(|cell| self.held_back_from(cell)).collect()
    }

    /// Why an instance of a process could not be placed on a cell if these were not there.
    pub(crate) fn why_not_after<'a>(
        &self,
        cell: CellId,
        process: ProcessId,
        ending: impl Iterator<Item = &'a Instance>,
    ) -> Option<PinnedWhy> {
        let request = self.requests.get(&process)?;
        let there = |row: &Instance| held_by(row).filter(|(at, _)| *at == cell).count();
        let ending: Vec<&Request> = ending
            .filter_map(|row| Some((self.requests.get(&row.process)?, there(row))))
            .flat_map(|(request, copies)| std::iter::repeat_n(request, copies))
            .collect();
        self.cells.why_not_after(cell, request, &ending)
    }

    /// Whether anything waits for a place.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Moves that would even out how full cells are.
    pub(crate) fn proposals(&self, budget: Budget) -> Vec<Move> {
        self.cells.rebalance(budget)
    }

    /// Whether a cell has room now for another instance of a process.
    pub(crate) fn fits(&self, cell: CellId, process: ProcessId) -> bool {
        self.why_not_after(cell, process, std::iter::empty()).is_none()
    }

    /// Everything that waits is to be looked at again.
    pub(crate) const fn look_again(&mut self) {
        self.changed = true;
    }

    /// Whether something may fit that did not, or nobody knows why it does not.
    pub(crate) fn is_due(&self) -> bool {
        !self.waiting.is_empty()
            && (self.changed || !self.freed.is_empty() || !self.fresh.is_empty())
    }

    /// What of everything that waits may fit, and why the rest of what is new does not.
    fn candidates(&mut self, why: &mut BTreeMap<Waiter, Unplaced>) -> Vec<Wait> {
        let mut found = Vec::new();
        let mut reasons = BTreeMap::new();
        for (shape, waits) in &self.waiting {
            match self.cells.choose(&shape.request()) {
                Ok(_) => found.extend(waits.iter().take(BATCH)),
                Err(reason) => {
                    reasons.insert(shape, reason);
                }
            }
        }
        for (waiter, shape) in &self.fresh {
            if let Some(reason) = reasons.get(shape) {
                why.insert(*waiter, reason.clone());
            }
        }
        found
    }
}

impl Shape {
    /// One that asks for it, of no group.
    fn request(&self) -> Request {
        let [memory_mb, disk_mb, cpu_shares, pids] = self.amounts;
        let (needs, pinned) = (self.needs.clone(), self.pinned);
        Request { memory_mb, disk_mb, cpu_shares, pids, needs, pinned, ..Request::default() }
    }
}

impl Core {
    /// Makes the index of places when there is none yet.
    pub(crate) fn prepare_placing(&mut self) {
        if self.indexes.placing.is_some() {
            return;
        }
        let mut placing = Placing::default();
        self.tables.cells.values().for_each(|row| placing.add_cell(row));
        self.tables.processes.values().for_each(|row| placing.add_process(row));
        self.tables.tasks.values().for_each(|row| placing.add_task(row));
        self.tables.instances.values().for_each(|row| placing.add_instance(row));
        placing.settled();
        self.indexes.placing = Some(Box::new(placing));
    }

    /// Places what waits and fits: first copies, then tasks, then further copies.
    pub(crate) fn auction(&mut self, now: Time) -> Result<(), Refusal> {
        let mut why = BTreeMap::new();
        loop {
            let Some(placing) = &mut self.indexes.placing else { return Ok(()) };
            if !placing.is_due() {
                break;
            }
            let found = placing.candidates(&mut why);
            self.indexes.counts.auctions += 1;
            if !self.place_all(now, &found, &mut why)? {
                break;
            }
        }
        for (waiter, reason) in why {
            self.indexes.counts.tally(false);
            self.say_why(now, waiter, &reason)?;
        }
        if let Some(placing) = &mut self.indexes.placing {
            placing.settled();
        }
        Ok(())
    }

    /// Places as many of these as fit; whether any did.
    fn place_all(
        &mut self,
        now: Time,
        found: &[Wait],
        why: &mut BTreeMap<Waiter, Unplaced>,
    ) -> Result<bool, Refusal> {
        let items = found.iter().filter_map(|wait| Some((wait.waiter, self.item(wait)?)));
        let (waiters, items): (Vec<_>, Vec<_>) = items.unzip();
        let Some(placing) = &mut self.indexes.placing else { return Ok(false) };
        let answers = placing.cells.plan(&items);
        #[cfg(feature = "planted")]
        let answers = if crate::planted::is("M11") {
            // As if each item had an auctioneer of its own, who knows nothing of the others.
            items.iter().flat_map(|item| placing.cells.plan(std::slice::from_ref(item))).collect()
        } else {
            answers
        };
        let mut placed = false;
        for (waiter, answer) in waiters.into_iter().zip(answers) {
            match answer {
                Ok(cell) => {
                    placed = true;
                    self.indexes.counts.tally(true);
                    if !self.is_held_by_volumes(now, waiter)? {
                        self.place(now, waiter, cell)?;
                    }
                }
                Err(reason) => {
                    why.insert(waiter, reason);
                }
            }
        }
        Ok(placed)
    }

    fn item(&self, wait: &Wait) -> Option<Item> {
        Some(match wait.waiter {
            Waiter::Instance(id) => {
                let row = self.get::<Instance>(id)?;
                let request = self.indexes.placing.as_ref()?.instance_request(row)?;
                Item { request, turn: Turn::Instance(wait.index) }
            }
            Waiter::Task(id) => {
                let request = task_request(self.get::<Task>(id)?);
                Item { request, turn: Turn::Task }
            }
        })
    }

    /// What a cell has given away.
    pub(crate) fn cell_load(&self, id: CellId) -> CellLoad {
        let load = self.indexes.placing.as_ref().and_then(|placing| placing.cells.load(id));
        let load = load.unwrap_or_default();
        CellLoad { memory_mb: load.memory_mb, disk_mb: load.disk_mb }
    }

    /// Holds an instance back whose volumes there was room for until others were placed.
    fn is_held_by_volumes(&mut self, now: Time, waiter: Waiter) -> Result<bool, Refusal> {
        let Waiter::Instance(id) = waiter else { return Ok(false) };
        let row = self.instance(id)?;
        let Some(reason) = self.no_volumes_for(&row) else { return Ok(false) };
        let row = Instance { held: true, ..row };
        self.change_instance(now, &row, &InstanceEvent::Reject { reason })?;
        Ok(true)
    }

    fn place(&mut self, now: Time, waiter: Waiter, cell: CellId) -> Result<(), Refusal> {
        match waiter {
            Waiter::Instance(id) => self.place_instance(now, id, cell),
            Waiter::Task(id) => {
                let task = self.task(id)?;
                let state = task.state.next(&TaskEvent::Offer { cell })?;
                self.put(Task { state, epoch: task.epoch + 1, ..(*task).clone() });
                Ok(())
            }
        }
    }

    /// A reason in words, with what is wrong where a driver does not work that would do.
    fn why(&self, reason: &Unplaced) -> String {
        let (begin, wanted) = match reason {
            Unplaced::Lacking { needs } if needs.driver.is_some() => {
                (reason.to_string(), needs.driver.as_ref())
            }
            Unplaced::NoneAccepting => ("no cell takes new work".to_owned(), None),
            Unplaced::NoCell
            | Unplaced::Lacking { .. }
            | Unplaced::Reserved { .. }
            | Unplaced::Short { .. }
            | Unplaced::Together
            | Unplaced::Pinned { .. } => return reason.to_string(),
        };
        let placing = self.indexes.placing.iter();
        let cells = placing.flat_map(|it| &it.failing).filter_map(|id| self.get::<Cell>(*id));
        let mut failing = cells.filter(|cell| cell.draining.is_none());
        let fault = failing.find_map(|cell| {
            Some(format!("{begin}: on cell {} {}", cell.spec.name, failed_driver(cell, wanted)?))
        });
        fault.unwrap_or_else(|| reason.to_string())
    }

    /// Offers a new copy of an instance to a cell.
    pub(crate) fn place_instance(
        &mut self,
        now: Time,
        id: InstanceId,
        cell: CellId,
    ) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        let epoch = row.highest_epoch() + 1;
        let row = Instance { epoch, last_epoch: epoch, ..row };
        let row = self.with_volumes(now, row, cell);
        self.change_instance(now, &row, &InstanceEvent::Claim { cell })
    }

    /// Tells whoever waits why, if that is news.
    fn say_why(&mut self, now: Time, waiter: Waiter, reason: &Unplaced) -> Result<(), Refusal> {
        match waiter {
            Waiter::Instance(id) => {
                let row = self.instance(id)?;
                let reason = self.why_pinned(&row, reason).unwrap_or_else(|| self.why(reason));
                if matches!(row.state, InstanceState::Unclaimed { .. }) {
                    self.change_instance(now, &row, &InstanceEvent::Reject { reason })?;
                }
            }
            Waiter::Task(id) => {
                let task = self.task(id)?;
                let reason = self.why(reason);
                if matches!(task.state, TaskState::Pending { .. }) {
                    let state = task.state.next(&TaskEvent::Reject { reason })?;
                    if state != task.state {
                        self.put(Task { state, ..(*task).clone() });
                    }
                }
            }
        }
        Ok(())
    }
}
