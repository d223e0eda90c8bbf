//! What a process counts, and how that reads: Prometheus text, or a document that others render.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of a histogram, in seconds.
pub const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BUCKETS: usize = BOUNDS.len() + 1;
/// How many ticks of CPU time the kernel tells of as a second, on every system we run on.
const TICKS: f64 = 100.0;

/// How long things took. Anybody may add to it; nobody waits.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// What a histogram holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Buckets {
    /// How many took at most as long as each of [`BOUNDS`] and longer than the one before; the last is
    /// of those that took longer.
    pub counts: [u64; BUCKETS],
    /// How long all took together, in seconds.
    pub sum: f64,
}

impl Buckets {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another one holds.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.counts.iter_mut().zip(other.counts) {
            *own += other;
        }
        self.sum += other.sum;
    }
}

impl Histogram {
    /// Something took this long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What it holds now.
    pub fn read(&self) -> Buckets {
        let counts = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        Buckets {
            counts,
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

/// What a sample says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// It only grows.
    Counter(f64),
    /// It goes up and down.
    Gauge(f64),
    /// How often, by how long.
    Histogram(Buckets),
}

/// Which of several samples one is: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// One metric with its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is, for people.
    pub help: &'static str,
    /// Labels and values; all of one kind.
    pub samples: Vec<(Labels, Value)>,
}

/// Metrics at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics(pub Vec<Metric>);

impl Metrics {
    /// One number that only grows.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are enough to watch something grow")]
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.one(name, help, Value::Counter(value as f64));
    }

    /// One number that goes up and down.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are enough to look at something")]
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.one(name, help, Value::Gauge(value as f64));
    }

    /// One metric with a sample.
    pub fn one(&mut self, name: &'static str, help: &'static str, value: Value) {
        self.many(name, help, [(Vec::new(), value)]);
    }

    /// One metric with several samples.
    pub fn many(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Value)>,
    ) {
        self.0.push(Metric { name, help, samples: samples.into_iter().collect() });
    }

    /// What the kernel says of this process: memory, CPU time, open files.
    pub fn process(&mut self) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident =
            resident.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
        if let Some(kib) = resident {
            let help = "Resident memory in bytes.";
            self.gauge("process_resident_memory_bytes", help, kib << 10);
        }
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name of the process may hold anything, so it is skipped from its end.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks =
            fields.split_whitespace().skip(11).take(2).filter_map(|it| it.parse::<f64>().ok());
        let seconds = ticks.sum::<f64>() / TICKS;
        let help = "CPU time in seconds, of the user and the system.";
        self.one("process_cpu_seconds_total", help, Value::Counter(seconds));
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.gauge("process_open_fds", "Open files.", files.count() as u64);
        }
    }

    /// As Prometheus reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for metric in &self.0 {
            // Writing to a String cannot fail.
            metric.write(&mut text).unwrap_or_default();
        }
        text
    }
}

impl Metric {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Self { name, help, samples } = self;
        let kind = match samples.first() {
            Some((_, Value::Counter(_))) => "counter",
            Some((_, Value::Gauge(_))) | None => "gauge",
            Some((_, Value::Histogram(_))) => "histogram",
        };
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for (labels, value) in samples {
            match value {
                Value::Counter(value) | Value::Gauge(value) => {
                    writeln!(text, "{name}{} {value}", shown(labels, None))?;
                }
                Value::Histogram(buckets) => histogram(text, name, labels, buckets)?,
            }
        }
        Ok(())
    }
}

fn histogram(text: &mut String, name: &str, labels: &Labels, it: &Buckets) -> std::fmt::Result {
    let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
    let mut sum = 0;
    for (bound, count) in bounds.zip(it.counts) {
        sum += count;
        writeln!(text, "{name}_bucket{} {sum}", shown(labels, Some(&bound)))?;
    }
    writeln!(text, "{name}_sum{} {}", shown(labels, None), it.sum)?;
    writeln!(text, "{name}_count{} {sum}", shown(labels, None))
}

fn shown(labels: &Labels, bound: Option<&str>) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let own = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    let all: Vec<String> = own.chain(bound.map(|bound| format!("le=\"{bound}\""))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_prometheus_wants_it() {
        let histogram = Histogram::default();
        for ms in [0, 1, 3, 20_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut metrics = Metrics::default();
        metrics.counter("a_total", "So many.", 3);
        let odd = vec![("cell", "a \"b\"\\\n".to_owned())];
        metrics.many("b", "Some.", [(odd, Value::Gauge(1.5))]);
        metrics.one("c_seconds", "So long.", Value::Histogram(histogram.read()));
        let text = metrics.text();
        assert!(text.starts_with("# HELP a_total So many.\n# TYPE a_total counter\na_total 3\n"));
        assert!(text.contains("b{cell=\"a \\\"b\\\"\\\\\\n\"} 1.5\n"), "{text}");
        assert!(text.contains("# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.0005\"} 1\n"));
        assert!(text.contains("c_seconds_bucket{le=\"0.001\"} 2\n"), "{text}");
        assert!(text.contains("c_seconds_bucket{le=\"10\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\n"));
        assert!(text.ends_with("c_seconds_sum 20.004\nc_seconds_count 4\n"), "{text}");
    }

    #[test]
    fn the_process_is_known() {
        let mut metrics = Metrics::default();
        metrics.process();
        let names: Vec<_> = metrics.0.iter().map(|metric| metric.name).collect();
        let wanted =
            ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"];
        assert_eq!(names, wanted);
    }
}
