//! Running git, and turning an accepted push into a job.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{AppId, DEFAULT_APP, Digest, JobId, Name, Operation, ProjectId, Target};
use runtime::{Tasks, timeout};
use russh::Channel;
use russh::server::Msg;
use server::{Server, Upload};
use state::{Command, JobCommand, JobSpec, NewJob, Project, Reply, State};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdout, Command as Program};
use tokio::sync::Semaphore;

use super::command::{Request, Verb};
use super::hook::{MAX_UPDATES, Push, SOCKET, TOKEN};
use super::{Pusher, SshError, file_error, follow, hook};
use crate::near::near;

/// Most bytes of one push.
pub(crate) const MAX_PACK: &str = "2g";
/// Commands of clients that run git at once, over all connections.
const MAX_GIT: usize = 64;
/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;
/// Where hooks reach the server, below the directory of the repositories.
const SOCKET_FILE: &str = "hook.sock";
/// Most of what git says about a commit that it cannot archive, the end of it.
const MAX_REASON: usize = 8 * 1024;
/// How long reading the files of a commit may take.
const ARCHIVE_TIME: Duration = Duration::from_mins(10);
/// How git names "no commit".
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// A push under way, as its hook will name it.
#[derive(Debug, Clone)]
struct Active {
    project: ProjectId,
    app: Name,
    repository: PathBuf,
    origin: String,
    public: String,
}

/// Repositories, and pushes under way. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pushes {
    server: Server,
    dir: Arc<PathBuf>,
    active: Arc<Mutex<HashMap<String, Active>>>,
    slots: Arc<Semaphore>,
}

impl Pushes {
    pub(crate) fn open(dir: &Path, hook: &Path, server: Server) -> Result<Self, SshError> {
        for below in ["home", "hooks", "repositories"] {
            let path = dir.join(below);
            std::fs::create_dir_all(&path).map_err(file_error("make", &path))?;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(dir, private).map_err(file_error("protect", dir))?;
        let link = dir.join("hooks/pre-receive");
        let temp = dir.join("hooks/pre-receive.new");
        // What an interrupted start left is in the way of nothing.
        drop(std::fs::remove_file(&temp));
        std::os::unix::fs::symlink(hook, &temp).map_err(file_error("make", &temp))?;
        std::fs::rename(&temp, &link).map_err(file_error("make", &link))?;
        let slots = Arc::new(Semaphore::new(MAX_GIT));
        Ok(Self { server, dir: Arc::new(dir.to_owned()), active: Arc::default(), slots })
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET_FILE)
    }

    /// Takes calls of hooks.
    pub(crate) fn listen(&self, tasks: &Tasks) -> Result<(), SshError> {
        let path = self.socket();
        // A socket left behind by an earlier server has no listener.
        drop(std::fs::remove_file(&path));
        let listener = hook::at_socket(&path, |short| UnixListener::bind(short));
        let listener = listener.map_err(file_error("listen on", &path))?;
        let (this, all, stop) = (self.clone(), tasks.clone(), tasks.stop().clone());
        tasks.spawn_ok("hooks", async move {
            while let Some(Ok((stream, _))) = stop.or_stop(listener.accept()).await {
                let (this, stop) = (this.clone(), stop.clone());
                all.spawn_ok("hook", async move {
                    stop.or_stop(this.hook(stream)).await;
                });
            }
        });
        Ok(())
    }

    /// Runs the git command of one channel to its end.
    pub(crate) async fn run(
        self,
        channel: Channel<Msg>,
        key: Pusher,
        request: Result<Request, String>,
    ) {
        let (mut read, write) = channel.split();
        // Held until git has ended.
        let slot = self.slots.try_acquire();
        let started = match (request, &slot) {
            (Ok(request), Ok(_)) => self.start(&key, &request).await,
            (Ok(_), Err(_)) => Err(format!(
                "the server runs {MAX_GIT} git commands, which is the limit\n\
                 hint: try again in a moment"
            )),
            (Err(reason), _) => Err(reason),
        };
        let status = match started {
            Ok((mut child, token)) => {
                let status = pump(&mut child, &mut read, &write).await;
                if let Some(token) = token {
                    self.active().remove(&token);
                }
                status
            }
            Err(reason) => {
                let text = format!("error: {reason}\n");
                // The client may be gone already.
                drop(write.extended_data_bytes(1, text).await);
                1
            }
        };
        drop(write.exit_status(status).await);
        drop(write.eof().await);
        drop(write.close().await);
    }

