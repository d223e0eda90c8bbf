//! Detection, errors and caching of packages, through the public API.

use std::path::Path;

use build::lifecycle::{BuildResult, create};
use build::{BuildError, Env, Paths, Root};

struct Bench {
    dir: tempfile::TempDir,
    env: Env,
    platform_env: Env,
    output: String,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let workspace = dir.path().join("workspace");
        std::fs::create_dir_all(&workspace).expect("made");
        let env = std::env::vars().collect();
        let bench = Self { dir, env, platform_env: Env::new(), output: String::new() };
        for (name, text) in files {
            bench.write(name, text.as_bytes());
        }
        bench
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join("workspace").join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    fn create(&mut self) -> Result<BuildResult, BuildError> {
        let mut paths = Paths::new(Root::new(self.dir.path()));
        paths.platform_env = self.platform_env.clone();
        let mut out = Vec::new();
        let result = create(&paths, &self.env, &mut out);
        self.output = String::from_utf8(out).expect("text");
        result
    }

    /// Forgets everything but the source and the cache.
    fn clean(&self) {
        for name in ["layers", "export"] {
            std::fs::remove_dir_all(self.dir.path().join(name)).expect("removed");
        }
    }

    fn has(&self, path: &str) -> bool {
        self.dir.path().join(path).exists()
    }
}

fn detected(files: &[(&str, &str)]) -> Result<String, BuildError> {
    Bench::new(files).create().map(|result| result.buildpack.id)
}

#[test]
fn the_first_buildpack_that_knows_what_to_run_takes_the_source() {
    let cases: [(&[(&str, &str)], &str); 12] = [
        (&[("app.py", "")], "python"),
        (&[("requirements.txt", "# none"), ("main.py", "")], "python"),
        (&[("pyproject.toml", "[project]"), ("Procfile", "web: python3 -m x")], "python"),
        (&[("requirements.txt", ""), ("package.json", "{}"), ("server.js", "")], "node"),
        (&[("package.json", "{\"scripts\":{\"start\":\"node x.js\"}}")], "node"),
        (&[("package.json", "{}"), ("index.html", "")], "static"),
        (&[("index.html", "")], "static"),
        (&[("public/index.html", "")], "static"),
        (&[("Staticfile", "root: dist"), ("dist/x", "")], "static"),
        (&[("requirements.txt", ""), ("index.html", "")], "static"),
        (&[("index.html", ""), ("Procfile", "web: cat x")], "static"),
        (&[("Procfile", "web: cat x")], "procfile"),
    ];
    for (files, wanted) in cases {
        assert_eq!(detected(files).expect("built"), wanted, "{files:?}");
    }
}

#[test]
fn a_source_nobody_wants_says_what_was_looked_for() {
    let error = detected(&[("README.md", "")]).expect_err("nothing");
    assert_eq!(error.exit() as u8, 20);
    let text = error.to_string();
    let at = |what: &str| text.find(what).expect(what);
    let order = ["  python: ", "  node: ", "  rust: ", "  static: ", "  procfile: "].map(at);
    assert!(order.is_sorted(), "{text}");
    assert!(text.contains("SHORE_BUILDPACK") && text.contains("requirements.txt"), "{text}");
}

#[test]
fn one_buildpack_can_be_chosen() {
    let mut bench = Bench::new(&[("app.py", ""), ("index.html", "")]);
    bench.platform_env.insert("SHORE_BUILDPACK".into(), "static".into());
    assert_eq!(bench.create().expect("built").buildpack.id, "static");
    bench.platform_env.insert("SHORE_BUILDPACK".into(), "rust".into());
    assert_eq!(bench.create().expect_err("no Cargo.toml").exit() as u8, 20);
    bench.platform_env.insert("SHORE_BUILDPACK".into(), "cobol".into());
    let error = bench.create().expect_err("there is none");
    assert_eq!(error.exit() as u8, 21);
    assert!(error.to_string().contains("python, node, rust, static, procfile"), "{error}");
}

