//! What components and the server say to each other, and what may happen in the world.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{
    CellId, DeliveryId, DeploymentId, DeploymentState, InstanceReport, JobId, Outcome, ProcessSpec,
    RouteTable, TaskId, TaskReport, TaskState,
};
use state::{Attempt, Command, Held, Job, Refusal, Reply, RouteChange, RowKey};

/// Who is at the far end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Runner(usize),
    Cell(usize),
    Router(usize),
}

/// One container's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) is_task: bool,
    pub(crate) id: u128,
    pub(crate) epoch: u32,
}

/// From a component to the server.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    /// A runner, with what it holds.
    Runner(Vec<Attempt>),
    Capacity(u32),
    Ack(Attempt),
    Nack(Attempt),
    Heartbeat(Attempt),
    Complete(Attempt, Outcome),
    /// Lines of a job's log: how many, and the number of the first.
    Log {
        at: Attempt,
        first: u64,
        count: u64,
    },
    /// A cell, with what it holds.
    Cell(Vec<Held>),
    CellBeat,
    /// The cell is about to shut down.
    CellLeave,
    Task(Key, TaskReport),
    Instance(Key, InstanceReport),
    /// A router, with the generation it serves.
    Router(u64),
    /// It serves this one now.
    Serves(u64),
}

/// What a cell is to run.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) key: Key,
    /// Absent when the cell knows it already. A task has none.
    pub(crate) spec: Option<Arc<ProcessSpec>>,
    pub(crate) stop: bool,
    /// Whether the cell was told of this epoch before.
    pub(crate) known: bool,
}

/// From the server to a component.
#[derive(Debug)]
pub(crate) enum Down {
    Welcome,
    Assignment(Arc<Job>),
    Started(Attempt),
    Ended(Attempt),
    Revoked(Attempt),
    Cancel(Attempt),
    /// So many lines of the attempt's log have arrived.
    Kept(Attempt, u64),
    Desired {
        full: bool,
        work: Vec<Wanted>,
        gone: Vec<Key>,
    },
    Claimed(Key),
    Refused(Key),
    Table(RouteTable),
    Changes {
        from: u64,
        to: u64,
        changes: Vec<RouteChange>,
    },
}

/// Who made a call, and where its answer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The work on a job.
    Work { runner: usize, life: u64, job: JobId, epoch: u32 },
    /// A client's errand.
    Client(u64),
}

/// A request that gets one answer.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Apply(Box<Command>),
    Task(TaskId),
    Deployment(DeploymentId),
    /// Answered when the job has ended.
    Follow(JobId),
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Done(Reply),
    Refused(Refusal),
    /// The server says that it could not make the change durable.
    Unavailable,
    /// The connection broke: nobody knows whether it was done.
    Broken,
    Task(Option<TaskState>),
    Deployment(Option<DeploymentState>),
    /// The followed job has ended.
    Over,
}

/// A question to the state inside the server.
#[derive(Debug)]
pub(crate) enum Read {
    ReadyJobs,
    Held(Vec<(JobId, u32)>),
    Work(CellId),
    Table,
    Since(u64),
    Task(TaskId),
    Deployment(DeploymentId),
    IsOver(JobId),
    /// Messages that are to be tried.
    Due(model::Time),
}

/// One piece of work as the state has it for a cell.
#[derive(Debug)]
pub(crate) struct Should {
    pub(crate) epoch: u32,
    pub(crate) stop: bool,
    /// When the cell may begin to end it.
    pub(crate) due: model::Time,
    /// A task has none.
    pub(crate) spec: Option<Arc<ProcessSpec>>,
}

/// What a cell is to run.
#[derive(Debug, Default)]
pub(crate) struct CellWork {
    pub(crate) all: BTreeMap<(bool, u128), Should>,
    /// The generation of the routes.
    pub(crate) routes: u64,
}

/// What a question found.
#[derive(Debug)]
pub(crate) enum Found {
    ReadyJobs(usize),
    Held(Vec<(JobId, u32, Option<Arc<Job>>)>),
    Work(CellWork),
    Table(RouteTable),
    Since(Option<Vec<RouteChange>>, u64),
    Task(Option<TaskState>),
    Deployment(Option<DeploymentState>),
    IsOver(bool),
    Due(Vec<(DeliveryId, u32)>),
}

/// What the apply loop hands back.
#[derive(Debug)]
pub(crate) enum Outcomes {
    Applied(Result<Reply, Refusal>),
    Found(Found),
    Unavailable,
}

/// Who waits for the apply loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Session(u64),
    Call(u64),
    Follow(u64),
    Ticker,
    Boot,
    /// Somebody who does not wait for the answer.
    Operator,
    /// Who sends messages.
    Courier,
}

/// What a commit changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    pub(crate) rows: Arc<[RowKey]>,
    pub(crate) routes: u64,
}

/// Something that is going to happen.
#[derive(Debug)]
pub(crate) enum Event {
    Up {
        conn: u64,
        message: Up,
    },
    Down {
        conn: u64,
        message: Down,
    },
    /// A component notices that its connection is gone.
    NodeCut {
        node: Node,
        conn: u64,
    },
    /// The server notices.
    ServerCut {
        conn: u64,
    },
    Connect {
        node: Node,
        life: u64,
    },
    Start {
        node: Node,
    },
    Thaw {
        node: Node,
    },
    Beat {
        node: Node,
        conn: u64,
    },
    Work {
        runner: usize,
        life: u64,
        job: JobId,
        epoch: u32,
    },
    Container {
        cell: usize,
        life: u64,
        key: Key,
        serial: u64,
    },
    Batch {
        life: u64,
    },
    Committed {
        life: u64,
    },
    Tick {
        life: u64,
    },
    Courier {
        life: u64,
    },
    ServerStart,
    /// The server's process goes on.
    ServerThaw,
    /// A connection that only the server still believes in ends.
    Break {
        conn: u64,
    },
    /// Time for a session to look again at what it held back.
    Again {
        conn: u64,
    },
    Subscribed {
        follow: u64,
    },
    Call {
        id: u64,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
    Client {
        client: usize,
    },
    Errand {
        errand: u64,
    },
    /// A cell that is leaving is gone.
    Away {
        cell: usize,
        life: u64,
    },
    Fault,
    Heal,
    Look,
}
