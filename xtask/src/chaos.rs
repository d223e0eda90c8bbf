//! Kills roles with `kill -9` at random moments while apps are brought up, then counts the damage:
//! acknowledged jobs that never ended, one-off commands that ran twice, instances that were not
//! found again, what is left of containers, and requests that failed meanwhile. Half of the kills
//! strike processes with a role each, half one process with all roles.
//!
//! `--kills N` and `--seed N` say how many and which; `--roles server,runner,cell,router` says which
//! roles are struck, each a process, and leaves out the one process. There are two routers on one
//! port, of which one is struck at a time, so that somebody always takes requests.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use runtime::Random;
use serde_json::Value;
use testkit::{AGAIN_PAUSE, Met, Role, Steady, Wanted, get, wait_for};

use crate::traces::{directories, instances, processes};
use crate::{Failure, build_shore, root};
use world::{Apart, One, World};

/// Kills unless told otherwise.
const DEFAULT_KILLS: u32 = 50;
/// The latest moment of a kill after an `up` began. A whole `up` takes about a tenth of this.
const LATEST_MS: u64 = 400;
/// Kills after which everything comes to rest; the next kill strikes while nothing else happens.
const KILLS_BETWEEN_RESTS: u32 = 5;
/// How long everything may take to come to rest.
const LIMIT: Duration = Duration::from_secs(90);
/// Requests a second while things are struck, and the connections they are spread over.
const RATE: u32 = 50;
/// See [`RATE`].
const CONNECTIONS: u32 = 4;
/// Failed requests that are shown.
const SHOWN: usize = 10;
/// Roles that are struck unless told otherwise.
const ROLES: [Role; 4] = [Role::Server, Role::Runner, Role::Cell, Role::Router];
const PROJECT: &str = "chaos";
const HOST: &str = "web.chaos.localhost";
/// Jobs that are asked for at once: more than there ever are.
const ALL_JOBS: &str = "1000";

pub(crate) fn run() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let kills = value("--kills").and_then(|kills| u32::try_from(kills).ok());
    let (kills, seed) = (kills.unwrap_or(DEFAULT_KILLS), value("--seed").unwrap_or(1));
    let roles = args.iter().position(|arg| arg == "--roles").and_then(|at| args.get(at + 1));
    let Some(roles) = roles else { return round(kills, seed) };
    let role = |name: &str| {
        let found = ROLES.into_iter().find(|role| role.name() == name);
        found.ok_or_else(|| format!("there is no role `{name}`: server, runner, cell, router"))
    };
    let victims = roles.split(',').map(role).collect::<Result<Vec<_>, _>>()?;
    let apart = Apart::start(&build_shore()?, &victims)?;
    Chaos::new(Box::new(apart), seed).kills(kills)?.verdict(kills, seed)
}

/// What happened to what was asked for.
#[derive(Debug, Default, Clone, Copy)]
struct Damage {
    restarted: usize,
    lost: usize,
    doubled: usize,
    orphans: usize,
    failed_requests: u64,
    requests: u64,
    /// Requests that were sent a second time.
    again: u64,
}

impl Damage {
    const fn plus(self, other: Self) -> Self {
        Self {
            restarted: self.restarted + other.restarted,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            orphans: self.orphans + other.orphans,
            failed_requests: self.failed_requests + other.failed_requests,
            requests: self.requests + other.requests,
            again: self.again + other.again,
        }
    }

    /// Says what was damaged.
    fn verdict(self, kills: u32, seed: u64) -> Result<(), Failure> {
        let Self { restarted, lost, doubled, orphans, failed_requests, requests, again } = self;
        eprintln!(
            "chaos: {requests} requests at {RATE} a second while roles apart were struck; a GET whose \
             connection failed before a byte of an answer was sent once more after {AGAIN_PAUSE:?}, as \
             browsers and load balancers do: {again} were"
        );
        eprintln!(
            "chaos: killed={kills} seed={seed} restarted={restarted} lost={lost} doubled={doubled} \
             orphans={orphans} failed_requests={failed_requests}"
        );
        if self.is_none() { Ok(()) } else { Err("something was damaged".to_owned()) }
    }

    const fn is_none(self) -> bool {
        self.restarted + self.lost + self.doubled + self.orphans == 0 && self.failed_requests == 0
    }
}

struct Chaos {
    world: Box<dyn World>,
    random: Random,
    ledger: PathBuf,
    running: Vec<Child>,
    /// What `up` printed, which names the jobs the server acknowledged.
    printed: Vec<PathBuf>,
    /// The processes of instances that were healthy once. An instance that never crashed has the
    /// same ones for as long as it runs.
    healthy: BTreeMap<String, BTreeSet<u32>>,
    restarted: BTreeSet<String>,
    /// Asks for the page all the time, where somebody always routes.
    load: Option<Steady>,
}