#[test]
fn missing_tools_and_wrong_files_are_named() {
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[("app.py", "")], "python3 was not found on the cell: install it with `apt install"),
        (&[("package.json", "{}"), ("app.js", "")], "node was not found on the cell: install it"),
        (&[("Cargo.toml", "")], "cargo was not found on the cell: install it with `curl"),
        (&[("Procfile", "web: gunicorn")], "gunicorn was not found on the cell"),
        (&[("Procfile", "web: a && b")], "Procfile line 1: web: `&&` needs a shell"),
        (&[("Procfile", "web: ./x"), ("x", "")], "Procfile (web): ./x is not executable: run `ch"),
        (&[("package.json", "{")], "package.json: "),
    ];
    for (files, wanted) in cases {
        let mut bench = Bench::new(files);
        bench.env = [("PATH".to_owned(), "/nowhere".to_owned())].into();
        let error = bench.create().expect_err(wanted);
        assert_eq!(error.exit() as u8, 51);
        assert!(error.to_string().starts_with(wanted), "{error}");
    }
}

#[test]
fn the_procfile_replaces_and_adds_process_types() {
    let mut bench =
        Bench::new(&[("app.py", ""), ("Procfile", "web: python3 x.py\njob: python3 j")]);
    let result = bench.create().expect("built");
    let names: Vec<_> = result.processes.iter().map(|p| (p.name.as_str(), p.default)).collect();
    assert_eq!(names, [("job", false), ("web", true)]);
    assert_eq!(result.processes[0].argv, ["/cnb/lifecycle/launcher", "job"]);
}

#[test]
fn what_changed_is_made_again_and_nothing_else() {
    let mut bench = Bench::new(&[("index.html", "1")]);
    let first = bench.create().expect("built");
    bench.clean();
    bench.write("index.html", b"2");
    let second = bench.create().expect("built");
    assert_ne!(first.image, second.image);
    let cached: Vec<_> = second.layers.iter().map(|layer| layer.cached).collect();
    assert_eq!(cached, [false, true]);
    // A damaged blob is made again.
    let blob = bench.dir.path().join("cache/layers").join(second.layers[0].digest.hex());
    std::fs::remove_file(&blob).expect("removed");
    std::fs::write(&blob, "damaged").expect("written");
    for cached in [false, true] {
        bench.clean();
        let third = bench.create().expect("built");
        assert_eq!((third.image, third.layers[0].cached), (second.image, cached));
    }
}

/// A wheel with a module and a script, without the network.
fn wheel(bench: &Bench) {
    let info = "tiny-1.0.dist-info";
    let files = [
        ("tiny.py".to_owned(), "def main():\n    print('tiny')\n"),
        (format!("{info}/METADATA"), "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{info}/entry_points.txt"), "[console_scripts]\ntiny = tiny:main\n"),
        (format!("{info}/RECORD"), ""),
    ];
    for (name, text) in &files {
        bench.write(&format!("wheel/{name}"), text.as_bytes());
    }
    bench.write("wheels/x", b"");
    let zipped = std::process::Command::new("python3")
        .args(["-m", "zipfile", "-c", "../wheels/tiny-1.0-py3-none-any.whl", "tiny.py", info])
        .current_dir(bench.dir.path().join("workspace/wheel"))
        .status();
    assert!(zipped.expect("python runs").success());
}

