//! The filter rules, as text.

use std::net::{IpAddr, Ipv4Addr};

use crate::spec::{EgressRule, MAX_CONNECTIONS, Protocol, Publish};

/// Where no container may connect to without a rule: private, shared, link-local, loopback,
/// documentation, benchmark, multicast and reserved networks.
const DENIED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
                      172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, \
                      198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3";

/// Addresses in a network, each of which has connections of its own.
const ADDRESSES: u32 = 1 << 16;

/// What the rules depend on.
#[derive(Debug)]
pub(crate) struct Facts {
    /// How the names of links begin.
    pub(crate) prefix: String,
    pub(crate) network: Ipv4Addr,
    pub(crate) resolvers: Vec<Ipv4Addr>,
}

/// The name of a driver's table.
pub(super) fn name(prefix: &str) -> String {
    format!("shore_{prefix}")
}

/// The rules of all containers. Applied again, they replace themselves; exceptions stay.
pub(crate) fn table(facts: &Facts) -> String {
    let table = name(&facts.prefix);
    let links = format!("\"{}*\"", facts.prefix);
    let network = facts.network;
    let resolvers = if facts.resolvers.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = facts.resolvers.iter().map(ToString::to_string).collect();
        format!("ip daddr {{ {} }} meta l4proto {{ tcp, udp }} th dport 53 accept", list.join(", "))
    };
    let refuse = "jump refuse";
    let to_us = "ip daddr != 127.0.0.0/8 fib daddr type local";
    let lead = "dnat ip addr . port to tcp dport map @published";
    format!(
        "{}table inet {table} {{
  chain arriving {{
    iifname {links} meta nfproto ipv6 drop
    iifname {links} fib saddr . iif oif missing drop
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain egress {{
    ct status & confirmed == 0 add @connections {{ ip saddr ct count over {MAX_CONNECTIONS} }} {refuse}
    {resolvers}
    ip saddr vmap @exceptions
    oifname {links} {refuse}
    ip daddr {{ {DENIED} }} {refuse}
  }}
  chain passing {{
    iifname {links} ct state established,related accept
    iifname {links} ct state invalid drop
    iifname {links} jump egress
    oifname {links} ct state established,related accept
    iifname != {links} oifname {links} ct status dnat accept
    iifname != {links} oifname {links} {refuse}
  }}
  chain entering {{
    iifname {links} ct state established,related accept
    iifname {links} jump egress
    iifname {links} {refuse}
  }}
  chain publishing {{
    iifname != {links} {to_us} {lead}
  }}
  chain publishing_here {{
    {to_us} {lead}
  }}
  chain leaving {{
    ip saddr {network}/16 oifname != {links} oifname != \"lo\" masquerade
  }}
}}
",
        declared(&table),
    )
}

/// Chains and maps, empty but for what was put into the maps.
fn declared(table: &str) -> String {
    format!(
        "table inet {table} {{
  set connections {{ type ipv4_addr; size {ADDRESSES}; flags dynamic; }}
  map exceptions {{ type ipv4_addr : verdict; }}
  map published {{ type inet_service : ipv4_addr . inet_service; }}
  chain arriving {{ type filter hook prerouting priority raw; }}
  chain refuse {{ }}
  chain egress {{ }}
  chain passing {{ type filter hook forward priority filter - 5; }}
  chain entering {{ type filter hook input priority filter - 5; }}
  chain leaving {{ type nat hook postrouting priority srcnat; }}
  chain publishing {{ type nat hook prerouting priority dstnat; }}
  chain publishing_here {{ type nat hook output priority -100; }}
}}
flush chain inet {table} publishing
flush chain inet {table} publishing_here
flush chain inet {table} arriving
flush chain inet {table} refuse
flush chain inet {table} egress
flush chain inet {table} passing
flush chain inet {table} entering
flush chain inet {table} leaving
"
    )
}

fn chain(address: Ipv4Addr) -> String {
    let [.., third, fourth] = address.octets();
    format!("c{third:02x}{fourth:02x}")
}

