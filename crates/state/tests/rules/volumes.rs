//! Volumes pin what uses them, have one writer at a time, and outlive deployments.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    BuildId, CellId, DeploymentId, Digest, InstanceReport, InstanceState, Name, ProcessSpec,
    VolumeId, VolumeMount,
};
use state::{
    CellCommand, Command, DRAIN_TIMEOUT, Held, MAX_VOLUMES_PER_PROJECT, ProcessTemplate, Refusal,
    VOLUME_GRACE, Volume, VolumeState, WorkCommand,
};

use crate::bench::{APP, Bench, PROJECT, SOURCE, name, process};

fn with(mut spec: ProcessSpec, volumes: &[(&str, bool)]) -> ProcessSpec {
    for (volume, read_only) in volumes {
        let mount = VolumeMount { path: format!("/{volume}"), read_only: *read_only };
        spec.container.volumes.insert(name(volume), mount);
    }
    spec
}

fn data() -> ProcessSpec {
    with(process(100), &[("data", false)])
}

/// A deployment of `web`, started and not healthy yet.
fn deployed(bench: &mut Bench, instances: u32, spec: ProcessSpec) -> DeploymentId {
    let at = bench.work_job();
    let deployment = bench.deploy_spec(at, instances, spec);
    bench.complete(at, model::Outcome::Succeeded);
    deployment
}

/// The same, released.
fn released(bench: &mut Bench, instances: u32, spec: ProcessSpec) -> DeploymentId {
    let at = bench.work_job();
    let deployment = bench.deploy_spec(at, instances, spec);
    bench.healthy(deployment);
    bench.release(at, deployment);
    bench.complete(at, model::Outcome::Succeeded);
    deployment
}

fn destroy(bench: &mut Bench) {
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Destroy(at)));
    bench.complete(at, model::Outcome::Succeeded);
}

/// Name, cell and state of every volume.
fn volumes(bench: &Bench) -> Vec<(String, u128, &'static str)> {
    let rows = bench.state.all::<Volume>();
    let mut all: Vec<_> = rows.map(|row| (row.to_string(), row.cell.0, row.state.name())).collect();
    all.sort_unstable();
    all
}

fn one(name: &str, cell: u128, state: &'static str) -> Vec<(String, u128, &'static str)> {
    vec![(name.to_owned(), cell, state)]
}

fn id(bench: &Bench, called: &str) -> VolumeId {
    let mut rows = bench.state.all::<Volume>().filter(|row| row.to_string() == called);
    rows.next().expect("there is such a volume").id
}

