//! The sessions that are open, and the cells they are with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::proto::cell_down::Message as CellMessage;
use api::proto::session_down::Message as Down;
use api::proto::session_up::Message as Up;
use api::proto::{CellDown, SessionDown, SessionUp, id_bytes, id_from};
use api::sessions::{LEAST_COST, SESSION_WINDOW, cost};
use model::{CellId, ProjectId, SessionId};
use tokio::sync::mpsc;
use tonic::Status;

/// Sessions of a server at once.
pub const MAX_SESSIONS: usize = 512;
/// Sessions of a project at once.
pub const MAX_SESSIONS_PER_PROJECT: usize = 32;
/// Messages of a cell that wait for one session: as many with bytes as there is credit for, as many
/// grants as answer what was sent to it, a beginning and an end.
const QUEUE: usize = 2 * (SESSION_WINDOW / LEAST_COST) as usize + 64;

type Out = Result<CellDown, Status>;

/// All sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The connection of each cell. Weak: its end does not wait for sessions.
    cells: BTreeMap<CellId, (u32, mpsc::WeakSender<Out>)>,
    open: BTreeMap<SessionId, Open>,
    held: BTreeMap<ProjectId, usize>,
}

#[derive(Debug)]
struct Open {
    cell: CellId,
    epoch: u32,
    news: mpsc::Sender<Up>,
    /// What the cell may still send.
    credit: u32,
}

/// A session counts as long as a clone of this is there.
#[derive(Debug, Clone)]
pub(super) struct Held(#[expect(dead_code, reason = "it is there to be dropped")] Arc<Place>);

#[derive(Debug)]
struct Place {
    table: Table,
    project: ProjectId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.table.inner();
        if let Some(count) = inner.held.get_mut(&self.project) {
            *count -= 1;
            if *count == 0 {
                inner.held.remove(&self.project);
            }
        }
    }
}

/// A cell is connected as long as this is there; then its sessions are lost.
#[derive(Debug)]
pub(crate) struct CellLine {
    table: Table,
    cell: CellId,
    epoch: u32,
}

impl Drop for CellLine {
    fn drop(&mut self) {
        let mut inner = self.table.inner();
        let (cell, epoch) = (self.cell, self.epoch);
        if inner.cells.get(&cell).is_some_and(|(known, _)| *known == epoch) {
            inner.cells.remove(&cell);
        }
        inner.open.retain(|_, open| open.cell != cell || open.epoch != epoch);
    }
}

/// What is said to the cell of a session.
#[derive(Debug, Clone)]
pub(super) struct Line {
    id: SessionId,
    down: mpsc::WeakSender<Out>,
}

impl Line {
    /// Waits for room among what the cell is to be told; false when it is gone.
    pub(super) async fn send(&self, message: Down) -> bool {
        let Some(down) = self.down.upgrade() else { return false };
        let session = SessionDown { id: id_bytes(self.id.0), message: Some(message) };
        let message = CellDown { message: Some(CellMessage::Session(session)) };
        down.send(Ok(message)).await.is_ok()
    }
}

impl Table {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell connected.
    pub(crate) fn cell_came(&self, cell: CellId, epoch: u32, down: &mpsc::Sender<Out>) -> CellLine {
        self.inner().cells.insert(cell, (epoch, down.downgrade()));
        CellLine { table: self.clone(), cell, epoch }
    }

    /// One session more, if there may be one.
    pub(super) fn hold(&self, project: ProjectId) -> Option<Held> {
        let mut inner = self.inner();
        let all: usize = inner.held.values().sum();
        let own = inner.held.get(&project).copied().unwrap_or_default();
        if all >= MAX_SESSIONS || own >= MAX_SESSIONS_PER_PROJECT {
            return None;
        }
        inner.held.insert(project, own + 1);
        drop(inner);
        Some(Held(Arc::new(Place { table: self.clone(), project })))
    }

    /// Makes a session known; `None` when its cell is not connected.
    pub(super) fn open(
        &self,
        id: SessionId,
        cell: CellId,
        credit: u32,
    ) -> Option<(Line, mpsc::Receiver<Up>)> {
        let mut inner = self.inner();
        let (epoch, down) = inner.cells.get(&cell)?.clone();
        let (news, receiver) = mpsc::channel(QUEUE);
        inner.open.insert(id, Open { cell, epoch, news, credit });
        Some((Line { id, down }, receiver))
    }

    /// Its cell may send so much more; false when that is more than may be on its way.
    pub(super) fn grant(&self, id: SessionId, bytes: u32) -> bool {
        let mut inner = self.inner();
        // One that has ended needs none.
        let Some(open) = inner.open.get_mut(&id) else { return true };
        open.credit = open.credit.saturating_add(bytes);
        open.credit <= SESSION_WINDOW
    }

