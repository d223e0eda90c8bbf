//! Health of one instance: whether it has started, lives, and can take requests.
//!
//! Three checks with one purpose each. `startup` (or `check` where there is none) must pass within
//! its time. From then on `check` must not fail too often: a failure ends the instance. `readiness`
//! only says whether routes may point at it. All three count successes and failures in a row.

use std::fmt;
use std::time::{Duration, Instant};

use model::{Check, CheckKind};
use runtime::mono_now;

use crate::limits::{CHECK_PAUSES, COMMAND_CHECK_PAUSE};
use crate::probe::{Fault, Prober};

/// What a check found that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It can take requests, and could not before.
    Ready,
    /// It cannot take requests; said when that changed, and once when it never could.
    NotReady { reason: String },
    /// It did not start in time.
    NeverHealthy { reason: String },
    /// It lived, and failed too often since.
    Unhealthy { reason: String },
}

/// The checks of an instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checks {
    pub(crate) startup: Option<Check>,
    pub(crate) liveness: Option<Check>,
    pub(crate) readiness: Option<Check>,
}

/// Checks one instance.
#[derive(Debug)]
pub(crate) struct Health {
    prober: Prober,
    /// Until it passes once.
    startup: Option<Track>,
    /// Whether it is asked further after that.
    goes_on: bool,
    deadline: Instant,
    liveness: Option<Track>,
    readiness: Option<Track>,
    /// Whether it was said that it can take requests, where nothing else says so.
    said: bool,
}

impl Health {
    /// `spread` is any number that differs from instance to instance: it moves the checks of many
    /// instances apart, always in the same way.
    pub(crate) fn new(checks: Checks, prober: Prober, spread: u64) -> Self {
        let Checks { startup, liveness, readiness } = checks;
        let goes_on = startup.is_none();
        let startup = startup.or_else(|| liveness.clone());
        let limit = startup.as_ref().map_or(0, |check| check.start_timeout_ms);
        let track = |check| Track::new(check, spread);
        // What passed as the first check goes on as the second.
        let liveness = liveness.filter(|_| !goes_on).map(track);
        Self {
            prober,
            startup: startup.map(track),
            goes_on,
            deadline: mono_now() + Duration::from_millis(limit),
            liveness,
            readiness: readiness.map(track),
            said: false,
        }
    }

    /// Checks until there is something to say. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Verdict {
        if let Some(startup) = &mut self.startup {
            if let Err(reason) = startup.start(&self.prober, self.deadline).await {
                return Verdict::NeverHealthy { reason };
            }
            self.started();
        }
        if self.readiness.is_none() && !self.said {
            self.said = true;
            return Verdict::Ready;
        }
        let Self { prober, liveness, readiness, .. } = self;
        tokio::select! {
            biased;
            reason = unhealthy(liveness.as_mut(), prober) => Verdict::Unhealthy { reason },
            verdict = turns(readiness.as_mut(), prober) => verdict,
        }
    }

    fn started(&mut self) {
        let Some(startup) = self.startup.take() else { return };
        if let Some(liveness) = &mut self.liveness {
            // It begins only now, and the instance lives.
            liveness.passes = true;
            liveness.next = mono_now() + liveness.first_pause();
        } else if self.goes_on {
            self.liveness = Some(startup);
        }
    }
}

async fn unhealthy(liveness: Option<&mut Track>, prober: &Prober) -> String {
    let Some(liveness) = liveness else { return std::future::pending().await };
    loop {
        if let (false, fault) = liveness.turn(prober).await {
            return liveness.unhealthy(&fault);
        }
    }
}

/// Waits until a check that failed passes, or the other way round.
async fn turns(readiness: Option<&mut Track>, prober: &Prober) -> Verdict {
    let Some(readiness) = readiness else { return std::future::pending().await };
    match readiness.turn(prober).await {
        (true, _) => Verdict::Ready,
        (false, reason) => Verdict::NotReady { reason },
    }
}

