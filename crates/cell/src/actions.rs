//! Carries out action trees.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use drivers::{DriverError, ProcessId, ProcessSpec, Target};
use futures_util::future::{BoxFuture, join_all};
use model::{Action, LAUNCHER};
use runtime::Stop;

use crate::actor::{Actor, describe};
use crate::error::{Context as _, Failure};
use crate::health::Length;
use crate::limits::TASK_GRACE;
use crate::transfer;

/// What an action tree is carried out with.
#[derive(Debug)]
pub(crate) struct Executor<'a> {
    pub(crate) actor: &'a Actor,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) dir: Option<String>,
    /// How many processes were started.
    pub(crate) started: AtomicU32,
}

/// What people call a command: the program it starts, not the launcher that starts it.
fn name_of(argv: &[String]) -> Cow<'_, str> {
    let program = match argv {
        [launcher, dashes, program, ..] if launcher == LAUNCHER && dashes == "--" => program,
        [program, ..] => program,
        [] => "",
    };
    Path::new(program).file_name().map_or_else(|| program.into(), OsStr::to_string_lossy)
}

fn interrupted() -> Failure {
    Failure::new("was interrupted")
}

impl Executor<'_> {
    /// Carries out one action with everything below it. When `stop` fires, what runs is ended
    /// gracefully and nothing new is begun.
    pub(crate) fn run<'a>(
        &'a self,
        action: &'a Action,
        stop: &'a Stop,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            if stop.is_stopped() {
                return Err(interrupted());
            }
            match action {
                Action::Download { blob: Some(blob), to, unpack, .. } => {
                    let download = transfer::download(self.actor, *blob, (to, *unpack));
                    let done = stop.or_stop(download).await.unwrap_or_else(|| Err(interrupted()));
                    done.context(|| format!("download to {to}"))
                }
                Action::Download { blob: None, .. } | Action::Upload { url: Some(_), .. } => {
                    Err(Failure::new("this cell moves bytes from and to the blob store only"))
                }
                Action::Upload { from, mode, .. } => {
                    let upload = transfer::upload(self.actor, from, *mode);
                    let done = stop.or_stop(upload).await.unwrap_or_else(|| Err(interrupted()));
                    done.context(|| format!("upload of {from}"))
                }
                Action::Run { argv, env, dir, .. } => self.process((argv, env, dir), stop).await,
                Action::Serial { actions } => {
                    for action in actions {
                        self.run(action, stop).await?;
                    }
                    Ok(())
                }
                Action::Parallel { actions, .. } => self.parallel(actions, stop).await,
                Action::Codependent { .. } | Action::EmitProgress { .. } => {
                    Err(Failure::new("this cell does not know the action"))
                }
                Action::Timeout { inner, ms } => self.limited(inner, *ms, stop).await,
                Action::Try { inner } => self.attempt(inner, stop).await,
            }
        })
    }

    async fn parallel(&self, actions: &[Action], stop: &Stop) -> Result<(), Failure> {
        let all = join_all(actions.iter().map(|action| self.run(action, stop))).await;
        let reasons: Vec<String> =
            all.into_iter().filter_map(Result::err).map(|failure| failure.reason).collect();
        if reasons.is_empty() { Ok(()) } else { Err(Failure::new(reasons.join("; "))) }
    }

    async fn limited(&self, inner: &Action, ms: u64, stop: &Stop) -> Result<(), Failure> {
        let own = stop.child();
        let mut work = self.run(inner, &own);
        let limit = Duration::from_millis(ms);
        if let Some(done) = runtime::timeout(limit, &mut work).await {
            return done;
        }
        own.stop();
        // It ends by itself now; how does not matter any more.
        drop(work.await);
        Err(Failure::new(format!("exceeded {} timeout", Length(limit))))
    }

    async fn attempt(&self, inner: &Action, stop: &Stop) -> Result<(), Failure> {
        if let Err(failure) = self.run(inner, stop).await {
            self.actor.journal.say(format!("ignored: {failure}")).await;
        }
        Ok(())
    }

    async fn process(
        &self,
        (argv, env, dir): (&[String], &BTreeMap<String, String>, &Option<String>),
        stop: &Stop,
    ) -> Result<(), Failure> {
        let name = name_of(argv);
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let id = ProcessId::new(format!("run-{number}"))?;
        let mut spec = ProcessSpec::new(id.clone(), argv.iter().map(String::as_str));
        spec.env = self.env.iter().chain(env).map(|(k, v)| (k.clone(), v.clone())).collect();
        spec.dir = dir.clone().or_else(|| self.dir.clone());
        self.start(spec).await.context(|| format!("run `{name}`"))?;
        let reading = self.actor.read(&id, None).await;
        let (driver, handle) = (&self.actor.driver, &self.actor.handle);
        let Some(exit) = stop.or_stop(driver.wait(handle, &id)).await else {
            driver.stop(handle, Target::One(id), TASK_GRACE).await?;
            self.actor.finish(reading).await;
            return Err(interrupted().within(format!("run `{name}`")));
        };
        let exit = exit?;
        self.actor.finish(reading).await;
        if exit.success() {
            return Ok(());
        }
        Err(Failure::new(format!("run `{name}` {}", describe(&exit))))
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
