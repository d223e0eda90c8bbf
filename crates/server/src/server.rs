//! The server as everything else sees it: commands, reads, logs, blobs, tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use egress::{Guard, Network, Url, Web};
use logbuf::{LogError, LogStore, StoreLimits};
use model::{Digest, JobId, JoinToken, ProjectId, Role, RunnerId, Time, TokenId};
use runtime::{Clock, Ids, Kind, Shares, Tasks};
use state::{
    Command, Job, NewToken, Refusal, Reply, RowKey, Secret, Signing, State, Token, WorkCommand,
};
use store::blobs::{BlobLimits, Blobs};
use store::{HistoryQuery, HistoryRow, Store, StoreError};
use tokio::sync::{broadcast, watch};

use crate::apply::{ApplyError, Loop, Published};
use crate::auth::{self, Principal, TokenFault};
use crate::followers::{Following, MAX_FOLLOWED, MAX_WAITING_CALLS, Waiting};
use crate::identity::{IdentityAuthority, Issued, Subject};
use crate::metrics::Meters;
use crate::sessions;
use crate::tls::TlsError;

/// Pushes to these branches are built and deployed.
const DEPLOYED_BRANCHES: [&str; 2] = ["refs/heads/main", "refs/heads/master"];
/// How often log lines are written to disk.
const LOG_FLUSH: Duration = Duration::from_millis(200);
/// How long a release waits for the routers to serve it before it says that they do not yet, and
/// how long an instance that is to stop goes on for routers that may still send requests to it.
pub const ROUTER_WAIT: Duration = Duration::from_secs(2);
/// How often the bearer of an open stream is looked at, whatever happens.
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// The history of jobs that ended.
const JOBS: store::Kind = store::Kind::new(state::JOB_HISTORY);
/// The pause before a deadline is tried again that could not be made durable.
const TICK_PAUSE: Duration = Duration::from_millis(250);
/// No deadline is slept past this, so that a clock that jumps is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What a server is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where rows become durable.
    pub store: Arc<dyn Store>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Fresh identifiers and secrets.
    pub ids: Ids,
    /// Who owns its tasks.
    pub tasks: Tasks,
    /// The parent of every app's host.
    pub domain: String,
    /// The fingerprint of its authority: part of every token, so that it also works over TLS.
    pub authority: Option<Digest>,
    /// What its blob directory takes.
    pub blobs: BlobLimits,
    /// What operators may choose.
    pub settings: Settings,
}

/// What operators may choose; the defaults are safe.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Networks that callbacks may reach besides public addresses.
    pub callback_networks: Vec<Network>,
    /// Whether metrics are shown to whoever asks.
    pub metrics_open: bool,
    /// Where metrics are pushed to, as in `http://127.0.0.1:4318/v1/metrics`.
    pub otlp: Option<Url>,
    /// Whether instances that serve are moved to even out how full cells are.
    pub rebalance: Option<Rebalance>,
}

/// How much evening out may disturb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebalance {
    /// How many instances may move at once; [`state::MAX_MOVES`] at most.
    pub moves: u32,
    /// How often moves are begun.
    pub period: Duration,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store or the blob directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log directory.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The first command was not carried out.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The state gave no answer.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A job in the history is not what was written.
    #[error("job {seq} of the history is unreadable: {error}")]
    Unreadable {
        /// Its place there.
        seq: u64,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

/// Where people reach things, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    /// Where a browser reaches apps.
    pub router: Option<u16>,
    /// Where git pushes go.
    pub ssh: Option<u16>,
}

/// A connected router.
#[derive(Debug, Clone, Copy)]
struct Connected {
    /// Grows with every connection, so that an old one that ends late changes nothing.
    session: u128,
    /// Where it takes requests.
    port: Option<u16>,
    /// The generation it serves, once it said so.
    serves: u64,
}