#[test]
fn python_packages_are_installed_once() {
    let requirements = "--no-index\n--find-links=wheels\ntiny\n";
    let mut bench =
        Bench::new(&[("requirements.txt", requirements), ("Procfile", "web: tiny\njob: tiny x")]);
    wheel(&bench);
    let first = bench.create().expect("built");
    assert!(bench.output.contains("pip install"), "{}", bench.output);
    assert!(bench.has("layers/python/packages/site-packages/tiny.py"));
    let script = bench.dir.path().join("layers/python/packages/bin/tiny");
    let script = std::fs::read_to_string(script).expect("a script");
    assert!(script.starts_with("#!/usr/bin/env python3\n"), "{script}");
    let ran = launch(&bench, "job");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "tiny\n", "{ran:?}");
    bench.clean();
    let second = bench.create().expect("built");
    assert!(!bench.output.contains("pip install"), "{}", bench.output);
    assert_eq!((first.image, second.cached), (second.image, true));
    bench.write("requirements.txt", format!("{requirements}# changed\n").as_bytes());
    bench.create().expect("built");
    assert!(bench.output.contains("pip install"), "{}", bench.output);
}

fn launch(bench: &Bench, process: &str) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_build-tool"))
        .args(["launcher", process])
        .env("SHORE_ROOT", bench.dir.path())
        .output()
        .expect("the launcher runs")
}

/// An npm package as an archive, without the network.
fn package(bench: &Bench) {
    let mut bytes = Vec::new();
    let gzip = flate2::write::GzEncoder::new(&mut bytes, flate2::Compression::fast());
    let mut tar = build::image::TarWriter::new(gzip);
    let manifest = br#"{"name": "tiny", "version": "1.0.0", "bin": {"tiny": "cli.js"}}"#;
    let files: [(&str, &[u8]); 3] = [
        ("package/package.json", manifest),
        ("package/index.js", b"module.exports = 'tiny';"),
        ("package/cli.js", b"#!/usr/bin/env node\nconsole.log(require('tiny'));"),
    ];
    for (name, text) in files {
        tar.bytes(Path::new(name), text).expect("written");
    }
    tar.finish().and_then(flate2::write::GzEncoder::finish).expect("written");
    bench.write("tiny.tgz", &bytes);
}

#[test]
fn node_packages_are_installed_once() {
    let manifest = r#"{"name": "x", "version": "1.0.0", "scripts": {"start": "tiny"},
        "dependencies": {"tiny": "file:tiny.tgz"}}"#;
    let mut bench = Bench::new(&[("package.json", manifest)]);
    package(&bench);
    let locked = std::process::Command::new("npm")
        .args(["install", "--package-lock-only", "--offline"])
        .current_dir(bench.dir.path().join("workspace"))
        .output()
        .expect("npm runs");
    assert!(locked.status.success(), "{locked:?}");
    let first = bench.create().expect("built");
    assert!(bench.output.contains("npm ci"), "{}", bench.output);
    let ran = launch(&bench, "web");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "tiny\n", "{ran:?}");
    bench.clean();
    std::fs::remove_file(bench.dir.path().join("workspace/node_modules")).expect("a link");
    let second = bench.create().expect("built");
    assert!(!bench.output.contains("npm ci"), "{}", bench.output);
    assert_eq!((first.image, second.cached), (second.image, true));
}

#[test]
fn rust_builds_what_changed() {
    let manifest = "[package]\nname = 'hello'\nversion = '1.0.0'\nedition = '2021'\n[workspace]";
    let main = |text: &str| format!("fn main() {{ println!(\"{text}\"); }}");
    let mut bench = Bench::new(&[("Cargo.toml", manifest), ("src/main.rs", &main("one"))]);
    bench.create().expect("built");
    assert_eq!(launch(&bench, "web").stdout, b"one\n");
    bench.clean();
    bench.write("src/main.rs", main("two").as_bytes());
    // As old as everything in a source archive.
    let file = std::fs::File::options()
        .write(true)
        .open(bench.dir.path().join("workspace/src/main.rs"))
        .expect("opened");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(build::image::MTIME);
    file.set_times(std::fs::FileTimes::new().set_modified(old)).expect("set");
    bench.create().expect("built");
    assert_eq!(launch(&bench, "web").stdout, b"two\n");
    bench.clean();
    let third = bench.create().expect("built");
    assert!(third.cached && !bench.output.contains("cargo build"), "{}", bench.output);
}
