//! Carries out action trees.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use drivers::{DriverError, ProcessId, ProcessSpec, Target};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use model::{Action, FailureDetail, LAUNCHER};
use runtime::Stop;

use crate::actor::{Actor, Reading, Voice, describe, status};
use crate::error::{Context as _, Failure};
use crate::health::Length;
use crate::limits::TASK_GRACE;
use crate::prepare::user;
use crate::transfer::{self, Download, Origin, Upload};

/// What an action tree is carried out with.
#[derive(Debug)]
pub(crate) struct Executor<'a> {
    pub(crate) actor: &'a Actor,
    pub(crate) dir: Option<String>,
    /// How many processes were started.
    pub(crate) started: AtomicU32,
}

/// Where in the tree an action is, as in `serial[1].timeout.run`, and what ends it early.
#[derive(Debug, Clone)]
struct Spot {
    path: String,
    stop: Stop,
}

impl Spot {
    /// The place of an action below this one.
    fn below(&self, action: &Action, number: Option<usize>) -> Self {
        let number = number.map(|number| format!("[{number}]")).unwrap_or_default();
        let path = format!("{}{number}.{}", self.path, name_of_action(action));
        Self { path, stop: self.stop.clone() }
    }

    /// The same place, with an end of its own.
    fn fenced(&self) -> Self {
        Self { path: self.path.clone(), stop: self.stop.child() }
    }
}

const fn name_of_action(action: &Action) -> &'static str {
    match action {
        Action::Download { .. } => "download",
        Action::Upload { .. } => "upload",
        Action::Run { .. } => "run",
        Action::Serial { .. } => "serial",
        Action::Parallel { .. } => "parallel",
        Action::Codependent { .. } => "codependent",
        Action::Timeout { .. } => "timeout",
        Action::Try { .. } => "try",
        Action::EmitProgress { .. } => "emit_progress",
    }
}

/// What people call a command: the program it starts, not the launcher that starts it.
pub(crate) fn name_of(argv: &[String]) -> Cow<'_, str> {
    let program = match argv {
        [launcher, dashes, program, ..] if launcher == LAUNCHER && dashes == "--" => program,
        [program, ..] => program,
        [] => "",
    };
    Path::new(program).file_name().map_or_else(|| program.into(), OsStr::to_string_lossy)
}

/// A `run` action, taken apart.
struct Run<'a> {
    argv: &'a [String],
    env: &'a BTreeMap<String, String>,
    dir: Option<&'a String>,
    user: Option<&'a str>,
    files: Option<u64>,
    voice: Voice,
}

