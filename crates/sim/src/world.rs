//! One seeded world: virtual time, an agenda, and everything that lives in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{Arguments, Write as _};

use crate::cell::Cell;
use crate::check::Checker;
use crate::client::Clients;
use crate::links::Blocked;
use crate::message::{Answer, Ask, Caller, Down, Event, Node, Up};
use crate::rng::Rng;
use crate::router::Router;
use crate::runner::Runner;
use crate::shell::Shell;

/// How long the world may take to come to rest once faults have stopped and the last job or task has
/// ended, in milliseconds. 10.4 says two periods of convergence: here of the sweep.
const REST: u64 = 2 * 30_000;
/// The same while a job, a task or a deployment has not ended: each has a limit of its own.
const BUSY: u64 = 300_000;
/// How long faults happen at most.
const CHAOS: u64 = 90_000;
/// When the world begins, in milliseconds since the Unix epoch.
const BEGIN: u64 = 1_800_000_000_000;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
    /// The last lines of the transcript.
    pub transcript: Vec<String>,
}

/// How one world went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How many events happened.
    pub steps: u64,
    /// A hash over the whole transcript.
    pub hash: u64,
    /// How long it took to come to rest once faults had stopped and the last job had ended, in
    /// milliseconds.
    pub rest: u64,
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
}

/// What happened: the last lines, and a hash over all.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    keep: usize,
    lines: VecDeque<String>,
    hash: u64,
}

impl Transcript {
    fn add(&mut self, now: u64, what: Arguments<'_>) {
        let mut line = if self.lines.len() < self.keep { None } else { self.lines.pop_front() }
            .unwrap_or_default();
        line.clear();
        // Writing to a String cannot fail.
        write!(line, "{:>9} {what}", now - BEGIN).unwrap_or_default();
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines.push_back(line);
    }
}

/// One connection between a component and the server.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) node: Node,
    pub(crate) up_at: u64,
    pub(crate) down_at: u64,
    /// Nothing arrives before this.
    pub(crate) stalled_until: u64,
    /// Until when what was sent over a slow link is under way, once it is not slow any more.
    pub(crate) slow_until: u64,
}

#[derive(Debug)]
struct Call {
    caller: Caller,
    ask: Ask,
}

/// How to live through a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Most events before faults stop.
    pub steps: u64,
    /// Lines of the transcript that are kept.
    pub lines: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 20_000, lines: 40 }
    }
}

/// What kind of world it is.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact about a world")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mood {
    /// Whether anything goes wrong at all.
    pub(crate) calm: bool,
    /// Whether a second state follows the first.
    pub(crate) shadow: bool,
    /// Whether the server's clock jumps.
    pub(crate) jumps: bool,
    /// How many instances may move at once to even out how full cells are; in one world of four.
    pub(crate) moves: Option<u32>,
    /// Most events before faults stop.
    pub(crate) steps: u64,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) mood: Mood,
    /// Whether faults happen and clients ask.
    pub(crate) chaos: bool,
    healed_at: u64,
    pub(crate) steps: u64,
    agenda: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(crate) log: Transcript,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) shell: Shell,
    pub(crate) runners: Vec<Runner>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) routers: Vec<Router>,
    pub(crate) clients: Clients,
    calls: BTreeMap<u64, Call>,
    /// Deferred events of components that stand still.
    frozen: BTreeMap<Node, VecDeque<Event>>,
    /// When a component that stood still last went on.
    pub(crate) thawed: BTreeMap<Node, u64>,
    /// The server's own, while it stands still.
    pub(crate) stuck: Option<VecDeque<Event>>,
    /// Connections that their component closed as it should.
    pub(crate) closed: BTreeSet<u64>,
    /// Components that messages do not reach, or whose messages do not get through.
    pub(crate) blocked: BTreeMap<Node, Blocked>,
    pub(crate) check: Checker,
    pub(crate) failure: Option<Failure>,
    done: bool,
}

/// Whether the server has to be awake for it to happen.
const fn is_servers(event: &Event) -> bool {
    matches!(
        event,
        Event::Up { .. }
            | Event::ServerCut { .. }
            | Event::Batch { .. }
            | Event::Committed { .. }
            | Event::Tick { .. }
            | Event::Courier { .. }
            | Event::Again { .. }
            | Event::Subscribed { .. }
            | Event::Call { .. }
    )
}

