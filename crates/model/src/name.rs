//! Names people choose: projects, apps, workspaces, process types, hosts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Most characters of a [`Name`]. A host label holds 63; the rest is for what we add to it.
pub const MAX_NAME: usize = 40;
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} name {given:?} is not allowed: {rule}")]
pub struct NameError {
    /// What was to be named.
    pub what: &'static str,
    /// What was given, cut to 64 characters.
    pub given: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

const NAME_RULE: &str =
    "use 1 to 40 of a-z, 0-9 and `-`, starting and ending with a letter or digit";
const HOST_RULE: &str = "use labels of a-z, 0-9 and `-` (1 to 63 each) joined by dots, 253 in all";

/// A DNS label of at most [`MAX_NAME`] characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A fully qualified host name in lower case, without the final dot. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

fn is_label(text: &str, most: usize) -> bool {
    let edge =
        |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= most
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn refuse(what: &'static str, given: &str, rule: &'static str) -> NameError {
    NameError { what, given: given.chars().take(64).collect(), rule }
}

impl Name {
    /// The name `text`, called `what` in the error.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, NameError> {
        if is_label(text, MAX_NAME) {
            Ok(Self(text.into()))
        } else {
            Err(refuse(what, text, NAME_RULE))
        }
    }

    /// The nearest allowed name to what a folder or repository is called, if anything is left.
    pub fn suggest(text: &str) -> Option<Self> {
        let mut name: String = text
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(MAX_NAME)
            .collect();
        name.truncate(name.trim_end_matches('-').len());
        Self::parse("suggested", name.trim_start_matches('-')).ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HostName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse("this", text)
    }
}

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if lower.len() <= MAX_HOST && lower.split('.').all(|label| is_label(label, MAX_LABEL)) {
            Ok(Self(lower.into()))
        } else {
            Err(refuse("host", text, HOST_RULE))
        }
    }
}

macro_rules! text_serde {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
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
text_serde! { Name HostName }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "my-app-2", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "$(id)", "a;b", "a b", "ü", "a\n", &long] {
            let error = Name::parse("app", bad).expect_err(bad);
            assert!(error.to_string().starts_with("app name"), "{error}");
        }
    }

    #[test]
    fn suggestions_are_names() {
        assert_eq!(Name::suggest("My Shop_2").map(|n| n.to_string()), Some("my-shop-2".into()));
        assert_eq!(Name::suggest("---"), None);
        assert_eq!(Name::suggest(".."), None);
    }

    #[test]
    fn hosts_are_lower_case_without_the_final_dot() {
        assert_eq!(
            "Shop.Example.COM.".parse::<HostName>().expect("a host").as_str(),
            "shop.example.com"
        );
        for bad in ["", "a..b", "-a.b", "a_b.c", "127.0.0.1:80", "*.a"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }
}
