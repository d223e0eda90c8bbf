//! What an app writes to a volume is there after the next deployment, after a destroy, and not after
//! the volume was removed. Everything here drives the real program.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use testkit::{Dev, Failure};

/// How long something may take that needs no build.
const LIMIT: Duration = Duration::from_secs(30);

/// An app that keeps a line for each request to `/add` and answers with all it has.
const APP: &str = r#"#!/usr/bin/env python3
import http.server, os
PATH = os.environ["SHORE_ROOT"] + "/data/lines"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/add/"):
            with open(PATH, "a") as lines:
                lines.write(self.path[5:] + "\n")
        kept = open(PATH).read() if os.path.exists(PATH) else ""
        body = ("VERSION " + kept.replace("\n", " ")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
host = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(host, Handler).serve_forever()
"#;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shore"))
}

fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

struct Shop {
    dev: Dev,
    dir: PathBuf,
}

impl Shop {
    fn start() -> Result<Self, Failure> {
        let dev = Dev::start(program())?;
        let dir = dev.home().join("shop");
        std::fs::create_dir_all(&dir).map_err(told)?;
        let file = "project = \"shop\"\napp \"web\" {\n  deploy {\n    instances = 1\n    \
                    volume \"data\" { path = \"/data\" }\n  }\n}\n";
        std::fs::write(dir.join("shore.hcl"), file).map_err(told)?;
        std::fs::write(dir.join("Procfile"), "web: ./serve\n").map_err(told)?;
        Ok(Self { dev, dir })
    }

    /// Brings a version up from the directory.
    fn up(&self, version: &str) -> Result<(), Failure> {
        self.try_up(&APP.replace("VERSION", version))?.ok("up").map(|_| ())
    }

    /// Brings up a program.
    fn try_up(&self, program: &str) -> Result<testkit::Ran, Failure> {
        let serve = self.dir.join("serve");
        std::fs::write(&serve, program).map_err(told)?;
        let runs = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&serve, runs).map_err(told)?;
        self.dev.shore(&["up", &self.dir.display().to_string()])
    }

    fn get(&self, path: &str) -> Result<String, Failure> {
        let page = testkit::get(self.dev.ports.http, "web.shop.localhost", path).map_err(told)?;
        if page.status == 200 { Ok(page.body) } else { Err(format!("{path}: {page:?}")) }
    }

    fn shore(&self, words: &[&str]) -> Result<testkit::Ran, Failure> {
        let app = ["--project", "shop", "--app", "web"];
        self.dev.shore(&[words, &app].concat())
    }

    fn volumes(&self) -> Result<Vec<Value>, Failure> {
        let list = self.dev.shore(&["volume", "list", "--project", "shop", "--json"])?;
        let rows = list.ok("volume list")?;
        rows.lines().map(|row| serde_json::from_str(row).map_err(told)).collect()
    }

    /// The state of the only volume.
    fn state(&self) -> Result<String, Failure> {
        let all = self.volumes()?;
        let [one] = all.as_slice() else { return Err(format!("not one volume: {all:?}")) };
        assert_eq!((&one["project"], &one["name"]), (&"shop".into(), &"web.0.data".into()));
        Ok(one["state"].as_str().unwrap_or_default().to_owned())
    }

    /// The directories of volumes on the cell.
    fn dirs(&self) -> Result<Vec<String>, Failure> {
        let dir = self.dev.data().join("cell/volumes");
        let entries = std::fs::read_dir(dir).map_err(told)?;
        let names = entries.map(|entry| entry.map(|it| it.file_name().display().to_string()));
        names.collect::<Result<_, _>>().map_err(told)
    }
}

#[test]
fn what_is_written_to_a_volume_outlives_deployments() -> Result<(), Failure> {
    let shop = Shop::start()?;
    shop.up("one")?;
    assert_eq!(shop.get("/add/a")?, "one a ");
    assert_eq!(shop.state()?, "attached");
    let copy = shop.dir.join("copied").display().to_string();
    shop.shore(&["cp", ":/data/lines", &copy])?.ok("cp out of the volume")?;
    assert_eq!(std::fs::read_to_string(&copy).map_err(told)?, "a\n");
    shop.shore(&["cp", &copy, ":/data/more"])?.ok("cp into the volume")?;
    shop.shore(&["cp", ":/data/", &format!("{copy}.all")])?.ok("cp of the volume")?;
    assert!(Path::new(&format!("{copy}.all/more")).exists());
    let id = shop.volumes()?[0]["id"].clone();
    shop.up("two")?;
    assert_eq!(shop.get("/add/b")?, "two a b ");
    assert_eq!(shop.volumes()?[0]["id"], id);
    shop.shore(&["rollback"])?.ok("rollback")?;
    assert_eq!(shop.get("/add/c")?, "one a b c ");
    let said = shop.try_up("#!/bin/sh\nexit 3\n")?.failed("a version that ends at once")?;
    assert!(said.contains("what is released serves on or starts again"), "{said}");
    let again = || shop.get("/").ok().filter(|page| page == "one a b c ");
    testkit::wait_for("the version before", LIMIT, again)?;

    let said = shop.shore(&["volume", "remove", "web.0.data"])?.failed("not confirmed")?;
    assert!(
        said.contains("deletes volume web.0.data of shop/web") && said.contains("`--yes`"),
        "{said}"
    );
    let said = shop.shore(&["volume", "remove", "web.0.data", "--yes"])?.failed("in use")?;
    assert!(said.contains("is in use by web.0: `--force` ends that first"), "{said}");
    let said = shop.shore(&["volume", "remove", "web.7.data", "--yes"])?.failed("unknown")?;
    assert!(said.contains("has no volume web.7.data"), "{said}");

    shop.shore(&["destroy", "--yes"])?.ok("destroy")?;
    assert_eq!(shop.state()?, "detached");
    let table = shop.dev.shore(&["volume", "list"])?.ok("volume list")?;
    assert!(table.contains("detached, deleted in 7 days"), "{table}");
    shop.up("three")?;
    assert_eq!(shop.get("/")?, "three a b c ");
    assert_eq!(shop.state()?, "attached");

    let before = shop.dirs()?;
    assert!(
        before.len() == 1 && before[0].starts_with("shop.web.production.web.0.data.vol_"),
        "{before:?}"
    );
    shop.shore(&["volume", "remove", "web.0.data", "--yes", "--force"])?.ok("by force")?;
    let anew = || shop.get("/").ok().filter(|page| page == "three ");
    testkit::wait_for("an instance with an empty volume", LIMIT, anew)?;
    let removed = || shop.dirs().ok().filter(|dirs| dirs.len() == 1 && *dirs != before);
    testkit::wait_for("the end of the old directory", LIMIT, removed)?;
    testkit::wait_for("the end of the old row", LIMIT, || {
        shop.state().ok().filter(|state| state == "attached")
    })?;

    let changes = shop.dev.shore(&["events", "--kind", "volume", "--json"])?.ok("events")?;
    let told: Vec<Value> =
        changes.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is = |change: &Value| (change["op"].clone(), change["body"]["state"].clone());
    assert!(told.iter().any(|change| is(change) == ("put".into(), "detached".into())), "{changes}");
    assert!(told.iter().any(|change| change["op"] == "delete"), "{changes}");
    Ok(())
}