fn why(bench: &Bench, deployment: DeploymentId, index: usize) -> String {
    match &bench.instances(deployment)[index].state {
        InstanceState::Unclaimed { reason } => reason.clone().unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

fn cell_of(bench: &Bench, deployment: DeploymentId, index: usize) -> Option<u128> {
    bench.instances(deployment)[index].state.cell().map(|cell| cell.0)
}

fn remove(bench: &mut Bench, called: &str, force: bool) -> Result<(), String> {
    let id = id(bench, called);
    let done = bench.try_apply(Command::RemoveVolume { id, force });
    done.map(|_| ()).map_err(|refusal| refusal.to_string())
}

fn scale(bench: &mut Bench, instances: u32) {
    let (workspace, process) = (name("production"), name("web"));
    bench.ok(Command::Scale { app: APP, workspace, process, instances });
}

/// Lets so much time pass that nobody sends heartbeats all along: cells are away, and then back.
fn long(bench: &mut Bench, span: Duration) {
    let cells: Vec<u128> = bench.state.all::<state::Cell>().map(|row| row.id.0).collect();
    bench.pass(span);
    for cell in cells {
        bench.cell(cell, if cell == 1 { 4_000 } else { 64_000 }, &[]);
    }
}

fn deleted(bench: &mut Bench, cell: u128, volume: VolumeId) -> Result<(), Refusal> {
    let gone = CellCommand::VolumeGone { cell: CellId(cell), volume };
    bench.try_apply(Command::Cell(gone)).map(|_| ())
}

#[test]
fn the_first_placement_makes_a_volume_for_each_index() {
    let mut bench = Bench::ready();
    bench.cell(2, 4_000, &[]);
    let deployment = released(&mut bench, 2, with(data(), &[("cache", false)]));
    let cells: Vec<_> = (0..2).map(|index| cell_of(&bench, deployment, index)).collect();
    let wanted: Vec<_> = (0..2_u32)
        .flat_map(|index| {
            let cell = cells[index as usize].expect("it is placed");
            ["cache", "data"].map(|it| (format!("web.{index}.{it}"), cell, "attached"))
        })
        .collect();
    assert_eq!(volumes(&bench), wanted);
    assert_ne!(cells[0], cells[1], "they are spread before they are pinned");
    let row = bench.instances(deployment).remove(0);
    let own = bench.state.volumes_of(&row);
    let names: Vec<&Name> = own.keys().collect();
    assert_eq!(names, [&name("cache"), &name("data")]);
    let ids: BTreeSet<_> = bench.state.all::<Volume>().map(|row| row.id).collect();
    assert_eq!(ids.len(), 4);
}

#[test]
fn a_redeploy_waits_for_the_old_instance_and_runs_where_the_data_is() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, data());
    let volume = id(&bench, "web.0.data");
    bench.cell(2, 64_000, &[]);
    let new = deployed(&mut bench, 1, data());
    assert_eq!(bench.states(old), ["stopping"]);
    let reason = "waits until web.0 of deployment 1 has ended, because both write to volume data";
    assert_eq!(why(&bench, new, 0), reason);
    bench.secs(5);
    assert_eq!(bench.states(new), ["unclaimed"], "however long it takes");
    bench.gone(old);
    assert_eq!(cell_of(&bench, new, 0), Some(1), "although the other cell is emptier");
    bench.healthy(new);
    assert_eq!(volumes(&bench), one("web.0.data", 1, "attached"));
    assert_eq!(id(&bench, "web.0.data"), volume);
}

#[test]
fn a_redeploy_that_fails_gives_the_index_back() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, data());
    let new = deployed(&mut bench, 1, data());
    bench.gone(old);
    bench.start_all(new);
    let row = bench.instances(new).remove(0);
    let (reason, never_healthy) = ("is broken".to_owned(), true);
    bench.report(&row, InstanceReport::Crashed { reason, never_healthy, detail: None });
    assert_eq!(bench.deployment_state(new).name(), "failed");
    assert_eq!(bench.states(new), Vec::<&str>::new());
    assert_eq!(bench.states(old), ["claimed"], "the old one is back");
    bench.healthy(old);
    assert_eq!(bench.targets(), Some((old, 1)));
}

#[test]
fn one_that_still_runs_when_its_deployment_fails_ends_before_the_old_one_is_back() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, data());
    let new = deployed(&mut bench, 1, data());
    bench.gone(old);
    bench.start_all(new);
    bench.pass_without(9, Duration::from_mins(5));
    assert_eq!(bench.deployment_state(new).name(), "failed");
    assert_eq!((bench.states(new), bench.states(old)), (vec!["stopping"], vec!["unclaimed"]));
    assert!(why(&bench, old, 0).starts_with("waits until web.0 of deployment 2 has ended"));
    bench.gone(new);
    assert_eq!(bench.states(old), ["claimed"]);
}

#[test]
fn a_rollback_takes_the_index_over_again() {
    let mut bench = Bench::ready();
    let first = released(&mut bench, 1, data());
    let at = bench.work_job();
    let second = bench.deploy_spec(at, 1, data());
    bench.gone(first);
    bench.healthy(second);
    bench.release(at, second);
    bench.complete(at, model::Outcome::Succeeded);
    bench.pass_without(9, Duration::from_secs(10));
    assert_eq!(bench.deployment_state(first).name(), "retired");
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Restart { attempt: at, deployment: first }));
    assert_eq!((bench.states(second), bench.states(first)), (vec!["stopping"], vec!["unclaimed"]));
    bench.gone(second);
    assert_eq!(bench.states(first), ["claimed"]);
    assert_eq!(volumes(&bench), one("web.0.data", 1, "attached"));
}