impl Executor<'_> {
    /// Carries out a whole tree. When `stop` fires, what runs is ended gracefully and nothing new
    /// is begun.
    pub(crate) async fn run(&self, action: &Action, stop: &Stop) -> Result<(), Failure> {
        let spot = Spot { path: name_of_action(action).to_owned(), stop: stop.clone() };
        self.action(action, spot).await
    }

    /// Carries out one action with everything below it.
    fn action<'a>(&'a self, action: &'a Action, spot: Spot) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            if spot.stop.is_stopped() {
                return Err(Failure::interrupted());
            }
            let done = match action {
                Action::Download { .. } | Action::Upload { .. } => {
                    self.transfer(action, &spot.stop).await
                }
                Action::Run { argv, env, dir, user, files, log_source, quiet } => {
                    let voice = match (quiet, log_source) {
                        (true, _) => Voice::Quiet,
                        (false, Some(source)) => Voice::Named(source.clone()),
                        (false, None) => Voice::Plain,
                    };
                    let (dir, user, files) = (dir.as_ref(), user.as_deref(), *files);
                    self.process(Run { argv, env, dir, user, files, voice }, &spot.stop).await
                }
                Action::Serial { actions } => self.serial(actions, &spot).await,
                Action::Parallel { actions, fail_fast } => {
                    self.parallel(actions, *fail_fast, &spot).await
                }
                Action::Codependent { actions } => self.codependent(actions, &spot).await,
                Action::Timeout { inner, ms } => self.limited(inner, *ms, &spot).await,
                Action::Try { inner } => self.attempt(inner, &spot).await,
                Action::EmitProgress { inner, start, success, failure } => {
                    self.progress(inner, [start, success, failure], &spot).await
                }
            };
            done.map_err(|failure| failure.at(&spot.path))
        })
    }

    async fn transfer(&self, action: &Action, stop: &Stop) -> Result<(), Failure> {
        let interrupted = || Err(Failure::interrupted());
        match action {
            Action::Download { blob, url, to, unpack, checksum, max_bytes } => {
                let (unpack, max_bytes, checksum) = (*unpack, *max_bytes, checksum.as_ref());
                let from = match (blob, url) {
                    (Some(blob), _) => Origin::Blob(*blob),
                    (None, Some(url)) => Origin::Url(url),
                    (None, None) => return Err(Failure::new("it names nothing to download")),
                };
                let what = Download { from, to, unpack, checksum, max_bytes };
                let work = transfer::download(self.actor, &what);
                let done = stop.or_stop(work).await.unwrap_or_else(interrupted);
                done.context(|| format!("download to {to}"))
            }
            Action::Upload { from, mode, url, max_bytes } => {
                let (mode, max_bytes, url) = (*mode, *max_bytes, url.as_deref());
                let what = Upload { from, mode, url, max_bytes };
                let work = transfer::upload(self.actor, &what);
                let done = stop.or_stop(work).await.unwrap_or_else(interrupted);
                done.context(|| format!("upload of {from}"))
            }
            Action::Run { .. }
            | Action::Serial { .. }
            | Action::Parallel { .. }
            | Action::Codependent { .. }
            | Action::Timeout { .. }
            | Action::Try { .. }
            | Action::EmitProgress { .. } => Ok(()),
        }
    }

    async fn serial(&self, actions: &[Action], spot: &Spot) -> Result<(), Failure> {
        for (number, action) in actions.iter().enumerate() {
            self.action(action, spot.below(action, Some(number))).await?;
        }
        Ok(())
    }

    /// Begins all actions; each gives its number with how it ended.
    fn all<'a>(
        &'a self,
        actions: &'a [Action],
        spot: &Spot,
    ) -> FuturesUnordered<BoxFuture<'a, (usize, Result<(), Failure>)>> {
        let begin = |(number, action): (usize, &'a Action)| -> BoxFuture<'a, _> {
            let work = self.action(action, spot.below(action, Some(number)));
            Box::pin(async move { (number, work.await) })
        };
        actions.iter().enumerate().map(begin).collect()
    }

    async fn parallel(
        &self,
        actions: &[Action],
        fail_fast: bool,
        spot: &Spot,
    ) -> Result<(), Failure> {
        let spot = spot.fenced();
        let mut all = self.all(actions, &spot);
        let mut failures = BTreeMap::new();
        while let Some((number, done)) = all.next().await {
            if let Err(failure) = done {
                if fail_fast {
                    spot.stop.stop();
                }
                failures.insert(number, failure);
            }
        }
        if failures.values().any(|failure| !failure.interrupted) {
            // What was only interrupted by another's failure explains nothing.
            failures.retain(|_, failure| !failure.interrupted);
        }
        let reasons: Vec<&str> = failures.values().map(|failure| failure.reason.as_str()).collect();
        let reason = Failure::new(reasons.join("; ")).reason;
        failures.into_values().next().map_or(Ok(()), |first| Err(Failure { reason, ..first }))
    }

    async fn codependent(&self, actions: &[Action], spot: &Spot) -> Result<(), Failure> {
        let spot = spot.fenced();
        let mut all = self.all(actions, &spot);
        let first = all.next().await;
        spot.stop.stop();
        while all.next().await.is_some() {}
        match first {
            Some((_, Err(failure))) => Err(failure),
            Some((number, Ok(()))) => {
                let path = actions.get(number).map(|action| spot.below(action, Some(number)).path);
                let failure = Failure::new("one of several actions that need each other ended");
                Err(failure.at(&path.unwrap_or_default()))
            }
            None => Ok(()),
        }
    }

    async fn limited(&self, inner: &Action, ms: u64, spot: &Spot) -> Result<(), Failure> {
        let own = spot.fenced();
        let mut work = self.action(inner, own.below(inner, None));
        let limit = Duration::from_millis(ms);
        if let Some(done) = runtime::timeout(limit, &mut work).await {
            return done;
        }
        own.stop.stop();
        // It ends by itself now; how does not matter any more.
        drop(work.await);
        Err(Failure::new(format!("exceeded {} timeout", Length(limit))))
    }

    async fn attempt(&self, inner: &Action, spot: &Spot) -> Result<(), Failure> {
        if let Err(failure) = self.action(inner, spot.below(inner, None)).await {
            self.actor.journal.say(format!("ignored: {failure}")).await;
        }
        Ok(())
    }

    async fn progress(
        &self,
        inner: &Action,
        [start, success, failure]: [&str; 3],
        spot: &Spot,
    ) -> Result<(), Failure> {
        let say = async |text: String| {
            if !text.is_empty() {
                self.actor.journal.say(text).await;
            }
        };
        say(start.to_owned()).await;
        let done = self.action(inner, spot.below(inner, None)).await;
        match &done {
            Ok(()) => say(success.to_owned()).await,
            Err(fault) if failure.is_empty() => say(fault.to_string()).await,
            Err(fault) => say(format!("{failure}: {fault}")).await,
        }
        done
    }

    async fn process(&self, run: Run<'_>, stop: &Stop) -> Result<(), Failure> {
        let name = name_of(run.argv);
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let id = ProcessId::new(format!("run-{number}"))?;
        let mut spec = ProcessSpec::new(id.clone(), run.argv.iter().map(String::as_str));
        spec.env.clone_from(run.env);
        spec.dir = run.dir.cloned().or_else(|| self.dir.clone());
        spec.user = run.user.and_then(user);
        spec.limits.open_files = run.files;
        self.start(spec).await.context(|| format!("run `{name}`"))?;
        let reading = match run.voice {
            Voice::Quiet => Reading::nothing(),
            voice => self.actor.read(&id, None, voice).await,
        };
        let (driver, handle) = (&self.actor.driver, &self.actor.handle);
        let Some(exit) = stop.or_stop(driver.wait(handle, &id)).await else {
            driver.stop(handle, Target::One(id), TASK_GRACE).await?;
            self.actor.finish(reading).await;
            return Err(Failure::interrupted().within(format!("run `{name}`")));
        };
        let exit = exit?;
        let tail = self.actor.finish(reading).await;
        if exit.success() {
            return Ok(());
        }
        let detail = FailureDetail { action: None, exit: Some(status(&exit)), tail };
        let failure = Failure::new(format!("run `{name}` {}", describe(&exit)));
        Err(Failure { detail: Some(Box::new(detail)), ..failure })
    }

    async fn start(&self, spec: ProcessSpec) -> Result<(), Failure> {
        match self.actor.driver.start(&self.actor.handle, spec).await {
            Ok(_) => Ok(()),
            // The action's name is said already.
            Err(DriverError::Start { fault, .. }) => Err(Failure::new(fault)),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_name_of_what_people_asked_for() {
        for (argv, name) in [
            (&["/bin/sh", "-c", "exit 3"][..], "sh"),
            (&[LAUNCHER, "--", "sh", "-c", "exit 3"], "sh"),
            (&[LAUNCHER, "--", "./bin/migrate"], "migrate"),
            (&[model::CREATOR], "creator"),
            (&[], ""),
        ] {
            let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(name_of(&argv), name);
        }
    }
}