/// The rules of one container; nothing when it has none.
pub(crate) fn exception(facts: &Facts, address: Ipv4Addr, rules: &[EgressRule]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let (table, chain) = (name(&facts.prefix), chain(address));
    let rules = rules.iter().filter_map(|rule| {
        // A container has no IPv6.
        let IpAddr::V4(network) = rule.network else { return None };
        let matching = match (rule.protocol, rule.ports) {
            (Protocol::All, _) => String::new(),
            (Protocol::Icmp, _) => "ip protocol icmp ".to_owned(),
            (Protocol::Tcp, None) => "meta l4proto tcp ".to_owned(),
            (Protocol::Udp, None) => "meta l4proto udp ".to_owned(),
            (Protocol::Tcp, Some((first, last))) => format!("tcp dport {first}-{last} "),
            (Protocol::Udp, Some((first, last))) => format!("udp dport {first}-{last} "),
        };
        let to = format!("ip daddr {network}/{}", rule.prefix);
        Some(format!("add rule inet {table} {chain} {to} {matching}accept\n"))
    });
    let rules: String = rules.collect();
    format!(
        "add chain inet {table} {chain}\nflush chain inet {table} {chain}\n{rules}\
         add element inet {table} exceptions {{ {address} : jump {chain} }}\n"
    )
}

/// Takes the rules of one container away.
pub(crate) fn forget(facts: &Facts, address: Ipv4Addr) -> String {
    let (table, chain) = (name(&facts.prefix), chain(address));
    format!(
        "delete element inet {table} exceptions {{ {address} }}\n\
         delete chain inet {table} {chain}\n"
    )
}

/// Has ports of the machine lead to a container.
pub(crate) fn published(facts: &Facts, address: Ipv4Addr, ports: &[Publish]) -> String {
    let table = name(&facts.prefix);
    let element = |port: &Publish| {
        let Publish { host, container } = port;
        format!("add element inet {table} published {{ {host} : {address} . {container} }}\n")
    };
    ports.iter().map(element).collect()
}

/// Takes one of those away.
pub(crate) fn unpublished(facts: &Facts, address: Ipv4Addr, port: Publish) -> String {
    let (table, Publish { host, container }) = (name(&facts.prefix), port);
    format!("delete element inet {table} published {{ {host} : {address} . {container} }}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_before_anything_is_allowed() {
        let network = Ipv4Addr::new(10, 208, 0, 0);
        let resolvers = vec![Ipv4Addr::new(10, 1, 1, 1)];
        let text = table(&Facts { prefix: "shx".to_owned(), network, resolvers });
        let egress = text.split("  chain egress {\n").nth(1).expect("has the chain with rules");
        let first = egress.lines().next().expect("has a rule").trim();
        let count = "add @connections { ip saddr ct count over 4096 } jump refuse";
        assert_eq!(first, format!("ct status & confirmed == 0 {count}"));
    }

    #[test]
    fn a_rule_says_what_it_allows() {
        let network = Ipv4Addr::new(10, 208, 0, 0);
        let facts = Facts { prefix: "shx".to_owned(), network, resolvers: Vec::new() };
        let rule = |protocol, ports| {
            let rule = EgressRule { network: [10, 1, 0, 0].into(), prefix: 16, protocol, ports };
            exception(&facts, Ipv4Addr::new(10, 208, 1, 2), &[rule])
        };
        let web = rule(Protocol::Tcp, Some((80, 90)));
        assert!(web.contains("c0102 ip daddr 10.1.0.0/16 tcp dport 80-90 accept"), "{web}");
        assert!(web.ends_with("exceptions { 10.208.1.2 : jump c0102 }\n"), "{web}");
        let ping = rule(Protocol::Icmp, None);
        assert!(ping.contains("10.1.0.0/16 ip protocol icmp accept"), "{ping}");
        assert!(rule(Protocol::All, None).contains("10.1.0.0/16 accept"));
        let none = exception(&facts, Ipv4Addr::new(10, 208, 1, 2), &[]);
        assert!(none.is_empty());
    }
}