/// One check, and how it went so far.
#[derive(Debug)]
struct Track {
    check: Check,
    spread: u64,
    /// When it is due.
    next: Instant,
    /// Between two questions to what never passed.
    pause: Duration,
    /// Whether an answer ever came.
    answered: bool,
    passes: bool,
    /// How many results in a row say otherwise.
    against: u32,
    /// How many results in a row were failures, while it never passed.
    misses: u32,
    /// When that is told at the earliest, once: at first it is asked more often than its interval
    /// says.
    tell_at: Option<Instant>,
}

impl Track {
    fn new(check: Check, spread: u64) -> Self {
        let (pause, _) = CHECK_PAUSES;
        let now = mono_now();
        let patience = check.interval_ms.saturating_mul(u64::from(check.failures));
        Self {
            check,
            spread,
            next: now,
            tell_at: Some(now + Duration::from_millis(patience)),
            pause,
            answered: false,
            passes: false,
            against: 0,
            misses: 0,
        }
    }

    /// The interval, less a part of it that is this instance's own.
    fn first_pause(&self) -> Duration {
        let interval = self.check.interval_ms;
        let most = interval.saturating_mul(u64::from(self.check.jitter_percent.min(100))) / 100;
        let less = self.spread.checked_rem(most.saturating_add(1)).unwrap_or(0);
        Duration::from_millis(interval - less.min(interval))
    }

    /// How long it waits at most before it asks what is not healthy yet once more.
    const fn longest_pause(&self) -> Duration {
        match self.check.kind {
            CheckKind::Command { .. } => COMMAND_CHECK_PAUSE,
            CheckKind::Http { .. } | CheckKind::Answers | CheckKind::Tcp => CHECK_PAUSES.1,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.check.interval_ms)
    }

    /// Asks once it is due. Only what counts is given back.
    async fn ask(&mut self, prober: &Prober) -> Result<(), Fault> {
        runtime::sleep_until(self.next).await;
        // Between two questions an instance needs no room for one.
        let found = Box::pin(prober.ask(&self.check, !self.answered)).await;
        self.answered |= found.is_ok();
        found
    }

    /// Asks until it passes; gives up at the deadline.
    async fn start(&mut self, prober: &Prober, deadline: Instant) -> Result<(), String> {
        loop {
            let found = self.ask(prober).await;
            let now = mono_now();
            match found {
                Ok(()) => {
                    self.against += 1;
                    self.next = now + self.interval();
                    if self.against >= self.check.successes {
                        self.against = 0;
                        self.passes = true;
                        self.next = now + self.first_pause();
                        return Ok(());
                    }
                }
                Err(fault) if now >= deadline && !fault.starved => {
                    let limit = Length(Duration::from_millis(self.check.start_timeout_ms));
                    let last = fault.text;
                    return Err(format!("was never healthy in {limit}; last check: {last}"));
                }
                Err(_) => {
                    self.against = 0;
                    self.next = (now + self.pause).min(deadline.max(now));
                    self.pause = (self.pause * 2).min(self.longest_pause());
                }
            }
        }
    }

    /// Asks until its mind changes; gives whether it passes now, and what was wrong last. That it
    /// fails from the beginning is told once, too.
    async fn turn(&mut self, prober: &Prober) -> (bool, String) {
        loop {
            let found = self.ask(prober).await;
            let now = mono_now();
            let fresh = !self.passes && !self.answered;
            self.next = now + if fresh { self.pause } else { self.interval() };
            if fresh {
                self.pause = (self.pause * 2).min(self.longest_pause());
            }
            match found {
                Err(fault) if fault.starved => {
                    tracing::warn!(fault = fault.text, "too little processor time for a check");
                    continue;
                }
                ref found if found.is_ok() == self.passes => self.against = 0,
                Ok(()) | Err(_) => self.against += 1,
            }
            if let Some(reason) = self.missed(found.as_ref().err()) {
                return (false, reason);
            }
            let most = if self.passes { self.check.failures } else { self.check.successes };
            if self.against >= most {
                self.passes = !self.passes;
                let times = std::mem::take(&mut self.against);
                let fault = found.err().map(|fault| fault.text).unwrap_or_default();
                return (self.passes, in_a_row(times, &fault));
            }
        }
    }

