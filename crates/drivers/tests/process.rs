//! The process driver against the conformance suite, and what only it promises.

mod procs;

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drivers::conformance::{self, Subject};
use drivers::process::{Config, ProcessDriver};
use drivers::{
    Chunk, ContainerSpec, Driver, DriverError, Handle, Mount, Outcome, Output, OutputOffset,
    ProcessId, ProcessSpec, ProcessState, Signal, Source, Target, archive,
};
use futures_util::StreamExt as _;
use futures_util::stream;
use runtime::{Stop, Tasks, mono_now, sleep, timeout};
use rustix::process::{Pid, Signal as Raw, kill_process};
use tokio::io::AsyncReadExt as _;

use crate::procs::{Agent, children, running_with};

const TESTBED: &str = env!("CARGO_BIN_EXE_drivers-testbed");
const SOON: Duration = Duration::from_secs(20);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("makes a directory") }
    }

    fn driver(&self) -> ProcessDriver {
        let mut config = Config::new(self.dir.path());
        config.supervisor = TESTBED.into();
        ProcessDriver::open(&config, Tasks::new(Stop::new())).expect("opens")
    }
}

impl Subject for Place {
    fn open(&self) -> drivers::Result<Arc<dyn Driver>> {
        Ok(Arc::new(self.driver()))
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

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let look = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(SOON, look).await.is_some(), "{what}");
}

fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let place = Arc::new(Place::new());
    let verdicts: Vec<_> = stream::iter(conformance::all())
        .map(|case| {
            let place = Arc::clone(&place);
            async move { (case.name, mono_now(), case.run(place).await, mono_now()) }
        })
        .buffer_unordered(6)
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
    assert!(left.iter().all(|entry| entry.file_name() == ".trash"), "left: {left:?}");
    let trash = fs::read_dir(place.dir.path().join(".trash")).expect("lists").count();
    assert_eq!(trash, 0, "the trash is empty");
    let marker = format!("SHORE_ROOT={}", place.dir.path().display());
    until("no process is left", || running_with(&marker).is_empty()).await;
}

#[tokio::test]
async fn a_killed_agent_leaves_the_app_running() {
    let place = Place::new();
    let mut agent = Command::new("nohup");
    agent.arg(TESTBED).arg(place.dir.path()).stdin(Stdio::null()).stderr(Stdio::null());
    let agent = Agent(agent.spawn().expect("starts"));
    let (kept, writer) = (handle("kept"), id("writer"));
    let output = place.dir.path().join("kept/processes/writer/output.00000000000000000000");
    until("output", || fs::metadata(&output).is_ok_and(|file| file.len() > 200)).await;
    let before = pid_of(&place.driver(), &kept).await;
    let status = fs::read_to_string(format!("/proc/{}/status", before.expect("has a number")));
    let status = status.expect("runs");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let ignored = u64::from_str_radix(ignored.expect("is told"), 16).expect("a number");
    assert_eq!(ignored & 0x7fff_ffff, 0, "the app must not inherit what nohup ignores");
    drop(agent);
    let size = fs::metadata(&output).expect("is there").len();
    until("output without an agent", || fs::metadata(&output).is_ok_and(|now| now.len() > size))
        .await;
    let driver = place.driver();
    assert_eq!(pid_of(&driver, &kept).await, before);
    let stream = driver.attach(&kept, &writer, OutputOffset(0)).await.expect("attaches");
    driver.signal(&kept, &writer, Signal::Term).await.expect("signals");
    let mut text = Vec::new();
    for output in timeout(SOON, stream.collect::<Vec<_>>()).await.expect("ends") {
        let Ok(Output::Chunk(Chunk { bytes, source, .. })) = output else { panic!("{output:?}") };
        // The shell tells standard error that its `sleep` was terminated too.
        if source == Source::Stdout {
            text.extend_from_slice(&bytes);
        }
    }
    let text = String::from_utf8(text).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    let (last, numbers) = lines.split_last().expect("lines");
    assert_eq!(*last, "end");
    assert!(numbers.len() > 10);
    assert!(numbers.iter().enumerate().all(|(at, line)| *line == at.to_string()), "{text}");
    let exit = driver.wait(&kept, &writer).await.expect("waits");
    assert_eq!(exit.outcome, Outcome::Code(7));
    driver.remove(&kept).await.expect("removes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_agent_and_keeper_were_killed_ends_with_the_next_agent() {
    let place = Place::new();
    let agent = Agent::start(place.dir.path(), "process-session");
    let token = format!("SESSION_OF={}", agent.0.id());
    until("a session", || running_with(&token).len() >= 3).await;
    agent.end_with_its_keeper();
    assert!(!running_with(&token).is_empty(), "nobody is there who would end all of it");
    let driver = place.driver();
    until("its end", || running_with(&token).is_empty()).await;
    driver.remove(&handle("kept")).await.expect("removes");
}

async fn pid_of(driver: &ProcessDriver, handle: &Handle) -> Option<u32> {
    let info = driver.inspect(handle).await.expect("is there");
    assert!(info.processes.iter().all(|process| process.state == ProcessState::Running));
    info.processes.first().and_then(|process| process.pid)
}

#[tokio::test]
async fn orphans_of_a_killed_supervisor_are_found() {
    let place = Place::new();
    let driver = place.driver();
    let handle = handle("orphans");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let text = "(setsid sleep 1000 & echo $!); (env -i sleep 1000 & echo $!); \
                (trap '' TERM HUP; cd /; setsid sh -c 'echo $$; sleep 1000' &); echo $$; sleep 1000";
    driver.start(&handle, sh("p", text)).await.expect("starts");
    let mut stream = driver.attach(&handle, &id("p"), OutputOffset(0)).await.expect("attaches");
    let mut lines = String::new();
    while lines.lines().count() < 4 {
        let output = timeout(SOON, stream.next()).await.expect("writes");
        let Some(Ok(Output::Chunk(chunk))) = output else { panic!("{output:?}") };
        lines.push_str(&String::from_utf8_lossy(&chunk.bytes));
    }
    let info = driver.inspect(&handle).await.expect("is there");
    let process = info.processes.first().expect("one");
    let supervisor = process.supervisor.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    kill_process(supervisor.expect("has one"), Raw::KILL).expect("kills");
    let exit = timeout(SOON, driver.wait(&handle, &id("p"))).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Lost);
    assert!(lines.lines().any(runs), "some run on without a supervisor");
    place.driver().remove(&handle).await.expect("removes");
    assert!(!lines.lines().any(runs), "{lines}");
}

