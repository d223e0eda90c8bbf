//! The network of containers, and which connections they may open.
//!
//! Containers of one subnet share a bridge of Docker's on which they do not reach each other. What
//! they may reach elsewhere is decided in two chains of ours: one for what the machine forwards,
//! one for what is meant for the machine itself. Both are looked after whenever a container starts,
//! because other programs rewrite such rules too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runtime::Random;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::client::{Client, Refusal};
use crate::error::{Context as _, DriverError, Result};
use crate::spec::{EgressRule, MAX_CONNECTIONS, Protocol};

/// Networks no container reaches unless a rule of it says so: private, shared, link-local,
/// loopback, test and multicast ones.
const CLOSED: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// What becomes of a packet to one of them: whoever sent it hears at once.
const REFUSED: &str = "-j REJECT --reject-with icmp-admin-prohibited";
/// How long another agent may take to make the same network.
const MAKE_LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
const IPTABLES: &str = "iptables";
const RESTORE: &str = "iptables-restore";
/// Whether bridged packets pass the rules.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// One subnet for containers.
#[derive(Debug, Clone)]
pub(super) struct Subnet {
    /// Its name in Docker.
    pub(super) name: String,
    range: String,
    bridge: String,
    forward: String,
    input: String,
    /// The subnet's first address, and how many it has.
    first: Ipv4Addr,
    size: u32,
    /// Counts the addresses that were given away.
    given: Arc<AtomicU32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(default)]
    options: BTreeMap<String, String>,
    #[serde(default)]
    containers: BTreeMap<String, Member>,
}

/// A container in a network.
#[derive(Deserialize)]
struct Member {
    /// With the prefix.
    #[serde(rename = "IPv4Address", default)]
    address: String,
}

/// Why the rules cannot be made here, if so.
pub(super) fn unavailable() -> Option<String> {
    let look = Command::new(IPTABLES).arg("--version").stdout(Stdio::null()).status();
    look.err()
        .map(|error| format!("{IPTABLES} cannot be run (Debian: apt install iptables): {error}"))
}

impl Subnet {
    /// The subnet with this first address and prefix.
    pub(super) fn new((first, prefix): (Ipv4Addr, u8)) -> Self {
        let range = format!("{first}/{prefix}");
        let mut digest = hex::encode(Sha256::digest(&range));
        digest.truncate(8);
        Self {
            name: format!("longshore-{first}-{prefix}"),
            bridge: format!("ls-{digest}"),
            forward: format!("LONGSHORE-{digest}-OUT"),
            input: format!("LONGSHORE-{digest}-IN"),
            range,
            first,
            size: 1_u32.checked_shl(32 - u32::from(prefix)).unwrap_or(u32::MAX),
            // Another agent before this one gave away others.
            given: Arc::new(AtomicU32::new(
                u32::try_from(Random::system().next_u64() >> 32).unwrap_or(0),
            )),
        }
    }

    /// An address that nobody has, and that is not given away again before all others were: a router
    /// that has not heard of a container's end must not find another one there.
    pub(super) fn free_address(&self, client: &Client) -> Result<Ipv4Addr> {
        let found = client.get::<Found>(&format!("/networks/{}", self.name));
        let found = found.context(|| format!("look for network {}", self.name))?;
        let taken = |address: &Ipv4Addr| {
            let start = format!("{address}/");
            found.containers.values().any(|member| member.address.starts_with(&start))
        };
        // Neither the network's own address, nor the machine's, nor the one for everybody.
        let hosts = self.size.saturating_sub(3).max(1);
        (0..hosts)
            .map(|_| self.given.fetch_add(1, Ordering::Relaxed) % hosts + 2)
            .map(|host| Ipv4Addr::from(u32::from(self.first).wrapping_add(host)))
            .find(|address| !taken(address))
            .ok_or_else(|| {
                DriverError::Unsupported(format!("the network {} has no free address", self.name))
            })
    }

    /// Makes the network and its rules, or finds them; whether rules were made, so that those of
    /// containers are missing.
    pub(super) fn ensure(&self, client: &Client) -> Result<bool> {
        let name = &self.name;
        match client.get::<Found>(&format!("/networks/{name}")) {
            Ok(found) => self.check(&found)?,
            Err(refusal) if refusal.is_missing() => self.make(client)?,
            Err(refusal) => return Err(refusal).context(|| format!("look for network {name}")),
        }
        let filtered = fs::read_to_string(BRIDGE_FILTER).is_ok_and(|value| value.trim() == "1");
        if !filtered {
            return Err(DriverError::Unsupported(format!(
                "containers would reach each other: {BRIDGE_FILTER} is not 1"
            )));
        }
        self.ensure_rules().context(|| format!("set the rules of network {name}"))
    }

