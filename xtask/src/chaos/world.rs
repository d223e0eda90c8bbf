//! Where chaos happens: each role a process, the router twice, or one process that holds all roles.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use runtime::Random;
use testkit::{Cluster, Dev, Ports, Ran, Role};

use super::LATEST_MS;
use crate::{Failure, root};

/// The context of commands against one process. With the context it makes for itself, a command
/// that finds no server would start one of its own.
const CONTEXT: &str = "chaos";

/// Something that can be struck with `kill -9`.
pub(super) trait World {
    /// What it is, for messages.
    fn name(&self) -> &'static str;
    /// Where everything is kept.
    fn home(&self) -> &Path;
    /// Where it listens.
    fn ports(&self) -> Ports;
    /// Ends some of it, or all, and starts that again.
    fn strike(&mut self, random: &Random) -> Result<(), Failure>;
    /// Ends all of it and starts it again.
    fn strike_all(&mut self, random: &Random) -> Result<(), Failure>;
    /// Runs a command to its end.
    fn shore(&self, args: &[&str]) -> Result<Ran, Failure>;
    /// Starts a command.
    fn begin(&self, args: &[&str], out: Stdio) -> Result<Child, Failure>;
    /// What its roles said.
    fn said(&self) -> String;
    /// Whether somebody routes requests at every moment, whatever is struck.
    fn always_routes(&self) -> bool;
    /// Everything that runs apps.
    fn projects(&self) -> &'static [&'static str];
}

fn below(random: &Random, count: usize) -> usize {
    usize::try_from(random.next_u64() % count as u64).unwrap_or(0)
}

fn pause(random: &Random) {
    runtime::pause_thread(Duration::from_millis(random.next_u64() % LATEST_MS));
}

/// Server, runner, cell and two routers, each a process. One router at a time is struck.
pub(super) struct Apart {
    cluster: Cluster,
    victims: Vec<Role>,
    /// When a router was struck last.
    router_struck: Option<Instant>,
}

/// How long both routers are there before one is struck again.
const BOTH: Duration = Duration::from_millis(500);

impl Apart {
    /// Starts all of them; `victims` are those that are struck.
    pub(super) fn start(shore: &Path, victims: &[Role]) -> Result<Self, Failure> {
        let cluster = Cluster::start(shore)?;
        Ok(Self { cluster, victims: victims.to_vec(), router_struck: None })
    }

    fn again(&mut self, victims: &[Role]) -> Result<(), Failure> {
        let is_router = |role: &Role| matches!(role, Role::Router | Role::OtherRouter);
        let some_router = victims.iter().any(is_router);
        if let Some(struck) = self.router_struck.filter(|_| some_router) {
            runtime::pause_thread(BOTH.saturating_sub(struck.elapsed()));
        }
        for role in victims {
            self.cluster.kill(*role)?;
        }
        for role in victims {
            self.cluster.launch(*role)?;
        }
        if some_router {
            self.router_struck = Some(runtime::mono_now());
        }
        Ok(())
    }

    /// The one that is struck when it is this one's turn: of the routers, one or the other.
    fn one_of(role: Role, random: &Random) -> Role {
        let other = random.next_u64().is_multiple_of(2);
        if role == Role::Router && other { Role::OtherRouter } else { role }
    }
}

impl World for Apart {
    fn name(&self) -> &'static str {
        "roles apart"
    }

    fn always_routes(&self) -> bool {
        true
    }

    fn home(&self) -> &Path {
        self.cluster.home()
    }

    fn ports(&self) -> Ports {
        self.cluster.ports
    }

    fn strike(&mut self, random: &Random) -> Result<(), Failure> {
        let turn = below(random, self.victims.len() + 1);
        match self.victims.get(turn).copied() {
            Some(role) => self.again(&[Self::one_of(role, random)]),
            None => self.strike_all(random),
        }
    }

    fn strike_all(&mut self, random: &Random) -> Result<(), Failure> {
        let victims: Vec<Role> =
            self.victims.iter().map(|role| Self::one_of(*role, random)).collect();
        self.again(&victims)
    }

    fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.cluster.shore(args)
    }

    fn begin(&self, args: &[&str], out: Stdio) -> Result<Child, Failure> {
        self.cluster.shore_in_background(args, out)
    }

    fn said(&self) -> String {
        self.cluster.log(Role::Cell)
    }

    fn projects(&self) -> &'static [&'static str] {
        &[super::PROJECT]
    }
}

/// The app that `shore up` itself brings up while it holds all roles.
const OWN: &str = "own";

/// One process with all roles: `shore dev`, or `shore up` with an app of its own.
pub(super) struct One(Dev);

impl One {
    pub(super) fn start(shore: &Path) -> Result<Self, Failure> {
        let dev = Dev::start(shore)?;
        let admin = dev.token()?;
        let url = format!("http://127.0.0.1:{}", dev.ports.api);
        dev.shore(&["context", "set", CONTEXT, "--server", &url, "--token", &admin])?.ok("set")?;
        Ok(Self(dev))
    }

    /// Starts it in one of its two forms.
    fn begin_again(&mut self, random: &Random) -> Result<(), Failure> {
        let site = root().join("examples/static-site").display().to_string();
        let log = ["--log", "info", "--context", "local"];
        if random.next_u64().is_multiple_of(2) {
            self.0.begin(&[&["dev"], &log[..]].concat())
        } else {
            self.0.begin(&[&["up", &site, "--project", OWN], &log[..]].concat())
        }
    }
}

impl World for One {
    fn name(&self) -> &'static str {
        "one process"
    }

    fn always_routes(&self) -> bool {
        false
    }

    fn home(&self) -> &Path {
        self.0.home()
    }

    fn ports(&self) -> Ports {
        self.0.ports
    }

    fn strike(&mut self, random: &Random) -> Result<(), Failure> {
        self.0.kill()?;
        // Now and then it is struck again while it starts.
        if random.next_u64().is_multiple_of(4) {
            self.begin_again(random)?;
            pause(random);
            self.0.kill()?;
        }
        self.begin_again(random)?;
        self.0.wait_until_it_listens()
    }

    fn strike_all(&mut self, random: &Random) -> Result<(), Failure> {
        self.strike(random)
    }

    fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.0.shore(&[&["--context", CONTEXT], args].concat())
    }

    fn begin(&self, args: &[&str], out: Stdio) -> Result<Child, Failure> {
        self.0.shore_in_background(&[&["--context", CONTEXT], args].concat(), out)
    }

    fn said(&self) -> String {
        self.0.log()
    }

    fn projects(&self) -> &'static [&'static str] {
        &[super::PROJECT, OWN]
    }
}