#[tokio::test]
async fn a_reused_process_number_is_not_signalled() {
    let place = Place::new();
    let driver = place.driver();
    let handle = handle("reused");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    driver.start(&handle, sh("p", "true")).await.expect("starts");
    driver.wait(&handle, &id("p")).await.expect("waits");
    // What a machine looks like where the numbers were given to others since: start times are
    // counted in hundredths of a second.
    sleep(Duration::from_millis(50)).await;
    let mut other = Command::new("sleep").arg("1000").spawn().expect("starts");
    let dir = place.dir.path().join("reused/processes/p");
    let text = fs::read_to_string(dir.join("started.json")).expect("reads");
    let mut started: serde_json::Value = serde_json::from_str(&text).expect("parses");
    started["command"]["pid"] = other.id().into();
    started["supervisor"]["pid"] = other.id().into();
    fs::write(dir.join("started.json"), started.to_string()).expect("writes");
    fs::remove_file(dir.join("exit.json")).expect("removes");
    let exit = timeout(SOON, driver.wait(&handle, &id("p"))).await.expect("ends").expect("waits");
    assert_eq!(exit.outcome, Outcome::Lost);
    let signal = driver.signal(&handle, &id("p"), Signal::Kill).await;
    assert!(matches!(signal, Err(DriverError::NotRunning { .. })), "{signal:?}");
    driver.stop(&handle, Target::All, Duration::ZERO).await.expect("stops");
    driver.remove(&handle).await.expect("removes");
    assert!(other.try_wait().expect("asks").is_none(), "an unrelated process was killed");
    other.kill().expect("kills");
    other.wait().expect("reaps");
}

#[tokio::test]
async fn descriptors_of_the_agent_do_not_leak() {
    let place = Place::new();
    let leak = fs::File::open("/dev/null").expect("opens");
    rustix::io::fcntl_setfd(leak.as_fd(), rustix::io::FdFlags::empty()).expect("sets");
    let driver = place.driver();
    let handle = handle("leak");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let started = driver.start(&handle, sh("p", "exec sleep 1000")).await.expect("starts");
    let info = driver.inspect(&handle).await.expect("is there");
    let supervisor = info.processes.first().and_then(|process| process.supervisor);
    let open = |pid: Option<u32>| {
        let dir = format!("/proc/{}/fd", pid.expect("has a number"));
        let links = fs::read_dir(dir)
            .expect("lists")
            .flatten()
            .map(|entry| fs::read_link(entry.path()).unwrap_or_default().display().to_string());
        links.collect::<Vec<_>>()
    };
    // The program loader opens libraries at first.
    until("three descriptors", || open(started.pid).len() == 3).await;
    // It answers first and lets go of the agent's pipe then.
    let nulls = || open(supervisor).into_iter().filter(|link| link == "/dev/null").count();
    until("only its own standard input and output", || nulls() == 2).await;
    driver.remove(&handle).await.expect("removes");
    drop(leak);
}

#[tokio::test]
async fn nothing_private_is_left_on_disk_or_open_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let driver = place.driver();
    let handle = handle("secret");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let mut spec = sh("p", "true");
    spec.env.insert("PASSWORD".to_owned(), "hunter2".to_owned());
    driver.start(&handle, spec).await.expect("starts");
    driver.wait(&handle, &id("p")).await.expect("waits");
    let container = place.dir.path().join("secret");
    let mode = fs::metadata(&container).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let grep = Command::new("grep").args(["-r", "hunter2"]).arg(&container).output().expect("runs");
    assert!(grep.stdout.is_empty(), "{grep:?}");
    driver.remove(&handle).await.expect("removes");
}

