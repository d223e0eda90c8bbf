//! Free ports for instances that share the machine's network.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use runtime::Random;

/// Hands out ports in turn, so that a port that was just given back stays unused for long.
#[derive(Debug, Clone)]
pub(crate) struct Ports(Arc<Mutex<Pool>>);

#[derive(Debug)]
struct Pool {
    range: RangeInclusive<u16>,
    next: u16,
    taken: BTreeSet<u16>,
}

/// A port that is nobody else's on this cell as long as this lives.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pool: Ports,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&self.number);
    }
}

impl Ports {
    /// Starts anywhere in `range`, so that two agents on one machine rarely meet.
    pub(crate) fn new(range: RangeInclusive<u16>, random: &Random) -> Self {
        let span = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let skip = u16::try_from(random.next_u64() % span).unwrap_or(0);
        let next = range.start().saturating_add(skip);
        Self(Arc::new(Mutex::new(Pool { range, next, taken: BTreeSet::new() })))
    }

    /// A port that no container of this cell has and nobody listens on.
    pub(crate) fn take(&self) -> Option<Port> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in pool.range.clone() {
            let number = pool.next;
            pool.next = if number >= *pool.range.end() {
                *pool.range.start()
            } else {
                number.saturating_add(1)
            };
            if !pool.taken.contains(&number) && is_free(number) {
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
        let ports = Ports::new(42_000..=42_003, &Random::seeded(1));
        let Some(first) = ports.take() else { panic!("a port is free") };
        let number = first.number;
        drop(first);
        let taken: Vec<Port> = std::iter::from_fn(|| ports.take()).collect();
        let numbers: BTreeSet<u16> = taken.iter().map(|port| port.number).collect();
        assert_eq!(numbers.len(), taken.len());
        assert_eq!(taken.last().map(|port| port.number), Some(number), "reused last");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number));
        drop(taken);
        let taken: Vec<Port> = std::iter::from_fn(|| ports.take()).collect();
        assert!(listener.is_ok() && taken.iter().all(|port| port.number != number));
    }
}