    /// Makes rules again that somebody removed; whether it did.
    pub(super) fn mend(&self) -> Result<bool> {
        if !Path::new("/sys/class/net").join(&self.bridge).exists() {
            return Ok(false);
        }
        self.ensure_rules().context(|| format!("mend the rules of network {}", self.name))
    }

    fn check(&self, found: &Found) -> Result<()> {
        let bridge = found.options.get("com.docker.network.bridge.name");
        if bridge == Some(&self.bridge) {
            return Ok(());
        }
        let name = &self.name;
        Err(DriverError::Unsupported(format!("the Docker network {name} is not of this driver")))
    }

    fn make(&self, client: &Client) -> Result<()> {
        let wanted = json!({
            "Name": self.name,
            "CheckDuplicate": true,
            "Driver": "bridge",
            "EnableIPv6": false,
            "IPAM": { "Config": [{ "Subnet": self.range }] },
            "Labels": { "longshore": "network" },
            "Options": {
                "com.docker.network.bridge.name": self.bridge,
                "com.docker.network.bridge.enable_icc": "false",
                "com.docker.network.bridge.enable_ip_masquerade": "true",
            },
        });
        let deadline = runtime::mono_now() + MAKE_LIMIT;
        loop {
            let made = client.post::<Value>("/networks/create", &wanted);
            // Another agent may be faster; then this one is told of the name, or, before Docker
            // knows that, of the addresses.
            match client.get::<Found>(&format!("/networks/{}", self.name)) {
                Ok(found) => return self.check(&found),
                Err(_) if runtime::mono_now() < deadline => runtime::pause_thread(PAUSE),
                Err(_) => {
                    return made.map(drop).context(|| format!("make network {}", self.name));
                }
            }
        }
    }

