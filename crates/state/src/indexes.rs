//! Secondary indexes. Each row type adds and removes its own entries; nothing else touches them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    AppId, BuildId, CellId, DeliveryId, DeploymentId, InstanceId, JobId, KeyId, Name, ProcessId,
    ProjectId, TaskId, Time,
};

use crate::counts::{Counts, fewer, more};
use crate::placing::Placing;
use crate::queue::Queue;
use crate::records::{
    App, Build, Cell, Delivery, Deployment, Instance, Job, Key, Process, Project, Task,
};
use crate::tables::RowKey;
use crate::tasks::KeptTasks;
use crate::view::{Order, WorkKey};
use crate::volumes::{Volume, VolumeIndex};

/// Everything that can be looked up other than by identifier.
#[derive(Debug, Default)]
pub struct Indexes {
    pub(crate) deadlines: BTreeSet<(Time, RowKey)>,
    pub(crate) queue: Queue,
    pub(crate) counts: Counts,
    pub(crate) project_names: BTreeMap<Name, ProjectId>,
    pub(crate) app_names: BTreeMap<(ProjectId, Name), AppId>,
    app_counts: BTreeMap<ProjectId, usize>,
    pub(crate) public_keys: BTreeMap<String, KeyId>,
    pub(crate) tasks_by_job: BTreeSet<(JobId, TaskId)>,
    pub(crate) tasks_by_cell: BTreeSet<(CellId, TaskId)>,
    /// Tasks by project and the words of whoever made them.
    pub(crate) task_keys: BTreeMap<(ProjectId, String), TaskId>,
    /// How many tasks of a project have not ended.
    pub(crate) open_tasks: BTreeMap<ProjectId, usize>,
    /// What is kept of tasks, of each project and in all.
    kept_tasks: BTreeMap<ProjectId, KeptTasks>,
    all_kept_tasks: KeptTasks,
    /// Messages of each project by when they are tried next.
    pub(crate) deliveries: BTreeMap<ProjectId, BTreeSet<(Time, DeliveryId)>>,
    pub(crate) builds: BTreeSet<(AppId, u64, BuildId)>,
    pub(crate) deployments: BTreeSet<(AppId, u64, DeploymentId)>,
    pub(crate) deployments_by_job: BTreeSet<(JobId, DeploymentId)>,
    pub(crate) instances: BTreeSet<(ProcessId, u32, InstanceId)>,
    pub(crate) instances_by_cell: BTreeSet<(CellId, InstanceId)>,
    /// Instances that have a copy before the current one.
    pub(crate) moving: BTreeSet<InstanceId>,
    /// Deployments whose instances may differ from what is wanted.
    pub(crate) dirty: BTreeSet<DeploymentId>,
    /// Apps whose routes may have changed.
    pub(crate) dirty_routes: BTreeSet<AppId>,
    /// Cells that changed themselves.
    pub(crate) dirty_cells: BTreeSet<CellId>,
    /// Work of cells that may have changed, and what they were to do about it before.
    pub(crate) dirty_work: BTreeMap<(CellId, WorkKey), Option<Order>>,
    pub(crate) volumes: VolumeIndex,
    /// What waits for a cell, and how full cells are; made at the first command.
    pub(crate) placing: Option<Box<Placing>>,
}

/// Takes one from a count; those of nothing are not kept.
pub(crate) fn one_less(counts: &mut BTreeMap<ProjectId, usize>, project: ProjectId) {
    if let Some(count) = counts.get_mut(&project) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&project);
        }
    }
}

impl Indexes {
    pub(crate) fn add_project(&mut self, row: &Project) {
        self.project_names.insert(row.name.clone(), row.id);
    }

    pub(crate) fn remove_project(&mut self, row: &Project) {
        self.project_names.remove(&row.name);
    }

    pub(crate) fn add_app(&mut self, row: &App) {
        self.app_names.insert((row.project, row.name.clone()), row.id);
        *self.app_counts.entry(row.project).or_default() += 1;
        self.dirty_routes.insert(row.id);
    }

    pub(crate) fn remove_app(&mut self, row: &App) {
        self.app_names.remove(&(row.project, row.name.clone()));
        one_less(&mut self.app_counts, row.project);
        self.dirty_routes.insert(row.id);
    }

    /// How many apps a project has.
    pub(crate) fn app_count(&self, project: ProjectId) -> usize {
        self.app_counts.get(&project).copied().unwrap_or(0)
    }

    pub(crate) fn add_key(&mut self, row: &Key) {
        self.public_keys.insert(row.public.clone(), row.id);
    }

    pub(crate) fn remove_key(&mut self, row: &Key) {
        self.public_keys.remove(&row.public);
    }

    pub(crate) fn add_cell(&mut self, row: &Cell) {
        if let Some(placing) = &mut self.placing {
            placing.add_cell(row);
        }
    }

    pub(crate) fn add_process(&mut self, row: &Process) {
        self.dirty.insert(row.deployment);
        if let Some(placing) = &mut self.placing {
            placing.add_process(row);
        }
    }

    pub(crate) fn remove_process(&mut self, row: &Process) {
        self.dirty.insert(row.deployment);
        if let Some(placing) = &mut self.placing {
            placing.remove_process(row.id);
        }
    }

    pub(crate) fn remove_cell(&mut self, row: &Cell) {
        self.dirty_cells.insert(row.id);
    }