    fn active(&self) -> std::sync::MutexGuard<'_, HashMap<String, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(
        &self,
        key: &Pusher,
        request: &Request,
    ) -> Result<(Child, Option<String>), String> {
        let project = self.project(key, &request.project).await?;
        let repository = self.repository(project.id, &request.app).await?;
        let mut git = self.git();
        let token = match request.verb {
            Verb::Upload => {
                git.arg("upload-pack").arg("--strict");
                None
            }
            Verb::Receive => {
                let token = format!("{:032x}", self.server.fresh_id());
                let active = Active {
                    project: project.id,
                    app: request.app.clone(),
                    repository: repository.clone(),
                    origin: format!("git push by {}", key.label),
                    public: key.public.clone(),
                };
                self.active().insert(token.clone(), active);
                let hooks = format!("core.hooksPath={}", self.dir.join("hooks").display());
                git.args(["-c", "receive.fsckObjects=true", "-c", &hooks]);
                git.args(["-c", &format!("receive.maxInputSize={MAX_PACK}")]);
                git.args(["-c", "receive.autogc=false", "receive-pack"]);
                git.env(SOCKET, self.socket()).env(TOKEN, &token);
                Some(token)
            }
        };
        git.arg(&repository).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok((git.kill_on_drop(true).spawn().map_err(|error| missing_git(&error))?, token))
    }

    async fn project(&self, key: &Pusher, name: &Name) -> Result<Arc<Project>, String> {
        let (wanted, limited) = (name.clone(), key.project);
        let look = move |state: &State| {
            // To a key of another project it does not exist.
            let own = |row: &Project| limited.is_none_or(|own| own == row.id);
            let row = state.project_named(&wanted).cloned().filter(|row| own(row));
            row.ok_or_else(|| {
                let all = state.all::<Project>().filter(|row| own(row));
                near(wanted.as_str(), all.map(|row| row.name.as_str()))
            })
        };
        let found = self.server.read(look).await.map_err(|error| error.to_string())?;
        found.map_err(|near| {
            let guess = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
            format!(
                "there is no project {name}\nhint: {guess}make it with `shore project create {name}`"
            )
        })
    }

    /// git with an environment of ours.
    fn git(&self) -> Program {
        let mut git = Program::new("git");
        git.env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.join("home"))
            .env("LANG", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0");
        git
    }

    async fn repository(&self, project: ProjectId, app: &Name) -> Result<PathBuf, String> {
        let path = self.dir.join("repositories").join(repository_of(project, app));
        if path.join("HEAD").exists() {
            return Ok(path);
        }
        let mut git = self.git();
        git.args(["init", "--quiet", "--bare", "--template=", "--initial-branch=main"]).arg(&path);
        let made = git.stdin(Stdio::null()).output().await.map_err(|error| missing_git(&error))?;
        if made.status.success() {
            return Ok(path);
        }
        Err(format!("the repository cannot be made: {}", String::from_utf8_lossy(&made.stderr)))
    }

    /// One call of a hook: the push is accepted once what it starts has succeeded.
    async fn hook(&self, stream: UnixStream) {
        let (read, write) = stream.into_split();
        let mut line = String::new();
        let limit = MAX_UPDATES * 2;
        if BufReader::new(read.take(limit)).read_line(&mut line).await.is_err() {
            return;
        }
        let Ok(push) = serde_json::from_str::<Push>(&line) else { return };
        let Some(active) = self.active().get(&push.token).cloned() else { return };
        let mut say = Say(write);
        let done = self.accept(&active, &push, &mut say).await;
        if let Err(reason) = &done {
            say.line(&format!("error: {reason}")).await;
        }
        say.end(done.is_ok()).await;
    }

    async fn accept(&self, active: &Active, push: &Push, say: &mut Say) -> Result<(), String> {
        // The key may have been removed while the push was under way.
        let now = Pusher::now(&self.server, active.public.clone()).await;
        if now.is_none_or(|key| key.project.is_some_and(|own| own != active.project)) {
            return Err(Pusher::GONE.to_owned());
        }
        let Some(commit) = deployed(&push.updates)? else {
            say.line("stored; only pushes to main are deployed").await;
            return Ok(());
        };
        let source = self.archive(active, push, &commit).await?;
        let job = self.queue(active, source, &commit).await?;
        say.line(&format!("job {job}: follow it again with `shore job attach {job}`")).await;
        follow::job(&self.server, job, say).await
    }

    /// The commit's files as a tar archive in the blob store.
    async fn archive(&self, active: &Active, push: &Push, commit: &str) -> Result<Digest, String> {
        let mut git = self.git();
        git.arg("--git-dir").arg(&active.repository).args(["archive", "--format=tar", commit]);
        git.envs(&push.env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = git.kill_on_drop(true).spawn().map_err(|error| missing_git(&error))?;
        let (Some(out), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("git has no output".to_owned());
        };
        let upload = self.server.blobs().begin().await.map_err(|error| error.to_string())?;
        // git waits until somebody reads what it warns of, so both are read at once.
        let read = async { tokio::join!(store(out, upload), last_of(errors), child.wait()) };
        let Some((stored, reason, ended)) = timeout(ARCHIVE_TIME, read).await else {
            let minutes = ARCHIVE_TIME.as_secs() / 60;
            return Err(format!(
                "git took more than {minutes} minutes to archive {commit}\n\
                 hint: push less: leave large files out of the repository"
            ));
        };
        let upload = stored?;
        if !ended.map_err(|error| error.to_string())?.success() {
            return Err(format!("git cannot archive {commit}: {reason}"));
        }
        let stored = upload.finish().await.map_err(|error| error.to_string())?;
        Ok(Digest(stored.digest))
    }

    async fn queue(&self, active: &Active, source: Digest, commit: &str) -> Result<JobId, String> {
        let (id, project) = (AppId(self.server.fresh_id()), active.project);
        let ensure = Command::EnsureApp { id, project, name: active.app.clone() };
        let app = match self.server.apply(ensure).await.map_err(|error| error.to_string())? {
            Reply::App(app, _) => app,
            other => return Err(format!("unexpected reply {other:?}")),
        };
        let workspace: Name = state::PRODUCTION.parse().map_err(|error| format!("{error}"))?;
        let operation = Operation::Up { source };
        let spec = JobSpec {
            project,
            app: Some(app),
            singleton: Some(JobSpec::superseding(&operation, app, &workspace)),
            workspace,
            operation,
            target: Target::Any,
            depends_on: Vec::new(),
            allow_failure: Vec::new(),
            idempotency_key: None,
            origin: format!("{} at {}", active.origin, commit.get(..12).unwrap_or(commit)),
        };
        let id = JobId(self.server.fresh_id());
        let new = NewJob { id, spec: Arc::new(spec), expires_in: None };
        let queued = self.server.apply(Command::Job(JobCommand::Queue(new))).await;
        queued.map(|_| id).map_err(|error| error.to_string())
    }
}