#[tokio::test]
async fn a_bad_supervisor_is_a_clear_error() {
    let place = Place::new();
    let open = |supervisor: &str| {
        let mut config = Config::new(place.dir.path());
        config.supervisor = supervisor.into();
        ProcessDriver::open(&config, Tasks::new(Stop::new())).expect("opens")
    };
    let missing = open("/no/such/file");
    assert!(missing.capabilities().unavailable.is_some());
    let handle = handle("bad");
    missing.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    for driver in [missing, open("/bin/true")] {
        let failed = driver.start(&handle, sh("p", "true")).await;
        let told = matches!(&failed, Err(error) if error.to_string().contains("supervisor"));
        assert!(told, "{failed:?}");
    }
    assert!(place.driver().inspect(&handle).await.expect("is there").processes.is_empty());
}

#[tokio::test]
async fn a_crash_while_creating_or_removing_is_cleaned_up() {
    let place = Place::new();
    let make = |path: &str| fs::create_dir_all(place.dir.path().join(path)).expect("makes");
    make(".new-half/root/x");
    make(".trash/old.0/root/x");
    make("damaged/root");
    let driver = place.driver();
    let trash = place.dir.path().join(".trash");
    until("empty trash", || fs::read_dir(&trash).expect("lists").count() == 0).await;
    driver.create(ContainerSpec::new(handle("half"))).await.expect("creates");
    let found: Vec<_> = driver.list().await.expect("lists");
    let names: Vec<_> = found.iter().map(|info| info.handle.as_str()).collect();
    assert_eq!(names, ["damaged", "half"]);
    driver.remove(&handle("damaged")).await.expect("removes");
    assert!(!Path::new(&place.dir.path().join("damaged")).exists());
}

#[tokio::test]
async fn a_start_is_fast() {
    let place = Place::new();
    let driver = place.driver();
    let handle = handle("fast");
    driver.create(ContainerSpec::new(handle.clone())).await.expect("creates");
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    for number in 0..60 {
        let spec = ProcessSpec::new(id(&format!("p{number}")), ["/bin/true"]);
        let name = spec.id.clone();
        let begin = mono_now();
        driver.start(&handle, spec).await.expect("starts");
        starts.push(mono_now() - begin);
        driver.wait(&handle, &name).await.expect("waits");
        ends.push(mono_now() - begin);
    }
    starts.sort_unstable();
    ends.sort_unstable();
    println!(
        "start: median {:?}, worst {:?}; start to exit: median {:?}",
        starts[30], starts[59], ends[30]
    );
    assert!(starts[30] < Duration::from_millis(50), "{:?}", starts[30]);
    let supervisors = || {
        let ended = |pid: &String| !runs(pid);
        children(std::process::id()).iter().filter(|pid| ended(pid)).count()
    };
    until("every supervisor is reaped", || supervisors() == 0).await;
    driver.remove(&handle).await.expect("removes");
}

async fn copied_out(
    driver: &ProcessDriver,
    handle: &Handle,
    path: &str,
) -> drivers::Result<String> {
    let mut tar = driver.copy_out(handle, path).await?;
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).await.expect("reads");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn copies_go_through_mounts_and_no_other_link() {
    let place = Place::new();
    let driver = place.driver();
    let volume = tempfile::tempdir().expect("makes a directory");
    let mut spec = ContainerSpec::new(handle("c"));
    let (source, target) = (volume.path().to_owned(), "/srv/data".to_owned());
    spec.mounts.push(Mount { source, target, read_only: false });
    driver.create(spec).await.expect("creates");
    let handle = handle("c");
    let root = driver.host_path(&handle, "/").expect("is on the machine");
    fs::create_dir(root.join("srv")).expect("makes");
    symlink(volume.path(), root.join("srv/data")).expect("links");
    symlink(volume.path(), root.join("other")).expect("links");
    fs::write(volume.path().join("notes"), "noted").expect("writes");
    let archive = |name: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &b"new"[..]).expect("adds");
        std::io::Cursor::new(tar.into_inner().expect("ends"))
    };
    let put = |path: &'static str, name: &str| {
        driver.copy_in(&handle, path, Box::pin(archive(name)), archive::Limits::default())
    };
    for path in ["/srv/data", "/srv/data/notes"] {
        assert!(copied_out(&driver, &handle, path).await.expect("packs").contains("noted"));
    }
    put("/srv/data/below", "file").await.expect("unpacks");
    assert_eq!(fs::read(volume.path().join("below/file")).expect("reads"), b"new");
    // What is mounted is not replaced, and other links are not followed.
    for (path, name) in [("/srv", "data"), ("/", "srv/data"), ("/other", "f"), ("/srv", "data/f")] {
        assert!(put(path, name).await.is_err(), "{path} {name}");
    }
    assert!(copied_out(&driver, &handle, "/other/notes").await.is_err());
    assert!(copied_out(&driver, &handle, "/srv/data/../../other").await.is_err());
    assert_eq!(fs::read_link(root.join("srv/data")).expect("a link"), volume.path());
    driver.remove(&handle).await.expect("removes");
    assert!(volume.path().join("notes").exists());
}
