//! The cluster that things are done to: a server, a runner, two routers, three cells in three zones,
//! and a client that asks the routers for pages all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{Lan, Mark, Met, Page, Ran, Steady, Wanted, get_from, wait_for};

use super::machine::{API_PORT, HTTP_PORT, Machine};
use crate::traces::instances;
use crate::{Failure, root};

/// The parent of every app's host.
const DOMAIN: &str = "apps.test";
/// The apps, and where they come from.
pub(super) const APPS: [(&str, &str); 2] = [("site", "static-site"), ("python", "python-web")];
/// Instances of each app: one in each zone.
const INSTANCES: usize = 3;
/// Requests a second, and the connections they are spread over.
const RATE: u32 = 60;
/// See [`RATE`].
const CONNECTIONS: u32 = 6;
/// How long everything may take to be as it should be.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// How long a command may take.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Where an instance runs, and its processes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) project: &'static str,
    pub(super) cell: String,
    pub(super) processes: BTreeSet<u32>,
}

/// Where every instance of the apps runs, by its id.
pub(super) type Places = BTreeMap<String, Place>;

/// The machines, and the requests that never stop.
pub(super) struct Stage {
    pub(super) load: Option<Steady>,
    pub(super) server: Machine,
    pub(super) runner: Machine,
    pub(super) routers: [Machine; 2],
    pub(super) cells: [Machine; 3],
    pub(super) client: Machine,
    /// Goes last: everything is on it.
    lan: Lan,
}

impl Stage {
    /// Starts every role with the commands of the README, brings the apps up and begins to ask.
    pub(super) fn start(shore: &Path) -> Result<Self, Failure> {
        let lan = Lan::new()?;
        let machine = |name: &str, number: u8| Machine::new(shore, &lan, name, number);
        let mut stage = Self {
            server: machine("server", 2)?,
            runner: machine("runner", 3)?,
            routers: [machine("router1", 4)?, machine("router2", 5)?],
            cells: [machine("cell1", 11)?, machine("cell2", 12)?, machine("cell3", 13)?],
            client: machine("client", 20)?,
            load: None,
            lan,
        };
        stage.start_roles()?;
        for (project, example) in APPS {
            stage.bring_up(project, example)?;
        }
        let wanted = Wanted {
            from: Some(stage.client.host.clone()),
            at: stage.routers.iter().map(|router| router.at(HTTP_PORT)).collect(),
            hosts: APPS.iter().map(|(project, _)| host(project)).collect(),
            rate: RATE,
            connections: CONNECTIONS,
        };
        stage.load = Some(Steady::start(wanted)?);
        Ok(stage)
    }

    fn start_roles(&mut self) -> Result<(), Failure> {
        let address = self.server.host.address.to_string();
        let (listen, ssh) = (format!("0.0.0.0:{API_PORT}"), "0.0.0.0:7422");
        let args =
            ["server", "--listen", &listen, "--ssh", ssh, "--name", &address, "--domain", DOMAIN];
        self.server.runs(&args, &[]);
        let ready = self.server.start()?;
        let token = ready["token"].as_str().ok_or("the server printed no token")?;
        let url = format!("https://{address}:{API_PORT}");
        let context = ["context", "set", "prod", "--server", &url, "--token", token];
        self.shore(&context)?.ok("context set")?;
        let token = self.token("runner")?;
        self.runner.runs(&["runner", "--server", &url, "--name", "runner"], &[join(&token)]);
        self.runner.start()?;
        let token = self.token("cell")?;
        for (cell, zone) in self.cells.iter_mut().zip(["a", "b", "c"]) {
            let (name, address) = (cell.name().to_owned(), cell.host.address.to_string());
            let own =
                ["--name", &name, "--zone", zone, "--address", &address, "--driver", "process"];
            cell.runs(&[&["cell", "--server", &url], &own[..]].concat(), &[join(&token)]);
            cell.start()?;
        }
        let token = self.token("router")?;
        for router in &mut self.routers {
            let listen = format!("0.0.0.0:{HTTP_PORT}");
            router.runs(&["router", "--server", &url, "--listen", &listen], &[join(&token)]);
            router.start()?;
        }
        Ok(())
    }

    fn token(&self, role: &str) -> Result<String, Failure> {
        let made = self.shore(&["token", "create", "--role", role, "--json"])?.ok("token")?;
        let made: Value = serde_json::from_str(&made).map_err(|error| error.to_string())?;
        made["token"].as_str().map(str::to_owned).ok_or_else(|| format!("no token: {made}"))
    }