#[test]
fn a_rollback_before_the_old_deployment_retired_starts_it_again() {
    let mut bench = Bench::ready();
    let first = released(&mut bench, 1, data());
    let at = bench.work_job();
    let second = bench.deploy_spec(at, 1, data());
    bench.gone(first);
    bench.healthy(second);
    bench.release(at, second);
    bench.complete(at, model::Outcome::Succeeded);
    assert_eq!(bench.deployment_state(first).name(), "ready", "but it has no instance");
    let at = bench.work_job();
    let refused = bench.work(WorkCommand::Release { attempt: at, deployment: first });
    assert!(matches!(refused, Err(Refusal::Conflict(_))), "{refused:?}");
    bench.ok(Command::Work(WorkCommand::Restart { attempt: at, deployment: first }));
    assert_eq!(bench.deployment_state(first).name(), "starting");
    let early = bench.work(WorkCommand::Release { attempt: at, deployment: first });
    assert!(matches!(early, Err(Refusal::Conflict(_))), "nothing of it serves yet");
    bench.gone(second);
    bench.healthy(first);
    bench.release(at, first);
    assert_eq!(bench.targets(), Some((first, 1)));
}

#[test]
fn what_only_reads_is_pinned_and_waits_for_nobody() {
    let mut bench = Bench::ready();
    let reads = with(process(100), &[("data", true)]);
    let old = released(&mut bench, 1, reads.clone());
    bench.cell(2, 64_000, &[]);
    let new = deployed(&mut bench, 1, reads);
    assert_eq!((bench.states(old), bench.states(new)), (vec!["running"], vec!["claimed"]));
    assert_eq!(cell_of(&bench, new, 0), Some(1));
}

#[test]
fn without_volumes_nothing_waits() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, process(100));
    let new = deployed(&mut bench, 1, data());
    assert_eq!((bench.states(old), bench.states(new)), (vec!["running"], vec!["claimed"]));
}

#[test]
fn an_instance_waits_for_the_cell_that_has_its_data() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    bench.cell(2, 64_000, &[]);
    bench.lose(1);
    assert_eq!(
        why(&bench, deployment, 0),
        "its volume data lies on cell cell, which is not connected: it starts when that is back. \
         If that never comes back, `shore volume remove --force web.0.data` lets it start \
         elsewhere, and the data is lost"
    );
    bench.pass_without(1, Duration::from_hours(2));
    assert_eq!(bench.states(deployment), ["unclaimed"], "however long");
    bench.cell(1, 4_000, &[]);
    assert_eq!(cell_of(&bench, deployment, 0), Some(1));
    assert_eq!(volumes(&bench), one("web.0.data", 1, "attached"));
}

#[test]
fn a_cell_that_comes_back_with_the_instance_goes_on() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    let row = bench.instances(deployment).remove(0);
    bench.cell(2, 64_000, &[]);
    bench.lose(1);
    assert_eq!(bench.targets(), Some((deployment, 1)), "it may still serve");
    bench.cell(1, 4_000, &[Held::Instance { id: row.id, epoch: row.epoch }]);
    assert_eq!(bench.states(deployment), ["running"]);
    assert_eq!(bench.instances(deployment)[0].epoch, row.epoch);
}

#[test]
fn a_redeploy_while_the_cell_is_away_waits_for_it_and_for_the_old_one() {
    for held in [true, false] {
        let mut bench = Bench::ready();
        let old = released(&mut bench, 1, data());
        let row = bench.instances(old).remove(0);
        bench.cell(2, 64_000, &[]);
        bench.lose(1);
        let new = deployed(&mut bench, 1, data());
        assert_eq!((bench.states(old), bench.states(new)), (vec!["unclaimed"], vec!["unclaimed"]));
        assert_eq!(bench.on(2), []);
        let said = why(&bench, old, 0);
        assert_eq!(said, "deployment 2 was started later and has volume data of web.0");
        let said = why(&bench, new, 0);
        assert!(said.contains("lies on cell cell, which is not connected"), "{said}");
        assert!(said.ends_with("; web.0 of deployment 1 is let be until then"), "{said}");
        let holds = [Held::Instance { id: row.id, epoch: row.epoch }];
        bench.cell(1, 4_000, if held { &holds } else { &[] });
        if held {
            assert_eq!(
                (bench.states(old), bench.states(new)),
                (vec!["stopping"], vec!["unclaimed"])
            );
            bench.gone(old);
        }
        assert_eq!((bench.states(old), bench.states(new)), (vec![], vec!["claimed"]), "{held}");
        assert_eq!(cell_of(&bench, new, 0), Some(1));
    }
}

