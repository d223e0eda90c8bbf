//! The table requests are looked up in.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use gate::{Parked, PeerName};
use model::{
    DeploymentId, HostName, InstanceId, Route, RouteGate, RouteTable, RouteTarget, instance_host,
};

use crate::options::{Limits, SEALED_WEIGHT};

/// How long a target that refused a connection is passed over while there are others.
const FAILING_MS: u64 = 2_000;

/// One instance at one address. It exists once: tables share it, pools know it by its number.
#[derive(Debug)]
pub(crate) struct Target {
    /// Never used for another instance or another address.
    pub(crate) number: u64,
    pub(crate) instance: InstanceId,
    pub(crate) address: SocketAddr,
    /// The way to it, if it is to prove who it is.
    pub(crate) gate: Option<Gate>,
    /// Milliseconds since the router's start; 0 for a target that is well.
    failing_until: AtomicU64,
    /// Connections that no thread has, the latest last.
    sockets: Mutex<Vec<Socket>>,
    /// How many there are at all targets.
    kept: Arc<AtomicUsize>,
}

/// A socket to an instance, and whether the system gives it up early.
#[derive(Debug)]
pub(crate) struct Kept<S> {
    pub(crate) stream: S,
    pub(crate) is_hurried: bool,
}

/// A gate, and the name of the instance behind it.
#[derive(Debug)]
pub(crate) struct Gate {
    told: RouteGate,
    pub(crate) name: PeerName,
}

impl Gate {
    fn new(instance: InstanceId, told: RouteGate) -> Option<Self> {
        let name = PeerName::new(instance_host(instance, told.epoch)).ok()?;
        Some(Self { told, name })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.told.address
    }
}

/// A connection that no thread has.
#[derive(Debug)]
pub(crate) enum Resting {
    Plain(TcpStream),
    Sealed(Parked),
}

impl Resting {
    const fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Sealed(parked) => parked.socket(),
        }
    }

    /// How many plain ones take as much room.
    const fn weight(&self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Sealed(_) => SEALED_WEIGHT,
        }
    }
}

/// A connection that is kept for the next request: nothing but what cannot be made again.
#[derive(Debug)]
struct Socket {
    kept: Kept<Resting>,
    /// Milliseconds since the router's start.
    since: u64,
}

/// Whether the other side has neither closed a connection nor said anything.
fn is_silent(stream: &TcpStream) -> bool {
    let peeked = stream.peek(&mut [0]);
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

impl Target {
    fn sockets(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that can take a request, as far as can be known. What an instance said
    /// without being asked would be taken for the answer to the next request.
    pub(crate) fn take_socket(&self) -> Option<Kept<Resting>> {
        loop {
            let socket = self.sockets().pop()?;
            self.kept.fetch_sub(socket.kept.stream.weight(), Ordering::Relaxed);
            if is_silent(socket.kept.stream.socket()) {
                return Some(socket.kept);
            }
        }
    }

    /// Keeps a connection for any thread to take, unless there are enough.
    pub(crate) fn keep_socket(&self, kept: Kept<Resting>, now_ms: u64, limits: &Limits) {
        let mut sockets = self.sockets();
        if sockets.len() < limits.idle_per_target && self.kept.load(Ordering::Relaxed) < limits.idle
        {
            self.kept.fetch_add(kept.stream.weight(), Ordering::Relaxed);
            sockets.push(Socket { kept, since: now_ms });
        }
    }

    /// Drops connections that were not used for long; instances close theirs.
    fn sweep(&self, now_ms: u64, limits: &Limits) {
        let mut sockets = self.sockets();
        let mut freed = 0;
        sockets.retain(|socket| {
            let age = u128::from(now_ms.saturating_sub(socket.since));
            let stays = age <= limits.upstream_idle.as_millis();
            freed += if stays { 0 } else { socket.kept.stream.weight() };
            stays
        });
        self.kept.fetch_sub(freed, Ordering::Relaxed);
    }

    pub(crate) fn is_failing(&self, now_ms: u64) -> bool {
        let until = self.failing_until.load(Ordering::Relaxed);
        until != 0 && now_ms < until
    }

    /// Lets the first request after a failure find out alone whether the target is well again: it
    /// may have to wait for long.
    pub(crate) fn begin_trial(&self, now_ms: u64) {
        if self.failing_until.load(Ordering::Relaxed) != 0 {
            self.failed(now_ms);
        }
    }

    pub(crate) fn failed(&self, now_ms: u64) {
        self.failing_until.store(now_ms + FAILING_MS, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) {
        if self.failing_until.load(Ordering::Relaxed) != 0 {
            self.failing_until.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let freed = self.sockets().iter().map(|socket| socket.kept.stream.weight()).sum();
        self.kept.fetch_sub(freed, Ordering::Relaxed);
    }
}

/// What answers for one host.
#[derive(Debug)]
pub(crate) struct Entry {
    deployment: DeploymentId,
    pub(crate) targets: Box<[Arc<Target>]>,
}

type Hosts = HashMap<Arc<[u8]>, Arc<Entry>, RandomState>;

/// All routes at one generation. Replaced as a whole, never changed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) generation: u64,
    hosts: Hosts,
}

impl Table {
    pub(crate) fn find(&self, host: &[u8]) -> Option<&Arc<Entry>> {
        self.hosts.get(host)
    }

    fn model(&self) -> RouteTable {
        let mut routes: Vec<Route> = self
            .hosts
            .iter()
            .filter_map(|(host, entry)| {
                let host: HostName = std::str::from_utf8(host).ok()?.parse().ok()?;
                let targets = entry.targets.iter();
                let targets = targets
                    .map(|target| RouteTarget {
                        instance: target.instance,
                        address: target.address,
                        gate: target.gate.as_ref().map(|gate| gate.told),
                    })
                    .collect();
                Some(Route { host, deployment: entry.deployment, targets })
            })
            .collect();
        routes.sort_by(|a, b| a.host.cmp(&b.host));
        RouteTable { generation: self.generation, routes }
    }
}

/// What became of a table or of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Every request from now on is routed by it.
    Now,
    /// It is older than what is served, so it was refused.
    Older,
    /// The changes build on another generation: the whole table is needed.
    Gap,
}

/// Numbered changes to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChanges {
    /// The generation they build on.
    pub from: u64,
    /// The generation after them.
    pub to: u64,
    /// Hosts and their routes; without one, the host is gone.
    pub changes: Vec<(HostName, Option<Route>)>,
}

/// The served table and the targets it knows.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    served: ArcSwap<Table>,
    known: Mutex<Known>,
    /// When kept connections were looked at, in milliseconds since the router's start.
    swept: AtomicU64,
}

