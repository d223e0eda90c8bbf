//! What a cell is told to run, in messages that it can take however large specs are.

use std::collections::HashMap;
use std::sync::Arc;

use api::MAX_DESIRED_PART;
use api::proto::{Desired, DesiredWork, Work, json};
use bytes::Bytes;
use model::{ProcessSpec, TaskSpec};
use tonic::Status;

/// What the container of one piece of work is made of.
#[derive(Debug)]
pub(super) enum Spec {
    Task(Arc<TaskSpec>),
    Process(Arc<ProcessSpec>),
}

/// One thing to do. Its spec is rendered only when it is sent, so that few of them are in memory.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) work: Work,
    /// Absent when the cell knows it.
    pub(super) spec: Option<Spec>,
    pub(super) stop: bool,
    pub(super) labels: HashMap<String, String>,
    pub(super) volumes: HashMap<String, Bytes>,
}

impl Item {
    fn render(self) -> Result<DesiredWork, Status> {
        let Self { work, spec, stop, labels, volumes } = self;
        let spec_json = match spec {
            Some(Spec::Task(spec)) => Some(json(&*spec)?),
            Some(Spec::Process(spec)) => Some(json(&*spec)?),
            None => None,
        };
        Ok(DesiredWork { work: Some(work), spec_json, stop, labels, volumes })
    }
}

/// What the parts of a message take beyond the bytes in them, generously.
const FIELD_BYTES: usize = 64;

/// How many bytes it takes as it is sent, at most.
fn bytes(item: &DesiredWork) -> usize {
    let spec = item.spec_json.as_ref().map_or(0, Bytes::len);
    let labels: usize = item.labels.iter().map(|it| it.0.len() + it.1.len() + FIELD_BYTES).sum();
    let volumes: usize = item.volumes.iter().map(|it| it.0.len() + it.1.len() + FIELD_BYTES).sum();
    FIELD_BYTES + spec + labels + volumes
}

/// Everything that a cell is told at once.
#[derive(Debug)]
pub(super) struct Orders {
    /// Whether this is everything; what the cell runs beyond it must end.
    pub(super) full: bool,
    pub(super) work: Vec<Item>,
    pub(super) gone: Vec<Work>,
    pub(super) delete_volumes: Vec<Bytes>,
}

/// The messages that say it, in order. What comes with a spec is begun from any of them; only the
/// last is `full`, and that one names everything, so that a cell that heard a part of it ends
/// nothing.
#[derive(Debug)]
pub(super) struct Parts {
    rest: std::vec::IntoIter<Item>,
    /// What waits for the next message, and how many bytes that is.
    part: Vec<DesiredWork>,
    bytes: usize,
    /// What was sent with its spec.
    sent: Vec<DesiredWork>,
    /// The last message but for its work.
    last: Option<Desired>,
}

impl Parts {
    pub(super) fn of(orders: Orders) -> Self {
        let Orders { full, work, gone, delete_volumes } = orders;
        let last = Some(Desired { full, work: Vec::new(), gone, delete_volumes });
        let rest = work.into_iter();
        Self { rest, part: Vec::new(), bytes: 0, sent: Vec::new(), last }
    }

    /// The next message.
    pub(super) fn next(&mut self) -> Result<Option<Desired>, Status> {
        while let Some(item) = self.rest.next() {
            let item = item.render()?;
            let bytes = bytes(&item);
            if self.bytes + bytes > MAX_DESIRED_PART && !self.part.is_empty() {
                let part = self.take(item, bytes);
                return Ok(Some(Desired { work: part, ..Desired::default() }));
            }
            self.bytes += bytes;
            self.part.push(item);
        }
        let Some(mut last) = self.last.take() else { return Ok(None) };
        last.work = std::mem::take(&mut self.part);
        if last.full {
            last.work.append(&mut self.sent);
        }
        Ok(Some(last))
    }

    /// Ends a part; another begins with this item.
    fn take(&mut self, item: DesiredWork, bytes: usize) -> Vec<DesiredWork> {
        self.bytes = bytes;
        let part = std::mem::replace(&mut self.part, vec![item]);
        let told = part.iter().map(|it| DesiredWork {
            work: it.work.clone(),
            stop: it.stop,
            ..DesiredWork::default()
        });
        self.sent.extend(told);
        part
    }
}
