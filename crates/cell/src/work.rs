//! Names of work: what the server calls it, what its container is called.

use std::collections::BTreeMap;
use std::fmt;

use api::proto::work::Kind;
use api::proto::{Work, id_bytes, id_from};
use drivers::Handle;
use model::{InstanceId, TaskId};

/// One container's worth of work: a task or an instance in one of its epochs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) id: u128,
    pub(crate) epoch: u32,
}

impl Key {
    pub(crate) fn of(work: &Work) -> Option<Self> {
        let kind = Kind::try_from(work.kind).ok()?;
        Some(Self { kind, id: id_from(&work.id).ok()?, epoch: work.epoch })
    }

    pub(crate) fn work(self) -> Work {
        Work { kind: self.kind.into(), id: id_bytes(self.id), epoch: self.epoch }
    }

    /// The id without the epoch.
    pub(crate) fn id_text(self) -> String {
        match self.kind {
            Kind::Task => TaskId(self.id).to_string(),
            Kind::Instance => InstanceId(self.id).to_string(),
        }
    }

    pub(crate) fn handle(self) -> Handle {
        Handle::new(self.to_string()).expect("an id and a number make a handle")
    }

    /// Notes that let a later agent know whose container it is.
    pub(crate) fn properties(self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (KIND.to_owned(), self.kind.as_str_name().to_owned()),
            (ID.to_owned(), format!("{:032x}", self.id)),
            (EPOCH.to_owned(), self.epoch.to_string()),
        ])
    }

    pub(crate) fn from_properties(properties: &BTreeMap<String, String>) -> Option<Self> {
        let kind = Kind::from_str_name(properties.get(KIND)?)?;
        let id = u128::from_str_radix(properties.get(ID)?, 16).ok()?;
        Some(Self { kind, id, epoch: properties.get(EPOCH)?.parse().ok()? })
    }
}

const KIND: &str = "kind";
const ID: &str = "id";
const EPOCH: &str = "epoch";

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id_text(), self.epoch)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wanted of work that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// It is to go on.
    Run,
    /// It is to end gracefully, and the server waits for the news.
    Stop,
    /// It is to end gracefully, and nobody wants to hear of it.
    Forget,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_name_the_work_again() {
        let key = Key { kind: Kind::Instance, id: u128::MAX - 5, epoch: 7 };
        assert_eq!(Key::from_properties(&key.properties()), Some(key));
        assert_eq!(Key::of(&key.work()), Some(key));
        assert!(key.handle().as_str().starts_with("ins_7zzz"), "{key}");
        assert_eq!(Key::from_properties(&BTreeMap::new()), None);
    }
}
