//! Free ports for instances that share the machine's network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::{Random, mono_now};

use crate::limits::PORT_QUARANTINE;

/// Hands out ports in turn, so that a port that was just given back stays unused for long.
#[derive(Debug, Clone)]
pub(crate) struct Ports(Arc<Mutex<Pool>>);

#[derive(Debug)]
struct Pool {
    range: RangeInclusive<u16>,
    quarantine: Duration,
    next: u16,
    taken: BTreeSet<u16>,
    /// Ports that were given back, and when they may be given to others.
    resting: BTreeMap<u16, Instant>,
}

/// A port that is nobody else's on this cell as long as this lives.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pool: Ports,
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut pool = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Pool { taken, resting, quarantine, .. } = &mut *pool;
        taken.remove(&self.number);
        resting.insert(self.number, mono_now() + *quarantine);
    }
}

impl Ports {
    /// Starts anywhere in `range`, so that two agents on one machine rarely meet.
    pub(crate) fn new(range: RangeInclusive<u16>, random: &Random) -> Self {
        Self::with(range, random, PORT_QUARANTINE)
    }

    fn with(range: RangeInclusive<u16>, random: &Random, quarantine: Duration) -> Self {
        let span = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let skip = u16::try_from(random.next_u64() % span).unwrap_or(0);
        let next = range.start().saturating_add(skip);
        let (taken, resting) = (BTreeSet::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Pool { range, quarantine, next, taken, resting })))
    }

    /// A port that no container of this cell has or just had, and nobody listens on.
    pub(crate) fn take(&self) -> Option<Port> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = mono_now();
        pool.resting.retain(|_, until| *until > now);
        for _ in pool.range.clone() {
            let number = pool.next;
            pool.next = if number >= *pool.range.end() {
                *pool.range.start()
            } else {
                number.saturating_add(1)
            };
            let used = pool.taken.contains(&number) || pool.resting.contains_key(&number);
            if !used && is_free(number) {
                pool.taken.insert(number);
                return Some(Port { number, pool: self.clone() });
            }
        }
        None
    }

    /// The port an adopted container has.
    pub(crate) fn keep(&self, number: u16) -> Port {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).taken.insert(number);
        Port { number, pool: self.clone() }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_in_turn_and_never_twice() {
        let quarantine = Duration::from_millis(50);
        let ports = Ports::with(42_000..=42_003, &Random::seeded(1), quarantine);
        let rest = || runtime::pause_thread(quarantine);
        let Some(first) = ports.take() else { panic!("a port is free") };
        let number = first.number;
        drop(first);
        let three: Vec<Port> = std::iter::from_fn(|| ports.take()).collect();
        assert!(three.len() == 3 && three.iter().all(|port| port.number != number), "it rests");
        drop(three);
        rest();
        let taken: Vec<Port> = std::iter::from_fn(|| ports.take()).collect();
        let numbers: BTreeSet<u16> = taken.iter().map(|port| port.number).collect();
        assert_eq!(numbers.len(), taken.len());
        assert!(numbers.contains(&number));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number));
        drop(taken);
        rest();
        let taken: Vec<Port> = std::iter::from_fn(|| ports.take()).collect();
        assert!(listener.is_ok() && taken.iter().all(|port| port.number != number));
    }
}
