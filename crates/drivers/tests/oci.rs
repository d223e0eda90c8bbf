//! The oci driver against the conformance suite, and what only it promises.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use drivers::conformance::{self, Subject};
use drivers::oci::{Config, OciDriver};
use drivers::{ContainerSpec, Driver, Handle, ProcessId, ProcessSpec};
use futures_util::StreamExt as _;
use futures_util::stream;
use runtime::{Stop, Tasks, mono_now};

const TESTBED: &str = env!("CARGO_BIN_EXE_drivers-testbed");
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
        let mut config = Config::new(self.dir.path());
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

fn sh(name: &str, text: &str) -> ProcessSpec {
    let id = ProcessId::new(name).expect("a good id");
    ProcessSpec::new(id, ["/bin/sh", "-c", text])
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

/// How long the bare runtime takes from its start to the end of `true` on the machine's own programs.
fn bare_runtime(dir: &std::path::Path, number: usize) -> Duration {
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