/// What makes a target another one.
type Whole = (InstanceId, SocketAddr, Option<RouteGate>);

#[derive(Debug, Default)]
struct Known {
    targets: HashMap<Whole, Weak<Target>, RandomState>,
    numbered: u64,
    sweep_at: usize,
    kept: Arc<AtomicUsize>,
}

impl Known {
    fn entry(&mut self, route: &Route) -> Arc<Entry> {
        let targets = route.targets.iter().filter_map(|target| self.target(*target)).collect();
        Arc::new(Entry { deployment: route.deployment, targets })
    }

    fn target(&mut self, target: RouteTarget) -> Option<Arc<Target>> {
        let key = (target.instance, target.address, target.gate);
        if let Some(known) = self.targets.get(&key).and_then(Weak::upgrade) {
            return Some(known);
        }
        let gate = match target.gate {
            // Never by its address alone if it is to prove itself.
            Some(told) => Some(Gate::new(target.instance, told)?),
            None => None,
        };
        self.numbered += 1;
        let fresh = Arc::new(Target {
            number: self.numbered,
            instance: target.instance,
            address: target.address,
            gate,
            failing_until: AtomicU64::new(0),
            sockets: Mutex::default(),
            kept: Arc::clone(&self.kept),
        });
        self.targets.insert(key, Arc::downgrade(&fresh));
        Some(fresh)
    }

    /// Forgets targets that no table has, now and then.
    fn sweep(&mut self) {
        const AT_LEAST: usize = 1_024;
        if self.targets.len() > self.sweep_at.max(AT_LEAST) {
            self.targets.retain(|_, target| target.strong_count() > 0);
            self.sweep_at = self.targets.len() * 2;
        }
    }
}

impl Routes {
    /// The table to route by, now.
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Table>> {
        self.served.load()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.served.load().generation
    }

    /// Drops kept connections that were not used for long, at all targets. Any thread may call it
    /// as often as it likes; it works once a tick.
    pub(crate) fn sweep_sockets(&self, now_ms: u64, limits: &Limits) {
        let tick = u64::try_from(limits.tick().as_millis()).unwrap_or(u64::MAX);
        let last = self.swept.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(last) >= tick;
        let mine = || {
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            self.swept.compare_exchange(last, now_ms, success, failure).is_ok()
        };
        if due && mine() {
            for entry in self.served.load_full().hosts.values() {
                entry.targets.iter().for_each(|target| target.sweep(now_ms, limits));
            }
        }
    }

