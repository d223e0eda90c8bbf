//! The outbox: messages about the end of tasks, until whoever they are for has taken them.
//!
//! A message is a row made in the command that ends the task, so there is no moment in which the end
//! is durable and the message is not. Who sends them is outside; here is when, how often, and when
//! it is enough.

use std::sync::Arc;
use std::time::Duration;

use model::{DeliveryId, ProjectId, TaskId, Time};

use crate::command::{Refusal, Reply};
use crate::records::{Callback, Delivery, Retiring, Secret, Signing, Task};
use crate::tables::Core;

/// The pause after the first try that failed; it doubles.
pub const DELIVERY_BASE: Duration = Duration::from_secs(1);
/// The longest pause.
pub const DELIVERY_CAP: Duration = Duration::from_hours(1);
/// How long a message is tried before it is given up.
pub const DELIVERY_LIFE: Duration = Duration::from_hours(24);
/// How long a secret that was replaced still signs beside the new one.
pub const SECRET_OVERLAP: Duration = Duration::from_hours(24);
/// Most characters that are kept of why a message was not taken.
pub const MAX_DELIVERY_REASON: usize = 500;

/// The id of the message about a task; it follows from the task, so it is the same for ever.
pub const fn delivery_id(task: TaskId) -> DeliveryId {
    DeliveryId(task.0)
}

fn pause(attempts: u32) -> Duration {
    let doubled = 2_u32.checked_pow(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    DELIVERY_BASE.saturating_mul(doubled).min(DELIVERY_CAP)
}

impl Core {
    /// Puts the message about the end of a task into the outbox, where somebody wants one.
    pub(crate) fn call_back(&mut self, now: Time, row: &mut Task) {
        let (Some(url), Some(project)) = (row.spec.callback.clone(), row.project) else { return };
        row.callback = Some(Callback::Waiting);
        #[cfg(feature = "planted")]
        if crate::planted::is("M15") {
            // The message comes with the next tick: in another transaction than the end.
            self.late.push(row.id);
            return;
        }
        self.put_message(now, row.id, (project, url));
    }

    fn put_message(&mut self, now: Time, task: TaskId, (project, url): (ProjectId, String)) {
        let (id, created_at) = (delivery_id(task), now);
        self.put(Delivery {
            id,
            task,
            project,
            url,
            attempts: 0,
            due: now,
            created_at,
            last: None,
        });
    }

    #[cfg(feature = "planted")]
    pub(crate) fn planted_late(&mut self, now: Time) {
        for task in std::mem::take(&mut self.late) {
            let Some(row) = self.get::<Task>(task).cloned() else { continue };
            if let (Some(url), Some(project)) = (row.spec.callback.clone(), row.project) {
                self.put_message(now, task, (project, url));
            }
        }
    }

    fn delivery(&self, id: DeliveryId, attempts: u32) -> Result<Arc<Delivery>, Refusal> {
        let row = self.get::<Delivery>(id).ok_or_else(|| Refusal::not_found("delivery", id))?;
        if row.attempts == attempts {
            Ok(Arc::clone(row))
        } else {
            Err(Refusal::stale("delivery", id))
        }
    }

    pub(crate) fn delivered(
        &mut self,
        now: Time,
        id: DeliveryId,
        attempts: u32,
    ) -> Result<Reply, Refusal> {
        let row = self.delivery(id, attempts)?;
        self.close_delivery(&row, Callback::Delivered { at: now });
        Ok(Reply::Done)
    }

    pub(crate) fn not_delivered(
        &mut self,
        now: Time,
        (id, attempts): (DeliveryId, u32),
        reason: &str,
        give_up: bool,
    ) -> Result<Reply, Refusal> {
        let row = self.delivery(id, attempts)?;
        let reason: String = reason.chars().take(MAX_DELIVERY_REASON).collect();
        let attempts = row.attempts.saturating_add(1);
        let due = now.after(pause(attempts));
        if give_up || due > row.created_at.after(DELIVERY_LIFE) {
            self.close_delivery(&row, Callback::GivenUp { at: now, reason });
        } else {
            self.put(Delivery { attempts, due, last: Some(reason), ..(*row).clone() });
        }
        Ok(Reply::Done)
    }

    fn close_delivery(&mut self, row: &Delivery, how: Callback) {
        self.delete::<Delivery>(row.id);
        if let Some(task) = self.get::<Task>(row.task).cloned() {
            self.put(Task { callback: Some(how), ..(*task).clone() });
        }
    }

    /// A project goes, and with it what it wanted to be told.
    pub(crate) fn forget_deliveries(&mut self, now: Time, project: ProjectId) {
        let all = self.tables.deliveries.values();
        let own: Vec<_> = all.filter(|row| row.project == project).cloned().collect();
        for row in own {
            let reason = "its project was removed".to_owned();
            self.close_delivery(&row, Callback::GivenUp { at: now, reason });
        }
        if self.get::<Signing>(project).is_some() {
            self.delete::<Signing>(project);
        }
    }

    pub(crate) fn sign(
        &mut self,
        now: Time,
        id: ProjectId,
        secret: Secret,
        rotate: bool,
    ) -> Result<Reply, Refusal> {
        self.project(id)?;
        let known = self.get::<Signing>(id).cloned();
        let before = match known {
            Some(known) if !rotate => return Ok(Reply::Signing(known)),
            Some(known) => {
                let until = now.after(SECRET_OVERLAP);
                Some(Retiring { secret: known.secret.clone(), until })
            }
            None => None,
        };
        self.put(Signing { id, secret, before, since: now });
        let row = self.get::<Signing>(id).cloned();
        row.map(Reply::Signing).ok_or_else(|| Refusal::not_found("project", id))
    }

    /// The secret before the last change is not used any more.
    pub(crate) fn signing_due(&mut self, id: ProjectId) {
        if let Some(row) = self.get::<Signing>(id).cloned() {
            self.put(Signing { before: None, ..(*row).clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour() {
        assert_eq!([1, 2, 3, 12].map(|n| pause(n).as_secs()), [1, 2, 4, 2_048]);
        assert_eq!([13, 40, u32::MAX].map(pause), [DELIVERY_CAP; 3]);
    }
}
