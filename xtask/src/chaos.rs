//! Kills roles with `kill -9` at random moments while apps are brought up, then counts the damage:
//! acknowledged jobs that never ended, one-off commands that ran twice, what is left of containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use runtime::Random;
use serde_json::Value;
use testkit::{Cluster, Role, get, wait_for};

use crate::{Failure, build_shore, root};

/// Kills unless told otherwise.
const DEFAULT_KILLS: u32 = 50;
/// The latest moment of a kill after an `up` began. A whole `up` takes about a tenth of this.
const LATEST_MS: u64 = 400;
/// How long everything may take to come to rest.
const LIMIT: Duration = Duration::from_secs(90);
const HOST: &str = "web.chaos.localhost";

pub(crate) fn run() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let kills = value("--kills").and_then(|kills| u32::try_from(kills).ok());
    round(kills.unwrap_or(DEFAULT_KILLS), value("--seed").unwrap_or(1))
}

/// What happened to what was asked for.
#[derive(Debug, Default)]
struct Damage {
    lost: usize,
    doubled: usize,
    orphans: usize,
}

struct Chaos {
    cluster: Cluster,
    random: Random,
    ledger: PathBuf,
    running: Vec<Child>,
}

pub(crate) fn round(kills: u32, seed: u64) -> Result<(), Failure> {
    let cluster = Cluster::start(&build_shore()?)?;
    let ledger = cluster.home().join("ledger");
    let random = Random::seeded(seed);
    let mut chaos = Chaos { cluster, random, ledger, running: Vec::new() };
    chaos.up()?.wait().map_err(|error| error.to_string())?;
    for number in 0..kills {
        chaos.kill(number)?;
        if (number + 1) % 20 == 0 {
            eprintln!("{} of {kills} kills", number + 1);
        }
    }
    let damage = chaos.damage()?;
    let Damage { lost, doubled, orphans } = damage;
    eprintln!("chaos: kills={kills} seed={seed} lost={lost} doubled={doubled} orphans={orphans}");
    if lost + doubled + orphans == 0 { Ok(()) } else { Err("something was damaged".to_owned()) }
}

impl Chaos {
    fn up(&self) -> Result<Child, Failure> {
        let example = root().join("examples/static-site");
        let example = example.display().to_string();
        self.cluster.shore_in_background(&["up", &example, "--project", "chaos", "--json"])
    }

    /// A command that must run at most once: it leaves its number in the ledger.
    fn one_off(&self, number: u32) -> Result<Child, Failure> {
        let script = format!("echo {number} >> {}", self.ledger.display());
        let args = ["run", "--project", "chaos", "--", "/bin/sh", "-c", &script];
        self.cluster.shore_in_background(&args)
    }

    /// Begins work, kills one or all roles at a random moment, and starts them again.
    fn kill(&mut self, number: u32) -> Result<(), Failure> {
        let up = self.up()?;
        let one_off = self.one_off(number)?;
        self.running.extend([up, one_off]);
        runtime::pause_thread(Duration::from_millis(self.random.next_u64() % LATEST_MS));
        let victims: Vec<Role> = match self.random.next_u64() % 6 {
            0 | 1 => vec![Role::Server],
            2 => vec![Role::Runner],
            3 => vec![Role::Cell],
            4 => vec![Role::Router],
            _ => Role::ALL.to_vec(),
        };
        for role in &victims {
            self.cluster.kill(*role)?;
        }
        for role in &victims {
            self.cluster.launch(*role)?;
        }
        self.settle(number)
    }

    /// Lets commands end now and then, so that not too many pile up, and asks for the page.
    fn settle(&mut self, number: u32) -> Result<(), Failure> {
        if number % 5 != 4 {
            return Ok(());
        }
        let running = std::mem::take(&mut self.running);
        for mut child in running {
            let ended = wait_for("a command", LIMIT, || child.try_wait().ok().flatten());
            if let Err(late) = ended {
                child.kill().map_err(|error| error.to_string())?;
                return Err(late);
            }
        }
        let port = self.cluster.ports.http;
        wait_for("the page", LIMIT, || get(port, HOST, "/").ok().filter(|page| page.status == 200))
            .map(|_| ())
            .map_err(|failure| self.explain(&failure))
    }

    fn explain(&self, failure: &str) -> Failure {
        let status = self.cluster.shore(&["status", "--project", "chaos"]);
        let jobs = self.cluster.shore(&["job", "list", "--limit", "5"]);
        let text = |ran: Result<testkit::Ran, Failure>| ran.map(|ran| ran.out + &ran.err);
        format!(
            "{failure}\n{}\n{}\n{}",
            text(status).unwrap_or_default(),
            text(jobs).unwrap_or_default(),
            self.cluster.log(Role::Cell)
        )
    }

    fn damage(&mut self) -> Result<Damage, Failure> {
        for mut child in std::mem::take(&mut self.running) {
            let ended = wait_for("a command", LIMIT, || child.try_wait().ok().flatten());
            ended.map(|_| ())?;
        }
        self.cluster.wait_for_server()?;
        let lost = self.lost()?;
        let doubled = self.doubled();
        self.cluster.shore(&["destroy", "--project", "chaos", "--yes"])?.ok("destroy")?;
        let orphans = self.orphans();
        Ok(Damage { lost, doubled, orphans })
    }

    /// Jobs that do not come to an end.
    fn lost(&self) -> Result<usize, Failure> {
        let open = || -> Result<Vec<Value>, Failure> {
            let jobs = self.cluster.json_lines(&["job", "list", "--limit", "1000"])?;
            Ok(jobs.into_iter().filter(|job| job["ended"] != true).collect())
        };
        let rest =
            wait_for("every job to end", LIMIT, || open().ok().filter(Vec::is_empty).map(|_| ()));
        match rest {
            Ok(()) => Ok(0),
            Err(_) => Ok(open()?.len()),
        }
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
        let home = self.cluster.home();
        let left = || processes(home).into_iter().chain(directories(home)).collect::<Vec<_>>();
        let gone = wait_for("containers to go", LIMIT, || left().is_empty().then_some(()));
        if gone.is_ok() {
            return 0;
        }
        let left = left();
        eprintln!("left behind:\n{}\n{}", left.join("\n"), self.cluster.log(Role::Cell));
        left.len()
    }
}

/// Processes that run in a container of this cluster.
fn processes(home: &Path) -> Vec<String> {
    let mark = home.join("data/longshore/cell").display().to_string();
    let inside = |environ: &[u8]| {
        String::from_utf8_lossy(environ)
            .split('\0')
            .any(|var| var.starts_with("SHORE_ROOT=") && var.contains(&mark))
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|entry| std::fs::read(entry.path().join("environ")).is_ok_and(|it| inside(&it)))
        .map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            format!("process {}: {line}", entry.file_name().display())
        })
        .collect()
}

/// Containers, and what waits in the driver's bin to be removed.
fn directories(home: &Path) -> Vec<String> {
    let containers = home.join("data/longshore/cell/containers");
    let names = |dir: &Path| {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.map(|entry| entry.file_name().display().to_string()).collect::<Vec<_>>()
    };
    let live = names(&containers).into_iter().filter(|name| name != ".trash");
    let all = live.chain(names(&containers.join(".trash")));
    all.map(|name| format!("directory {name}")).collect()
}