    /// Copies an example to the client, with as many instances as there are cells; where it is.
    fn bring_up(&self, project: &str, example: &str) -> Result<(), Failure> {
        let from = root().join("examples").join(example);
        let dir = self.client.home().join(project);
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        for entry in std::fs::read_dir(&from).into_iter().flatten().flatten() {
            let to = dir.join(entry.file_name());
            std::fs::copy(entry.path(), to).map_err(|error| error.to_string())?;
        }
        let file = format!("app \"web\" {{\n  deploy {{\n    instances = {INSTANCES}\n  }}\n}}\n");
        std::fs::write(dir.join("shore.hcl"), file).map_err(|error| error.to_string())?;
        self.up(project)?.ok("shore up").map(|_| ())
    }

    fn dir(&self, project: &str) -> PathBuf {
        self.client.home().join(project)
    }

    /// `shore up` of an app, from the client.
    pub(super) fn up(&self, project: &str) -> Result<Ran, Failure> {
        let dir = self.dir(project).display().to_string();
        self.shore(&["up", &dir, "--project", project])
    }

    /// A new app on the client: its files, by name.
    pub(super) fn write_app(&self, project: &str, files: &[(&str, &str)]) -> Result<(), Failure> {
        let dir = self.dir(project);
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        for (name, text) in files {
            std::fs::write(dir.join(name), text).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Runs `shore ARGS` on the client, for as long as a command may take.
    pub(super) fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.begin(args)?.end(COMMAND_LIMIT)
    }

    /// Starts `shore ARGS` on the client.
    pub(super) fn begin(&self, args: &[&str]) -> Result<Running, Failure> {
        let mut command = self.client.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| error.to_string())?;
        Ok(Running { child, what: args.join(" ") })
    }

    /// Runs `shore ARGS --json` and reads its lines.
    pub(super) fn json(&self, args: &[&str]) -> Result<Vec<Value>, Failure> {
        let out = self.shore(&[args, &["--json"]].concat())?.ok(&args.join(" "))?;
        let read =
            |line: &str| serde_json::from_str(line).map_err(|error| format!("{line}: {error}"));
        out.lines().map(read).collect()
    }

    /// The instances of an app's released deployment, as the server sees them.
    fn instances(&self, project: &str) -> Result<Vec<Value>, Failure> {
        let status = self.json(&["status", "--project", project])?;
        let status = status.first().ok_or("there is no status")?;
        let deployments = status["deployments"].as_array().cloned().unwrap_or_default();
        let released = deployments.into_iter().find(|it| it["released"] == true);
        let released = released.ok_or_else(|| format!("nothing of {project} is released"))?;
        let processes = released["processes"].as_array().cloned().unwrap_or_default();
        let all = processes.iter().filter_map(|it| it["instances"].as_array()).flatten();
        Ok(all.cloned().collect())
    }

    /// The processes of every instance on every cell, whatever the server thinks of them.
    pub(super) fn running(&self) -> BTreeMap<(String, String), BTreeSet<u32>> {
        let of_cell = |cell: &Machine| {
            let name = cell.name().to_owned();
            let all = instances(cell.home()).into_iter();
            all.map(move |(id, processes)| ((id, name.clone()), processes)).collect::<Vec<_>>()
        };
        self.cells.iter().flat_map(of_cell).collect()
    }

    /// Where every instance of the apps is, if all of them are healthy.
    pub(super) fn places(&self) -> Result<Places, Failure> {
        let mut places = Places::new();
        let running = self.running();
        for (project, _) in APPS {
            let all = self.instances(project)?;
            if all.len() != INSTANCES {
                return Err(format!("{project} has {} instances", all.len()));
            }
            for it in all {
                let id = it["id"].as_str().unwrap_or_default().to_owned();
                let address = it["address"].as_str().unwrap_or_default();
                let cell = self
                    .cells
                    .iter()
                    .find(|cell| address.starts_with(&format!("{}:", cell.host.address)));
                let cell = cell.filter(|_| it["ready"] == true).map(Machine::name);
                let cell = cell.ok_or_else(|| format!("{project}: {it}"))?.to_owned();
                let processes = running.get(&(id.clone(), cell.clone())).cloned();
                let processes = processes.ok_or_else(|| format!("{id} is not on {cell}"))?;
                places.insert(id, Place { project, cell, processes });
            }
        }
        Ok(places)
    }

    /// Where every instance is, and that nothing else runs.
    fn places_alone(&self) -> Result<Places, Failure> {
        let places = self.places()?;
        let surplus =
            |(id, cell): &(String, String)| places.get(id).is_none_or(|place| place.cell != *cell);
        let too_many: Vec<_> = self.running().into_keys().filter(surplus).collect();
        if too_many.is_empty() { Ok(places) } else { Err(format!("too many: {too_many:?}")) }
    }

