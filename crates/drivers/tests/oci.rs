//! The oci driver against the conformance suite, and what only it promises.

mod procs;

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drivers::conformance::{self, Subject};
use drivers::oci::{Config, OciDriver};
use drivers::{
    ContainerSpec, Driver, EgressRule, Handle, Mount, Network, Outcome, OutputOffset, ProcessId,
    ProcessSpec, Protocol, Signal,
};
use futures_util::StreamExt as _;
use futures_util::stream;
use runtime::{Stop, Tasks, mono_now, sleep, timeout};
use tokio::io::AsyncReadExt as _;

use crate::procs::{Agent, running_with};

const TESTBED: &str = env!("CARGO_BIN_EXE_drivers-testbed");
const SOON: Duration = Duration::from_secs(20);
/// How many cases run at once.
const AT_ONCE: usize = 4;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A driver's place, where this machine has what it needs.
    fn new() -> Option<Self> {
        let place = Self { dir: tempfile::tempdir().expect("makes a directory") };
        let unavailable = place.open_driver().capabilities().unavailable;
        let Some(reason) = unavailable else { return Some(place) };
        let told = format!("{reason}; install runc iproute2 nftables iptables and run as root");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{told}");
        let mut out = std::io::stdout();
        writeln!(out, "skipped: {told}").expect("writes");
        None
    }

    fn open_driver(&self) -> OciDriver {
        self.open_limited(None)
    }

    /// A driver whose containers together may use so many bytes of memory.
    fn open_limited(&self, memory_bytes: Option<u64>) -> OciDriver {
        let mut config = Config::new(self.dir.path());
        config.memory_bytes = memory_bytes;
        config.supervisor = TESTBED.into();
        config.base_mounts = Config::machine_base();
        OciDriver::open(&config, Tasks::new(Stop::new())).expect("opens")
    }
}

impl Subject for Place {
    fn open(&self) -> drivers::Result<Arc<dyn Driver>> {
        Ok(Arc::new(self.open_driver()))
    }
}

fn handle(name: &str) -> Handle {
    Handle::new(name).expect("a good handle")
}

fn id(name: &str) -> ProcessId {
    ProcessId::new(name).expect("a good id")
}

