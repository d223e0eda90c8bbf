//! A container's network: a link of its own to the machine and nothing else.
//!
//! There is no bridge. Each container has a point-to-point link, so containers share no segment,
//! and every packet of theirs passes the machine's filter. Source addresses cannot be forged: what
//! comes in by a link must be from the address that is routed to it.
//!
//! The rules are in one nftables table for each driver, which is written as a whole, in one
//! transaction, whenever a container is made. They refuse; what they let pass must still be accepted
//! by whatever else filters on the machine. Docker refuses everything it does not know, so two
//! iptables rules accept our links there.

mod rules;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::spec::Openings;

use super::slots::Slot;

pub(super) use rules::{Facts, exception, forget, published, table, unpublished};

/// Resolvers where the machine's own file names one that only it reaches.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
const RESOLVERS: &str = "/etc/resolv.conf";
const MAX_RESOLVERS: usize = 3;
/// Any route to a container, or one that the machine had before, goes first.
const LAST_METRIC: u32 = u32::MAX;

/// The network of one driver.
#[derive(Debug, Clone)]
pub(super) struct Net {
    /// How the names of its links begin.
    pub(super) prefix: String,
    /// The network its containers have addresses of: 65,536 of them.
    pub(super) network: Ipv4Addr,
}

impl Net {
    /// The machine's address on every link.
    fn gateway(&self) -> Ipv4Addr {
        let [first, second, ..] = self.network.octets();
        Ipv4Addr::new(first, second, 0, 1)
    }

    pub(super) fn address(&self, slot: Slot) -> Ipv4Addr {
        slot.address(self.network)
    }

    fn facts(&self) -> Facts {
        Facts { prefix: self.prefix.clone(), network: self.network, resolvers: resolvers().1 }
    }

    /// Sees to it that the rules hold, with those of one container. Without them nothing is let out.
    pub(super) fn protect(&self, slot: Slot, openings: &Openings) -> io::Result<()> {
        forward()?;
        let mut text = table(&self.facts());
        text.push_str(&exception(&self.facts(), self.address(slot), &openings.egress));
        text.push_str(&published(&self.facts(), self.address(slot), &openings.publish));
        run("nft", &["-f", "-"], &text).map(drop)
    }

    /// Connects a container, whose first process is `pid`.
    pub(super) fn connect(&self, slot: Slot, pid: i32) -> io::Result<()> {
        let (link, gateway, address) =
            (slot.link(&self.prefix), self.gateway(), self.address(slot));
        let own = std::process::id();
        let size = packet_size();
        let inside = format!(
            "link add eth0 mtu {size} type veth peer name {link} mtu {size} netns {own}\n\
             link set lo up\n\
             address add {address} peer {gateway}/32 dev eth0\n\
             link set eth0 up\n\
             route add default via {gateway} dev eth0\n"
        );
        in_network_of(pid, &inside)?;
        let outside =
            format!("address add {gateway} peer {address}/32 dev {link}\nlink set {link} up\n");
        run("ip", &["-batch", "-"], &outside).map(drop)
    }

    /// Removes what a container had here. Its link may have gone with it.
    pub(super) fn disconnect(&self, slot: Slot, openings: &Openings) -> io::Result<()> {
        let link = slot.link(&self.prefix);
        if Path::new("/sys/class/net").join(&link).exists() {
            let gone = run("ip", &["link", "delete", &link], "");
            if let Err(error) = gone
                && Path::new("/sys/class/net").join(&link).exists()
            {
                return Err(error);
            }
        }
        // After a restart of the machine there are no such rules.
        if !openings.egress.is_empty() {
            drop(run("nft", &["-f", "-"], &forget(&self.facts(), self.address(slot))));
        }
        for publish in &openings.publish {
            let text = unpublished(&self.facts(), self.address(slot), *publish);
            drop(run("nft", &["-f", "-"], &text));
        }
        Ok(())
    }

    /// Removes every rule of this driver: nothing of it runs.
    pub(super) fn remove(&self) -> io::Result<()> {
        let name = rules::name(&self.prefix);
        let text = format!("table inet {name}\ndelete table inet {name}\n");
        run("nft", &["-f", "-"], &text)?;
        if has_iptables() {
            for rule in self.accepting() {
                while iptables("-D", &rule).is_ok() {}
            }
        }
        Ok(())
    }

    /// Has the machine refuse what is sent to addresses that no container has. Without this it would
    /// leave for wherever the machine's packets go, as when a router still knows a container that is
    /// gone. It stays until the machine restarts: who knows the address may live longer than us.
    pub(super) fn close(&self) -> io::Result<()> {
        let (network, metric) = (format!("{}/16", self.network), LAST_METRIC.to_string());
        let route = ["route", "replace", "unreachable", &network, "metric", &metric];
        run("ip", &route, "").map(drop)
    }