#[test]
fn a_redeploy_does_not_end_what_runs_on_a_drained_cell() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, data());
    let drain = CellCommand::Drain { id: CellId(1), timeout: DRAIN_TIMEOUT };
    bench.ok(Command::Cell(drain));
    let new = deployed(&mut bench, 1, data());
    assert_eq!((bench.states(old), bench.states(new)), (vec!["running"], vec!["unclaimed"]));
    assert_eq!(bench.targets(), Some((old, 1)));
    let reason = "its volume data lies on cell cell, which takes no new work: it is draining; web.0 of \
                  deployment 1 is let be until then";
    assert_eq!(why(&bench, new, 0), reason);
    bench.ok(Command::Cell(CellCommand::Undrain(CellId(1))));
    assert_eq!(bench.states(old), ["stopping"]);
    bench.gone(old);
    assert_eq!(bench.states(new), ["claimed"]);
}

/// What the cell of the volumes, with 4,000 MiB and no tags, cannot run.
fn unfit() -> [(ProcessSpec, &'static str); 4] {
    let changed = |change: fn(&mut model::ContainerSpec)| {
        let mut spec = data();
        change(&mut spec.container);
        spec
    };
    [
        (changed(|it| it.limits.memory_mb = Some(5_000)), "has 4000 MiB of the 5000 MiB of memory"),
        (changed(|it| it.limits.disk_mb = Some(900_000)), "of the 900000 MiB of disk"),
        (changed(|it| it.tags = [name("gpu")].into()), "is not for work that needs tag gpu"),
        (
            changed(|it| it.driver = Some(name("docker"))),
            "is not for work that needs driver docker",
        ),
    ]
}

#[test]
fn what_cannot_run_where_the_data_is_does_not_end_what_runs_there() {
    for (spec, reason) in unfit() {
        let mut bench = Bench::ready();
        let old = released(&mut bench, 1, data());
        bench.cell(2, 64_000, &[]);
        let new = deployed(&mut bench, 1, spec);
        assert_eq!((bench.states(old), bench.states(new)), (vec!["running"], vec!["unclaimed"]));
        let said = why(&bench, new, 0);
        assert!(said.starts_with("its volume data lies on cell cell, which"), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(said.ends_with("; web.0 of deployment 1 is let be until then"), "{said}");
        bench.pass_without(9, Duration::from_mins(5));
        assert_eq!(bench.deployment_state(new).name(), "failed");
        assert_eq!((bench.states(old), bench.targets()), (vec!["running"], Some((old, 1))));
    }
}

#[test]
fn what_the_old_instance_frees_counts() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, with(process(3_000), &[("data", false)]));
    let new = deployed(&mut bench, 1, with(process(4_000), &[("data", false)]));
    assert_eq!(bench.states(old), ["stopping"]);
    bench.gone(old);
    assert_eq!(bench.states(new), ["claimed"]);
}

#[test]
fn an_index_is_taken_over_once_its_cell_has_room() {
    let mut bench = Bench::ready();
    let old = released(&mut bench, 1, data());
    let app = model::AppId(77);
    bench.ok(Command::EnsureApp { id: app, project: PROJECT, name: name("other") });
    bench.queue(state::JobSpec { app: Some(app), ..crate::bench::up() });
    let at = bench.take(1);
    let other = bench.deploy_spec(at, 1, process(1_000));
    bench.healthy(other);
    let new = deployed(&mut bench, 1, with(process(3_500), &[("data", false)]));
    let said = why(&bench, new, 0);
    assert!(said.contains("which has 3000 MiB of the 3500 MiB of memory it needs"), "{said}");
    assert_eq!(bench.states(old), ["running"]);
    bench.complete(at, model::Outcome::Failed { reason: "it was not wanted".to_owned() });
    bench.gone(other);
    assert_eq!((bench.states(old), bench.states(new)), (vec!["stopping"], vec!["unclaimed"]));
    bench.gone(old);
    assert_eq!(bench.states(new), ["claimed"]);
}

