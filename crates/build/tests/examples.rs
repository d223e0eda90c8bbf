//! Each example is built, made into a root, launched, and asked for its page.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use build::image::{LayerStore, Layout, Limits, Sharing, materialise};
use build::lifecycle::BuildResult;

const TOOL: &str = env!("CARGO_BIN_EXE_build-tool");

/// A place to build one app again and again, as a cell would.
struct Bench {
    dir: tempfile::TempDir,
    builds: u32,
}

struct Build {
    result: BuildResult,
    export: PathBuf,
    output: String,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), builds: 0 }
    }

    /// Runs the creator on the source `app` in a fresh private root with the same cache.
    fn create(&mut self, app: &Path, env: &[(&str, &str)]) -> (PathBuf, Output) {
        self.builds += 1;
        let root = self.dir.path().join(format!("build-{}", self.builds));
        let cache = self.dir.path().join("cache");
        std::fs::create_dir_all(root.join("workspace")).expect("made");
        std::fs::create_dir_all(&cache).expect("made");
        symlink(&cache, root.join("cache")).expect("linked");
        let mut archive = Vec::new();
        build::source::pack(app, &mut archive, build::source::MAX).expect("packed");
        build::source::unpack(&*archive, &root.join("workspace"), build::source::MAX)
            .expect("unpacked");
        let output = Command::new(TOOL)
            .arg("creator")
            .env("SHORE_ROOT", &root)
            .envs(env.iter().copied())
            .output()
            .expect("the creator runs");
        (root, output)
    }

    fn build(&mut self, app: &Path) -> Build {
        let (root, output) = self.create(app, &[]);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{text}");
        let export = root.join("export");
        let result = std::fs::read(export.join("result.json")).expect("a result");
        let result = serde_json::from_slice(&result).expect("a build result");
        Build { result, export, output: text }
    }

    /// Makes a root of the image and starts its default process.
    fn launch(&self, build: &Build) -> Running {
        let root = self.dir.path().join("run");
        std::fs::create_dir_all(&root).expect("made");
        let layout = Layout::open(&build.export);
        let store = LayerStore::open(&self.dir.path().join("store")).expect("a store");
        let manifest = layout.manifest(&build.result.image).expect("a manifest");
        let config = layout.config(&manifest.config.digest).expect("a config");
        assert_eq!(config.rootfs.diff_ids.len(), manifest.layers.len());
        let unpacked: Vec<_> = manifest
            .layers
            .iter()
            .map(|layer| {
                let blob = std::fs::File::open(layout.blob(&layer.digest)).expect("a blob");
                store.add(&layer.digest, blob, Limits::default()).expect("unpacked")
            })
            .collect();
        materialise(&unpacked, &root, &Sharing::LinkBelow(vec!["layers".into()]))
            .expect("materialised");
        let launcher = root.join("launcher");
        symlink(TOOL, &launcher).expect("linked");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let process = build.result.processes.iter().find(|p| p.default).expect("a default");
        assert_eq!(process.argv, ["/cnb/lifecycle/launcher", "web"]);
        let mut child = Command::new(&launcher)
            .args(&process.argv[1..])
            .current_dir("/")
            .env("SHORE_ROOT", &root)
            .env("SHORE_APP", "my-app")
            .env("SHORE_INSTANCE_INDEX", "3")
            .env("PORT", port.to_string())
            .env_remove("HOST")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the launcher runs");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Running { child, port, output }
    }
}

struct Running {
    child: Child,
    port: u16,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// The status and text of the page, as soon as the app answers.
    fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let mut last = ask();
        for _ in 0..1_000 {
            if last.is_ok() {
                break;
            }
            runtime::pause_thread(Duration::from_millis(10));
            last = ask();
        }
        let answer = last.expect("the app answers");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), answer)
    }

    /// Sends TERM and waits for the end; the exit code, if it ended by itself.
    fn stop(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), rustix::process::Signal::TERM)
            .expect("signalled");
        self.child.wait().expect("ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.child.kill().expect("killed");
            self.child.wait().expect("ended");
        }
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// Builds twice, launches, asks, stops.
fn check(name: &str, buildpack: &str, code: Option<i32>) -> Build {
    let mut bench = Bench::new();
    let first = bench.build(&example(name));
    assert_eq!(first.result.buildpack.id, buildpack, "{}", first.output);
    assert!(!first.result.cached);
    let second = bench.build(&example(name));
    assert_eq!(first.result.image, second.result.image, "{}", second.output);
    assert!(second.result.cached, "{}", second.output);
    let running = bench.launch(&second);
    let (status, text) = running.get("/");
    assert_eq!(status, 200, "{text}");
    assert!(text.contains(name), "{text}");
    if buildpack != "static" {
        assert!(text.contains("my-app") && text.contains("instance 3"), "{text}");
    }
    assert_eq!(running.stop(), code);
    second
}

#[test]
fn static_site() {
    let built = check("static-site", "static", Some(0));
    assert_eq!(built.result.layers.len(), 2);
}

#[test]
fn python_web() {
    check("python-web", "python", Some(0));
}

#[test]
fn procfile() {
    check("procfile", "procfile", Some(0));
}

#[test]
fn output_is_not_held_back() {
    let mut bench = Bench::new();
    let build = bench.build(&example("python-web"));
    let mut running = bench.launch(&build);
    let mut line = String::new();
    running.output.read_line(&mut line).expect("a line");
    assert!(line.starts_with("listening on"), "{line}");
}

#[test]
fn node_web() {
    check("node-web", "node", Some(0));
}

#[test]
fn rust_web() {
    let built = check("rust-web", "rust", None);
    let names: Vec<_> = built.result.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["rust/programs", "app", "config"]);
}
