//! Components: their roles, the tokens they join with and the protocol they speak.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::{range, too_many};
use crate::{Name, SpecError, TokenId, parse_ulid};

/// What a token lets its bearer be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May do everything.
    Admin,
    /// A person or script; may be limited to one project.
    Developer,
    /// May only read; may be limited to one project.
    Viewer,
    /// Takes jobs.
    Runner,
    /// Runs containers.
    Cell,
    /// Routes requests.
    Router,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] =
        [Self::Admin, Self::Developer, Self::Viewer, Self::Runner, Self::Cell, Self::Router];

    /// The word shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Viewer => "viewer",
            Self::Runner => "runner",
            Self::Cell => "cell",
            Self::Router => "router",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no role; there are {known}")
        })
    }
}

/// A bearer token as its owner holds it: `shore_<id>_<secret>`, with `_<fingerprint>` of the
/// server's certificate authority when the server is reached by TLS with its own authority.
///
/// The server keeps only a hash of the secret. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token.
    pub id: TokenId,
    /// What proves it.
    pub secret: [u8; 32],
    /// SHA-256 of the certificate authority the server must present.
    pub ca: Option<[u8; 32]>,
}

fn hex32(text: &str) -> Option<[u8; 32]> {
    format!("sha256:{text}").parse::<crate::Digest>().ok().map(|digest| digest.0)
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "this is no token: `shore_<id>_<secret>` is wanted".to_owned();
        let mut parts = text.trim().split('_');
        if parts.next() != Some("shore") {
            return Err(wrong());
        }
        let id = parts.next().and_then(|id| parse_ulid(id).ok()).ok_or_else(wrong)?;
        let secret = parts.next().and_then(hex32).ok_or_else(wrong)?;
        let ca = parts.next().map(|ca| hex32(ca).ok_or_else(wrong)).transpose()?;
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { id: TokenId(id), secret, ca })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.to_string();
        let secret = crate::Digest(self.secret).hex();
        write!(f, "shore_{}_{secret}", id.trim_start_matches("tok_"))?;
        self.ca.map_or(Ok(()), |ca| write!(f, "_{}", crate::Digest(ca).hex()))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// What a cell says it offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Its name.
    pub name: Name,
    /// Its failure domain.
    pub zone: String,
    /// Words an app must ask for to be placed on it.
    #[serde(default)]
    pub required_tags: BTreeSet<Name>,
    /// Words an app may ask for.
    #[serde(default)]
    pub tags: BTreeSet<Name>,
    /// The drivers that work on it.
    pub drivers: BTreeSet<Name>,
    /// Its other drivers, and why each does not work at the moment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unavailable: BTreeMap<Name, String>,
    /// Memory for containers in MiB.
    pub memory_mb: u64,
    /// Disk for containers in MiB.
    pub disk_mb: u64,
    /// How many containers at most.
    pub containers: u32,
    /// Shares of CPU time it gives away; not limited when absent.
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// Processes and threads of all containers; not limited when absent.
    #[serde(default)]
    pub pids: Option<u64>,
    /// Where its gate listens; without one, routers reach its instances by their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<SocketAddr>,
    /// Labels for people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The drivers of a cell, when that has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CellDrivers {
    /// See [`CellSpec::drivers`].
    pub drivers: BTreeSet<Name>,
    /// See [`CellSpec::unavailable`].
    #[serde(default)]
    pub unavailable: BTreeMap<Name, String>,
}

/// Most characters of why a driver does not work.
pub const MAX_DRIVER_REASON: usize = 500;
/// Most drivers of one cell.
const MAX_DRIVERS: usize = 16;
/// Most tags, and most labels, of one cell or runner.
const MAX_WORDS: usize = 64;
/// Most characters of a zone, and of a label's name or value.
const MAX_WORD: usize = 200;

impl CellSpec {
    /// Whether it can run anything at the moment, as far as its drivers go.
    pub fn has_driver(&self) -> bool {
        !self.drivers.is_empty() || self.unavailable.is_empty()
    }