impl World {
    /// The world of this seed.
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9);
        let mood = Mood {
            calm: rng.chance(120),
            shadow: rng.chance(250),
            jumps: rng.chance(300),
            moves: seed.is_multiple_of(4).then(|| 1 + u32::try_from(seed / 4 % 3).unwrap_or(0)),
            steps: options.steps,
        };
        let mut world = Self {
            now: BEGIN,
            mood,
            chaos: true,
            healed_at: 0,
            steps: 0,
            agenda: BTreeMap::new(),
            sequence: 0,
            log: Transcript { keep: options.lines, ..Transcript::default() },
            conns: BTreeMap::new(),
            shell: Shell::new(mood.shadow),
            runners: Runner::some(&rng, BEGIN),
            cells: Cell::some(&rng, BEGIN),
            routers: Router::some(&rng),
            clients: Clients::new(&rng, BEGIN),
            calls: BTreeMap::new(),
            frozen: BTreeMap::new(),
            thawed: BTreeMap::new(),
            stuck: None,
            closed: BTreeSet::new(),
            blocked: BTreeMap::new(),
            check: Checker::new(mood.moves),
            failure: None,
            done: false,
            rng,
        };
        world.begin();
        world
    }

    /// Lets everything happen until the world is at rest, or something is wrong.
    pub(crate) fn run(mut self) -> Outcome {
        while !self.done && self.failure.is_none() {
            let Some(((at, _), event)) = self.agenda.pop_first() else { break };
            self.now = at;
            self.steps += 1;
            if self.chaos && self.steps >= self.mood.steps {
                self.heal();
            }
            self.happen(event);
        }
        Outcome {
            steps: self.steps,
            hash: self.log.hash,
            rest: self.now.saturating_sub(self.healed_at.max(self.check.last_end)),
            failure: self.failure,
        }
    }

    /// Puts something on the agenda, `delay` milliseconds from now.
    pub(crate) fn later(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.agenda.insert((self.now + delay, self.sequence), event);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.later(at.saturating_sub(self.now), event);
    }

    pub(crate) fn note(&mut self, what: Arguments<'_>) {
        self.log.add(self.now, what);
    }

    /// An invariant does not hold. The first one counts.
    pub(crate) fn fail(&mut self, invariant: &'static str, detail: String) {
        if self.failure.is_none() {
            let transcript = self.log.lines.iter().cloned().collect();
            self.failure = Some(Failure { invariant, detail, transcript });
        }
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn begin(&mut self) {
        self.later(0, Event::ServerStart);
        for node in self.nodes() {
            let delay = self.rng.below(500);
            self.later(delay, Event::Start { node });
        }
        for client in 0..self.clients.count {
            let delay = self.rng.between(50, 2_000);
            self.later(delay, Event::Client { client });
        }
        if !self.mood.calm {
            let delay = self.rng.between(500, 10_000);
            self.later(delay, Event::Fault);
        }
        let chaos = self.rng.between(CHAOS / 3, CHAOS);
        self.later(chaos, Event::Heal);
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        let runners = (0..self.runners.len()).map(Node::Runner);
        let cells = (0..self.cells.len()).map(Node::Cell);
        let routers = (0..self.routers.len()).map(Node::Router);
        runners.chain(cells).chain(routers).collect()
    }

    /// Who has to be awake for it to happen.
    fn whose(&self, event: &Event) -> Option<Node> {
        match event {
            Event::Down { conn, .. } => self.conns.get(conn).map(|conn| conn.node),
            Event::NodeCut { node, .. }
            | Event::Connect { node, .. }
            | Event::Beat { node, .. } => Some(*node),
            Event::Work { runner, .. } => Some(Node::Runner(*runner)),
            Event::Container { cell, .. } => Some(Node::Cell(*cell)),
            Event::Answer { id, .. } => match self.calls.get(id)?.caller {
                Caller::Work { runner, .. } => Some(Node::Runner(runner)),
                Caller::Client(_) => None,
            },
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = self.whose(&event)
            && let Some(deferred) = self.frozen.get_mut(&node)
        {
            deferred.push_back(event);
            return;
        }
        if let Some(deferred) = self.stuck.as_mut().filter(|_| is_servers(&event)) {
            deferred.push_back(event);
            return;
        }
        match event {
            Event::Up { conn, message } => self.session_message(conn, message),
            Event::Down { conn, message } => self.node_message(conn, message),
            Event::NodeCut { node, conn } => self.node_cut(node, conn),
            Event::ServerCut { conn } => self.session_cut(conn),
            Event::Connect { node, life } => self.connect(node, life),
            Event::Start { node } => self.start(node),
            Event::Thaw { node } => self.thaw(node),
            Event::Beat { node, conn } => self.beat(node, conn),
            Event::Work { runner, life, job, epoch } => self.work_on(runner, life, (job, epoch)),
            Event::Container { cell, life, key, serial } => {
                self.container_step(cell, life, (key, serial));
            }
            Event::Batch { life } => self.batch(life),
            Event::Committed { life } => self.committed(life),
            Event::Tick { life } => self.tick(life),
            Event::Courier { life } => self.courier_looks(life),
            Event::ServerStart => self.server_start(),
            Event::ServerThaw => self.server_thaws(),
            Event::Break { conn } => self.break_half(conn),
            Event::Again { conn } => self.session_again(conn),
            Event::Subscribed { follow } => self.shell.subscribed(follow),
            Event::Call { id } => self.call_arrives(id),
            Event::Answer { id, answer } => self.call_answered(id, answer),
            Event::Client { client } => self.client_acts(client),
            Event::Errand { errand } => self.errand_again(errand),
            Event::Away { cell, life } => self.cell_is_away(cell, life),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    // --- the network ---

    fn latency(&self) -> u64 {
        if self.rng.chance(30) { self.rng.between(20, 400) } else { self.rng.between(1, 6) }
    }

    pub(crate) fn send_up(&mut self, conn: u64, message: Up) {
        let delay = self.latency();
        let Some(it) = self.conns.get_mut(&conn) else { return };
        let blocked = self.blocked.get(&it.node).map_or(0, |it| it.up);
        it.up_at = it.up_at.max(self.now + delay).max(it.stalled_until).max(blocked);
        let at = it.up_at;
        self.at(at, Event::Up { conn, message });
    }

    pub(crate) fn send_down(&mut self, conn: u64, message: Down) {
        let delay = self.latency();
        let Some(it) = self.conns.get_mut(&conn) else { return };
        let blocked = self.blocked.get(&it.node).map_or(0, |it| it.down);
        it.down_at = it.down_at.max(self.now + delay).max(it.stalled_until).max(blocked);
        let at = it.down_at;
        self.at(at, Event::Down { conn, message });
    }

    /// Opens a connection; the component has something to say at once.
    pub(crate) fn open(&mut self, node: Node, hello: Up) -> u64 {
        let conn = self.fresh();
        self.conns
            .insert(conn, Conn { node, up_at: 0, down_at: 0, stalled_until: 0, slow_until: 0 });
        self.note(format_args!("{node:?} connects as {conn}: {hello:?}"));
        self.send_up(conn, hello);
        conn
    }

    /// Cuts a connection: what is under way is lost, and both ends notice some time later.
    pub(crate) fn cut(&mut self, conn: u64, node_notices: u64, server_notices: u64) {
        let Some(it) = self.conns.remove(&conn) else { return };
        self.note(format_args!("connection {conn} of {:?} is cut", it.node));
        self.later(node_notices, Event::NodeCut { node: it.node, conn });
        self.later(server_notices, Event::ServerCut { conn });
    }

    fn node_message(&mut self, conn: u64, message: Down) {
        let Some(node) = self.conns.get(&conn).map(|it| it.node) else { return };
        self.note(format_args!("{node:?} hears {message:?}"));
        match node {
            Node::Runner(index) => self.runner_hears(index, conn, message),
            Node::Cell(index) => self.cell_hears(index, conn, message),
            Node::Router(index) => self.router_hears(index, conn, message),
        }
    }

    fn node_cut(&mut self, node: Node, conn: u64) {
        let life = match node {
            Node::Runner(index) => self.runner_cut(index, conn),
            Node::Cell(index) => self.cell_cut(index, conn),
            Node::Router(index) => self.router_cut(index, conn),
        };
        if let Some(life) = life {
            let delay = self.rng.between(50, 2_000);
            self.later(delay, Event::Connect { node, life });
        }
    }

    fn connect(&mut self, node: Node, life: u64) {
        let out_of_reach = self.stuck.is_some() || self.blocked(node).is_cut(self.now);
        if !self.shell.is_serving() || out_of_reach {
            let delay = self.rng.between(100, 2_000);
            self.later(delay, Event::Connect { node, life });
            return;
        }
        match node {
            Node::Runner(index) => self.runner_connects(index, life),
            Node::Cell(index) => self.cell_connects(index, life),
            Node::Router(index) => self.router_connects(index, life),
        }
    }

    fn start(&mut self, node: Node) {
        self.note(format_args!("{node:?} starts"));
        match node {
            Node::Runner(index) => self.runner_starts(index),
            Node::Cell(index) => self.cell_starts(index),
            Node::Router(index) => self.router_starts(index),
        }
    }

    fn beat(&mut self, node: Node, conn: u64) {
        let beats = match node {
            Node::Runner(index) => self.runner_beats(index, conn),
            Node::Cell(index) => self.cell_beats(index, conn),
            Node::Router(_) => false,
        };
        if beats {
            self.later(5_000, Event::Beat { node, conn });
        }
    }

    pub(crate) fn freeze(&mut self, node: Node, span: u64) {
        if !self.frozen.contains_key(&node) {
            self.note(format_args!("{node:?} stands still for {span} ms"));
            self.frozen.insert(node, VecDeque::new());
            self.later(span, Event::Thaw { node });
        }
    }

    pub(crate) fn is_frozen(&self, node: Node) -> bool {
        self.frozen.contains_key(&node)
    }

    fn thaw(&mut self, node: Node) {
        let Some(deferred) = self.frozen.remove(&node) else { return };
        self.thawed.insert(node, self.now);
        self.note(format_args!("{node:?} goes on with {} events", deferred.len()));
        for event in deferred {
            self.happen(event);
        }
    }

    /// The server's process is stopped for a while: nobody hears from it.
    pub(crate) fn server_freezes(&mut self, span: u64) {
        if self.stuck.is_some() || !self.shell.is_serving() {
            return;
        }
        self.note(format_args!("the server stands still for {span} ms"));
        self.shell.clock.stop(self.now);
        self.stuck = Some(VecDeque::new());
        for node in self.nodes() {
            self.silence(node, span);
        }
        self.later(span, Event::ServerThaw);
    }

    fn server_thaws(&mut self) {
        let Some(deferred) = self.stuck.take() else { return };
        self.note(format_args!("the server goes on with {} events", deferred.len()));
        self.shell.stood_still += self.shell.clock.go_on(self.now);
        for event in deferred {
            self.happen(event);
        }
    }

    // --- calls ---

    /// Asks the server something.
    pub(crate) fn call(&mut self, caller: Caller, ask: Ask) -> u64 {
        let id = self.fresh();
        self.note(format_args!("call {id} by {caller:?}: {ask:?}"));
        self.calls.insert(id, Call { caller, ask });
        let delay = self.latency();
        if self.lossy() || self.is_cut_off(caller) {
            self.later(delay + 3_000, Event::Answer { id, answer: Answer::Broken });
        } else {
            self.later(delay, Event::Call { id });
        }
        id
    }

    /// Whether a call or its answer is lost.
    fn lossy(&self) -> bool {
        self.chaos && !self.mood.calm && self.rng.chance(15)
    }

    fn call_arrives(&mut self, id: u64) {
        let Some(ask) = self.calls.get(&id).map(|call| call.ask.clone()) else { return };
        if self.shell.is_serving() {
            self.serve_call(id, ask);
        } else {
            let delay = self.rng.between(1, 50);
            self.later(delay, Event::Answer { id, answer: Answer::Unavailable });
        }
    }

    /// The server answers a call; the answer may get lost.
    pub(crate) fn answer_call(&mut self, id: u64, answer: Answer) {
        let delay = self.latency();
        let caller = self.calls.get(&id).map(|call| call.caller);
        let lost = self.lossy() || caller.is_some_and(|caller| self.is_cut_off(caller));
        let answer = if lost { Answer::Broken } else { answer };
        self.later(if lost { delay + 3_000 } else { delay }, Event::Answer { id, answer });
    }

    fn call_answered(&mut self, id: u64, answer: Answer) {
        let Some(call) = self.calls.remove(&id) else { return };
        self.note(format_args!("call {id} is answered: {answer:?}"));
        match call.caller {
            Caller::Work { runner, life, job, epoch } => {
                self.work_answered(runner, life, (job, epoch), answer);
            }
            Caller::Client(errand) => self.errand_answered(errand, answer),
        }
    }

    // --- coming to rest ---

    fn heal(&mut self) {
        if !self.chaos {
            return;
        }
        self.chaos = false;
        self.healed_at = self.now;
        self.note(format_args!("faults stop"));
        let frozen: Vec<Node> = self.frozen.keys().copied().collect();
        for node in frozen {
            self.thaw(node);
        }
        self.server_thaws();
        self.rejoin();
        self.undrain_all();
        self.later(500, Event::Look);
    }

    /// For how long nothing has gone wrong.
    pub(crate) fn rested_for(&self) -> u64 {
        if self.chaos { 0 } else { self.now - self.healed_at }
    }

    fn look(&mut self) {
        let since = self.healed_at.max(self.check.last_end);
        let limit = if self.is_busy() { BUSY } else { REST };
        match self.unrest() {
            None => {
                self.note(format_args!("all is quiet"));
                self.check_rest();
                self.done = true;
            }
            Some((invariant, detail)) if self.now > since + limit => {
                let detail = format!("{detail}, and nothing has ended for {} s", limit / 1_000);
                self.fail(invariant, detail);
            }
            Some(_) => {
                self.undrain_all();
                self.later(1_000, Event::Look);
            }
        }
    }
}
