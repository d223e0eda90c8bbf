//! What a driver is told that lays out containers itself.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::proto::Drained;
use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use drivers::process::ProcessDriver;
use drivers::{
    Ability, Capabilities, ContainerInfo, ContainerSpec, Driver, Exit, Handle, Input, Network,
    Outcome, OutputOffset, OutputStream, ProcessId, ProcessSpec, Protocol, Publish, Result,
    Session, SessionControl, Signal, Started, Stats, Target, Terminal, archive,
};
use futures_util::future::BoxFuture;
use model::{Action, EgressProtocol, EgressRule, UploadMode, VolumeMount};
use runtime::{Stop, Tasks};
use serde_json::json;

use crate::bench::{
    Bench, TESTBED, instance, process, sh, stopped, task, task_of, task_spec, task_work, until,
};
use crate::images::image;
use crate::instances::ready;
use crate::server::{Server, token};
use crate::tasks::{archive as tar, begin};

/// The process driver, which says that it can do more and notes what it is told.
#[derive(Debug)]
pub(crate) struct Pretender {
    pub(crate) inner: ProcessDriver,
    pub(crate) told: Mutex<Vec<ContainerSpec>>,
    /// The address of every container, if they have networks of their own.
    pub(crate) own: Option<IpAddr>,
    /// Whether removing a container never ends.
    pub(crate) hangs: bool,
}

impl Driver for Pretender {
    fn capabilities(&self) -> Capabilities {
        let mut abilities =
            vec![Ability::LayOut, Ability::Users, Ability::RestrictEgress, Ability::Sessions];
        abilities.extend(self.own.map(|_| Ability::Publish));
        Capabilities { abilities, ..self.inner.capabilities() }
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(spec.clone());
        self.inner.create(spec)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>> {
        self.inner.list()
    }

    fn inspect<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<ContainerInfo>> {
        self.inner.inspect(handle)
    }

    fn start<'a>(
        &'a self,
        handle: &'a Handle,
        spec: ProcessSpec,
    ) -> BoxFuture<'a, Result<Started>> {
        self.inner.start(handle, ProcessSpec { user: None, ..spec })
    }

    fn attach<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        from: OutputOffset,
    ) -> BoxFuture<'a, Result<OutputStream>> {
        self.inner.attach(handle, process, from)
    }

    fn wait<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
    ) -> BoxFuture<'a, Result<Exit>> {
        self.inner.wait(handle, process)
    }

    fn signal<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        signal: Signal,
    ) -> BoxFuture<'a, Result<()>> {
        self.inner.signal(handle, process, signal)
    }

    fn stop<'a>(
        &'a self,
        handle: &'a Handle,
        target: Target,
        grace: Duration,
    ) -> BoxFuture<'a, Result<()>> {
        self.inner.stop(handle, target, grace)
    }

    fn remove<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        if self.hangs { Box::pin(std::future::pending()) } else { self.inner.remove(handle) }
    }

    fn stats<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Stats>> {
        self.inner.stats(handle)
    }

    fn copy_in<'a>(
        &'a self,
        handle: &'a Handle,
        path: &'a str,
        tar: Input,
        limits: archive::Limits,
    ) -> BoxFuture<'a, Result<archive::Summary>> {
        self.inner.copy_in(handle, path, tar, limits)
    }

    fn copy_out<'a>(&'a self, handle: &'a Handle, path: &'a str) -> BoxFuture<'a, Result<Input>> {
        self.inner.copy_out(handle, path)
    }

    fn host_path(&self, _: &Handle, _: &str) -> Option<PathBuf> {
        None
    }

    fn network(&self, handle: &Handle) -> Network {
        self.own.map_or_else(|| self.inner.network(handle), Network::Own)
    }

    fn session<'a>(
        &'a self,
        _: &'a Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> BoxFuture<'a, Result<Session>> {
        Box::pin(async move {
            let (program, arguments) = spec.argv.split_first().expect("a program");
            let mut child = tokio::process::Command::new(program)
                .args(arguments)
                .envs(&spec.env)
                .env("SIZE", terminal.map_or(0, |size| size.columns).to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("starts");
            Ok(Session {
                input: Box::pin(child.stdin.take().expect("an input")),
                output: Box::pin(child.stdout.take().expect("an output")),
                error: Box::pin(child.stderr.take().expect("an error output")),
                control: Box::new(Child(child)),
            })
        })
    }
}

