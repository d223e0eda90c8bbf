//! Processes that somebody works with.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Inner, slots, start};
use crate::driver::{Session, Terminal};
use crate::error::{Context as _, DriverError, Result};
use crate::shim::Through;
use crate::shim::session::{Request, Start, dir};
use crate::spec::{Handle, ProcessSpec};

impl Inner {
    pub(super) async fn session(
        &self,
        handle: &Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> Result<Session> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        spec.check()?;
        self.available()?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        let (place, init) = self.running(handle)?;
        let command = spec.argv.first().cloned().unwrap_or_default();
        let refuse = |fault| DriverError::Start { command: command.clone(), fault };
        let process =
            start::process(&container, &spec, (&place, init), terminal).map_err(refuse)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("s-{}-{number}", std::process::id());
        let group = self.group(handle);
        let option = group.make_process(&name).context(|| "make a control group".to_owned())?;
        let through = Through {
            before: self.exec_command(&["--detach", "--cgroup", &option]),
            after: vec![handle.to_string()],
            process,
            oom_file: None,
        };
        let (dir, of) = (dir(slots::RUN.as_ref(), number), group.of_process(&name));
        let start = Start::Through { through, dir, group: of };
        let session = self.kept.keep_session(&Request { start, terminal }).await;
        if session.is_err() {
            group.forget_process(&name);
        }
        // The keeper is reaped in the background.
        session.map(|(session, _keeper)| session).map_err(refuse)
    }
}