#[test]
fn a_drain_names_what_only_reads_a_volume_too() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, with(process(100), &[("data", true)]));
    bench.cell(2, 4_000, &[]);
    let drain = CellCommand::Drain { id: CellId(1), timeout: DRAIN_TIMEOUT };
    bench.ok(Command::Cell(drain));
    assert_eq!(bench.states(deployment), ["running"]);
    let progress = bench.state.drain_progress(CellId(1)).expect("it is drained");
    assert!(progress.is_finished());
    assert_eq!(progress.stays[0].reason, "pinned to this cell by volume data");
}

#[test]
fn scaling_down_and_up_gives_the_data_back() {
    let mut bench = Bench::ready();
    bench.cell(2, 4_000, &[]);
    let deployment = released(&mut bench, 2, data());
    let (cell, volume) = (cell_of(&bench, deployment, 1), id(&bench, "web.1.data"));
    scale(&mut bench, 1);
    bench.gone(deployment);
    long(&mut bench, VOLUME_GRACE + Duration::from_secs(1));
    assert!(
        volumes(&bench).iter().all(|(.., state)| *state == "attached"),
        "{:?}",
        volumes(&bench)
    );
    scale(&mut bench, 2);
    assert_eq!((cell_of(&bench, deployment, 1), id(&bench, "web.1.data")), (cell, volume));
}

#[test]
fn what_was_destroyed_is_kept_then_deleted_and_forgotten_when_the_cell_says_so() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    let volume = id(&bench, "web.0.data");
    assert!(deleted(&mut bench, 1, volume).is_err(), "nobody asked for it");
    destroy(&mut bench);
    bench.gone(deployment);
    assert_eq!(volumes(&bench), one("web.0.data", 1, "detached"));
    long(&mut bench, VOLUME_GRACE.saturating_sub(Duration::from_secs(1)));
    assert_eq!(bench.state.volumes_to_delete(CellId(1)), []);
    bench.pass_without(9, Duration::from_secs(1));
    assert_eq!(bench.state.volumes_to_delete(CellId(1)), [volume]);
    assert!(deleted(&mut bench, 2, volume).is_err(), "it is not there");
    let changes = bench.state.take_changes().expect("rows render");
    assert!(changes.cells.contains_key(&CellId(1)), "the cell is told");
    deleted(&mut bench, 1, volume).expect("it was asked for");
    assert_eq!(volumes(&bench), []);
}

#[test]
fn an_app_that_is_made_again_in_time_gets_its_data_back() {
    let mut bench = Bench::ready();
    let first = released(&mut bench, 1, data());
    let volume = id(&bench, "web.0.data");
    bench.cell(2, 64_000, &[]);
    destroy(&mut bench);
    bench.gone(first);
    bench.ok(Command::DeleteApp(APP));
    long(&mut bench, VOLUME_GRACE / 2);
    let app = model::AppId(77);
    bench.ok(Command::EnsureApp { id: APP, project: PROJECT, name: name("other") });
    let other = released(&mut bench, 1, data());
    assert_eq!(cell_of(&bench, other, 0), Some(2), "another app's volume is another one");
    destroy(&mut bench);
    bench.gone(other);
    bench.ok(Command::DeleteApp(APP));
    bench.ok(Command::EnsureApp { id: app, project: PROJECT, name: name("web") });
    let spec = state::JobSpec { app: Some(app), ..crate::bench::up() };
    bench.queue(spec);
    let at = bench.take(1);
    let again = bench.deploy_spec(at, 1, data());
    assert_eq!(cell_of(&bench, again, 0), Some(1));
    let row = bench.state.get::<Volume>(volume).expect("it is kept");
    assert_eq!(row.state, VolumeState::Attached);
    long(&mut bench, VOLUME_GRACE);
    assert_eq!(bench.state.volumes_to_delete(CellId(1)), []);
}

#[test]
fn a_project_is_not_deleted_while_it_has_volumes() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    destroy(&mut bench);
    bench.gone(deployment);
    bench.ok(Command::DeleteApp(APP));
    let refused = bench.try_apply(Command::DeleteProject(PROJECT)).expect_err("it has a volume");
    assert!(refused.to_string().contains("volume web.0.data of app web"), "{refused}");
    remove(&mut bench, "web.0.data", false).expect("nothing uses it");
    let volume = id(&bench, "web.0.data");
    deleted(&mut bench, 1, volume).expect("it was asked for");
    bench.ok(Command::DeleteProject(PROJECT));
}

