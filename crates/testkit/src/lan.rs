//! Machines in miniature: network namespaces on one switch, with addresses and faults of their own.
//!
//! Everything is in namespaces that are named after this process; nothing of the machine's own
//! network is touched. Needs root, `iproute2` and `iptables`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::dev::run;
use crate::{Failure, wait_for};

/// What every namespace of ours begins with.
const PREFIX: &str = "shore-lan-";
/// Where `ip netns` keeps its handles.
const NAMESPACES: &str = "/run/netns";
/// The name of every host's only interface.
const INTERFACE: &str = "eth0";
/// How long killed processes have to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A switch that hosts are connected to.
#[derive(Debug)]
pub struct Lan {
    switch: String,
    home: TempDir,
}

/// One machine: a network namespace with an address.
#[derive(Debug, Clone)]
pub struct Host {
    /// What it is called.
    pub name: String,
    /// Where the others reach it.
    pub address: Ipv4Addr,
    namespace: String,
    /// The switch's namespace, and the port there.
    switch: String,
    port: String,
}

fn ip(args: &[&str]) -> Result<String, Failure> {
    run(Command::new("ip").args(args))?.ok(&format!("ip {}", args.join(" ")))
}

/// What the names of this process's namespaces and directories begin with.
fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// The process something is named after.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn namespaces() -> Vec<String> {
    let all = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Ends every process in a namespace and removes it.
fn remove(namespace: &str) -> Result<(), Failure> {
    power_off(namespace)?;
    ip(&["netns", "del", namespace]).map(|_| ())
}

fn pids(namespace: &str) -> Vec<String> {
    let listed = ip(&["netns", "pids", namespace]).unwrap_or_default();
    listed.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn power_off(namespace: &str) -> Result<(), Failure> {
    let gone = || {
        let left = pids(namespace);
        if !left.is_empty() {
            // One that has just ended makes `kill` fail.
            drop(run(Command::new("kill").arg("-KILL").args(&left)));
        }
        left.is_empty().then_some(())
    };
    wait_for(&format!("the processes of {namespace} to end"), KILL_LIMIT, gone)
}

impl Lan {
    /// A new switch without hosts. What an earlier one left behind when its process was killed is
    /// removed first.
    pub fn new() -> Result<Self, Failure> {
        sweep();
        let home = tempfile::Builder::new().prefix(&own_prefix()).tempdir();
        let home = home.map_err(|error| error.to_string())?;
        let switch = format!("{}switch", own_prefix());
        ip(&["netns", "add", &switch])?;
        let lan = Self { switch, home };
        ip(&["-n", &lan.switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &lan.switch, "link", "set", "switch", "up"])?;
        Ok(lan)
    }

    /// A directory for whatever the hosts keep. It may hold disks.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Connects a new host, `10.77.0.number`.
    pub fn host(&self, name: &str, number: u8) -> Result<Host, Failure> {
        let namespace = format!("{}{name}", own_prefix());
        let address = Ipv4Addr::new(10, 77, 0, number);
        let (port, network) = (format!("port{number}"), format!("{address}/24"));
        ip(&["netns", "add", &namespace])?;
        let (host, switch) = (namespace.as_str(), self.switch.as_str());
        let pair = ["link", "add", INTERFACE, "type", "veth", "peer", "name", &port];
        ip(&[&["-n", host], &pair[..], &["netns", switch]].concat())?;
        ip(&["-n", switch, "link", "set", &port, "master", "switch", "up"])?;
        ip(&["-n", host, "addr", "add", &network, "dev", INTERFACE])?;
        ip(&["-n", host, "link", "set", "lo", "up"])?;
        ip(&["-n", host, "link", "set", INTERFACE, "up"])?;
        let (name, switch) = (name.to_owned(), self.switch.clone());
        Ok(Host { name, address, namespace, switch, port })
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let own = std::process::id();
        for namespace in namespaces().iter().filter(|it| owner(it) == Some(own)) {
            remove(namespace).unwrap_or_default();
        }
    }
}

/// Removes what killed processes left behind: namespaces, mounted disks, directories.
fn sweep() {
    let is_left =
        |name: &str| owner(name).is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists());
    for namespace in namespaces().iter().filter(|it| is_left(it)) {
        remove(namespace).unwrap_or_default();
    }
    let temporary = std::env::temp_dir();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new) {
        let below = at.strip_prefix(&temporary).ok().and_then(|it| it.iter().next()?.to_str());
        if below.is_some_and(is_left) {
            drop(run(Command::new("umount").arg("-l").arg(at)));
        }
    }
    for entry in std::fs::read_dir(&temporary).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_left) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

impl Host {
    fn handle(&self) -> String {
        format!("{NAMESPACES}/{}", self.namespace)
    }

    /// `program`, to be run on this host. It is the child itself, not a child of the child.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.handle())).arg("--").arg(program);
        command
    }

    /// Moves the calling thread to this host: what it connects to from now on, it does from here.
    pub fn enter(&self) -> Result<(), Failure> {
        let handle = open(self.handle(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let handle = handle.map_err(|error| format!("{}: {error}", self.handle()))?;
        let moved = move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&handle),
            Some(LinkNameSpaceType::Network),
        );
        moved.map_err(|error| format!("cannot enter {}: {error}", self.namespace))
    }

    fn tables(&self, args: &[&str]) -> Result<(), Failure> {
        let mut command = self.command("iptables");
        command.args(["-w", "5"]).args(args);
        run(&mut command)?.ok(&format!("iptables {}", args.join(" "))).map(|_| ())
    }

    /// Drops everything between this host and `other`, both ways, without a word to either.
    pub fn cut(&self, other: &Self) -> Result<(), Failure> {
        let address = other.address.to_string();
        self.tables(&["-A", "INPUT", "-s", &address, "-j", "DROP"])?;
        self.tables(&["-A", "OUTPUT", "-d", &address, "-j", "DROP"])
    }

    /// Drops everything between this host and all others. What is on it still reaches each other.
    pub fn cut_off(&self) -> Result<(), Failure> {
        self.tables(&["-A", "INPUT", "-i", INTERFACE, "-j", "DROP"])?;
        self.tables(&["-A", "OUTPUT", "-o", INTERFACE, "-j", "DROP"])
    }

    /// Runs `tc` at both ends of the host's cable.
    fn shape(&self, args: &[&str]) -> Result<(), Failure> {
        for (namespace, device) in
            [(self.namespace.as_str(), INTERFACE), (self.switch.as_str(), self.port.as_str())]
        {
            let mut command = Command::new("tc");
            command.args(["-n", namespace]).args(&args[..2]).args(["dev", device]).args(&args[2..]);
            run(&mut command)?.ok(&format!("tc {}", args.join(" ")))?;
        }
        Ok(())
    }

    /// Sends and takes no more than so many kbit/s.
    pub fn slow(&self, kbit: u32) -> Result<(), Failure> {
        let rate = format!("{kbit}kbit");
        self.shape(&["qdisc", "add", "root", "tbf", "rate", &rate, "burst", "32k", "latency", "1s"])
    }

    /// Undoes every fault of the network.
    pub fn heal(&self) -> Result<(), Failure> {
        self.tables(&["-F"])?;
        // There may have been none.
        drop(self.shape(&["qdisc", "del", "root"]));
        Ok(())
    }

    /// Ends everything that runs on it, as a power cut does.
    pub fn power_off(&self) -> Result<(), Failure> {
        power_off(&self.namespace)
    }

    /// The processes on it.
    pub fn processes(&self) -> Vec<u32> {
        pids(&self.namespace).iter().filter_map(|pid| pid.parse().ok()).collect()
    }
}
