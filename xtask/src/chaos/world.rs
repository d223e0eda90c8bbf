//! Where chaos happens: four processes, or one that holds all roles.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

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
    /// Everything that runs apps.
    fn projects(&self) -> &'static [&'static str];
}

fn pause(random: &Random) {
    runtime::pause_thread(Duration::from_millis(random.next_u64() % LATEST_MS));
}

/// Server, runner, cell and router, each a process.
pub(super) struct Four(Cluster);

impl Four {
    pub(super) fn start(shore: &Path) -> Result<Self, Failure> {
        Cluster::start(shore).map(Self)
    }

    fn again(&mut self, victims: &[Role]) -> Result<(), Failure> {
        for role in victims {
            self.0.kill(*role)?;
        }
        victims.iter().try_for_each(|role| self.0.launch(*role).map(|_| ()))
    }
}

impl World for Four {
    fn name(&self) -> &'static str {
        "four processes"
    }

    fn home(&self) -> &Path {
        self.0.home()
    }

    fn ports(&self) -> Ports {
        self.0.ports
    }

    fn strike(&mut self, random: &Random) -> Result<(), Failure> {
        match random.next_u64() % 6 {
            0 | 1 => self.again(&[Role::Server]),
            2 => self.again(&[Role::Runner]),
            3 => self.again(&[Role::Cell]),
            4 => self.again(&[Role::Router]),
            _ => self.again(&Role::ALL),
        }
    }

    fn strike_all(&mut self, _: &Random) -> Result<(), Failure> {
        self.again(&Role::ALL)
    }

    fn shore(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.0.shore(args)
    }

    fn begin(&self, args: &[&str], out: Stdio) -> Result<Child, Failure> {
        self.0.shore_in_background(args, out)
    }

    fn said(&self) -> String {
        self.0.log(Role::Cell)
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