    /// Waits until everything is as it should be, with something of each app on each cell.
    pub(super) fn spread(&self) -> Result<(), Failure> {
        let places = self.settled()?;
        for (project, _) in APPS {
            let ids: Vec<Value> = self.instances(project)?;
            let ids = ids.iter().filter_map(|it| it["id"].as_str());
            let cells: BTreeSet<&str> =
                ids.filter_map(|id| places.get(id)).map(|place| place.cell.as_str()).collect();
            if cells.len() < self.cells.len() {
                self.shore(&["restart", "--project", project])?.ok("shore restart")?;
            }
        }
        self.settled().map(|_| ())
    }

    /// Waits until every instance is healthy on another cell than this one.
    pub(super) fn without(&self, cell: &str, limit: Duration) -> Result<Places, Failure> {
        let mut last = String::new();
        let look = || {
            let places = self.places().map_err(|why| last = why).ok()?;
            let left = places.values().filter(|place| place.cell == cell).count();
            last = format!("{left} are on {cell}");
            (left == 0).then_some(places)
        };
        let places = wait_for(&format!("instances to be elsewhere than on {cell}"), limit, look);
        places.map_err(|late| format!("{late}: {last}"))
    }

    /// The page of an app from one of the routers.
    pub(super) fn ask(&self, router: &Machine, project: &str) -> Result<Page, Failure> {
        get_from(&self.client.host, router.at(HTTP_PORT), &host(project))
    }

    /// Lets so much time pass.
    pub(super) fn pass(&self, time: Duration) -> Result<(), Failure> {
        let began = runtime::mono_now();
        wait_for("time to pass", 2 * time, || (began.elapsed() >= time).then_some(()))?;
        self.load().map(|_| ())
    }

    /// A file in which work leaves its marks, on no machine's disk.
    pub(super) fn marks(&self, name: &str) -> PathBuf {
        self.lan.home().join(name)
    }

    /// Something that needs every stream: the runner's, a cell's and the routers'. How long it took.
    pub(super) fn whole_way(&self) -> Result<Duration, Failure> {
        let began = runtime::mono_now();
        self.shore(&["restart", "--project", "site"])?.ok("shore restart")?;
        Ok(began.elapsed())
    }

    /// Waits until every instance is healthy, where it should be and nowhere else, and no request
    /// fails.
    pub(super) fn settled(&self) -> Result<Places, Failure> {
        self.settled_within(SETTLE_LIMIT)
    }

    pub(super) fn settled_within(&self, limit: Duration) -> Result<Places, Failure> {
        let mut last = String::new();
        let look = || match self.places_alone() {
            Ok(places) => Some(places),
            Err(why) => {
                last = why;
                None
            }
        };
        let places = wait_for("instances to settle", limit, look);
        let places = places.map_err(|late| format!("{late}: {last}"))?;
        self.load()?.calm(limit)?;
        Ok(places)
    }

    pub(super) fn load(&self) -> Result<&Steady, Failure> {
        self.load.as_ref().ok_or_else(|| "nobody asks".to_owned())
    }

    pub(super) fn mark(&self) -> Result<Mark, Failure> {
        self.load().map(Steady::mark)
    }

    /// What requests met since `mark`.
    pub(super) fn met(&self, mark: &Mark) -> Result<Met, Failure> {
        Ok(self.load()?.since(mark))
    }

    /// Everything as it should be again.
    pub(super) fn mend(&mut self) -> Result<(), Failure> {
        self.server.mend()?;
        self.runner.mend()?;
        self.cells.iter_mut().try_for_each(Machine::mend)?;
        self.routers.iter_mut().try_for_each(Machine::mend)?;
        self.settled().map(|_| ())
    }

    /// What every role said last.
    pub(super) fn said(&self) -> String {
        const LAST: usize = 15;
        let all = [&self.server, &self.runner].into_iter().chain(&self.routers).chain(&self.cells);
        let tail = |machine: &Machine| {
            let text = machine.said();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LAST);
            format!("--- {}\n{}\n", machine.name(), lines[from..].join("\n"))
        };
        all.map(tail).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.load = None;
        let roles = [&mut self.runner, &mut self.client, &mut self.server];
        for machine in roles.into_iter().chain(&mut self.routers).chain(&mut self.cells) {
            machine.power_off().unwrap_or_default();
        }
    }
}

/// A command that runs on the client.
pub(super) struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Waits for a command's end.
    pub(super) fn end(mut self, limit: Duration) -> Result<Ran, Failure> {
        let what = format!("shore {}", self.what);
        let ended = wait_for(&what, limit, || self.child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child.kill().map_err(|error| error.to_string())?;
        }
        let output = self.child.wait_with_output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ended.map_err(|late| format!("{late}:\n{out}{err}"))?;
        Ok(Ran { code: output.status.code().unwrap_or(-1), out, err })
    }
}

fn join(token: &str) -> (&str, &str) {
    ("SHORE_TOKEN", token)
}

/// The host of a project's app.
pub(super) fn host(project: &str) -> String {
    format!("web.{project}.{DOMAIN}")
}
