//! Typed identifiers: 128 bits that sort by creation time, shown as `job_01j8…`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Crockford's base 32, lower case: no `i`, `l`, `o`, `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ENCODED: usize = 26;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The prefix belongs to another kind, or is missing.
    #[error("`{text}` is not a {what}: it must start with `{prefix}_`")]
    Prefix {
        /// What was given.
        text: String,
        /// What was wanted, as in `job id`.
        what: &'static str,
        /// The prefix that is wanted.
        prefix: &'static str,
    },
    /// The part after the prefix is not 26 characters of Crockford base 32.
    #[error("`{text}` is not an identifier: 26 characters of 0-9a-z (no i, l, o, u) must follow")]
    Encoding {
        /// What was given.
        text: String,
    },
}

/// Two digits at a time, for 10 bits.
const PAIRS: [[u8; 2]; 1 << 10] = {
    let mut pairs = [[0; 2]; 1 << 10];
    let mut bits = 0;
    while bits < pairs.len() {
        pairs[bits] = [ALPHABET[bits >> 5], ALPHABET[bits & 31]];
        bits += 1;
    }
    pairs
};
/// Pairs in a part of an identifier: as many as 64 bits hold whole.
const PART: usize = 6;
/// The bits of a part.
const PART_MASK: u128 = (1 << (10 * PART)) - 1;

/// Writes an identifier, in parts that 64 bits hold: shifting 128 bits costs several times as much.
fn encode(id: u128, out: &mut [u8; ENCODED]) {
    let mut rest = id;
    for part in out.rchunks_mut(2 * PART) {
        let mut bits = (rest & PART_MASK) as u64;
        for pair in part.rchunks_exact_mut(2) {
            pair.copy_from_slice(&PAIRS[(bits & 0x3ff) as usize]);
            bits >>= 10;
        }
        rest >>= 10 * PART;
    }
}

/// Reads 26 characters of Crockford base 32.
pub fn parse_ulid(text: &str) -> Result<u128, IdError> {
    let wrong = || IdError::Encoding { text: text.chars().take(64).collect() };
    let bytes = text.as_bytes();
    if bytes.len() != ENCODED || bytes[0] > b'7' {
        return Err(wrong());
    }
    bytes.iter().try_fold(0_u128, |id, byte| {
        let digit = ALPHABET.iter().position(|known| known == byte).ok_or_else(wrong)?;
        Ok((id << 5) | digit as u128)
    })
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// The text before the underscore.
            pub const PREFIX: &'static str = $prefix;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0_u8; ENCODED];
                encode(self.0, &mut digits);
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = text.strip_prefix(concat!($prefix, "_")).ok_or_else(|| {
                    IdError::Prefix {
                        text: text.chars().take(64).collect(),
                        what: $what,
                        prefix: $prefix,
                    }
                })?;
                parse_ulid(digits).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                const START: usize = $prefix.len() + 1;
                let mut text = [b'_'; START + ENCODED];
                text[..$prefix.len()].copy_from_slice($prefix.as_bytes());
                let mut digits = [0_u8; ENCODED];
                encode(self.0, &mut digits);
                text[START..].copy_from_slice(&digits);
                let text = std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?;
                serializer.serialize_str(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A project.
    ProjectId "prj" "project id";
    /// An app of a project.
    AppId "app" "app id";
    /// An operation queued for a runner.
    JobId "job" "job id";
    /// Work run at most once on a cell.
    TaskId "task" "task id";
    /// A message to somebody outside that is on its way.
    DeliveryId "dlv" "delivery id";
    /// An image made from source.
    BuildId "bld" "build id";
    /// An immutable image with its configuration and process types.
    DeploymentId "dpl" "deployment id";
    /// Something wanted N times.
    ProcessId "prc" "process id";
    /// One running copy of a process.
    InstanceId "ins" "instance id";
    /// A machine that runs containers.
    CellId "cell" "cell id";
    /// A directory on a cell that outlives containers.
    VolumeId "vol" "volume id";
    /// A worker that takes jobs.
    RunnerId "run" "runner id";
    /// A bearer token.
    TokenId "tok" "token id";
    /// An SSH public key.
    KeyId "key" "key id";
    /// Somebody's work in a container.
    SessionId "ses" "session id";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_refuses_other_kinds() {
        let id = JobId(0x0193_5c7d_0000_1234_5678_9abc_def0_1234);
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
        let task = TaskId(id.0).to_string();
        let refused = task.parse::<JobId>().expect_err("a task id is no job id");
        assert!(refused.to_string().contains("must start with `job_`"), "{refused}");
    }

    #[test]
    fn bad_encodings_are_refused() {
        for text in
            ["job_", "job_01", "job_8zzzzzzzzzzzzzzzzzzzzzzzzz", "job_il000000000000000000000000"]
        {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_id_round_trips_in_order(a: u128, b: u128) {
            let (x, y) = (AppId(a), AppId(b));
            proptest::prop_assert_eq!(x.to_string().parse::<AppId>(), Ok(x));
            proptest::prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
            let json = serde_json::to_string(&x).expect("ids serialise");
            proptest::prop_assert_eq!(serde_json::from_str::<AppId>(&json).expect("and back"), x);
        }
    }
}