    /// Checks every field: what no machine has is not believed.
    pub fn validate(&self) -> Result<(), SpecError> {
        range("memory_mb", self.memory_mb, 0..=1 << 32, "0 to 4294967296")?;
        range("disk_mb", self.disk_mb, 0..=1 << 40, "0 to 1099511627776")?;
        range("containers", self.containers.into(), 0..=100_000, "0 to 100000")?;
        for (field, amount) in [("cpu_shares", self.cpu_shares), ("pids", self.pids)] {
            range(field, amount.unwrap_or(0), 0..=1 << 32, "0 to 4294967296")?;
        }
        too_many("drivers", self.drivers.len() + self.unavailable.len(), MAX_DRIVERS)?;
        if self.unavailable.values().any(|reason| reason.chars().count() > MAX_DRIVER_REASON) {
            let reason = "at most 500 characters are allowed";
            return Err(SpecError::Text { field: "why a driver does not work", reason });
        }
        too_many("tags", self.tags.len() + self.required_tags.len(), MAX_WORDS)?;
        check_labels(&self.labels)?;
        check_words([&self.zone])
    }
}

/// Checks the labels of a cell or runner: at most 64, of at most 200 characters each way.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), SpecError> {
    too_many("labels", labels.len(), MAX_WORDS)?;
    check_words(labels.iter().flat_map(|(name, value)| [name, value]))
}

fn check_words<'a>(words: impl IntoIterator<Item = &'a String>) -> Result<(), SpecError> {
    for text in words {
        if text.chars().count() > MAX_WORD || text.chars().any(char::is_control) {
            let reason = "at most 200 characters, none of them control, are allowed";
            return Err(SpecError::Text { field: "a zone or label", reason });
        }
    }
    Ok(())
}

/// The protocol versions a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub current: u32,
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.current)
    }
}

impl FromStr for ProtocolRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.split_once('-').and_then(|(min, current)| {
            Some(Self { min: min.parse().ok()?, current: current.parse().ok()? })
        });
        let range = range.filter(|range| range.min <= range.current);
        range.ok_or_else(|| format!("{text:?} is no range of protocols, as `1-3` is"))
    }
}

/// What this version speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, current: 1 };

/// Two programs that share no protocol version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolMismatch {
    /// The client is too old.
    #[error(
        "this client speaks protocol {} to {}, the server needs {} or newer: update the client",
        client.min, client.current, server.min
    )]
    ClientOutdated {
        /// What the client speaks.
        client: ProtocolRange,
        /// What the server speaks.
        server: ProtocolRange,
    },
    /// The server is too old.
    #[error(
        "the server speaks protocol {} to {}, this client needs {} or newer: update the server",
        server.min, server.current, client.min
    )]
    ServerOutdated {
        /// What the client speaks.
        client: ProtocolRange,
        /// What the server speaks.
        server: ProtocolRange,
    },
}

/// The newest protocol both speak.
pub fn negotiate(client: ProtocolRange, server: ProtocolRange) -> Result<u32, ProtocolMismatch> {
    if client.current < server.min {
        Err(ProtocolMismatch::ClientOutdated { client, server })
    } else if server.current < client.min {
        Err(ProtocolMismatch::ServerOutdated { client, server })
    } else {
        Ok(client.current.min(server.current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_hide_their_secret() {
        for ca in [None, Some([7; 32])] {
            let token = JoinToken { id: TokenId(9), secret: [0xab; 32], ca };
            assert_eq!(token.to_string().parse(), Ok(token.clone()));
            assert!(!format!("{token:?}").contains("abab"));
        }
        for bad in ["", "shore", "shore_1_2", "shore_x_y_z_w"] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_common_protocol_wins() {
        let range = |(min, current)| ProtocolRange { min, current };
        for (client, server, wanted) in [
            ((1, 10), (1, 10), 10),
            ((1, 6), (4, 10), 6),
            ((1, 4), (4, 10), 4),
            ((4, 10), (1, 5), 5),
            ((4, 10), (1, 4), 4),
        ] {
            assert_eq!(negotiate(range(client), range(server)), Ok(wanted));
        }
        for (text, wanted) in [("1-3", Some((1, 3))), ("3-1", None), ("1", None), ("a-b", None)] {
            assert_eq!(text.parse().ok(), wanted.map(range), "{text}");
        }
        assert_eq!(range((1, 3)).to_string(), "1-3");
        let outdated = |client, server| {
            negotiate(range(client), range(server)).expect_err("no common version")
        };
        assert!(matches!(outdated((1, 4), (5, 6)), ProtocolMismatch::ClientOutdated { .. }));
        assert!(matches!(outdated((5, 6), (1, 4)), ProtocolMismatch::ServerOutdated { .. }));
    }
}
