//! What the server counts and measures of itself, and what is read from the state for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runtime::metrics::{Histogram, Labels, Metrics, Value};
use state::{Cell, Counts, State};

use crate::Server;
use crate::apply::ApplyError;

/// What is measured where it happens.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// Commits, by how long they took.
    pub(crate) commits: Histogram,
    /// Commits that the store refused.
    pub(crate) refused: AtomicU64,
    /// Commands that held an auction, by how long they took.
    pub(crate) auctions: Histogram,
    /// Deadlines worked off, by how long that took.
    pub(crate) convergence: Histogram,
    /// HTTP requests by the first digit of their status.
    requests: [AtomicU64; 6],
    /// How long they took.
    requested: Histogram,
    /// Callbacks that were taken, and that were not.
    pub(crate) callbacks: [AtomicU64; 2],
}

/// What the state knows.
struct Seen {
    counts: Counts,
    cells: BTreeMap<&'static str, u64>,
    memory: Vec<(Labels, Value)>,
    routes: usize,
}

#[expect(clippy::cast_precision_loss, reason = "53 bits are enough to look at something")]
const fn number(value: u64) -> f64 {
    value as f64
}

fn by<'a>(
    label: &'static str,
    counts: impl IntoIterator<Item = (&'a &'static str, &'a u64)>,
) -> Vec<(Labels, Value)> {
    let sample = |(state, count): (&&'static str, &u64)| {
        (vec![(label, (*state).to_owned())], Value::Gauge(number(*count)))
    };
    counts.into_iter().map(sample).collect()
}

fn look(state: &State) -> Seen {
    let mut cells = BTreeMap::from([("connected", 0), ("draining", 0), ("gone", 0)]);
    let mut memory = Vec::new();
    for cell in state.all::<Cell>() {
        let is = match (cell.lease_until, cell.draining) {
            (Some(_), None) => "connected",
            (Some(_), Some(_)) => "draining",
            (None, _) => "gone",
        };
        *cells.entry(is).or_default() += 1;
        if cell.lease_until.is_none() {
            continue;
        }
        let used = state.cell_load(cell.id).memory_mb;
        for (kind, mb) in [("total", cell.spec.memory_mb), ("used", used)] {
            let labels = vec![("cell", cell.spec.name.to_string()), ("kind", kind.to_owned())];
            memory.push((labels, Value::Gauge(number(mb))));
        }
    }
    Seen { counts: state.counts(), cells, memory, routes: state.route_count() }
}

impl Server {
    /// A request was answered.
    pub fn count_request(&self, status: u16, took: Duration) {
        let meters = self.meters();
        let class = usize::from(status / 100).min(meters.requests.len() - 1);
        meters.requests[class].fetch_add(1, Ordering::Relaxed);
        meters.requested.observe(took);
    }

    /// Everything there is to know of this server, in numbers.
    pub async fn metrics(&self) -> Result<Metrics, ApplyError> {
        let seen = self.read(look).await?;
        let mut all = Metrics::default();
        self.state_metrics(&mut all, seen);
        self.own_metrics(&mut all);
        all.process();
        Ok(all)
    }

    fn state_metrics(&self, all: &mut Metrics, seen: Seen) {
        let Seen { counts, cells, memory, routes } = seen;
        all.many("shore_cells", "Cells by state.", by("state", &cells));
        all.many(
            "shore_cell_memory_mb",
            "Memory of connected cells for containers, in MiB.",
            memory,
        );
        all.many("shore_instances", "Instances by state.", by("state", &counts.instances));
        all.many("shore_tasks", "Tasks that are kept, by state.", by("state", &counts.tasks));
        all.many("shore_jobs", "Jobs that are at hand, by state.", by("state", &counts.jobs));
        let help = "Places that were found for tasks and instances.";
        all.counter("shore_auction_placed_total", help, counts.placed);
        let help = "Places that were looked for in vain.";
        all.counter("shore_auction_failed_total", help, counts.unplaced);
        let help = "Moves that were begun to even out how full cells are.";
        all.counter("shore_rebalance_moves_total", help, counts.moves);
        all.gauge("shore_routes", "Hosts with a route.", routes as u64);
        let feed = self.feed();
        let help = "Changes that are not kept for watchers any more.";
        all.counter("shore_events_dropped_total", help, feed.dropped());
        let help = "The number of the last change.";
        all.gauge("shore_revision", help, feed.newest());
    }

    fn own_metrics(&self, all: &mut Metrics) {
        let meters = self.meters();
        let commits = meters.commits.read();
        all.counter("shore_commits_total", "Commits that are durable.", commits.count());
        let refused = meters.refused.load(Ordering::Relaxed);
        all.counter("shore_commits_failed_total", "Commits that the store refused.", refused);
        let histograms = [
            ("shore_commit_seconds", "From applied to durable.", commits),
            ("shore_auction_seconds", "Commands that placed something.", meters.auctions.read()),
            ("shore_convergence_seconds", "Deadlines worked off.", meters.convergence.read()),
            ("shore_http_request_seconds", "HTTP requests, to the head.", meters.requested.read()),
        ];
        for (name, help, buckets) in histograms {
            all.one(name, help, Value::Histogram(buckets));
        }
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let requests = classes.into_iter().zip(&meters.requests).map(|(class, count)| {
            let count = number(count.load(Ordering::Relaxed));
            (vec![("class", class.to_owned())], Value::Counter(count))
        });
        all.many("shore_http_requests_total", "HTTP requests by class of status.", requests);
        let callbacks = ["taken", "failed"].into_iter().zip(&meters.callbacks);
        let callbacks = callbacks.map(|(outcome, count)| {
            let count = number(count.load(Ordering::Relaxed));
            (vec![("outcome", outcome.to_owned())], Value::Counter(count))
        });
        all.many("shore_callbacks_total", "Tries to tell of the end of a task.", callbacks);
    }
}