    pub(crate) fn add_job(&mut self, row: &Job) {
        more(&mut self.counts.jobs, row.state.name());
        self.queue.add(row);
    }

    pub(crate) fn remove_job(&mut self, row: &Job) {
        fewer(&mut self.counts.jobs, row.state.name());
        self.queue.remove(row);
    }

    pub(crate) fn add_task(&mut self, row: &Task) {
        more(&mut self.counts.tasks, row.state.name());
        if let (Some(project), Some(key)) = (row.project, &row.key) {
            self.task_keys.insert((project, key.clone()), row.id);
        }
        self.all_kept_tasks.add(row);
        if let Some(project) = row.project {
            self.kept_tasks.entry(project).or_default().add(row);
        }
        if row.state.is_terminal() {
            return;
        }
        if let Some(project) = row.project {
            *self.open_tasks.entry(project).or_default() += 1;
        }
        if let Some(placing) = &mut self.placing {
            placing.add_task(row);
        }
        if let Some(job) = row.job {
            self.tasks_by_job.insert((job, row.id));
        }
        if let Some(cell) = row.state.cell() {
            self.tasks_by_cell.insert((cell, row.id));
            self.dirty_work.entry((cell, WorkKey::Task(row.id))).or_default();
        }
    }

    pub(crate) fn remove_task(&mut self, row: &Task) {
        fewer(&mut self.counts.tasks, row.state.name());
        if let (Some(project), Some(key)) = (row.project, &row.key) {
            self.task_keys.remove(&(project, key.clone()));
        }
        self.all_kept_tasks.remove(row);
        if let Some(project) = row.project
            && let Some(kept) = self.kept_tasks.get_mut(&project)
        {
            kept.remove(row);
            if kept.tasks == 0 {
                self.kept_tasks.remove(&project);
            }
        }
        if let Some(project) = row.project.filter(|_| !row.state.is_terminal()) {
            one_less(&mut self.open_tasks, project);
        }
        if let Some(job) = row.job {
            self.tasks_by_job.remove(&(job, row.id));
        }
        if let Some(placing) = &mut self.placing {
            placing.remove_task(row);
        }
        if let Some(cell) = row.state.cell() {
            self.tasks_by_cell.remove(&(cell, row.id));
            let key = (cell, WorkKey::Task(row.id));
            self.dirty_work.entry(key).or_insert_with(|| row.order_on(cell));
        }
    }

    /// What is kept of the tasks of a project, and of all.
    pub(crate) fn kept_tasks(&self, project: ProjectId) -> (KeptTasks, KeptTasks) {
        let own = self.kept_tasks.get(&project).copied().unwrap_or_default();
        (own, self.all_kept_tasks)
    }

    pub(crate) const fn all_kept_tasks(&self) -> KeptTasks {
        self.all_kept_tasks
    }

    pub(crate) fn add_delivery(&mut self, row: &Delivery) {
        self.deliveries.entry(row.project).or_default().insert((row.due, row.id));
    }

    pub(crate) fn remove_delivery(&mut self, row: &Delivery) {
        if let Some(own) = self.deliveries.get_mut(&row.project) {
            own.remove(&(row.due, row.id));
            if own.is_empty() {
                self.deliveries.remove(&row.project);
            }
        }
    }

    pub(crate) fn add_build(&mut self, row: &Build) {
        self.builds.insert((row.app, row.number, row.id));
    }

    pub(crate) fn remove_build(&mut self, row: &Build) {
        self.builds.remove(&(row.app, row.number, row.id));
    }

    pub(crate) fn add_deployment(&mut self, row: &Deployment) {
        self.deployments.insert((row.app, row.number, row.id));
        if let Some(job) = row.job {
            self.deployments_by_job.insert((job, row.id));
        }
        self.dirty.insert(row.id);
    }

    pub(crate) fn remove_deployment(&mut self, row: &Deployment) {
        self.deployments.remove(&(row.app, row.number, row.id));
        if let Some(job) = row.job {
            self.deployments_by_job.remove(&(job, row.id));
        }
    }

    pub(crate) fn add_instance(&mut self, row: &Instance) {
        more(&mut self.counts.instances, row.state.name());
        self.instances.insert((row.process, row.index, row.id));
        if row.before.is_some() {
            self.moving.insert(row.id);
        }
        for cell in row.cells() {
            self.instances_by_cell.insert((cell, row.id));
            self.dirty_work.entry((cell, WorkKey::Instance(row.id))).or_default();
        }
        if let Some(placing) = &mut self.placing {
            placing.add_instance(row);
        }
        self.dirty.insert(row.deployment);
    }

    pub(crate) fn remove_instance(&mut self, row: &Instance) {
        fewer(&mut self.counts.instances, row.state.name());
        self.instances.remove(&(row.process, row.index, row.id));
        self.moving.remove(&row.id);
        if let Some(placing) = &mut self.placing {
            placing.remove_instance(row);
        }
        for cell in row.cells() {
            self.instances_by_cell.remove(&(cell, row.id));
            let key = (cell, WorkKey::Instance(row.id));
            self.dirty_work.entry(key).or_insert_with(|| row.order_on(cell));
        }
        self.dirty.insert(row.deployment);
    }

    pub(crate) fn add_volume(&mut self, row: &Volume) {
        self.volumes.add(row);
        self.dirty_cells.insert(row.cell);
    }

    pub(crate) fn remove_volume(&mut self, row: &Volume) {
        self.volumes.remove(row);
    }
}