    /// Has packets of our links accepted by who refuses what they do not know.
    pub(super) fn accept(&self) -> io::Result<()> {
        if !has_iptables() || !refuses_forwarding()? {
            return Ok(());
        }
        for rule in self.accepting() {
            if iptables("-C", &rule).is_err() {
                iptables("-I", &rule)?;
            }
        }
        Ok(())
    }

    fn accepting(&self) -> [Vec<String>; 2] {
        let links = format!("{}+", self.prefix);
        ["-i", "-o"].map(|way| {
            let rule = ["FORWARD", way, &links, "-m", "comment", "--comment", "longshore"];
            rule.into_iter().chain(["-j", "ACCEPT"]).map(str::to_owned).collect()
        })
    }
}

fn has_iptables() -> bool {
    super::program("iptables").is_some()
}

fn iptables(action: &str, rule: &[String]) -> io::Result<Output> {
    let mut arguments = vec!["-w", action];
    arguments.extend(rule.iter().map(String::as_str));
    run("iptables", &arguments, "")
}

fn refuses_forwarding() -> io::Result<bool> {
    let list = run("iptables", &["-w", "-S", "FORWARD"], "")?;
    Ok(String::from_utf8_lossy(&list.stdout).trim() != "-P FORWARD ACCEPT")
}

/// Lets the machine pass packets on.
fn forward() -> io::Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(SWITCH)?.trim() == "1" {
        return Ok(());
    }
    fs::write(SWITCH, "1")
}

/// The largest packet the machine's way to the world takes.
fn packet_size() -> u32 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut lines = routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let default = lines.find(|fields| fields.get(1) == Some(&"00000000"));
    let link = default.and_then(|fields| fields.first().copied()).unwrap_or("lo");
    let size = fs::read_to_string(format!("/sys/class/net/{link}/mtu")).unwrap_or_default();
    size.trim().parse().ok().filter(|size| (576..=9000).contains(size)).unwrap_or(1500)
}

/// The text of a container's `resolv.conf`, and the name servers in it.
pub(super) fn resolvers() -> (String, Vec<Ipv4Addr>) {
    let text = fs::read_to_string(RESOLVERS).unwrap_or_default();
    let found = name_servers(&text);
    if !found.is_empty() {
        return (without_others(&text, &found), found);
    }
    let text = fs::read_to_string(UPSTREAM).unwrap_or_default();
    let found = name_servers(&text);
    (without_others(&text, &found), found)
}

/// Name servers a container can reach: IPv4, and not the machine's own loopback.
fn name_servers(text: &str) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address =
            words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        match address.parse() {
            Ok(IpAddr::V4(address)) if !address.is_loopback() => Some(address),
            _ => None,
        }
    });
    servers.take(MAX_RESOLVERS).collect()
}

fn without_others(text: &str, servers: &[Ipv4Addr]) -> String {
    let rest = text.lines().filter(|line| {
        let word = line.split_whitespace().next().unwrap_or_default();
        matches!(word, "search" | "options" | "domain")
    });
    let named = servers.iter().map(|server| format!("nameserver {server}"));
    named.chain(rest.map(str::to_owned)).map(|line| line + "\n").collect()
}

/// Runs a program of the system with something on its standard input.
fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, input)
}

/// Runs `ip` in the network of a process.
#[expect(unsafe_code, reason = "a namespace must be entered between fork and exec")]
fn in_network_of(pid: i32, batch: &str) -> io::Result<()> {
    let network = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    // SAFETY: the closure makes one system call.
    unsafe {
        command.pre_exec(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            Ok(rustix::thread::move_into_link_name_space(network.as_fd(), kind)?)
        });
    }
    finish(command, batch).map(drop)
}

fn finish(mut command: Command, input: &str) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.get_program().to_string_lossy().into_owned();
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    let mut child = command.spawn().map_err(explain)?;
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read what it was given says why at the end.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{name}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_name_servers_that_can_be_reached_are_passed_on() {
        let text =
            "nameserver 127.0.0.53\nnameserver ::1\n nameserver 10.0.0.2\nsearch x.y\n# no\n";
        let servers = name_servers(text);
        assert_eq!(servers, [Ipv4Addr::new(10, 0, 0, 2)]);
        assert_eq!(without_others(text, &servers), "nameserver 10.0.0.2\nsearch x.y\n");
    }
}
