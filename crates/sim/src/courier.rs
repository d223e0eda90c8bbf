//! Who sends messages about the end of tasks, and who gets them.

use model::DeliveryId;
use state::{Command, WorkCommand};

use crate::message::{Event, Found, Origin, Outcomes, Read};
use crate::world::World;

/// How often the courier looks.
const LOOK: u64 = 700;

impl World {
    /// Looks for messages that are to be tried.
    pub(crate) fn courier_looks(&mut self, life: u64) {
        if life != self.shell.life {
            return;
        }
        self.later(LOOK, Event::Courier { life });
        if self.shell.is_serving() {
            self.ask_read(Read::Due(self.wall()), Origin::Courier);
        }
    }

    /// Sends what was found; what becomes of it is a command.
    pub(crate) fn courier_hears(&mut self, outcome: Outcomes) {
        // A refusal says that an earlier try has counted.
        let Outcomes::Found(Found::Due(due)) = outcome else { return };
        for (id, attempts) in due {
            let fails = self.chaos && !self.mood.calm && self.rng.chance(300);
            // Half of what seems to fail has arrived, and only the answer was lost.
            if !fails || self.rng.chance(500) {
                self.note(format_args!("{id} arrives"));
                self.check.received.insert(id);
            }
            let command = if fails {
                let reason = "no answer".to_owned();
                WorkCommand::NotDelivered { id, attempts, reason, give_up: false }
            } else {
                WorkCommand::Delivered { id, attempts }
            };
            self.ask_apply(Command::Work(command), Origin::Courier);
        }
    }

    /// A message that nobody has got.
    pub(crate) fn undelivered(&self) -> Option<DeliveryId> {
        self.check.outbox.first().copied()
    }
}