    /// What is told of a check that has never passed, once it failed too often in a row.
    fn missed(&mut self, fault: Option<&Fault>) -> Option<String> {
        let Some(fault) = fault.filter(|_| !self.passes) else {
            self.misses = 0;
            return None;
        };
        self.misses = self.misses.saturating_add(1);
        let due = self.tell_at.is_some_and(|at| at <= mono_now());
        if !due || self.misses < self.check.failures {
            return None;
        }
        self.tell_at = None;
        Some(in_a_row(self.misses, &fault.text))
    }

    fn unhealthy(&self, fault: &str) -> String {
        debug_assert!(!self.passes, "it failed");
        format!("became unhealthy: {fault}")
    }
}

fn in_a_row(times: u32, fault: &str) -> String {
    match times {
        1 => fault.to_owned(),
        times => format!("{times} checks in a row failed, the last: {fault}"),
    }
}

/// A duration as people write it: `60 s`, `250 ms`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length(pub(crate) Duration);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1_000) { write!(f, "{} s", ms / 1_000) } else { write!(f, "{ms} ms") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn check(kind: CheckKind) -> Check {
        Check {
            kind,
            interval_ms: 10,
            timeout_ms: 200,
            start_timeout_ms: 100,
            failures: 2,
            ..Check::default()
        }
    }

    #[test]
    fn a_command_is_not_run_again_and_again_before_it_passes() {
        let argv = vec!["true".to_owned()];
        let longest = |kind| Track::new(check(kind), 0).longest_pause();
        assert_eq!(longest(CheckKind::Command { argv }), Duration::from_secs(1));
        assert_eq!(longest(CheckKind::Tcp), CHECK_PAUSES.1);
    }

    fn http() -> Check {
        check(CheckKind::Http { path: "/up".into() })
    }

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("has an address").port();
        (listener, port)
    }

    fn health(checks: Checks, port: u16) -> Health {
        Health::new(checks, Prober { address: ([127, 0, 0, 1], port).into(), inside: None }, 0)
    }

    fn liveness(check: Check) -> Checks {
        Checks { liveness: Some(check), ..Checks::default() }
    }

    async fn serve(listener: &TcpListener, answers: &[u16]) {
        for status in answers {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let answer = format!("HTTP/1.1 {status} x\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answers");
            // Reading to the end makes the close a clean one.
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_never_healthy() {
        let (listener, port) = listen().await;
        drop(listener);
        let verdict = health(liveness(check(CheckKind::Tcp)), port).next().await;
        let reason =
            format!("was never healthy in 100 ms; last check: connection refused on port {port}");
        assert_eq!(verdict, Verdict::NeverHealthy { reason });
    }

    #[tokio::test]
    async fn a_port_without_an_answer_is_not_healthy_at_first() {
        let (listener, port) = listen().await;
        let mut health = health(liveness(check(CheckKind::Answers)), port);
        let serve = async {
            // A master that listens while its worker dies, then one whose worker lives.
            drop(listener.accept().await.expect("accepts"));
            serve(&listener, &[404]).await;
            // Later checks ask for no page, so a quiet app stays quiet.
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).await.expect("an end");
            asked
        };
        let watch = async {
            let verdict = health.next().await;
            // The next check passes, so there is nothing to say.
            let quiet = runtime::timeout(Duration::from_millis(100), health.next()).await;
            (verdict, quiet)
        };
        let (asked, verdicts) = tokio::join!(serve, watch);
        assert_eq!(verdicts, (Verdict::Ready, None));
        assert_eq!(asked, b"");
    }

    #[tokio::test]
    async fn failures_in_a_row_are_counted() {
        let (listener, port) = listen().await;
        let mut health = health(liveness(http()), port);
        let watch = async {
            assert_eq!(health.next().await, Verdict::Ready);
            health.next().await
        };
        let ((), verdict) = tokio::join!(serve(&listener, &[503, 200, 500, 302, 500, 500]), watch);
        let reason = format!(
            "became unhealthy: 2 checks in a row failed, the last: GET /up on port {port} answered 500"
        );
        assert_eq!(verdict, Verdict::Unhealthy { reason });
    }

    #[tokio::test]
    async fn readiness_comes_and_goes_and_ends_nothing() {
        let (listener, port) = listen().await;
        let readiness = Some(Check { successes: 2, ..http() });
        let mut health = health(Checks { readiness, ..Checks::default() }, port);
        let answers = [503, 200, 503, 200, 200, 500, 200, 500, 500, 500, 200, 200];
        let watch = async {
            let mut verdicts = Vec::new();
            for _ in 0..3 {
                verdicts.push(health.next().await);
            }
            verdicts
        };
        let ((), verdicts) = tokio::join!(serve(&listener, &answers), watch);
        let reason =
            format!("2 checks in a row failed, the last: GET /up on port {port} answered 500");
        assert_eq!(verdicts, [Verdict::Ready, Verdict::NotReady { reason }, Verdict::Ready]);
    }

    #[tokio::test]
    async fn readiness_that_never_comes_says_why_once() {
        let (listener, port) = listen().await;
        let mut health = health(Checks { readiness: Some(http()), ..Checks::default() }, port);
        let watch = async { (health.next().await, health.next().await) };
        let began = mono_now();
        let answers = async {
            while began.elapsed() < Duration::from_millis(100) {
                serve(&listener, &[404]).await;
            }
            serve(&listener, &[200]).await;
        };
        let ((), (first, second)) = tokio::join!(answers, watch);
        let Verdict::NotReady { reason } = first else { panic!("{first:?}") };
        assert!(reason.contains(" checks in a row failed, the last: "), "{reason}");
        assert!(reason.ends_with(&format!("GET /up on port {port} answered 404")), "{reason}");
        assert_eq!(second, Verdict::Ready);
    }

    #[tokio::test]
    async fn a_startup_check_comes_before_the_others() {
        let (listener, port) = listen().await;
        let (started, started_port) = listen().await;
        let startup = Some(Check { port: Some(started_port), failures: 1, ..http() });
        let checks = Checks { startup, ..liveness(Check { failures: 1, ..http() }) };
        let mut health = health(checks, port);
        let watch = async {
            assert_eq!(health.next().await, Verdict::Ready);
            health.next().await
        };
        let answers = async {
            serve(&started, &[500, 500, 200]).await;
            drop(started);
            serve(&listener, &[200, 200, 404]).await;
        };
        let ((), verdict) = tokio::join!(answers, watch);
        let reason = format!("became unhealthy: GET /up on port {port} answered 404");
        assert_eq!(verdict, Verdict::Unhealthy { reason });
    }

    #[tokio::test]
    async fn without_checks_it_is_ready_at_once() {
        let mut health = health(Checks::default(), 1);
        assert_eq!(health.next().await, Verdict::Ready);
        let quiet = runtime::timeout(Duration::from_millis(20), health.next()).await;
        assert_eq!(quiet, None);
    }

    #[test]
    fn checks_are_spread_always_in_the_same_way() {
        let pauses = |spread| {
            let check = Check { interval_ms: 1_000, jitter_percent: 50, ..Check::default() };
            Track::new(check, spread).first_pause().as_millis()
        };
        assert_eq!((pauses(0), pauses(500), pauses(501)), (1_000, 500, 1_000));
        assert_eq!(pauses(123), pauses(123));
    }
}