    pub(super) fn forget(&self, id: SessionId) {
        self.inner().open.remove(&id);
    }

    /// Takes what a cell says of a session. Never waits: a session that has no room for it, because
    /// the cell sent more than it may, is lost.
    pub(crate) fn take(&self, cell: CellId, epoch: u32, up: SessionUp) -> Result<(), Status> {
        let id = SessionId(id_from(&up.id)?);
        let Some(message) = up.message else { return Ok(()) };
        let mut inner = self.inner();
        let own = |open: &&mut Open| open.cell == cell && open.epoch == epoch;
        // It may have been closed meanwhile.
        let Some(open) = inner.open.get_mut(&id).filter(own) else { return Ok(()) };
        let fits = match &message {
            Up::Data(data) => {
                let left = open.credit.checked_sub(cost(data.bytes.len()));
                open.credit = left.unwrap_or(0);
                left.is_some()
            }
            Up::Started(_) | Up::Credit(_) | Up::End(_) => true,
        };
        let is_last = matches!(message, Up::End(_));
        if !fits || open.news.try_send(message).is_err() || is_last {
            inner.open.remove(&id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::proto::{SessionCredit, SessionData, SessionEnd};

    use super::*;

    const CELL: CellId = CellId(1);

    fn data(id: u128, bytes: usize) -> SessionUp {
        let data = SessionData { channel: 1, bytes: vec![0; bytes].into() };
        SessionUp { id: id_bytes(id), message: Some(Up::Data(data)) }
    }

    #[tokio::test]
    async fn a_cell_that_sends_more_than_it_may_loses_the_session_and_no_other() {
        let (table, (down, _cell)) = (Table::default(), mpsc::channel(8));
        let _line = table.cell_came(CELL, 1, &down);
        let (_, mut one) = table.open(SessionId(1), CELL, 1_000).expect("is connected");
        let (_, mut other) = table.open(SessionId(2), CELL, 1_000).expect("is connected");
        for bytes in [500, 1, 600] {
            table.take(CELL, 1, data(1, bytes)).expect("is read");
        }
        assert!(
            one.recv().await.is_some() && one.recv().await.is_some(),
            "what there was room for"
        );
        assert!(one.recv().await.is_none(), "then it is lost");
        assert!(table.grant(SessionId(2), SESSION_WINDOW - 1_000));
        assert!(!table.grant(SessionId(2), 1), "more than may be on its way");
        table.take(CELL, 1, data(2, 1_000)).expect("is read");
        assert!(other.recv().await.is_some());
        let credit = Up::Credit(SessionCredit { bytes: 1 });
        for _ in 0..=QUEUE {
            let up = SessionUp { id: id_bytes(2), message: Some(credit.clone()) };
            table.take(CELL, 1, up).expect("never waits");
        }
        assert!(table.inner().open.is_empty(), "a flood of grants ends it");
    }

    #[tokio::test]
    async fn sessions_end_with_the_connection_of_their_cell_and_belong_to_it() {
        let (table, (down, _cell)) = (Table::default(), mpsc::channel(8));
        assert!(table.open(SessionId(1), CELL, 0).is_none(), "nobody is there");
        let old = table.cell_came(CELL, 1, &down);
        let (line, mut first) = table.open(SessionId(1), CELL, 9_000).expect("is connected");
        let new = table.cell_came(CELL, 2, &down);
        let (_, mut second) = table.open(SessionId(2), CELL, 9_000).expect("is connected");
        drop(old);
        assert!(first.recv().await.is_none());
        assert!(line.send(Down::Signal("term".into())).await, "the stream is there yet");
        // Neither another connection nor another cell has a say in it.
        table.take(CELL, 1, data(2, 1)).expect("is read");
        table.take(CellId(2), 2, data(2, 1)).expect("is read");
        let end = SessionUp { id: id_bytes(2), message: Some(Up::End(SessionEnd::default())) };
        table.take(CELL, 2, end).expect("is read");
        assert!(matches!(second.recv().await, Some(Up::End(_))));
        assert!(second.recv().await.is_none());
        drop((new, down));
        assert!(!line.send(Down::Signal("term".into())).await, "a line keeps no stream open");
        assert!(table.open(SessionId(3), CELL, 0).is_none());
    }

    #[test]
    fn a_project_takes_its_own_room_only() {
        let table = Table::default();
        let mut held: Vec<Held> =
            (0..MAX_SESSIONS_PER_PROJECT).filter_map(|_| table.hold(ProjectId(1))).collect();
        assert_eq!(held.len(), MAX_SESSIONS_PER_PROJECT);
        assert!(table.hold(ProjectId(1)).is_none());
        let other = table.hold(ProjectId(2));
        assert!(other.is_some());
        held.pop();
        assert!(table.hold(ProjectId(1)).is_some());
        drop((held, other));
        assert!(table.inner().held.is_empty());
    }
}
