//! Sessions: somebody works in a container, and the server stands between them and its cell.
//!
//! The server grants no credit of its own: what whoever opened a session grants goes on to the cell
//! and back, and both are held to it, so at most [`SESSION_WINDOW`] bytes wait here in each direction.
//! What a cell sends is never waited for: it has room, or the session is lost.

mod choose;
mod table;

use std::sync::Arc;

use api::proto::session_down::Message as Down;
use api::proto::session_open::What;
use api::proto::session_up::Message as Up;
use api::proto::{
    SessionClose, SessionCredit, SessionData, SessionEnd, SessionExec, SessionInputEnd,
    SessionOpen, SessionStarted, Terminal, from_json, session_data::Channel,
};
use api::sessions::{
    FromServer, MAX_SESSION_DATA, OpenSession, SESSION_WINDOW, SessionEnded, SessionWhat,
    TerminalSize, cost,
};
use bytes::Bytes;
use model::{SessionId, Time, launched};
use state::{AUDIT_HISTORY, Audit, AuditEvent, Command};
use store::{HistoryQuery, Kind};
use tokio::sync::mpsc;

use crate::auth::Principal;
use crate::server::{Server, ServerError};

pub use choose::{SessionRefusal, SessionTarget};
pub(crate) use table::Table;
pub use table::{MAX_SESSIONS, MAX_SESSIONS_PER_PROJECT};

use choose::Chosen;
use table::{Held, Line};

/// The history of who did what.
const AUDIT: Kind = Kind::new(AUDIT_HISTORY);

/// A place for a session, taken before anything is opened.
#[derive(Debug)]
pub struct SessionPlace {
    server: Server,
    chosen: Chosen,
    bearer: Principal,
    label: String,
    held: Held,
}

/// A session. Dropping it ends it: what it runs is killed.
#[derive(Debug)]
pub struct Session {
    server: Server,
    id: SessionId,
    line: Line,
    news: mpsc::Receiver<Up>,
    /// What may still be sent to the cell.
    input_credit: u32,
    audit: Audit,
    /// How it ended, for the audit log.
    end: Option<AuditEvent>,
    /// The cell knows of no such session any more.
    over: bool,
    held: Held,
}

/// Whoever opened a session broke its rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SessionFault(String);

/// Why sessions end with the server.
pub const STOPPING: &str = "the server is stopping";
/// Why a session ends whose cell is out of reach.
const CELL_LOST: &str = "the connection to the cell was lost: what ran was killed there";

impl Server {
    /// Takes a place for a session with what is meant by `target`.
    pub async fn session_place(
        &self,
        bearer: Principal,
        target: SessionTarget,
    ) -> Result<SessionPlace, SessionRefusal> {
        let project = target.app.project;
        let held = self.sessions().hold(project).ok_or(SessionRefusal::Full)?;
        let look = move |state: &state::State| {
            let label = state.get::<state::Token>(bearer.token).map(|row| row.label.clone());
            choose::choose(state, &target).map(|chosen| (chosen, label.unwrap_or_default()))
        };
        let (chosen, label) = self.read(look).await??;
        Ok(SessionPlace { server: self.clone(), chosen, bearer, label, held })
    }

    /// The newest lines of the audit log, at most `limit` of them; only those before the line
    /// `before`. Each with its place in the log.
    pub async fn audit_log(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, Audit)>, ServerError> {
        let query = HistoryQuery { before, ..HistoryQuery::newest(AUDIT, limit) };
        let rows = self.history(query).await?;
        let read = |row: store::HistoryRow| match serde_json::from_slice(&row.body) {
            Ok(line) => Ok((row.seq, line)),
            Err(error) => Err(ServerError::Unreadable { seq: row.seq, error }),
        };
        rows.into_iter().map(read).collect()
    }
}

fn event_of(what: &SessionWhat) -> AuditEvent {
    let none = std::collections::BTreeMap::new();
    match what {
        SessionWhat::Exec(exec) => {
            let words = exec.argv.iter().map(String::as_str);
            AuditEvent::opened("exec", words, &exec.env, exec.terminal.is_some())
        }
        SessionWhat::CopyIn(path) => AuditEvent::opened("copy_in", [&**path], &none, false),
        SessionWhat::CopyOut(path) => AuditEvent::opened("copy_out", [&**path], &none, false),
    }
}

const fn terminal(size: TerminalSize) -> Terminal {
    Terminal { columns: size.columns as u32, rows: size.rows as u32 }
}

/// What is wanted, as a cell is told: a command has the environment every process of its image has.
fn what(wanted: SessionWhat) -> What {
    match wanted {
        SessionWhat::Exec(exec) => What::Exec(SessionExec {
            argv: launched(exec.argv),
            env: exec.env.into_iter().collect(),
            dir: exec.dir,
            user: None,
            terminal: exec.terminal.map(terminal),
        }),
        SessionWhat::CopyIn(path) => What::CopyIn(path),
        SessionWhat::CopyOut(path) => What::CopyOut(path),
    }
}

