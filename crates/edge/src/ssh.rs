//! git over SSH: `git push` builds and deploys, `git clone` and `git fetch` read back.
//!
//! Only public keys that were added may log in, and only two commands exist. Nothing a client sends
//! reaches a shell: the command is matched exactly, the path becomes a project, and git is started
//! with arguments and an environment of ours.

mod command;
mod follow;
pub mod hook;
mod push;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::ProjectId;
use runtime::{Tasks, timeout};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet};
use server::Server;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections served at once.
pub const MAX_SSH_CONNECTIONS: usize = 256;
/// Channels open at once on one connection. git needs one; people who share a connection a few.
pub const MAX_CHANNELS: usize = 8;
/// How long a client has to log in.
pub const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_hours(1);
const WINDOW: u32 = 8 * 1024 * 1024;

/// Why git cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A file or socket.
    #[error("cannot {attempt} {}: {error}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        error: std::io::Error,
    },
    /// The host key.
    #[error("cannot use the SSH host key: {0}")]
    Key(#[from] russh::keys::ssh_key::Error),
}

pub(crate) fn file_error<'a>(
    attempt: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> SshError + 'a {
    move |error| SshError::File { attempt, path: path.to_owned(), error }
}

/// Serves git over SSH.
#[derive(Debug, Clone)]
pub struct Git {
    server: Server,
    config: Arc<Config>,
    pushes: push::Pushes,
}

impl Git {
    /// Prepares repositories, hooks and the host key below `dir`. `hook` is the program that git
    /// starts as `pre-receive`; it must call [`hook::maybe_run`] first.
    pub fn open(dir: &Path, hook: &Path, server: Server) -> Result<Self, SshError> {
        let key = host_key(&dir.join("ssh_host_ed25519_key"))?;
        let config = Config {
            keys: vec![key],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            // The first attempt of every OpenSSH client is the empty one: only a question.
            auth_rejection_time_initial: Some(Duration::ZERO),
            auth_rejection_time: Duration::from_secs(1),
            max_auth_attempts: 10,
            inactivity_timeout: Some(IDLE),
            keepalive_interval: Some(Duration::from_secs(30)),
            window_size: WINDOW,
            nodelay: true,
            ..Config::default()
        };
        let pushes = push::Pushes::open(&dir.join("git"), hook, server.clone())?;
        Ok(Self { server, config: Arc::new(config), pushes })
    }

    /// Accepts connections until a stop is asked for.
    pub async fn serve(self, listener: TcpListener) -> Result<(), SshError> {
        let tasks = self.server.tasks().clone();
        let stop = tasks.stop().clone();
        let slots = Arc::new(Semaphore::new(MAX_SSH_CONNECTIONS));
        self.pushes.listen(&tasks)?;
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
            let Some(accepted) = stop.or_stop(listener.accept()).await else { return Ok(()) };
            let Ok((stream, _)) = accepted else {
                runtime::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (git, stop) = (self.clone(), stop.clone());
            tasks.spawn_ok("ssh-connection", async move {
                stop.or_stop(git.connection(stream)).await;
                drop(slot);
            });
        }
    }

    async fn connection(self, stream: TcpStream) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let tasks = self.server.tasks().clone();
        let (logged_in, login) = tokio::sync::oneshot::channel();
        let client = Client {
            server: self.server,
            pushes: self.pushes,
            tasks,
            key: None,
            logged_in: Some(logged_in),
            channels: HashMap::new(),
            slots: Arc::new(Semaphore::new(MAX_CHANNELS)),
        };
        let started =
            timeout(LOGIN_TIMEOUT, russh::server::run_stream(self.config, stream, client));
        let Some(Ok(session)) = started.await else { return };
        let handle = session.handle();
        tokio::pin!(session);
        let ended = tokio::select! {
            ended = &mut session => Some(ended),
            answer = timeout(LOGIN_TIMEOUT, login) => {
                if !matches!(answer, Some(Ok(()))) {
                    // Nobody logged in, or the connection is gone.
                    let reason = "log in sooner".to_owned();
                    let code = russh::Disconnect::ByApplication;
                    drop(handle.disconnect(code, reason, String::new()).await);
                    return;
                }
                None
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => session.await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an SSH connection ended badly");
        }
    }
}

/// Reads the host key, or makes one.
fn host_key(path: &Path) -> Result<PrivateKey, SshError> {
    if !path.exists() {
        let mut seed = [0; 32];
        runtime::Random::system().fill(&mut seed);
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        let text = PrivateKey::new(pair, "longshore")?.to_openssh(LineEnding::LF)?;
        crate::files::write_private(path, text.as_bytes()).map_err(file_error("write", path))?;
    }
    let text = std::fs::read_to_string(path).map_err(file_error("read", path))?;
    Ok(PrivateKey::from_openssh(text)?)
}

/// A key that logged in.
#[derive(Debug, Clone)]
pub(crate) struct Pusher {
    /// The one project it is limited to.
    pub(crate) project: Option<ProjectId>,
    /// For people.
    pub(crate) label: String,
    /// The key itself: `algorithm base64`, without the comment.
    pub(crate) public: String,
}

impl Pusher {
    /// What a refused client is told.
    pub(crate) const GONE: &str = "this SSH key was removed from the server\n\
         hint: add it again with `shore key add`";

    /// Who pushes with this key as of now; `None` when it was never added, or removed since.
    pub(crate) async fn now(server: &Server, public: String) -> Option<Self> {
        let wanted = public.clone();
        let row = server.read(move |state| state.key_of(&wanted).cloned()).await.ok()??;
        Some(Self { project: row.project, label: row.label.clone(), public })
    }
}

/// One connection.
struct Client {
    server: Server,
    pushes: push::Pushes,
    tasks: Tasks,
    key: Option<Pusher>,
    logged_in: Option<tokio::sync::oneshot::Sender<()>>,
    /// Those that were not told yet what to run.
    channels: HashMap<ChannelId, (Channel<Msg>, OwnedSemaphorePermit)>,
    /// For all channels, until what they run has ended.
    slots: Arc<Semaphore>,
}

impl Client {
    async fn known(&self, key: &PublicKey) -> Option<Pusher> {
        let line = key.to_openssh().ok()?;
        let public = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        Pusher::now(&self.server, public).await
    }
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        key: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.known(key.public_key).await.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        self.key = self.known(key.public_key).await;
        let Some(_) = &self.key else { return Ok(Auth::reject()) };
        if let Some(logged_in) = self.logged_in.take() {
            // The other end is the login timer; when that fired, the connection is closing.
            logged_in.send(()).unwrap_or_default();
        }
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        self.channels.insert(channel.id(), (channel, slot));
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        let text =
            "There is no shell here, only git: git push ssh://git@HOST:PORT/PROJECT main\r\n";
        session.extended_data(id, 1, text)?;
        session.exit_status_request(id, 1)?;
        session.close(id)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (Some((channel, slot)), Some(key)) = (self.channels.remove(&id), self.key.clone())
        else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        // A connection may be older than the removal of its key.
        let (key, request) = match Pusher::now(&self.server, key.public.clone()).await {
            Some(now) => (now, command::parse(data)),
            None => (key, Err(Pusher::GONE.to_owned())),
        };
        let pushes = self.pushes.clone();
        self.tasks.spawn_ok("git", async move {
            pushes.run(channel, key, request).await;
            drop(slot);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_key_stays_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let first = host_key(&path).expect("a new key");
        assert_eq!(first.algorithm(), russh::keys::Algorithm::Ed25519);
        assert_eq!(host_key(&path).expect("the same key").public_key(), first.public_key());
    }
}