#[test]
fn a_process_that_is_not_deployed_any_more_lets_go_of_its_volumes() {
    let mut bench = Bench::ready();
    released(&mut bench, 1, with(data(), &[("old", false)]));
    let at = bench.work_job();
    let new = bench.deploy_spec(at, 1, data());
    assert_eq!(volumes(&bench)[1].2, "attached", "what it replaces may come back");
    let old = bench.state.all::<state::Deployment>().next().expect("there").id;
    bench.gone(old);
    bench.healthy(new);
    bench.release(at, new);
    bench.complete(at, model::Outcome::Succeeded);
    bench.pass_without(9, Duration::from_secs(10));
    let wanted = [("web.0.data", 1, "attached"), ("web.0.old", 1, "detached")];
    assert_eq!(volumes(&bench), wanted.map(|(name, cell, state)| (name.to_owned(), cell, state)));
}

#[test]
fn processes_of_one_app_have_volumes_of_their_own() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let processes =
        ["web", "worker"].map(|it| ProcessTemplate { name: name(it), spec: data(), instances: 1 });
    let (build, id) = (BuildId(bench.fresh()), DeploymentId(bench.fresh()));
    bench.ok(Command::Work(WorkCommand::RecordBuild {
        id: build,
        attempt: at,
        source: SOURCE,
        image: Digest([2; 32]),
        processes: processes.into(),
    }));
    bench.ok(Command::Work(WorkCommand::Deploy { id, attempt: at, build: None }));
    assert_eq!(bench.states(id), ["claimed", "claimed"]);
    let wanted = ["web.0.data", "worker.0.data"].map(|it| (it.to_owned(), 1, "attached"));
    assert_eq!(volumes(&bench), wanted);
}

#[test]
fn a_volume_in_use_is_removed_by_force_only() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    let refused = remove(&mut bench, "web.0.data", false).expect_err("it is in use");
    assert!(refused.contains("volume web.0.data is in use by web.0"), "{refused}");
    let old = id(&bench, "web.0.data");
    remove(&mut bench, "web.0.data", true).expect("it was asked for");
    assert_eq!(bench.states(deployment), ["stopping"]);
    assert_eq!(bench.state.volumes_to_delete(CellId(1)), [old]);
    bench.gone(deployment);
    assert_eq!(bench.states(deployment), ["claimed"]);
    let wanted = ["attached", "deleting"].map(|state| ("web.0.data".to_owned(), 1, state));
    assert_eq!(volumes(&bench), wanted);
    let row = bench.instances(deployment).remove(0);
    assert_ne!(bench.state.volumes_of(&row)[&name("data")], old, "it begins anew");
    deleted(&mut bench, 1, old).expect("it was asked for");
    bench.healthy(deployment);
}

#[test]
fn data_on_a_lost_cell_can_be_given_up() {
    let mut bench = Bench::ready();
    let deployment = released(&mut bench, 1, data());
    let row = bench.instances(deployment).remove(0);
    bench.cell(2, 4_000, &[]);
    bench.lose(1);
    let old = id(&bench, "web.0.data");
    let refused = remove(&mut bench, "web.0.data", false).expect_err("the old copy may serve on");
    assert!(refused.contains("is not connected, and web.0 may still serve from it"), "{refused}");
    assert!(refused.contains("with `--force`") && refused.contains("lost for good"), "{refused}");
    assert_eq!(
        (bench.targets(), bench.states(deployment)),
        (Some((deployment, 1)), vec!["unclaimed"])
    );
    remove(&mut bench, "web.0.data", true).expect("it was asked for");
    assert_eq!(cell_of(&bench, deployment, 0), Some(2));
    let by = |force| Command::RemoveVolume { id: old, force };
    let refused = bench.try_apply(by(false)).expect_err("the cell may come back");
    assert!(refused.to_string().contains("is to be deleted once cell"), "{refused}");
    bench.cell(1, 4_000, &[Held::Instance { id: row.id, epoch: row.epoch }]);
    assert_eq!(cell_of(&bench, deployment, 0), Some(2), "the old copy does not come back");
    assert_eq!(bench.on(1), []);
    assert_eq!(bench.state.volumes_to_delete(CellId(1)), [old]);
    bench.ok(by(false));
    bench.lose(1);
    bench.ok(by(true));
    assert_eq!(volumes(&bench), one("web.0.data", 2, "attached"));
}