struct Child(tokio::process::Child);

impl SessionControl for Child {
    fn resize(&self, _: Terminal) -> Result<()> {
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        assert_eq!(signal, Signal::Term);
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(rustix::process::Pid::from_raw).expect("runs");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
        Ok(())
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<Exit>> {
        Box::pin(async {
            let status = self.0.wait().await.expect("ends");
            let outcome = match (status.code(), status.signal()) {
                (Some(code), _) => Outcome::Code(code),
                (None, signal) => Outcome::Signal(signal.unwrap_or(0)),
            };
            Ok(Exit { outcome, oom: false, at_ms: None })
        })
    }
}

pub(crate) fn pretender(bench: &Bench) -> (Arc<Pretender>, Tasks) {
    let tasks = Tasks::new(Stop::new());
    let (inner, told) = (bench.driver(&tasks), Mutex::default());
    (Arc::new(Pretender { inner, told, own: None, hangs: false }), tasks)
}

#[tokio::test]
async fn other_machines_reach_a_container_by_the_cells_address() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (made, _tasks) = pretender(&bench);
    let own = Some(IpAddr::from([127, 0, 0, 1]));
    let made = Arc::into_inner(made).expect("nobody else has it");
    let driver = Arc::new(Pretender { own, ..made });
    let lent: Arc<dyn Driver> = driver.clone();
    let agent = bench.start_with(&server.url, |options| {
        options.drivers = vec![lent];
        options.address = [192, 0, 2, 7].into();
    });
    let mut stream = server.accept().await;
    let spec = process(&["/bin/sleep", "1000"], None);
    stream.desire(true, vec![instance(1, &spec)]).await;
    let address = ready(&mut stream).await;
    let told = driver.told.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("made");
    let port = told.publish[0].host;
    assert_eq!(address, format!("192.0.2.7:{port}"));
    assert_eq!(told.publish, [Publish { host: port, container: 8080 }]);
    let variable = |name: &str| told.env.get(name).map(String::as_str);
    assert_eq!((variable("PORT"), variable("HOST")), (Some("8080"), Some("0.0.0.0")));
    agent.stop().await;
}