    /// Sets what is missing; whether the chains were made anew.
    fn ensure_rules(&self) -> io::Result<bool> {
        let now = iptables(&["-S"])?;
        let (out, input, bridge) = (&self.forward, &self.input, &self.bridge);
        let has = |chain: &str, part: &str| {
            now.lines().any(|rule| rule.contains(chain) && rule.contains(part))
        };
        // Earlier versions did not count connections.
        let whole = |chain: &str| has(chain, REFUSED) && has(chain, " connlimit ");
        let anew = !whole(out) || !whole(input);
        if anew {
            restore(&self.rules(&name_servers()))?;
        }
        // Docker's chain for rules of others, or where it makes none, that for everything.
        let user = now.lines().any(|line| line == "-N DOCKER-USER");
        let parent = if user { "DOCKER-USER" } else { "FORWARD" };
        for rule in [
            // Nobody outside opens a connection to a container, whatever the machine forwards.
            format!(
                "{parent} ! -i {bridge} -o {bridge} -m conntrack --ctstate INVALID,NEW -j DROP"
            ),
            format!("{parent} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
            format!("{parent} -i {bridge} -j {out}"),
            format!("INPUT -i {bridge} -j {input}"),
        ] {
            if !now.lines().any(|line| line.strip_prefix("-A ") == Some(&rule)) {
                let words = std::iter::once("-I").chain(rule.split(' '));
                iptables(&words.collect::<Vec<_>>())?;
            }
        }
        Ok(anew)
    }

    /// Both chains, as they are before any container has rules of its own.
    fn rules(&self, name_servers: &[Ipv4Addr]) -> String {
        let (out, input) = (&self.forward, &self.input);
        let mut rules =
            vec!["*filter".to_owned(), format!(":{out} - [0:0]"), format!(":{input} - [0:0]")];
        for chain in [out, input] {
            // One more connection than a container may have.
            rules.push(format!(
                "-A {chain} -m conntrack ! --ctstatus CONFIRMED -m connlimit --connlimit-above \
                 {MAX_CONNECTIONS} --connlimit-mask 32 --connlimit-saddr {REFUSED}"
            ));
            let states = [("RELATED,ESTABLISHED", "ACCEPT"), ("INVALID", "DROP")];
            rules.extend(states.map(|(state, then)| {
                format!("-A {chain} -m conntrack --ctstate {state} -j {then}")
            }));
            rules.extend(name_servers.iter().flat_map(|server| {
                ["udp", "tcp"].map(|protocol| {
                    format!("-A {chain} -d {server}/32 -p {protocol} --dport 53 -j ACCEPT")
                })
            }));
        }
        rules.extend(CLOSED.map(|network| format!("-A {out} -d {network} {REFUSED}")));
        // No packet leaves under an address that is not of the subnet.
        rules.push(format!("-A {out} ! -s {} -j DROP", self.range));
        rules.push(format!("-A {input} {REFUSED}"));
        rules.push("COMMIT\n".to_owned());
        rules.join("\n")
    }

    /// Lets a container open these connections too, and none that an earlier one with its address
    /// was allowed.
    pub(super) fn allow(&self, address: IpAddr, rules: &[EgressRule]) -> Result<()> {
        let set = || {
            self.clear(address)?;
            for rule in rules.iter().filter(|rule| rule.network.is_ipv4()) {
                let words = words(address, rule);
                for chain in [&self.forward, &self.input] {
                    // Behind the first one, which counts.
                    let mut all = vec!["-I".to_owned(), chain.clone(), "2".to_owned()];
                    all.extend(words.iter().cloned());
                    iptables(&all.iter().map(String::as_str).collect::<Vec<_>>())?;
                }
            }
            Ok::<_, io::Error>(())
        };
        set().context(|| format!("set the egress rules of {address}"))
    }

    /// Removes all rules of one address.
    pub(super) fn forbid(&self, address: IpAddr) -> Result<()> {
        self.clear(address).context(|| format!("remove the egress rules of {address}"))
    }

    fn clear(&self, address: IpAddr) -> io::Result<()> {
        let chains =
            [&self.forward, &self.input].map(|chain| format!("-A {chain} -s {address}/32 "));
        let rules = iptables(&["-S"])?;
        let mut own =
            rules.lines().filter(|rule| chains.iter().any(|chain| rule.starts_with(chain)));
        own.try_for_each(take_back)
    }

    /// Removes the network and everything made for it; fails while a container uses it.
    pub(super) fn remove(&self, client: &Client) -> Result<()> {
        match client.delete(&format!("/networks/{}", self.name)) {
            Err(refusal) if !refusal.is_missing() => {
                return Err(refusal).context(|| format!("remove network {}", self.name));
            }
            Ok(()) | Err(Refusal::Status { .. } | Refusal::Silent { .. } | Refusal::Version(_)) => {
            }
        }
        let clear = || {
            let rules = iptables(&["-S"])?;
            // Docker's own rules for the bridge went with the network: these are ours.
            let bridge = format!(" {} ", self.bridge);
            rules.lines().filter(|rule| rule.contains(&bridge)).try_for_each(take_back)?;
            for chain in [&self.forward, &self.input] {
                if rules.lines().any(|line| line.strip_prefix("-N ") == Some(chain)) {
                    iptables(&["-F", chain])?;
                    iptables(&["-X", chain])?;
                }
            }
            Ok::<_, io::Error>(())
        };
        clear().context(|| format!("remove the rules of network {}", self.name))
    }
}

/// Removes a rule as iptables lists it.
fn take_back(rule: &str) -> io::Result<()> {
    let words: Vec<&str> = std::iter::once("-D").chain(rule.split(' ').skip(1)).collect();
    iptables(&words).map(drop)
}

/// A rule of a container as words of iptables.
fn words(source: IpAddr, rule: &EgressRule) -> Vec<String> {
    let mut words = vec!["-s".to_owned(), format!("{source}/32")];
    words.extend(["-d".to_owned(), format!("{}/{}", rule.network, rule.prefix)]);
    let protocol = match rule.protocol {
        Protocol::Tcp => Some("tcp"),
        Protocol::Udp => Some("udp"),
        Protocol::Icmp => Some("icmp"),
        Protocol::All => None,
    };
    words.extend(protocol.into_iter().flat_map(|name| ["-p".to_owned(), name.to_owned()]));
    if let Some((first, last)) = rule.ports {
        words.extend(["--dport".to_owned(), format!("{first}:{last}")]);
    }
    words.extend(["-j".to_owned(), "ACCEPT".to_owned()]);
    words
}

/// The machine's name servers; those on a loopback address are asked by the daemon itself.
fn name_servers() -> Vec<Ipv4Addr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers =
        text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    servers.filter(|server: &Ipv4Addr| !server.is_loopback()).collect()
}

/// Runs iptables and gives what it printed.
fn iptables(words: &[&str]) -> io::Result<String> {
    // Others change rules too: wait for them.
    let output = Command::new(IPTABLES).arg("-w").args(words).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{IPTABLES} {}: {}", words.join(" "), reason.trim())))
}

/// Replaces whole chains at once.
fn restore(rules: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(RESTORE)
        .args(["-w", "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{RESTORE}: {}", reason.trim())))
}