#[test]
fn a_cell_that_does_not_start_it_does_not_keep_it() {
    type Away = fn(&mut Bench, &state::Instance);
    let ways: [Away; 3] = [
        |bench, row| {
            bench.report(row, InstanceReport::Reject { reason: "no such driver".to_owned() });
        },
        |bench, row| {
            let (reason, never_healthy) = ("could not start: no disk".to_owned(), false);
            bench.report(row, InstanceReport::Crashed { reason, never_healthy, detail: None });
        },
        |bench, _| bench.lose(1),
    ];
    for away in ways {
        let mut bench = Bench::ready();
        let deployment = deployed(&mut bench, 1, data());
        let row = bench.instances(deployment).remove(0);
        bench.cell(2, 64_000, &[]);
        away(&mut bench, &row);
        bench.pass_without(1, Duration::from_secs(2));
        let placed = cell_of(&bench, deployment, 0);
        let mut now = volumes(&bench);
        now.retain(|(_, cell, _)| *cell == 1);
        assert_eq!((placed, now), (Some(2), one("web.0.data", 1, "deleting")));
        bench.healthy(deployment);
        bench.lose(2);
        let said = why(&bench, deployment, 0);
        assert!(said.starts_with("its volume data lies on cell"), "it has begun there: {said}");
    }
}

#[test]
fn volumes_on_two_cells_wait_for_somebody_to_choose() {
    let mut bench = Bench::ready();
    let first = released(&mut bench, 1, data());
    destroy(&mut bench);
    bench.gone(first);
    bench.cell(2, 64_000, &[]);
    let other = with(process(100), &[("cache", false)]);
    let second = released(&mut bench, 1, other);
    assert_eq!(cell_of(&bench, second, 0), Some(2));
    destroy(&mut bench);
    bench.gone(second);
    let both = deployed(&mut bench, 1, with(data(), &[("cache", false)]));
    let said = why(&bench, both, 0);
    assert!(said.starts_with("its volumes lie on different cells: web.0.cache on"), "{said}");
    let refused = remove(&mut bench, "web.0.cache", false).expect_err("it is waited for");
    assert!(refused.contains("web.0 waits for volume web.0.cache"), "{refused}");
    remove(&mut bench, "web.0.cache", true).expect("it was asked for");
    assert_eq!(cell_of(&bench, both, 0), Some(1));
}

#[test]
fn several_deployments_that_are_not_released_take_turns() {
    let mut bench = Bench::ready();
    let first = deployed(&mut bench, 1, data());
    bench.healthy(first);
    let second = deployed(&mut bench, 1, data());
    let third = deployed(&mut bench, 1, data());
    assert_eq!((bench.states(first), bench.states(second)), (vec!["stopping"], vec![]));
    bench.gone(first);
    assert_eq!(bench.states(third), ["claimed"]);
    assert_eq!((bench.states(first), bench.states(second)), (vec![], vec![]));
}

#[test]
fn a_project_has_its_share_of_volumes() {
    let mut bench = Bench::ready();
    bench.cell(2, 64_000, &[]);
    let names: Vec<String> = (0..16).map(|number| format!("v{number}")).collect();
    let mounts: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
    let fit = MAX_VOLUMES_PER_PROJECT / mounts.len();
    let instances = u32::try_from(fit).expect("few") + 2;
    let deployment = deployed(&mut bench, instances, with(process(100), &mounts));
    assert_eq!(volumes(&bench).len(), fit * mounts.len());
    let waiting = bench.states(deployment).iter().filter(|state| **state == "unclaimed").count();
    assert_eq!(waiting, 2);
    let said = why(&bench, deployment, fit);
    assert!(said.starts_with("its project has 992 volumes already, at most 1000"), "{said}");
}