/// The server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    apply: Loop,
    clock: Arc<dyn Clock>,
    ids: Ids,
    tasks: Tasks,
    domain: String,
    authority: Option<Digest>,
    logs: LogStore,
    followers: Shares<TokenId>,
    waiters: Shares<TokenId>,
    sessions: sessions::Table,
    blobs: Blobs,
    /// Where jobs that ended long ago are read.
    store: Arc<dyn Store>,
    /// The connected routers.
    routers: watch::Sender<BTreeMap<u128, Connected>>,
    /// The newest stream of each runner that is connected.
    runners: Mutex<BTreeMap<RunnerId, u128>>,
    ssh_port: OnceLock<u16>,
    /// Asks the callbacks of users.
    web: Web,
    metrics_open: bool,
    /// Who makes certificates for instances and routers, if this server does.
    identities: OnceLock<IdentityAuthority>,
}

impl Server {
    /// Opens logs and blobs under `dir`, loads the state and starts everything.
    pub async fn start(parts: Parts, dir: &Path) -> Result<Self, StartError> {
        let logs = LogStore::open(&dir.join("logs"), StoreLimits::default())?;
        let blobs = Blobs::open(&dir.join("blobs"), parts.blobs)?;
        let store = Arc::clone(&parts.store);
        let apply = Loop::start(parts.store, Arc::clone(&parts.clock), &parts.domain)?;
        let web = Web::new(Guard::new(parts.settings.callback_networks), parts.tasks.clone());
        let inner = Inner {
            web,
            metrics_open: parts.settings.metrics_open,
            apply,
            clock: parts.clock,
            ids: parts.ids,
            tasks: parts.tasks,
            domain: parts.domain,
            authority: parts.authority,
            logs,
            followers: Shares::of(MAX_FOLLOWED),
            waiters: Shares::of(MAX_WAITING_CALLS),
            sessions: sessions::Table::default(),
            blobs,
            store,
            routers: watch::Sender::new(BTreeMap::new()),
            runners: Mutex::default(),
            ssh_port: OnceLock::new(),
            identities: OnceLock::new(),
        };
        let server = Self { inner: Arc::new(inner) };
        // Deadlines and routes were made by the clock as it was. Were it behind that now, they would
        // not come for as long.
        if let Some(heard) = server.read(State::last_heard).await? {
            server.inner.clock.has_been(heard.0);
        }
        server.apply(Command::Boot).await?;
        let tasks = &server.inner.tasks;
        tasks.spawn(Kind::Critical, "ticker", server.clone().tick());
        tasks.spawn_ok("sweeper", server.clone().sweep());
        tasks.spawn_ok("log-flusher", server.clone().flush_logs());
        tasks.spawn_ok("log-closer", server.clone().close_logs());
        tasks.spawn_ok("callbacks", crate::callbacks::run(server.clone()));
        if let Some(rebalance) = parts.settings.rebalance {
            tasks.spawn_ok("rebalancer", server.clone().rebalance(rebalance));
        }
        if let Some(url) = parts.settings.otlp {
            tasks.spawn_ok("otlp", crate::otlp::run(server.clone(), url));
        }
        Ok(server)
    }

    /// Carries out a command; the answer comes once it is durable.
    pub async fn apply(&self, command: Command) -> Result<Reply, ApplyError> {
        self.inner.apply.apply(command).await
    }

    /// Reads the state.
    pub async fn read<T, F>(&self, read: F) -> Result<T, ApplyError>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> T + Send + 'static,
    {
        self.inner.apply.read(read).await
    }

    pub(crate) fn apply_loop(&self) -> &Loop {
        &self.inner.apply
    }

    pub(crate) fn meters(&self) -> &Meters {
        self.inner.apply.meters()
    }

    /// Whether metrics are shown to whoever asks.
    pub fn metrics_open(&self) -> bool {
        self.inner.metrics_open
    }