/// The commit that a push deploys, if it moves a deployed branch.
fn deployed(updates: &str) -> Result<Option<String>, String> {
    let moved = updates.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (new, name) = (words.next()?, words.next()?);
        Server::deploys(name).then_some(new)
    });
    let mut found = None;
    for new in moved {
        if new == NO_COMMIT || !new.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("a branch that is deployed cannot be deleted".to_owned());
        }
        if found.replace(new.to_owned()).is_some() {
            return Err("two branches that are deployed cannot be pushed at once\n\
                 hint: push only one of them: git push REMOTE main"
                .to_owned());
        }
    }
    Ok(found)
}

/// Writes all that git gives to an upload.
async fn store(mut out: ChildStdout, mut upload: Upload) -> Result<Upload, String> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = out.read(&mut chunk).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Ok(upload);
        }
        let written = upload.write(chunk.get(..read).unwrap_or_default()).await;
        written.map_err(|error| error.to_string())?;
    }
}

/// Reads to the end and keeps the last of it, at most [`MAX_REASON`] bytes.
async fn last_of(mut errors: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut chunk) = (Vec::new(), vec![0; MAX_REASON]);
    // What cannot be read any more ends it as well.
    while let Ok(read @ 1..) = errors.read(&mut chunk).await {
        kept.extend_from_slice(chunk.get(..read).unwrap_or_default());
        kept.drain(..kept.len().saturating_sub(MAX_REASON));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Where an app's commits are. Each app has its own, so that a commit one app has is news to another.
fn repository_of(project: ProjectId, app: &Name) -> String {
    if app.as_str() == DEFAULT_APP {
        return format!("{project}.git");
    }
    // No name has a dot.
    format!("{project}.{app}.git")
}

fn missing_git(error: &std::io::Error) -> String {
    format!("git cannot be started on the server: {error}\nhint: install it with `apt install git`")
}

/// Lines for the pusher.
pub(crate) struct Say(OwnedWriteHalf);

impl Say {
    pub(crate) async fn line(&mut self, text: &str) {
        for line in text.lines() {
            let inert: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
            // The pusher may be gone; the job goes on.
            drop(self.0.write_all(format!(" {inert}\n").as_bytes()).await);
        }
    }

    async fn end(mut self, good: bool) {
        drop(self.0.write_all(if good { b"=0\n" } else { b"=1\n" }).await);
    }
}

/// Moves bytes between the client and git until git ends; its exit status.
async fn pump(
    child: &mut Child,
    read: &mut russh::ChannelReadHalf,
    write: &russh::ChannelWriteHalf<Msg>,
) -> u32 {
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return 1;
    };
    let mut from_client = read.make_reader();
    let mut to_client = write.make_writer();
    let mut errors_to_client = write.make_writer_ext(Some(1));
    let input = async {
        // A client that hangs up ends git's input.
        drop(tokio::io::copy(&mut from_client, &mut stdin).await);
        drop(stdin);
        std::future::pending::<()>().await;
    };
    let output = async {
        let out = tokio::io::copy(&mut stdout, &mut to_client);
        let err = tokio::io::copy(&mut stderr, &mut errors_to_client);
        // git ends when nobody reads any more.
        let (_, _) = tokio::join!(out, err);
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
    match child.wait().await {
        Ok(status) => u32::try_from(status.code().unwrap_or(128)).unwrap_or(1),
        Err(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_deploys_one_branch_and_deletes_none() {
        let (old, new) = ("1".repeat(40), "2".repeat(40));
        let line = |new: &str, name: &str| format!("{old} {new} refs/heads/{name}\n");
        let (main, master) = (line(&new, "main"), line(&new, "master"));
        let (gone, other) = (line(NO_COMMIT, "master"), line(NO_COMMIT, "other"));
        assert_eq!(deployed(&main), Ok(Some(new.clone())));
        assert_eq!(deployed(&format!("{other}{main}")), Ok(Some(new)));
        assert_eq!(deployed(&other), Ok(None));
        for (both, said) in [
            (format!("{main}{gone}"), "cannot be deleted"),
            (format!("{gone}{main}"), "cannot be deleted"),
            (format!("{main}{master}"), "cannot be pushed at once"),
        ] {
            assert!(deployed(&both).is_err_and(|reason| reason.contains(said)), "{both}");
        }
    }

    #[tokio::test]
    async fn the_last_of_many_warnings_is_kept() {
        let many: Vec<_> = (0..10_000).map(|line| format!("warning {line}\n")).collect();
        let kept = last_of(many.concat().as_bytes()).await;
        assert_eq!(kept.len(), MAX_REASON);
        assert!(kept.ends_with("warning 9999\n"));
    }
}