pub(crate) fn round(kills: u32, seed: u64) -> Result<(), Failure> {
    let shore = build_shore()?;
    let of_one = kills / 2;
    let apart = Box::new(Apart::start(&shore, &ROLES)?);
    let apart = Chaos::new(apart, seed).kills(kills - of_one)?;
    let one = Chaos::new(Box::new(One::start(&shore)?), seed).kills(of_one)?;
    apart.plus(one).verdict(kills, seed)
}

impl Chaos {
    fn new(world: Box<dyn World>, seed: u64) -> Self {
        let ledger = world.home().join("ledger");
        Self {
            world,
            random: Random::seeded(seed),
            ledger,
            running: Vec::new(),
            printed: Vec::new(),
            healthy: BTreeMap::new(),
            restarted: BTreeSet::new(),
            load: None,
        }
    }

    /// Begins to ask for the page, if it can be there at every moment.
    fn ask(&mut self) -> Result<(), Failure> {
        if self.world.always_routes() {
            let at = (std::net::Ipv4Addr::LOCALHOST, self.world.ports().http).into();
            let (at, hosts) = (vec![at], vec![HOST.to_owned()]);
            let wanted = Wanted { from: None, at, hosts, rate: RATE, connections: CONNECTIONS };
            self.load = Some(Steady::start(wanted)?);
        }
        Ok(())
    }

    /// Asks no more; what requests met.
    fn met(&mut self) -> Met {
        let met = self.load.take().map(|load| load.all()).unwrap_or_default();
        for failed in met.failures.iter().take(SHOWN) {
            eprintln!("{}: a request failed: {}", self.world.name(), failed.why);
        }
        met
    }

    fn kills(mut self, kills: u32) -> Result<Damage, Failure> {
        self.up()?;
        self.rest()?;
        self.ask()?;
        for number in 0..kills {
            self.kill(number).map_err(|failure| self.explain(&failure))?;
            if (number + 1) % 20 == 0 || number + 1 == kills {
                eprintln!("{}: {} of {kills} kills", self.world.name(), number + 1);
            }
        }
        self.rest().map_err(|failure| self.explain(&failure))?;
        self.damage()
    }

    fn up(&mut self) -> Result<(), Failure> {
        let example = root().join("examples/static-site").display().to_string();
        let printed = self.world.home().join(format!("up-{}", self.printed.len()));
        let out = std::fs::File::create(&printed).map_err(|error| error.to_string())?;
        let args = ["up", &example, "--project", PROJECT, "--json"];
        self.running.push(self.world.begin(&args, out.into())?);
        self.printed.push(printed);
        Ok(())
    }

    /// A command that must run at most once: it leaves its number in the ledger.
    fn one_off(&mut self, number: u32) -> Result<(), Failure> {
        let script = format!("echo {number} >> {}", self.ledger.display());
        let args = ["run", "--project", PROJECT, "--", "/bin/sh", "-c", &script];
        self.running.push(self.world.begin(&args, Stdio::null())?);
        Ok(())
    }

    /// Begins work, kills something at a random moment, and starts it again.
    fn kill(&mut self, number: u32) -> Result<(), Failure> {
        if number % KILLS_BETWEEN_RESTS == KILLS_BETWEEN_RESTS - 1 {
            self.rest()?;
            return self.kill_at_rest();
        }
        self.up()?;
        self.one_off(number)?;
        runtime::pause_thread(Duration::from_millis(self.random.next_u64() % LATEST_MS));
        self.world.strike(&self.random)
    }

    /// Lets commands end, so that not too many pile up, and asks for the page.
    fn rest(&mut self) -> Result<(), Failure> {
        for mut child in std::mem::take(&mut self.running) {
            let ended = wait_for("a command", LIMIT, || child.try_wait().ok().flatten());
            if let Err(late) = ended {
                child.kill().map_err(|error| error.to_string())?;
                return Err(late);
            }
        }
        self.page()?;
        self.look_at_instances()
    }

    fn page(&self) -> Result<(), Failure> {
        let port = self.world.ports().http;
        wait_for("the page", LIMIT, || get(port, HOST, "/").ok().filter(|page| page.status == 200))
            .map(|_| ())
    }

    /// Kills everything while nothing else happens: what ran before must run on.
    fn kill_at_rest(&mut self) -> Result<(), Failure> {
        let before = self.released()?;
        self.world.strike_all(&self.random)?;
        self.page()?;
        let after = instances(self.world.home());
        for id in before {
            if after.get(&id) != self.healthy.get(&id) {
                self.restarted.insert(id);
            }
        }
        Ok(())
    }