fn sh(name: &str, text: &str) -> ProcessSpec {
    ProcessSpec::new(id(name), ["/bin/sh", "-c", text])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(place) = Place::new().map(Arc::new) else { return };
    let only = std::env::var_os("CASE").map(|only| only.to_string_lossy().into_owned());
    let wanted = |case: &conformance::Case| only.as_ref().is_none_or(|it| case.name.contains(it));
    let verdicts: Vec<_> = stream::iter(conformance::all().into_iter().filter(wanted))
        .map(|case| {
            let place = Arc::clone(&place);
            async move { (case.name, mono_now(), case.run(place).await, mono_now()) }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut failed = Vec::new();
    for (name, begin, verdict, end) in verdicts {
        println!("{:6.0} ms {name}", (end - begin).as_secs_f64() * 1000.0);
        if let Err(failure) = verdict {
            failed.push(format!("{name}: {failure}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let left: Vec<_> = fs::read_dir(place.dir.path()).expect("lists").flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name().as_encoded_bytes().starts_with(b".")));
    let trash = fs::read_dir(place.dir.path().join(".trash")).expect("lists").count();
    assert_eq!(trash, 0, "the trash is empty");
}

/// What a driver's containers leave on the machine outside of its directory.
fn traces(base: &Path) -> Vec<String> {
    let base = base.canonicalize().expect("is there").display().to_string();
    let mut found = Vec::new();
    let mut look = |what: &str, text: String, wanted: &str| {
        let lines = text.lines().filter(|line| line.contains(wanted));
        found.extend(lines.map(|line| format!("{what}: {line}")));
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    look("mount", read("/proc/self/mountinfo"), &base);
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    look("loop device", output("losetup", &["-a"]), &base);
    let mut slots = String::new();
    for slot in fs::read_dir("/run/shore/slots").expect("lists").flatten() {
        slots.push_str(&read(&slot.path().display().to_string()));
    }
    look("number", slots, &base);
    let prefix = OciDriver::name_on_the_machine(Path::new(&base));
    look("table", output("nft", &["list", "tables"]), &prefix);
    look("rule", output("iptables", &["-w", "-S"]), &prefix);
    look("link", output("ip", &["-brief", "link"]), &prefix);
    for tree in fs::read_dir("/sys/fs/cgroup").expect("lists").flatten() {
        let group = tree.path().join(&prefix);
        look("group", if group.exists() { group.display().to_string() } else { String::new() }, "");
    }
    found
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let look = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, look).await.is_some(), "{what}");
}

/// Waits until the machine shows nothing of a place any more, or says what it shows.
async fn nothing_left(place: &Place) {
    let look = async {
        while !traces(place.dir.path()).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = timeout(SOON, look).await.is_some();
    assert!(gone, "left: {:#?}", traces(place.dir.path()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_on_the_machine() {
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let scratch = tempfile::tempdir().expect("makes a directory");
    let handles = ["a", "b"].map(handle);
    for handle in &handles {
        let mut spec = ContainerSpec::new(handle.clone());
        spec.limits.disk_bytes = Some(8 << 20);
        spec.root.tmp_bytes = Some(1 << 20);
        let (source, target) = (scratch.path().to_owned(), "/volume".to_owned());
        spec.mounts.push(Mount { source, target, read_only: false });
        let network = [10, 9, 8, 0].into();
        spec.egress.push(EgressRule { network, prefix: 24, protocol: Protocol::Tcp, ports: None });
        driver.create(spec).await.expect("creates");
        driver
            .start(handle, sh("p", "(setsid sleep 1000 &); exec sleep 1000"))
            .await
            .expect("starts");
    }
    let mounted = traces(place.dir.path()).into_iter().filter(|trace| trace.starts_with("mount"));
    assert_eq!(mounted.count(), 0, "mounts belong to containers only");
    assert!(traces(place.dir.path()).len() > 4, "it is looked for in the right places");
    for handle in &handles {
        driver.remove(handle).await.expect("removes");
    }
    // The kernel lets go of a loop device a moment after its last user.
    nothing_left(&place).await;
    let state = fs::read_dir(place.dir.path().join(".runtime")).expect("lists").count();
    assert_eq!(state, 0, "what the runtime knew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_at_any_moment_leaves_nothing_half_made() {
    const ROUNDS: u64 = 8;
    let Some(place) = Place::new() else { return };
    for round in 0..ROUNDS {
        let agent = Agent::start(place.dir.path(), "churn");
        sleep(Duration::from_millis(60 + round * 53)).await;
        drop(agent);
    }
    // What is made at that moment is finished by its helper, and then it is left as well.
    until("a sweep finds everything", || {
        drop(place.open_driver());
        let drafts = fs::read_dir(place.dir.path()).expect("lists").flatten();
        !drafts.into_iter().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b".new-"))
    })
    .await;
    let driver = place.open_driver();
    for container in driver.list().await.expect("lists") {
        driver.remove(&container.handle).await.expect("removes");
    }
    let first = handle("first");
    driver.create(ContainerSpec::new(first.clone())).await.expect("creates");
    driver.start(&first, sh("p", "true")).await.expect("starts");
    driver.remove(&first).await.expect("removes");
    nothing_left(&place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_leaves_the_app_running() {
    let Some(place) = Place::new() else { return };
    let agent = Agent::start(place.dir.path(), "oci");
    let (kept, writer) = (handle("kept"), ProcessId::new("writer").expect("a good id"));
    let output = place.dir.path().join("kept/processes/writer/output.00000000000000000000");
    let size = || fs::metadata(&output).map_or(0, |file| file.len());
    until("output", || size() > 200).await;
    drop(agent);
    let before = size();
    until("output without an agent", || size() > before).await;
    let driver = place.open_driver();
    driver.signal(&kept, &writer, Signal::Term).await.expect("signals");
    let exit = timeout(SOON, driver.wait(&kept, &writer)).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Code(7));
    driver.start(&kept, sh("next", "true")).await.expect("starts another");
    driver.remove(&kept).await.expect("removes");
    nothing_left(&place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_agent_and_keeper_were_killed_ends_with_the_next_agent() {
    let Some(place) = Place::new() else { return };
    let agent = Agent::start(place.dir.path(), "oci-session");
    let token = format!("SESSION_OF={}", agent.0.id());
    until("a session", || running_with(&token).len() >= 3).await;
    agent.end_with_its_keeper();
    assert!(!running_with(&token).is_empty(), "nobody is there who would end all of it");
    let driver = place.open_driver();
    until("its end", || running_with(&token).is_empty()).await;
    driver.remove(&handle("kept")).await.expect("removes");
}

#[tokio::test]
async fn what_is_sent_to_a_container_that_is_gone_does_not_leave_the_machine() {
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let handle = handle("gone");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let Network::Own(address) = driver.network(&handle) else {
        unreachable!("it shares no network")
    };
    let connect = || timeout(SOON, tokio::net::TcpStream::connect((address, 80)));
    let error = connect().await.expect("an answer").expect_err("nothing listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    driver.remove(&handle).await.expect("removes");
    let error = connect().await.expect("an answer").expect_err("it is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
}

/// Between fork and exec a process that enters a container is the agent's executable.
#[tokio::test]
async fn a_container_can_neither_run_nor_change_the_agent() {
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let handle = handle("own");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let text = "ln -s /proc/self/exe /link; ln -s /proc/self /self; \
                echo '#!/proc/self/exe' > /script; chmod 755 /script; echo done; exec sleep 1000";
    driver.start(&handle, sh("p", text)).await.expect("starts");
    let mut output = driver.attach(&handle, &id("p"), OutputOffset(0)).await.expect("attaches");
    output.next().await.expect("is written").expect("is read");
    let programs =
        ["/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe", "/link", "/script", "exe"];
    for program in programs {
        let mut spec = ProcessSpec::new(id("other"), [program, "--version"]);
        spec.env.insert("PATH".to_owned(), "/bin:/proc/self:/self".to_owned());
        let fault = driver.start(&handle, spec).await.expect_err(program).to_string();
        let refused = fault.contains("no such command") || fault.contains("permission denied");
        assert!(refused, "{program}: {fault}");
    }
    let info = driver.inspect(&handle).await.expect("inspects");
    let supervisor = info.processes.first().and_then(|process| process.supervisor);
    let exe = format!("/proc/{}/exe", supervisor.expect("is supervised"));
    let permissions = fs::metadata(&exe).expect("is there").permissions();
    assert_eq!(permissions, fs::metadata(TESTBED).expect("is there").permissions());
    let error = fs::set_permissions(&exe, permissions).expect_err("cannot be changed");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    driver.remove(&handle).await.expect("removes");
}

/// The last of a chain of links, each through thousands of directories, in a container's root.
async fn long_way(driver: &OciDriver, handle: &Handle) {
    let text = "mkdir /l && cd /l && pad=$(printf './%.0s' $(seq 2000)) && mkdir 0 && \
                for i in $(seq 38); do ln -s $pad$((i - 1)) $i || exit 1; done; \
                ln -s l/38 /z && cd /z && echo x > /text && chmod 755 /text";
    driver.start(handle, sh("links", text)).await.expect("starts");
    let exit = driver.wait(handle, &id("links")).await;
    assert_eq!(exit.expect("ends").outcome, Outcome::Code(0));
}

/// With one thread: nothing else could go on while it looks for something.
#[tokio::test]
async fn a_container_with_a_long_way_to_its_programs_holds_up_nobody() {
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let handle = handle("long");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    long_way(&driver, &handle).await;
    let (mut longest, mut last) = (Duration::ZERO, mono_now());
    let begin = mono_now();
    // Sixty thousand parts, of which the first are looked at, and sixty with what is no program last.
    for (parts, wanted) in [(60_000, "in the first 64 directories"), (60, "not a program")] {
        let mut spec = ProcessSpec::new(id("p"), ["text"]);
        spec.env.insert("PATH".to_owned(), format!("{}/", "z:".repeat(parts)));
        let mut start = driver.start(&handle, spec);
        let fault = loop {
            let turn = timeout(Duration::from_millis(1), &mut start).await;
            longest = longest.max(mono_now() - last);
            last = mono_now();
            if let Some(started) = turn {
                break started.expect_err("is refused").to_string();
            }
        };
        assert!(fault.contains(wanted), "{fault}");
    }
    let whole = mono_now() - begin;
    println!("{whole:?} of which at most {longest:?} at once");
    assert!(longest < whole / 4, "{longest:?} of {whole:?} at once");
    driver.remove(&handle).await.expect("removes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_goes_and_comes_back_is_noticed() {
    let Some(place) = Place::new() else { return };
    let bin = tempfile::tempdir().expect("makes a directory");
    let runtime = bin.path().join("runc");
    let found = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = found.map(|dir| Path::new(dir).join("runc")).into_iter().find(|it| it.exists());
    let found = found.expect("the driver found it as well");
    let mut config = Config::new(place.dir.path());
    config.supervisor = TESTBED.into();
    config.base_mounts = Config::machine_base();
    config.runtime.clone_from(&runtime);
    // It may be missing already when the driver is opened.
    let driver = OciDriver::open(&config, Tasks::new(Stop::new())).expect("opens");
    for name in ["first", "second"] {
        let told = driver.look_again().expect("there is no runtime");
        assert!(told.contains("runc is not installed"), "{told}");
        assert_eq!(driver.capabilities().unavailable, Some(told));
        let spec = ContainerSpec::new(handle(name));
        let refused = driver.create(spec.clone()).await.expect_err("it is not tried");
        assert!(refused.to_string().contains("not installed"), "{refused}");
        std::os::unix::fs::symlink(&found, &runtime).expect("links");
        assert_eq!(driver.look_again(), None);
        driver.create(spec).await.expect("creates");
        driver.start(&handle(name), sh("p", "true")).await.expect("starts");
        driver.remove(&handle(name)).await.expect("removes");
        fs::remove_file(&runtime).expect("is there");
    }
}

/// Copies something out of a container: the archive, or why not.
async fn copied_out(driver: &OciDriver, handle: &Handle, path: &str) -> Result<Vec<u8>, String> {
    let mut tar = driver.copy_out(handle, path).await.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_files_of_the_machine_stay_private() {
    let Some(place) = Place::new() else { return };
    let shown = tempfile::tempdir().expect("makes a directory");
    let target = "/opt/machine";
    for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
        let file = shown.path().join(name);
        fs::write(&file, name).expect("writes");
        fs::set_permissions(file, Permissions::from_mode(mode)).expect("is set");
    }
    fs::set_permissions(shown.path(), Permissions::from_mode(0o755)).expect("is set");
    let mut config = Config::new(place.dir.path());
    config.supervisor = TESTBED.into();
    config.base_mounts = Config::machine_base();
    let source = shown.path().to_owned();
    config.base_mounts.push(Mount { source, target: target.to_owned(), read_only: true });
    let driver = OciDriver::open(&config, Tasks::new(Stop::new())).expect("opens");
    let handle = handle("a");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("is made");
    let text = "cat /opt/machine/closed && exit 1; echo mine > /mine && chmod 600 /mine && \
                chown 7:8 /mine && test \"$(cat /opt/machine/open)\" = open";
    driver.start(&handle, sh("p", text)).await.expect("starts");
    let id = ProcessId::new("p").expect("a good id");
    assert!(driver.wait(&handle, &id).await.expect("it ends").success(), "its root cannot read it");
    for path in ["/opt/machine/open", "/mine", "/usr/bin/env"] {
        assert!(copied_out(&driver, &handle, path).await.is_ok(), "{path}");
    }
    for path in ["/opt/machine/closed", "/opt/machine"] {
        let told = copied_out(&driver, &handle, path).await.expect_err("it is refused");
        assert!(told.contains("not everybody may read it"), "{path}: {told}");
    }
    driver.remove(&handle).await.expect("is removed");
}

/// A limit as the container's control group has it, in version 1 or 2.
fn limit(base: &Path, handle: &str, (controller, old): (&str, &str), new: &str) -> String {
    let base = base.canonicalize().expect("is there");
    let group = format!("{}/{handle}", OciDriver::name_on_the_machine(&base));
    let mounted = Path::new("/sys/fs/cgroup");
    let text = fs::read_to_string(mounted.join(controller).join(&group).join(old));
    let text = text.or_else(|_| fs::read_to_string(mounted.join(&group).join(new)));
    text.expect("has the limit").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_containers_together_have_a_limit() {
    const TOGETHER: u64 = 96 << 20;
    let Some(place) = Place::new() else { return };
    let driver = place.open_limited(Some(TOGETHER));
    let group = |name: &str| {
        limit(place.dir.path(), name, ("memory", "memory.limit_in_bytes"), "memory.max")
    };
    let mut taken = Vec::new();
    for name in ["one", "two"] {
        let handle = handle(name);
        driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
        assert_eq!(group("."), TOGETHER.to_string());
        assert_ne!(group(name), TOGETHER.to_string(), "it has none of its own");
        // It keeps all of it until its input ends.
        let text = "{ head -c 60000000 /dev/zero; sleep 1000; } | tail -c 60000000";
        let started = driver.start(&handle, sh("p", text)).await.expect("starts");
        taken.push((handle, started));
        if name == "one" {
            let (handle, _) = &taken[0];
            let held = async {
                while driver.stats(handle).await.expect("has stats").rss_bytes < 50_000_000 {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(SOON, held).await.expect("one container may use most of it");
        }
    }
    let killed = async {
        loop {
            let mut kills = 0;
            for (handle, _) in &taken {
                kills += driver.stats(handle).await.expect("has stats").oom_kills;
            }
            if kills > 0 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, killed).await.expect("two of them use more than all may");
    drop(driver);
    // An agent that is told nothing takes the limit away.
    let driver = place.open_driver();
    assert_ne!(group("."), TOGETHER.to_string());
    for (handle, _) in &taken {
        driver.remove(handle).await.expect("removes");
    }
}

/// Section 5 of the CIS benchmark for containers, by the numbers of version 1.6. Not a container's
/// matter: 5.6 (it runs what it is told to), 5.7 and 5.13 (ports are the router's), 5.14 and 5.26
/// (the cell restarts and checks).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_benchmark_for_containers_holds() {
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let handle = handle("cis");
    let mut spec = ContainerSpec::new(handle.clone());
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(500);
    spec.limits.processes = Some(50);
    spec.root.read_only = true;
    driver.create(spec).await.expect("creates");
    let started = driver.start(&handle, sh("p", "exec sleep 1000")).await.expect("starts");
    let pid = started.pid.expect("has a number");
    until("it runs", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it == "sleep\n")
    })
    .await;
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("reads");
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("is told");
        line.trim_start_matches(':').trim().to_owned()
    };
    let allowed = [0, 1, 3, 4, 5, 6, 7, 10].iter().fold(0_u64, |bits, bit| bits | 1 << bit);
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        let bits = u64::from_str_radix(&field(set), 16).expect("a number");
        assert_eq!(bits & !allowed, 0, "5.2, 5.4: {set}");
    }
    let mounts = read("mountinfo");
    let sources = mounts.lines().map(|line| line.split(' ').nth(3).expect("a source"));
    for source in sources {
        let sensitive = ["/boot", "/etc", "/home", "/root", "/run", "/var"].contains(&source);
        assert!(!sensitive, "5.5: {source} of the machine");
    }
    assert!(!mounts.contains("docker.sock"), "5.31");
    let base = place.dir.path();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
    assert!(root.split(' ').nth(5).expect("options").starts_with("ro"), "5.12: {root}");
    for (kind, number) in [
        ("net", "5.9"),
        ("pid", "5.15"),
        ("ipc", "5.16"),
        ("uts", "5.20"),
        ("user", "5.30"),
        ("mnt", ""),
    ] {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).expect("reads");
        assert_ne!(namespace(&pid.to_string()), namespace("self"), "{number}: {kind}");
    }
    let memory = limit(base, "cis", ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory, (64 << 20).to_string(), "5.10");
    let shares = limit(base, "cis", ("cpu", "cpu.shares"), "cpu.weight");
    assert!(shares != "1024" && shares != "100", "5.11: {shares}");
    assert_eq!(limit(base, "cis", ("pids", "pids.max"), "pids.max"), "51", "5.28");
    let devices = fs::read_to_string(format!(
        "/sys/fs/cgroup/devices/{}/cis/devices.list",
        OciDriver::name_on_the_machine(&base.canonicalize().expect("is there"))
    ));
    // Making a node is left to capabilities; using one is not.
    let opens =
        |line: &str| line.starts_with('a') || line.starts_with('b') && !line.ends_with(" m");
    assert!(!devices.is_ok_and(|list| list.lines().any(opens)), "5.17");
    assert_eq!(field("Seccomp"), "2", "5.21");
    assert!(read("cgroup").contains("/cis"), "5.24");
    assert_eq!(field("NoNewPrivs"), "1", "5.25");
    let Network::Own(address) = driver.network(&handle) else { panic!("5.29: no own network") };
    assert!(address.to_string().starts_with("10.208."), "5.29: {address}");
    driver.remove(&handle).await.expect("removes");
}

/// How long the bare runtime takes from its start to the end of `true` on the machine's own programs.
fn bare_runtime(dir: &Path, number: usize) -> Duration {
    let bundle = dir.join(format!("bare-{number}"));
    fs::create_dir_all(bundle.join("root/usr")).expect("makes");
    for link in ["bin", "lib", "lib64"] {
        let target = format!("usr/{link}");
        std::os::unix::fs::symlink(target, bundle.join("root").join(link)).expect("links");
    }
    let spec = Command::new("runc").arg("spec").current_dir(&bundle).status().expect("runs");
    assert!(spec.success());
    let file = bundle.join("config.json");
    let text = fs::read_to_string(&file).expect("reads");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("parses");
    let usr = serde_json::json!({
        "destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"],
    });
    config["mounts"].as_array_mut().expect("a list").push(usr);
    config["root"]["path"] = "root".into();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    fs::write(&file, config.to_string()).expect("writes");
    let begin = mono_now();
    let id = format!("bare-{}-{number}", std::process::id());
    let mut runtime = Command::new("runc");
    runtime.arg("--root").arg(dir.join("state")).args(["run", "--bundle"]).arg(&bundle).arg(id);
    let status = runtime.stdin(Stdio::null()).status().expect("runs");
    assert!(status.success());
    mono_now() - begin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_starts_fast() {
    const RUNS: usize = 30;
    /// What the bare runtime takes on a machine that does nothing else.
    const QUIET: Duration = Duration::from_millis(21);
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let bare_dir = tempfile::tempdir().expect("makes a directory");
    let (mut bare, mut creates, mut starts, mut both) = (vec![], vec![], vec![], vec![]);
    for number in 0..RUNS {
        bare.push(bare_runtime(bare_dir.path(), number));
        let handle = handle(&format!("fast-{number}"));
        let begin = mono_now();
        driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
        let middle = mono_now();
        let spec = ProcessSpec::new(ProcessId::new("p").expect("good"), ["/bin/true"]);
        driver.start(&handle, spec).await.expect("starts");
        let started = mono_now();
        creates.push(middle - begin);
        starts.push(started - middle);
        both.push(started - begin);
        driver.remove(&handle).await.expect("removes");
    }
    for times in [&mut bare, &mut creates, &mut starts, &mut both] {
        times.sort_unstable();
    }
    let middle = RUNS / 2;
    println!(
        "bare runtime: median {:?}; create: {:?}, start: {:?}, both: {:?}",
        bare[middle], creates[middle], starts[middle], both[middle]
    );
    // A machine that does other things is slower at everything.
    let slowness = bare[middle].div_duration_f64(QUIET).max(1.0);
    let most = bare[middle] + Duration::from_millis(60).mul_f64(slowness);
    assert!(both[middle] < most, "{:?} is more than {most:?}", both[middle]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_start_at_once() {
    const CONTAINERS: usize = 50;
    let Some(place) = Place::new() else { return };
    let driver = place.open_driver();
    let begin = mono_now();
    let all = (0..CONTAINERS).map(|number| {
        let driver = &driver;
        async move {
            let handle = handle(&format!("many-{number}"));
            let begin = mono_now();
            driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
            driver.start(&handle, sh("p", "exec sleep 1000")).await.expect("starts");
            (handle, mono_now() - begin)
        }
    });
    let mut made = futures_util::future::join_all(all).await;
    let whole = mono_now() - begin;
    made.sort_unstable_by_key(|(_, time)| *time);
    println!("50 at once: {whole:?}; median {:?}, worst {:?}", made[25].1, made[49].1);
    let addresses: std::collections::BTreeSet<_> =
        made.iter().map(|(handle, _)| format!("{:?}", driver.network(handle))).collect();
    assert_eq!(addresses.len(), CONTAINERS, "every one has its own address");
    let removals = made.iter().map(|(handle, _)| driver.remove(handle));
    for removed in futures_util::future::join_all(removals).await {
        removed.expect("removes");
    }
}
