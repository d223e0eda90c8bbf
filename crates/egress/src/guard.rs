//! Which addresses connections are opened to for users.
//!
//! A URL of a user must not lead into the network this machine stands in. Names are resolved here and
//! the connection goes to the addresses that were checked, so a name cannot change its mind between
//! the two. A name one of whose addresses is refused is refused as a whole.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use crate::{Failure, MAX_ADDRESSES};

/// Addresses with a common beginning, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, 0)), prefix }
    }

    const fn v6(first: [u16; 3], prefix: u8) -> Self {
        let [a, b, c] = first;
        Self { address: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), prefix }
    }

    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other, bits) = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u128::from(own.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        let free = u32::from(bits - self.prefix.min(bits));
        own.checked_shr(free).unwrap_or(0) == other.checked_shr(free).unwrap_or(0)
    }

    /// Whether a whole network belongs to it: its first address, and how many bits of that count.
    pub fn holds(&self, (address, prefix): (IpAddr, u8)) -> bool {
        prefix >= self.prefix && self.contains(address)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let wrong = || format!("`{text}` is neither an address nor a network such as 10.1.0.0/16");
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok());
        let prefix = prefix.filter(|prefix| *prefix <= bits).ok_or_else(wrong)?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What is not the public Internet: this host, private, shared, link-local, multicast, reserved.
const REFUSED: [Network; 25] = [
    Network::v4(0, 0, 0, 8),
    Network::v4(10, 0, 0, 8),
    Network::v4(100, 64, 0, 10),
    Network::v4(127, 0, 0, 8),
    Network::v4(169, 254, 0, 16),
    Network::v4(172, 16, 0, 12),
    Network::v4(192, 0, 0, 24),
    Network::v4(192, 0, 2, 24),
    Network::v4(192, 88, 99, 24),
    Network::v4(192, 168, 0, 16),
    Network::v4(198, 18, 0, 15),
    Network::v4(198, 51, 100, 24),
    Network::v4(203, 0, 113, 24),
    Network::v4(224, 0, 0, 3),
    // Unspecified, loopback and addresses that merely hold an IPv4 one.
    Network::v6([0, 0, 0], 96),
    Network::v6([0x64, 0xff9b, 1], 48),
    Network::v6([0x100, 0, 0], 64),
    // Teredo: the IPv4 address in it is hidden.
    Network::v6([0x2001, 0, 0], 32),
    Network::v6([0x2001, 0xdb8, 0], 32),
    Network::v6([0x3fff, 0, 0], 20),
    Network::v6([0x5f00, 0, 0], 16),
    Network::v6([0xfc00, 0, 0], 7),
    Network::v6([0xfe80, 0, 0], 10),
    Network::v6([0xfec0, 0, 0], 10),
    Network::v6([0xff00, 0, 0], 8),
];

/// The IPv4 address that a packet to this address ends up at: mapped, NAT64 and 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return Some(mapped);
    }
    let octets = address.octets();
    let [.., a, b, c, d] = octets;
    if octets.starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]) {
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    let [first, second, a, b, c, d, ..] = octets;
    ([first, second] == [0x20, 0x02]).then(|| Ipv4Addr::new(a, b, c, d))
}

/// Whether the kernel answers for an address itself: it then is its own way there.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        // Nothing is sent.
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// Decides about addresses.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allowed: Vec<Network>,
}

impl Guard {
    /// Lets these networks through besides public addresses.
    pub const fn new(allowed: Vec<Network>) -> Self {
        Self { allowed }
    }

    /// Whether an address may be connected to.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.allowed.iter().any(|network| network.contains(address)) {
            return true;
        }
        let real = match address {
            IpAddr::V6(long) => embedded(long).map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        let refused = |it| REFUSED.iter().any(|network| network.contains(it));
        !refused(real) && !refused(address) && !is_own(real)
    }

    /// The addresses of a host, all of which may be connected to.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let bare = host.trim_matches(['[', ']']);
        let found = tokio::net::lookup_host((bare, port)).await;
        let found = found.map_err(|_| Failure {
            transient: true,
            ..Failure::new(format!("{host} cannot be resolved"))
        })?;
        let found: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
        if found.is_empty() {
            return Err(Failure::new(format!("{host} has no address")));
        }
        if !found.iter().all(|address| self.permits(address.ip())) {
            return Err(Failure::new(format!("{host} is not a public address")));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_let_through() {
        let guard = Guard::default();
        let permits = |text: &str| guard.permits(text.parse().expect("an address"));
        for good in ["1.1.1.1", "9.255.255.255", "172.32.0.1", "2606:4700::1", "64:ff9b::101:101"] {
            assert!(permits(good), "{good}");
        }
        for bad in [
            ("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1"),
            ("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
            ("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.8"),
            ("::", "::1", "::7f00:1", "::ffff:127.0.0.1"),
            ("::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
            ("2002:7f00:1::", "2002:a00:1::1", "2001::1", "2001:db8::1"),
            ("fc00::1", "fdff::1", "fe80::1", "fec0::1"),
            ("ff02::1", "100::1", "198.18.0.1", "::ffff:0a00:1"),
        ]
        .into_iter()
        .flat_map(|(a, b, c, d)| [a, b, c, d])
        {
            assert!(!permits(bad), "{bad}");
        }
    }

    #[test]
    fn operators_may_allow_networks() {
        let allowed = ["127.0.0.0/8", "fd00::/8"].map(|it| it.parse().expect("a network"));
        let guard = Guard::new(allowed.to_vec());
        let permits = |text: &str| guard.permits(text.parse().expect("an address"));
        assert!(permits("127.0.0.1") && permits("::ffff:127.1.1.1") && permits("fd00::1"));
        assert!(!permits("10.0.0.1") && !permits("::1") && !permits("64:ff9b::7f00:1"));
        for bad in ["", "10.0.0.0/33", "example.com", "::/129", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    #[tokio::test]
    async fn every_spelling_of_loopback_is_refused() {
        for host in ["localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "0"] {
            let refused = Guard::default().resolve(host, 80).await;
            assert!(refused.is_err(), "{host}: {refused:?}");
        }
    }
}