    /// Reads the state and says at which revision: whoever watches from there misses nothing.
    pub async fn read_at<T, F>(&self, read: F) -> Result<(u64, T), ApplyError>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> T + Send + 'static,
    {
        self.read(move |state| (state.revision(), read(state))).await
    }

    /// Reads again after every change of a row until `read` finds something.
    pub async fn wait_for_row<T, F>(&self, row: RowKey, read: F) -> Result<T, ApplyError>
    where
        T: Send + 'static,
        F: Fn(&State) -> Option<T> + Send + Sync + 'static,
    {
        let waiter = self.inner.apply.waits().wait(row);
        let read = Arc::new(read);
        loop {
            let again = Arc::clone(&read);
            if let Some(found) = self.read(move |state| again(state)).await? {
                return Ok(found);
            }
            if self.inner.tasks.stop().or_stop(waiter.changed()).await.is_none() {
                return Err(ApplyError::Unavailable("it is shutting down".to_owned()));
            }
        }
    }

    /// Reads again after every change of anything until `read` finds something: for few at a time,
    /// because each of them takes its time from every commit.
    pub async fn wait_for<T, F>(&self, read: F) -> Result<T, ApplyError>
    where
        T: Send + 'static,
        F: Fn(&State) -> Option<T> + Send + Sync + 'static,
    {
        let mut events = self.subscribe();
        let read = Arc::new(read);
        loop {
            let again = Arc::clone(&read);
            if let Some(found) = self.read(move |state| again(state)).await? {
                return Ok(found);
            }
            if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
                return Err(ApplyError::Unavailable("it is shutting down".to_owned()));
            }
        }
    }

    /// Everything published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.inner.apply.subscribe()
    }

    /// Wall time.
    pub fn now(&self) -> Time {
        Time(self.inner.clock.now_ms())
    }

    /// A fresh identifier.
    pub fn fresh_id(&self) -> u128 {
        self.inner.ids.fresh(&*self.inner.clock)
    }

    /// Who owns the server's tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// The logs of jobs, tasks and instances.
    pub fn logs(&self) -> &LogStore {
        &self.inner.logs
    }

    /// Counts a stream that a token follows; `None` when it follows as many as it may.
    pub fn following(&self, token: TokenId) -> Option<Following> {
        self.inner.followers.take(token)
    }

    /// Counts a call that waits for a change; `None` when the token has as many as it may.
    pub fn waiting(&self, token: TokenId) -> Option<Waiting> {
        self.inner.waiters.take(token)
    }

    /// Who works in which container.
    pub(crate) fn sessions(&self) -> &sessions::Table {
        &self.inner.sessions
    }

    /// Source archives, images, caches.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// Asks the callbacks of users.
    pub(crate) fn web(&self) -> &Web {
        &self.inner.web
    }

    /// Whether a callback would never be told, because it names an address that is not public.
    pub fn forbids_callback(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| self.inner.web.forbids(&url))
    }

    /// What signs the messages of a project; made when there is none, or anew.
    pub async fn signing(
        &self,
        project: ProjectId,
        rotate: bool,
    ) -> Result<Arc<Signing>, ApplyError> {
        let known = move |state: &State| state.get::<Signing>(project).cloned();
        if let Some(known) = self.read(known).await?.filter(|_| !rotate) {
            return Ok(known);
        }
        let mut secret = [0; 32];
        self.inner.ids.random().fill(&mut secret);
        let secret = Secret(Digest(secret).hex());
        let sign = WorkCommand::Sign { project, secret, rotate };
        match self.apply(Command::Work(sign)).await? {
            Reply::Signing(row) => Ok(row),
            other => Err(ApplyError::Unavailable(format!("a secret was answered with {other:?}"))),
        }
    }

    /// The parent of every app's host.
    pub fn domain(&self) -> &str {
        &self.inner.domain
    }

    /// Where people reach things.
    pub fn ports(&self) -> Ports {
        let routers = self.inner.routers.borrow();
        let newest = routers.values().filter(|it| it.port.is_some()).max_by_key(|it| it.session);
        Ports { router: newest.and_then(|it| it.port), ssh: self.inner.ssh_port.get().copied() }
    }

    /// Says where git pushes go, once.
    pub fn serves_ssh(&self, port: u16) {
        // A second SSH server would be a second address of the same thing.
        self.inner.ssh_port.set(port).unwrap_or_default();
    }

    /// Makes certificates with this authority from now on; said once.
    pub fn issues(&self, identities: IdentityAuthority) {
        // A second one would make certificates that nobody believes.
        self.inner.identities.set(identities).unwrap_or_default();
    }

    /// Whether it makes certificates.
    pub(crate) fn issues_certificates(&self) -> bool {
        self.inner.identities.get().is_some()
    }

    /// A certificate for a key, unless this server makes none.
    pub(crate) fn issue(
        &self,
        subject: &Subject,
        public_key: &[u8],
    ) -> Option<Result<Issued, TlsError>> {
        let (domain, now) = (&self.inner.domain, self.now());
        let issue = |by: &IdentityAuthority| by.issue(subject, domain, public_key, now);
        self.inner.identities.get().map(issue)
    }

    /// The URL of a host, as long as a router is connected.
    pub fn url_of(&self, host: &str) -> Option<String> {
        match self.ports().router? {
            80 => Some(format!("http://{host}")),
            port => Some(format!("http://{host}:{port}")),
        }
    }

    /// Who bears this token, or why it lets nobody in.
    pub async fn authenticate(
        &self,
        token: &str,
    ) -> Result<Result<Principal, TokenFault>, ApplyError> {
        let Ok(token) = token.parse::<JoinToken>() else { return Ok(Err(TokenFault::Garbled)) };
        let now = self.now();
        self.read(move |state| auth::verify(state, now, &token)).await
    }

    /// Waits until a token stops working, and says why.
    pub async fn token_ends(&self, token: TokenId) -> Result<TokenFault, ApplyError> {
        let mut events = self.subscribe();
        loop {
            let now = self.now();
            let look = move |state: &State| match state.get::<Token>(token) {
                Some(row) => (auth::live(row, now), row.expires_at),
                None => (Err(TokenFault::Unknown), None),
            };
            let (live, expires_at) = self.read(look).await?;
            if let Err(fault) = live {
                return Ok(fault);
            }
            let wait = expires_at.map_or(LONGEST_LIFE, |at| at.since(now).min(LONGEST_LIFE));
            let changed = async {
                while let Ok(event) = next_event(&mut events).await {
                    if event.rows.is_empty() || event.rows.contains(&RowKey::Token(token)) {
                        return;
                    }
                }
                std::future::pending::<()>().await;
            };
            // Either way there is something to look at.
            runtime::timeout(wait, changed).await.unwrap_or(());
        }
    }

    /// A job, also one that ended so long ago that only the history has it.
    pub async fn job(&self, id: JobId) -> Result<Option<Arc<Job>>, ServerError> {
        if let Some(job) = self.read(move |state| state.get::<Job>(id).cloned()).await? {
            return Ok(Some(job));
        }
        let key = Some(state::history_key(id.0));
        let query = HistoryQuery { key, ..HistoryQuery::newest(JOBS, 1) };
        let found = self.ended(query).await?;
        Ok(found.into_iter().next().map(|(_, job)| job))
    }

    /// At most `limit` jobs that ended, the newest first, with their places in the history; only
    /// those before the place `before`.
    pub async fn ended_jobs(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, Arc<Job>)>, ServerError> {
        self.ended(HistoryQuery { before, ..HistoryQuery::newest(JOBS, limit) }).await
    }

    async fn ended(&self, query: HistoryQuery) -> Result<Vec<(u64, Arc<Job>)>, ServerError> {
        let rows = self.history(query).await?;
        let read = |row: HistoryRow| match serde_json::from_slice(&row.body) {
            Ok(job) => Ok((row.seq, Arc::new(job))),
            Err(error) => Err(ServerError::Unreadable { seq: row.seq, error }),
        };
        rows.into_iter().map(read).collect()
    }

    /// Lines of a history.
    pub(crate) async fn history(&self, query: HistoryQuery) -> Result<Vec<HistoryRow>, StoreError> {
        let store = Arc::clone(&self.inner.store);
        self.inner.tasks.blocking(move || store.query_history(&query)).await
    }

    /// Makes a token; the secret is in the answer and nowhere else.
    pub async fn create_token(
        &self,
        role: Role,
        project: Option<ProjectId>,
        label: String,
        ttl: Option<Duration>,
    ) -> Result<JoinToken, ApplyError> {
        let mut secret = [0; 32];
        self.inner.ids.random().fill(&mut secret);
        let id = TokenId(self.fresh_id());
        let hash = Digest::of(&secret);
        let new = NewToken { id, role, project, hash, label, ttl };
        self.apply(Command::CreateToken(new)).await?;
        Ok(JoinToken { id, secret, ca: self.inner.authority.map(|digest| digest.0) })
    }

    /// An administrator's token if there is none yet: how a new server lets its owner in.
    pub async fn first_token(&self) -> Result<Option<JoinToken>, ApplyError> {
        let usable = |token: &Arc<Token>| token.role == Role::Admin && token.revoked_at.is_none();
        if self.read(move |state| state.all::<Token>().any(usable)).await? {
            return Ok(None);
        }
        self.create_token(Role::Admin, None, "first administrator".to_owned(), None).await.map(Some)
    }

    /// A router connected; the answer names its session.
    pub(crate) fn router_came(&self, router: u128, port: Option<u16>) -> u128 {
        let session = self.fresh_id();
        self.inner.routers.send_modify(|all| {
            all.insert(router, Connected { session, port, serves: 0 });
        });
        session
    }

    /// A router serves this generation now.
    pub(crate) fn router_serves(&self, router: u128, session: u128, generation: u64) {
        self.inner.routers.send_modify(|all| {
            if let Some(it) = all.get_mut(&router).filter(|it| it.session == session) {
                it.serves = generation;
            }
        });
    }

    fn runners(&self) -> MutexGuard<'_, BTreeMap<RunnerId, u128>> {
        self.inner.runners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A runner's stream opened; its number.
    pub(crate) fn runner_came(&self, runner: RunnerId) -> u128 {
        let session = self.fresh_id();
        self.runners().insert(runner, session);
        session
    }

    /// Does something for a stream unless its runner has opened another one since: what an earlier
    /// one still had under way the runner repeats.
    pub(crate) fn if_newest<T>(
        &self,
        (runner, session): (RunnerId, u128),
        then: impl FnOnce() -> T,
    ) -> Option<T> {
        let runners = self.runners();
        let is_newest = runners.get(&runner) == Some(&session);
        is_newest.then(then)
    }

    /// A runner's stream ended.
    pub(crate) fn runner_gone(&self, runner: RunnerId, session: u128) {
        let mut runners = self.runners();
        if runners.get(&runner) == Some(&session) {
            runners.remove(&runner);
        }
    }

    /// A router's stream ended.
    pub(crate) fn router_gone(&self, router: u128, session: u128) {
        self.inner.routers.send_modify(|all| {
            if all.get(&router).is_some_and(|it| it.session == session) {
                all.remove(&router);
            }
        });
    }

    /// Whether a push to this branch, as git names it in full, is built and deployed.
    pub fn deploys(branch: &str) -> bool {
        DEPLOYED_BRANCHES.contains(&branch)
    }

    /// Waits until every connected router serves `generation`; false when that takes too long.
    pub async fn routers_serve(&self, generation: u64) -> bool {
        self.routers_serve_by(generation, runtime::mono_now() + ROUTER_WAIT).await
    }

    /// The same, until a moment of the monotonic clock. A wait that is given up can be begun again.
    pub(crate) async fn routers_serve_by(&self, generation: u64, until: Instant) -> bool {
        let mut routers = self.inner.routers.subscribe();
        let all_serve = routers.wait_for(|all| all.values().all(|it| it.serves >= generation));
        tokio::select! {
            biased;
            waited = all_serve => waited.is_ok(),
            () = runtime::sleep_until(until) => false,
        }
    }

    async fn tick(self) -> Result<(), ApplyError> {
        let stop = self.tasks().stop().clone();
        let mut deadline = self.inner.apply.deadline();
        while !stop.is_stopped() {
            let due = *deadline.borrow_and_update();
            let wait = due.map_or(LONGEST_SLEEP, |at| at.since(self.now()).min(LONGEST_SLEEP));
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = runtime::sleep(wait) => {}
                changed = deadline.changed() => {
                    if changed.is_err() { return Ok(()) }
                    continue;
                }
            }
            if due.is_none_or(|at| at > self.now()) {
                continue;
            }
            match self.apply(Command::Tick).await {
                Ok(_) => {}
                Err(ApplyError::Refused(refusal)) => return Err(ApplyError::Refused(refusal)),
                // The deadline stays where it is, so it is due at once.
                Err(ApplyError::Unavailable(_)) => runtime::sleep(TICK_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Looks at a slice of everything every now and then, in case an event was missed.
    async fn sweep(self) {
        let stop = self.tasks().stop().clone();
        while stop.or_stop(runtime::sleep(state::SWEEP)).await.is_some() {
            // Nothing relies on it.
            if let Err(error) = self.apply(Command::Sweep).await {
                tracing::error!(%error, "a sweep changed nothing");
            }
        }
    }

    /// Moves a few instances every now and then, for as long as cells are not about as full.
    async fn rebalance(self, Rebalance { moves, period }: Rebalance) {
        let stop = self.tasks().stop().clone();
        while stop.or_stop(runtime::sleep(period)).await.is_some() {
            if let Err(error) = self.apply(Command::Rebalance { moves }).await {
                tracing::error!(%error, "nothing was moved to even out how full cells are");
            }
        }
    }

    async fn flush_logs(self) {
        let stop = self.tasks().stop().clone();
        while stop.or_stop(runtime::sleep(LOG_FLUSH)).await.is_some() {
            self.flush_once().await;
        }
        self.flush_once().await;
    }

    async fn flush_once(&self) {
        let server = self.clone();
        if let Err(error) = self.inner.tasks.blocking(move || server.inner.logs.flush()).await {
            tracing::warn!(%error, "log lines could not be written to disk");
        }
    }

    /// Ends the logs of jobs and tasks that ended, so that their followers end too.
    async fn close_logs(self) {
        let stop = self.tasks().stop().clone();
        let mut events = self.subscribe();
        while let Some(Ok(event)) = stop.or_stop(next_event(&mut events)).await {
            let rows = event.rows.clone();
            let ended = self.read(move |state| crate::logs::ended(state, &rows)).await;
            for stream in ended.unwrap_or_default() {
                self.end_log(&stream);
            }
        }
    }
}

/// The next event; one that was missed counts as an empty one.
pub(crate) async fn next_event(
    events: &mut broadcast::Receiver<Arc<Published>>,
) -> Result<Arc<Published>, broadcast::error::RecvError> {
    match events.recv().await {
        Err(broadcast::error::RecvError::Lagged(_)) => Ok(Arc::new(Published::default())),
        other => other,
    }
}

/// A refusal that is not there.
pub fn not_found(what: &'static str, name: impl std::fmt::Display) -> ApplyError {
    ApplyError::Refused(Refusal::NotFound { what, name: name.to_string() })
}
