//! Processes that somebody works with.

use std::io;
use std::sync::Arc;

use super::cgroup::Group;
use super::remove::KILL_LIMIT;
use super::{Inner, kill_group, slots};
use crate::driver::{Session, Terminal};
use crate::error::{Context as _, DriverError, Result};
use crate::shim::Through;
use crate::shim::session::{Request, Start, dir};
use crate::spec::{Handle, ProcessSpec};
use crate::supervised::session;

impl Inner {
    pub(super) async fn session(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> Result<Session> {
        spec.check()?;
        self.available()?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        let (place, init) = self.running(handle)?;
        let command = spec.argv.first().cloned().unwrap_or_default();
        let refuse = |fault| DriverError::Start { command: command.clone(), fault };
        let process = self.process(&container, &spec, (&place, init), terminal).await;
        let process = process.map_err(refuse)?;
        let called = session::name();
        let name = group_name(&called);
        let group = self.group(handle);
        let option = group.make_process(&name).context(|| "make a control group".to_owned())?;
        let through = Through {
            before: self.exec_command(&["--detach", "--cgroup", &option]),
            after: vec![handle.to_string()],
            process,
            real_user: (place.first_user != 0 && !may_limit_others()).then_some(place.first_user),
        };
        let (dir, of) = (dir(slots::RUN.as_ref(), &called), group.of_process(&name));
        let start = Start::Through { through, dir, group: of };
        match self.kept.keep_session(&Request { start, terminal }).await {
            Ok((session, mut keeper)) => {
                let inner = Arc::clone(self);
                self.kept.tasks.spawn(runtime::Kind::Ordinary, "session keeper", async move {
                    let ended = keeper.wait().await;
                    // One that was killed left what it kept.
                    inner.kept.tasks.blocking(move || end(&group, &name)).await?;
                    ended.map(drop)
                });
                Ok(session)
            }
            Err(fault) => {
                group.forget_process(&name);
                Err(refuse(fault))
            }
        }
    }

    /// Ends the sessions of agents that are gone, and of keepers that are. Those that are there yet
    /// do the same.
    pub(super) fn sweep_sessions(&self) -> io::Result<()> {
        for handle in self.kept.dirs.handles().map_err(io::Error::other)? {
            let group = self.group(&handle);
            let names = group.process_names().into_iter();
            let abandoned =
                |name: &String| name.strip_prefix(GROUP_PREFIX).is_some_and(session::is_abandoned);
            for name in names.filter(abandoned) {
                tracing::info!(%handle, name, "ending a session nobody works in");
                end(&group, &name)?;
            }
        }
        Ok(())
    }
}

/// Whether this process may set the limits of every other one; not in some containers.
fn may_limit_others() -> bool {
    let own = rustix::thread::capabilities(None);
    own.is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
}

/// How names of the control groups of sessions begin.
const GROUP_PREFIX: &str = "s-";

fn group_name(session: &str) -> String {
    format!("{GROUP_PREFIX}{session}")
}

/// Kills what a session started; fine when nothing is left of it.
fn end(group: &Group, name: &str) -> io::Result<()> {
    kill_group(&group.of_process(name), KILL_LIMIT)?;
    group.forget_process(name);
    Ok(())
}