    /// Notes the processes of healthy instances, and which have others than they had.
    fn look_at_instances(&mut self) -> Result<(), Failure> {
        let found = instances(self.world.home());
        for (id, now) in &found {
            if self.healthy.get(id).is_some_and(|before| before != now) {
                eprintln!("{}: instance {id} has other processes now", self.world.name());
                self.restarted.insert(id.clone());
            }
        }
        for id in self.released()? {
            if let Some(processes) = found.get(&id) {
                self.healthy.insert(id, processes.clone());
            }
        }
        Ok(())
    }

    /// The instances of the released deployment, once all of them are healthy.
    fn released(&self) -> Result<Vec<String>, Failure> {
        let look = || {
            let status = self.json_lines(&["status", "--project", PROJECT]).ok()?;
            let deployments = status.first()?["deployments"].as_array()?.clone();
            let released = deployments.into_iter().find(|it| it["released"] == true)?;
            let processes = released["processes"].as_array()?;
            let all: Vec<&Value> =
                processes.iter().filter_map(|it| it["instances"].as_array()).flatten().collect();
            let ready = !all.is_empty() && all.iter().all(|it| it["ready"] == true);
            let id = |it: &&Value| it["id"].as_str().map(str::to_owned);
            ready.then(|| all.iter().filter_map(id).collect())
        };
        wait_for("healthy instances", LIMIT, look)
    }

    fn json_lines(&self, args: &[&str]) -> Result<Vec<Value>, Failure> {
        let what = format!("shore {}", args.join(" "));
        let out = self.world.shore(&[args, &["--json"]].concat())?.ok(&what)?;
        let parse =
            |line: &str| serde_json::from_str(line).map_err(|error| format!("{line}: {error}"));
        out.lines().map(parse).collect()
    }

    fn explain(&self, failure: &str) -> Failure {
        let text = |args: &[&str]| {
            self.world.shore(args).map(|ran| ran.out + &ran.err).unwrap_or_default()
        };
        format!(
            "{}: {failure}\n{}\n{}\n{}",
            self.world.name(),
            text(&["status", "--project", PROJECT]),
            text(&["job", "list", "--limit", "5"]),
            self.world.said()
        )
    }

    fn damage(&mut self) -> Result<Damage, Failure> {
        let met = self.met();
        let lost = self.lost()?;
        let doubled = self.doubled();
        let restarted = self.restarted.len();
        for project in self.world.projects() {
            // An app that was never brought up has nothing to destroy.
            let there = self.world.shore(&["status", "--project", project])?.code == 0;
            if there {
                self.world.shore(&["destroy", "--project", project, "--yes"])?.ok("destroy")?;
            }
        }
        let (failed_requests, requests, again) = (met.failed, met.requests, met.again);
        let orphans = self.orphans();
        Ok(Damage { restarted, lost, doubled, orphans, failed_requests, requests, again })
    }

    /// Jobs that do not come to an end, or that nobody knows although they were acknowledged.
    fn lost(&self) -> Result<usize, Failure> {
        let jobs = || self.json_lines(&["job", "list", "--limit", ALL_JOBS]);
        let open = |jobs: &[Value]| jobs.iter().filter(|job| job["ended"] != true).count();
        let all_ended = || jobs().ok().filter(|jobs| open(jobs) == 0);
        let jobs = match wait_for("every job to end", LIMIT, all_ended) {
            Ok(jobs) => jobs,
            Err(_) => jobs()?,
        };
        let known: BTreeSet<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
        let acknowledged = self.acknowledged();
        let unknown = acknowledged.iter().filter(|id| !known.contains(id.as_str())).count();
        let name = self.world.name();
        eprintln!("{name}: {} jobs, {} seen by who asked", jobs.len(), acknowledged.len());
        Ok(open(&jobs) + unknown)
    }

    /// The jobs that `up` was told about.
    fn acknowledged(&self) -> BTreeSet<String> {
        let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let id = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["job"]["id"].as_str().map(str::to_owned)
        };
        self.printed
            .iter()
            .map(text)
            .flat_map(|it| it.lines().filter_map(id).collect::<Vec<_>>())
            .collect()
    }

    /// Commands whose number is in the ledger more than once.
    fn doubled(&self) -> usize {
        let text = std::fs::read_to_string(&self.ledger).unwrap_or_default();
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for line in text.lines() {
            *times.entry(line).or_default() += 1;
        }
        times.values().filter(|times| **times > 1).count()
    }

    /// Processes and directories that are still there after everything was destroyed.
    fn orphans(&self) -> usize {
        let home = self.world.home();
        let left = || processes(home).into_iter().chain(directories(home)).collect::<Vec<_>>();
        let gone = wait_for("containers to go", LIMIT, || left().is_empty().then_some(()));
        if gone.is_ok() {
            return 0;
        }
        let left = left();
        eprintln!("left behind:\n{}\n{}", left.join("\n"), self.world.said());
        left.len()
    }
}