impl SessionPlace {
    /// Opens the session, once it is written down that somebody does.
    pub async fn open(self, wanted: OpenSession) -> Result<Session, SessionRefusal> {
        let Self { server, chosen, bearer, label, held } = self;
        let OpenSession { credit, what: wanted } = wanted;
        if matches!(&wanted, SessionWhat::Exec(exec) if exec.argv.is_empty()) {
            return Err(SessionRefusal::Invalid("a command has at least one word".to_owned()));
        }
        if credit > SESSION_WINDOW {
            return Err(SessionRefusal::Invalid(too_much_credit().0));
        }
        let id = SessionId(server.fresh_id());
        let audit = Audit {
            session: id,
            at: Time::default(),
            token: bearer.token,
            role: bearer.role,
            label,
            project: chosen.project,
            project_name: chosen.project_name,
            app: chosen.app,
            app_name: chosen.app_name,
            workspace: chosen.workspace,
            deployment: chosen.deployment,
            instance: chosen.instance,
            event: event_of(&wanted),
        };
        let (line, news) =
            server.sessions().open(id, chosen.cell, credit).ok_or(SessionRefusal::CellAway)?;
        let mut session = Session {
            server: server.clone(),
            id,
            line,
            news,
            input_credit: 0,
            end: None,
            over: true,
            audit: audit.clone(),
            held,
        };
        told(&audit);
        server.apply(Command::Audit(Box::new(audit))).await?;
        let open = SessionOpen { work: Some(chosen.work), credit, what: Some(what(wanted)) };
        // From here on the cell may know of it.
        session.over = false;
        if !session.line.send(Down::Open(open)).await {
            return Err(SessionRefusal::CellAway);
        }
        Ok(session)
    }
}

/// A line of the server's own log for a line of the audit log.
fn told(line: &Audit) {
    let Audit { session, token, label, project_name, app_name, instance, event, .. } = line;
    tracing::info!(
        target: "audit", %session, %token, label, project = %project_name, app = %app_name,
        instance, ?event, "a session"
    );
}

fn too_much_credit() -> SessionFault {
    SessionFault(format!("at most {SESSION_WINDOW} bytes of credit may be granted"))
}

impl Session {
    /// Which one it is.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Sends input.
    pub async fn input(&mut self, bytes: Bytes) -> Result<(), SessionFault> {
        let cost = cost(bytes.len());
        if bytes.len() > MAX_SESSION_DATA || cost > self.input_credit {
            let credit = self.input_credit;
            let reason = format!("there is credit for {credit} bytes, and more was sent");
            return Err(SessionFault(reason));
        }
        self.input_credit -= cost;
        self.order(Down::Data(SessionData { channel: Channel::Input.into(), bytes })).await;
        Ok(())
    }

    /// Says that there is no more input.
    pub async fn input_end(&mut self) {
        self.order(Down::InputEnd(SessionInputEnd {})).await;
    }

    /// Changes the size of the terminal.
    pub async fn resize(&mut self, size: TerminalSize) {
        self.order(Down::Resize(terminal(size))).await;
    }

    /// Sends the command a signal.
    pub async fn signal(&mut self, name: String) {
        self.order(Down::Signal(name)).await;
    }

    /// Lets the cell send more.
    pub async fn grant(&mut self, bytes: u32) -> Result<(), SessionFault> {
        if !self.server.sessions().grant(self.id, bytes) {
            return Err(too_much_credit());
        }
        self.order(Down::Credit(SessionCredit { bytes })).await;
        Ok(())
    }

    /// What cannot be sent is followed by the end of the news.
    async fn order(&self, message: Down) {
        let sent = self.line.send(message).await;
        tracing::trace!(session = %self.id, sent, "an order for a session");
    }

    /// What the cell says next; nothing is lost when this is given up. After an end there is no
    /// more.
    pub async fn next(&mut self) -> FromServer {
        loop {
            let Some(news) = self.news.recv().await else {
                let stops = self.server.tasks().stop().is_stopped();
                return self.failed(if stops { STOPPING } else { CELL_LOST }.to_owned());
            };
            return match news {
                Up::Started(SessionStarted { credit }) => {
                    self.input_credit = self.input_credit.saturating_add(credit);
                    FromServer::Started(credit)
                }
                Up::Credit(SessionCredit { bytes }) => {
                    self.input_credit = self.input_credit.saturating_add(bytes);
                    FromServer::Credit(bytes)
                }
                Up::Data(SessionData { channel, bytes }) => match Channel::try_from(channel) {
                    Ok(Channel::Output) => FromServer::Output(bytes),
                    Ok(Channel::Error) => FromServer::Error(bytes),
                    Ok(Channel::Input) | Err(_) => continue,
                },
                Up::End(end) => self.ended(end),
            };
        }
    }

    fn ended(&mut self, end: SessionEnd) -> FromServer {
        self.over = true;
        let exit = end.exit_json.map(|json| from_json("exit status", &json)).transpose();
        match (end.error, exit) {
            (Some(reason), _) => self.failed(reason),
            (None, Err(status)) => self.failed(status.message().to_owned()),
            (None, Ok(exit)) => {
                self.end = Some(AuditEvent::SessionEnded { exit, reason: None });
                FromServer::Ended(SessionEnded { exit })
            }
        }
    }

    fn failed(&mut self, reason: String) -> FromServer {
        self.gives_up(&reason);
        FromServer::Failed(reason)
    }

    /// Notes why it ends before its command does.
    pub fn gives_up(&mut self, reason: &str) {
        let reason = Some(reason.to_owned());
        self.end.get_or_insert(AuditEvent::SessionEnded { exit: None, reason });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (server, line, over) = (self.server.clone(), self.line.clone(), self.over);
        server.sessions().forget(self.id);
        let unknown =
            || AuditEvent::SessionEnded { exit: None, reason: Some("it was given up".to_owned()) };
        let event = self.end.take().unwrap_or_else(unknown);
        let audit = Audit { event, ..self.audit.clone() };
        // Until its end is written down it counts.
        let held = self.held.clone();
        let tasks = Arc::new(server.tasks().clone());
        tasks.spawn_ok("session-end", async move {
            if !over {
                // A cell that is out of reach ends it, too.
                line.send(Down::Close(SessionClose {})).await;
            }
            told(&audit);
            if let Err(error) = server.apply(Command::Audit(Box::new(audit))).await {
                tracing::warn!(%error, "the end of a session is not in the audit log");
            }
            drop(held);
        });
    }
}
