//! With `shore server --rebalance`, instances move to a cell that joins later, and every one of them
//! serves all the time. Everything here drives the real program.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Alone, Failure, wait_for};

/// How long something may take that needs no build.
const LIMIT: Duration = Duration::from_secs(30);

const APP: &str = "#!/usr/bin/env python3\nimport http.server, os\n\
    host = (os.environ[\"HOST\"], int(os.environ[\"PORT\"]))\n\
    http.server.ThreadingHTTPServer(host, http.server.SimpleHTTPRequestHandler).serve_forever()\n";

fn told(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Processes that end with the test.
#[derive(Default)]
struct Parts(Vec<Child>);

impl Drop for Parts {
    fn drop(&mut self) {
        for part in &mut self.0 {
            let ended = part.kill().and_then(|()| part.wait().map(drop));
            ended.unwrap_or_default();
        }
    }
}

impl Parts {
    fn join(&mut self, server: &Alone, role: &str, args: &[&str]) -> Result<(), Failure> {
        let token = server.make_token(&["--role", role])?;
        let mut command = server.command(&[&[role], args].concat());
        command.env("SHORE_TOKEN", token);
        command.env("SHORE_SERVER", format!("http://127.0.0.1:{}", server.port));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.push(command.spawn().map_err(told)?);
        Ok(())
    }

    fn cell(&mut self, server: &Alone, name: &str) -> Result<(), Failure> {
        let data = server.home().join(name).display().to_string();
        let args = ["--name", name, "--driver", "process", "--memory", "1000", "--data", &data];
        self.join(server, "cell", &args)
    }
}

/// How many instances each cell has, by its name.
fn instances(server: &Alone) -> Result<Vec<(String, u64)>, Failure> {
    let said = server.shore(&["cell", "list", "--json"])?.ok("cell list")?;
    let rows = said.lines().map(|row| serde_json::from_str::<Value>(row).map_err(told));
    let named = rows.map(|row| {
        let row = row?;
        let name = row["spec"]["name"].as_str().unwrap_or_default().to_owned();
        Ok((name, row["instances"].as_u64().unwrap_or_default()))
    });
    named.collect()
}

#[test]
fn a_cell_that_joins_later_gets_its_share() -> Result<(), Failure> {
    let program = Path::new(env!("CARGO_BIN_EXE_shore"));
    let args = ["--rebalance", "1", "--rebalance-every", "1"];
    let server = Alone::start(program, &args)?;
    let mut parts = Parts::default();
    parts.join(&server, "runner", &[])?;
    parts.cell(&server, "old")?;
    let dir = server.home().join("shop");
    std::fs::create_dir_all(&dir).map_err(told)?;
    let file = "project = \"shop\"\napp \"web\" {\n  deploy {\n    instances = 4\n    \
                memory = 100\n  }\n}\n";
    std::fs::write(dir.join("shore.hcl"), file).map_err(told)?;
    std::fs::write(dir.join("Procfile"), "web: ./serve\n").map_err(told)?;
    std::fs::write(dir.join("serve"), APP).map_err(told)?;
    let runs = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("serve"), runs).map_err(told)?;
    server.shore(&["up", &dir.display().to_string()])?.ok("up")?;
    assert_eq!(instances(&server)?, [("old".to_owned(), 4)]);
    parts.cell(&server, "new")?;
    wait_for("the new cell to get its share", LIMIT, || {
        let mut now = instances(&server).ok()?;
        now.sort();
        (now == [("new".to_owned(), 2), ("old".to_owned(), 2)]).then_some(())
    })?;
    let status = server.json(&["status", "--project", "shop", "--app", "web"])?;
    let all = status["deployments"][0]["processes"][0]["instances"].as_array();
    let all = all.ok_or("no instances are shown")?;
    let is_well = |row: &&Value| row["ready"] == true && row["crashes"] == 0;
    assert_eq!(all.iter().filter(is_well).count(), 4, "{status}");
    Ok(())
}