    /// The served table as others read it.
    pub(crate) fn model(&self) -> RouteTable {
        self.served.load_full().model()
    }

    /// Serves `table` unless it is older than the one served. When this returns, no thread starts a
    /// request by the old one.
    pub(crate) fn replace(&self, table: &RouteTable) -> Applied {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if table.generation < self.generation() {
            return Applied::Older;
        }
        let mut hosts = Hosts::with_capacity_and_hasher(table.routes.len(), RandomState::default());
        for route in &table.routes {
            hosts.insert(route.host.as_str().as_bytes().into(), known.entry(route));
        }
        self.served.store(Arc::new(Table { generation: table.generation, hosts }));
        known.sweep();
        Applied::Now
    }

    /// Serves the table with `changes` made to it.
    pub(crate) fn change(&self, changes: &TableChanges) -> Applied {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let served = self.served.load_full();
        if changes.to < served.generation {
            return Applied::Older;
        }
        if changes.from != served.generation {
            return Applied::Gap;
        }
        let mut hosts = served.hosts.clone();
        for (host, route) in &changes.changes {
            let host = host.as_str().as_bytes();
            match route {
                Some(route) => hosts.insert(host.into(), known.entry(route)),
                None => hosts.remove(host),
            };
        }
        self.served.store(Arc::new(Table { generation: changes.to, hosts }));
        known.sweep();
        Applied::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, instance: u128, port: u16) -> Route {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let targets = vec![RouteTarget { instance: InstanceId(instance), address, gate: None }];
        Route { host: host.parse().expect("a host"), deployment: DeploymentId(1), targets }
    }

    fn number(routes: &Routes, host: &str) -> Option<u64> {
        routes.load().find(host.as_bytes()).map(|entry| entry.targets[0].number)
    }

    #[test]
    fn an_older_table_is_refused_and_a_gap_is_noticed() {
        let routes = Routes::default();
        let table = RouteTable { generation: 5, routes: vec![route("a.b", 1, 1)] };
        assert_eq!(routes.replace(&table), Applied::Now);
        assert_eq!(routes.replace(&RouteTable { generation: 4, ..table.clone() }), Applied::Older);
        assert_eq!(routes.model(), table);
        let host: HostName = "a.b".parse().expect("a host");
        let mut changes = TableChanges { from: 4, to: 6, changes: vec![(host, None)] };
        assert_eq!(routes.change(&changes), Applied::Gap);
        changes.from = 5;
        assert_eq!(routes.change(&changes), Applied::Now);
        assert_eq!(routes.generation(), 6);
        assert_eq!(number(&routes, "a.b"), None);
        changes.to = 5;
        assert_eq!(routes.change(&changes), Applied::Older);
    }

    #[test]
    fn one_request_at_a_time_finds_out_whether_a_target_is_well_again() {
        let routes = Routes::default();
        routes.replace(&RouteTable { generation: 1, routes: vec![route("a.b", 1, 1)] });
        let table = routes.load();
        let target = &table.find(b"a.b").expect("a route").targets[0];
        target.begin_trial(1_000);
        assert!(!target.is_failing(1_000), "it has not failed");
        target.failed(1_000);
        let later = 1_000 + FAILING_MS;
        assert!(target.is_failing(later - 1) && !target.is_failing(later));
        target.begin_trial(later);
        assert!(target.is_failing(later), "the others pass it over meanwhile");
        target.answered();
        assert!(!target.is_failing(later));
    }

    #[test]
    fn the_same_address_for_another_instance_is_another_target() {
        let routes = Routes::default();
        let table = |generation, instance| RouteTable {
            generation,
            routes: vec![route("a.b", instance, 1), route("c.d", instance, 1)],
        };
        routes.replace(&table(1, 1));
        let first = number(&routes, "a.b");
        assert_eq!(first, number(&routes, "c.d"), "one instance, one target");
        routes.replace(&table(2, 1));
        assert_eq!(first, number(&routes, "a.b"), "it stays over a change of table");
        routes.replace(&table(3, 2));
        assert_ne!(first, number(&routes, "a.b"));
        let second = number(&routes, "a.b");
        routes.replace(&table(4, 1));
        assert_ne!(first, number(&routes, "a.b"), "numbers are not used again");
        assert_ne!(second, number(&routes, "a.b"));
    }
}
