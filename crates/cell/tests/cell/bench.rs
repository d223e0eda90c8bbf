//! A cell on a directory of its own, and work for it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::Endpoint;
use api::proto::work::Kind;
use api::proto::{DesiredWork, Work, id_bytes};
use cell::{Cell, Options};
use drivers::process::{Config, ProcessDriver};
use model::{Action, Check, CheckKind, Name, ProcessSpec, TaskSpec, VolumeId};
use runtime::{Kind as TaskKind, Stop, Tasks};
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{SOON, Server, token};

pub(crate) const TESTBED: &str = env!("CARGO_BIN_EXE_cell-testbed");

/// Where a cell lives, across its restarts.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) tasks: Tasks,
    pub(crate) leave: Stop,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("makes a directory") }
    }

    pub(crate) fn start(&self, server: &Server) -> Agent {
        self.start_at(&server.url)
    }

    pub(crate) fn start_at(&self, url: &str) -> Agent {
        self.start_with(url, |_| {})
    }

    pub(crate) fn start_with(&self, url: &str, change: impl FnOnce(&mut Options)) -> Agent {
        let tasks = Tasks::new(Stop::new());
        let name = "test".parse().expect("a good name");
        let mut options = Options::new(name, self.dir.path(), TESTBED);
        options.drivers = vec![Arc::new(self.driver(&tasks))];
        "/opt/agent/bin".clone_into(&mut options.path);
        change(&mut options);
        let leave = options.leave.clone();
        let endpoint = Endpoint::new(url, token()).expect("a good address");
        tasks.spawn(TaskKind::Critical, "cell", Cell::run(options, endpoint, tasks.clone()));
        Agent { tasks, leave }
    }

    pub(crate) fn driver(&self, tasks: &Tasks) -> ProcessDriver {
        let mut config = Config::new(self.dir.path().join("containers"));
        config.supervisor = TESTBED.into();
        ProcessDriver::open(&config, tasks.clone()).expect("opens")
    }

    /// The handles of all containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        let listed = fs::read_dir(self.dir.path().join("containers")).expect("lists");
        let names = listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    pub(crate) async fn until_empty(&self) {
        until("containers are gone", || self.containers().is_empty()).await;
    }

    /// The only container's root.
    pub(crate) fn root(&self) -> PathBuf {
        let containers = self.containers();
        assert_eq!(containers.len(), 1, "{containers:?}");
        self.dir.path().join("containers").join(&containers[0]).join("root")
    }

    /// The process number of the only container's only process.
    pub(crate) fn pid(&self) -> u64 {
        self.number("command")
    }

    /// That of its `command` or of its `supervisor`.
    fn number(&self, of: &str) -> u64 {
        let processes = self.root().with_file_name("processes");
        let one = fs::read_dir(processes).expect("lists").flatten().next().expect("one");
        let text = fs::read_to_string(one.path().join("started.json")).expect("reads");
        let started: serde_json::Value = serde_json::from_str(&text).expect("parses");
        started[of]["pid"].as_u64().expect("a number")
    }

    /// Removes the only container's directory, then kills these of its processes.
    pub(crate) fn vanish(&self, killed: &[&str]) {
        let killed: Vec<_> = killed.iter().map(|of| self.number(of)).collect();
        let (root, vanished) = (self.root(), self.dir.path().join("vanished"));
        // Moving it comes first, as the app may write into it meanwhile.
        fs::rename(root.parent().expect("a container"), &vanished).expect("moves");
        fs::remove_dir_all(vanished).expect("removes");
        for pid in killed {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a number");
            kill_process(pid, Signal::KILL).expect("it runs");
        }
    }
}

impl Agent {
    /// Ends the agent, not its containers.
    pub(crate) async fn stop(self) {
        assert!(self.tasks.shutdown(SOON).await, "the agent ends");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A failed test must not leave processes behind.
        let marker = format!("SHORE_ROOT={}", self.dir.path().display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            if String::from_utf8_lossy(&environ).contains(&marker)
                && let Some(pid) = Pid::from_raw(pid)
            {
                kill_process(pid, Signal::KILL).unwrap_or_default();
            }
        }
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let look = async {
        while !condition() {
            runtime::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(runtime::timeout(SOON, look).await.is_some(), "{what}");
}

pub(crate) fn task_work(id: u128, epoch: u32) -> Work {
    Work { kind: Kind::Task.into(), id: id_bytes(id), epoch }
}

pub(crate) fn instance_work(id: u128, epoch: u32) -> Work {
    Work { kind: Kind::Instance.into(), id: id_bytes(id), epoch }
}

pub(crate) fn sh(text: &str) -> Action {
    Action::run(["/bin/sh", "-c", text])
}

pub(crate) fn task_spec(action: Action) -> TaskSpec {
    TaskSpec::new(action, 60_000)
}

/// A task of a project.
pub(crate) fn task_of(project: &str, id: u128, spec: &TaskSpec) -> DesiredWork {
    let labels = HashMap::from([("project".to_owned(), project.to_owned())]);
    DesiredWork { labels, ..task(id, spec) }
}

pub(crate) fn task(id: u128, spec: &TaskSpec) -> DesiredWork {
    let spec_json = serde_json::to_vec(spec).expect("specs serialise");
    DesiredWork {
        work: Some(task_work(id, 1)),
        spec_json: Some(spec_json.into()),
        stop: false,
        labels: HashMap::new(),
        volumes: HashMap::new(),
    }
}

pub(crate) fn process(argv: &[&str], check: Option<Check>) -> ProcessSpec {
    ProcessSpec { check, stop_grace_ms: 5_000, ..ProcessSpec::new(argv.iter().copied()) }
}

/// The app that listens.
pub(crate) fn web(check: Option<Check>) -> ProcessSpec {
    process(&["/cnb/lifecycle/launcher", "web"], check)
}

pub(crate) fn http_check() -> Check {
    Check {
        kind: CheckKind::Http { path: "/".to_owned() },
        interval_ms: 20,
        timeout_ms: 1_000,
        start_timeout_ms: 10_000,
        failures: 2,
        ..Check::default()
    }
}

/// The id that tests give the volume of a name.
pub(crate) const VOLUME: VolumeId = VolumeId(5);

fn volume(name: &Name) -> (String, bytes::Bytes) {
    (name.to_string(), id_bytes(VOLUME.0))
}

pub(crate) fn instance(id: u128, spec: &ProcessSpec) -> DesiredWork {
    let spec_json = serde_json::to_vec(spec).expect("specs serialise");
    let labels = [
        ("process", "web"),
        ("index", "0"),
        ("app", "shop"),
        ("project", "acme"),
        ("workspace", "production"),
        ("deployment", "7"),
    ];
    DesiredWork {
        work: Some(instance_work(id, 1)),
        spec_json: Some(spec_json.into()),
        stop: false,
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        volumes: spec.container.volumes.keys().map(volume).collect(),
    }
}

/// The same work, to be stopped.
pub(crate) fn stopped(work: &DesiredWork) -> DesiredWork {
    DesiredWork { spec_json: None, stop: true, ..work.clone() }
}