#[tokio::test]
async fn a_cell_leaves_although_removing_a_container_hangs() {
    for has_server in [true, false] {
        let (bench, mut server) = (Bench::new(), Server::start().await);
        let (made, _tasks) = pretender(&bench);
        let made = Arc::into_inner(made).expect("nobody else has it");
        let mut options =
            cell::Options::new("x".parse().expect("a name"), bench.dir.path(), TESTBED);
        options.drivers = vec![Arc::new(Pretender { hangs: true, ..made })];
        (options.leave_limit, options.task_lease) =
            (Duration::from_millis(300), Duration::from_millis(300));
        let leave = options.leave.clone();
        let tasks = Tasks::new(Stop::new());
        let endpoint = api::Endpoint::new(&server.url, token()).expect("a good address");
        let run = cell::Cell::run(options, endpoint, tasks.clone());
        let script = async {
            let mut stream = server.accept().await;
            let mut spec = process(&["/bin/sleep", "1000"], None);
            spec.stop_grace_ms = 0;
            stream.desire(true, vec![instance(1, &spec)]).await;
            ready(&mut stream).await;
            leave.stop();
            if has_server {
                while !matches!(stream.next().await, Up::Leave(_)) {}
                stream.send(Down::Drained(Drained {})).await;
                stream.meanwhile(std::future::pending()).await;
            }
            drop((stream, server));
            std::future::pending::<()>().await;
        };
        let left = Box::pin(async {
            tokio::select! {
                left = run => left,
                () = script => unreachable!("it never ends"),
            }
        });
        let left = runtime::timeout(crate::server::SOON, left).await.expect("it leaves");
        assert!(left.is_ok(), "{left:?}");
        // The process was ended; only its container is left, for whoever comes next.
        assert_eq!(bench.containers().len(), 1);
        assert!(tasks.shutdown(crate::server::SOON).await, "nothing of it waits for the driver");
        let mut server = Server::start().await;
        let agent = bench.start(&server);
        let mut stream = server.accept().await;
        stream.desire(true, Vec::new()).await;
        stream.meanwhile(bench.until_empty()).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_manifest_opens_no_network_that_the_operator_did_not_name() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (driver, _tasks) = pretender(&bench);
    let agent = bench.start_with(&server.url, |options| {
        options.drivers = vec![driver];
        options.allowed_networks = vec!["10.1.0.0/16".parse().expect("a network")];
    });
    let mut stream = server.accept().await;
    for (number, to) in
        ["0.0.0.0/0", "10.0.0.0/8", "169.254.169.254", "10.2.0.1"].iter().enumerate()
    {
        let mut spec = process(&["/bin/sleep", "1000"], None);
        let rule = EgressRule { to: (*to).to_owned(), protocol: None, ports: None };
        spec.container.egress.push(rule);
        stream.desire(false, vec![instance(number as u128 + 1, &spec)]).await;
        let report = stream.report().await.1;
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("is not allowed on this cell"), "{to}: {report}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_driver_is_told_all_a_spec_says() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (driver, _tasks) = pretender(&bench);
    let lent: Arc<dyn Driver> = driver.clone();
    let agent = bench.start_with(&server.url, |options| {
        options.drivers = vec![lent];
        options.allowed_networks = vec!["10.0.0.0/8".parse().expect("a network")];
    });
    let mut stream = server.accept().await;
    let mut spec = process(&["/bin/sleep", "1000"], None);
    let container = &mut spec.container;
    container.image = Some(image(&server.blobs, &[tar(&[("a", "b")]), tar(&[("c", "d")])]));
    container.caches.insert("deps".into(), "/var/cache".into());
    let mount = VolumeMount { path: "/data".into(), read_only: true };
    container.volumes.insert("files".parse().expect("a name"), mount);
    let (protocol, ports) = (Some(EgressProtocol::Tcp), Some((5432, 5432)));
    container.egress.push(EgressRule { to: "10.1.0.0/16".into(), protocol, ports });
    container.user = Some("1000:1001".into());
    (container.read_only, container.tmp_mb) = (true, Some(64));
    container.limits.cpu_shares = Some(512);
    container.env.insert("OWN".into(), "value".into());
    let wanted = instance(1, &spec);
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    let told = driver.told.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("made");
    assert_eq!(told.check().map_err(|error| error.to_string()), Ok(()));
    let layers: Vec<bool> = told.root.layers.iter().map(|layer| layer.is_dir()).collect();
    assert_eq!(
        (layers, told.root.read_only, told.root.tmp_bytes),
        (vec![true; 2], true, Some(64 << 20))
    );
    let mounts: Vec<(&str, bool)> =
        told.mounts.iter().map(|mount| (mount.target.as_str(), mount.read_only)).collect();
    let programs = model::PROGRAMS.map(|program| (program, true));
    let wanted_mounts = [&programs[..], &[("/var/cache", false), ("/data", true)]].concat();
    assert_eq!(mounts, wanted_mounts);
    assert!(told.mounts.iter().all(|mount| mount.source.exists()), "{:?}", told.mounts);
    let rule = &told.egress[0];
    assert_eq!((rule.prefix, rule.protocol, rule.ports), (16, Protocol::Tcp, Some((5432, 5432))));
    assert_eq!(told.user.map(|user| (user.uid, user.gid)), Some((1000, 1001)));
    assert_eq!(told.limits.cpu_millis, Some(500));
    assert_eq!(told.env.get("OWN").map(String::as_str), Some("value"));
    assert_eq!(told.env.get("SHORE_APP").map(String::as_str), Some("shop"));
    agent.stop().await;
    drop(stream);
    // The next agent keeps the layers as long as the container.
    let (driver, _tasks) = pretender(&bench);
    let agent = bench.start_with(&server.url, |options| options.drivers = vec![driver]);
    let mut stream = server.accept().await;
    assert_eq!(stream.hello.holds.len(), 1);
    stream.desire(true, vec![stopped(&wanted)]).await;
    let gone = async { while stream.report().await.1["report"] != "gone" {} };
    assert!(runtime::timeout(crate::server::SOON, gone).await.is_some());
    agent.stop().await;
}

#[tokio::test]
async fn files_go_in_and_out_through_the_driver() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (driver, _tasks) = pretender(&bench);
    let agent = bench.start_with(&server.url, |options| options.drivers = vec![driver]);
    let mut stream = server.accept().await;
    let blob = server.blobs.put("just bytes");
    // A directory of the cell that somebody removed is made again.
    std::fs::remove_dir(bench.dir.path().join("spool")).expect("is empty");
    let actions = vec![
        Action::download(blob, "/in/plain", false),
        sh("cd \"$SHORE_ROOT\"; mkdir out; cp in/plain out/x; (cat in/plain; echo .) > y; \
            mv out/x out/$(sha256sum out/x | cut -c1-64)"),
        Action::upload("/y", UploadMode::File),
        Action::upload("/out", UploadMode::DigestNamed),
    ];
    let mut spec = task_spec(Action::Serial { actions });
    spec.result_file = Some("/in/plain".into());
    begin(&mut stream, &spec).await;
    let (_, report) = stream.report().await;
    assert_eq!(report["result"], "just bytes", "{report}");
    assert!(server.blobs.get(model::Digest::of(b"just bytes.\n")).is_some());
    stream.meanwhile(bench.until_empty()).await;
    let spool = std::fs::read_dir(bench.dir.path().join("spool")).expect("lists");
    assert_eq!(spool.count(), 0, "nothing is left behind");
    agent.stop().await;
}

#[tokio::test]
async fn as_many_results_are_spooled_as_are_sent() {
    let (bench, mut server) = (Bench::new(), Server::start().await);
    let (driver, _tasks) = pretender(&bench);
    let agent = bench.start_with(&server.url, |options| options.drivers = vec![driver]);
    let held = server.blobs.hold();
    let mut stream = server.accept().await;
    let mut spec = task_spec(sh("head -c 2097152 /dev/zero > \"$SHORE_ROOT/result\""));
    spec.result_file = Some("/result".into());
    let many = 2 * cell::MAX_UPLOADS as u128;
    for number in 1..=many {
        stream.desire(false, vec![task_of(&number.to_string(), number, &spec)]).await;
        stream.expect(json!({"report": "claim"})).await;
        stream.send(Down::Claimed(task_work(number, 1))).await;
    }
    until("uploads begin", || server.blobs.writes() == cell::MAX_UPLOADS).await;
    // A small result waits for nobody.
    spec = task_spec(sh("echo small > \"$SHORE_ROOT/result\""));
    spec.result_file = Some("/result".into());
    stream.desire(false, vec![task(many + 1, &spec)]).await;
    stream.expect(json!({"report": "claim"})).await;
    stream.send(Down::Claimed(task_work(many + 1, 1))).await;
    stream.expect(json!({"report": "succeeded", "result": "small\n"})).await;
    let spooled = || std::fs::read_dir(bench.dir.path().join("spool")).expect("lists").flatten();
    assert_eq!(spooled().count(), cell::MAX_UPLOADS);
    let blocks = spooled().map(|copy| copy.path().join("result").metadata().expect("is there"));
    assert!(blocks.map(|file| file.blocks()).sum::<u64>() < 128, "zeros take no room");
    held.stop();
    for _ in 1..=many {
        let (_, report) = stream.report().await;
        assert_eq!(report["report"], "succeeded", "{report}");
    }
    agent.stop().await;
}
