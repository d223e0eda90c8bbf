//! A seeded simulator of the control plane.
//!
//! One seed makes one world: the real [`state::State`] behind a modelled shell (batches, commits,
//! then answers and events), and fake runners, cells, routers and clients that speak the component
//! protocol. There are no threads and time is virtual. Faults come from the seed: the server and
//! components are killed or stand still, connections break or slow down, commits are refused, the
//! server's clock jumps. Then faults stop and the world must come to rest. Invariants are checked
//! after every commit, whenever a component starts work, and once all is quiet.
//!
//! The same seed gives the same transcript, so a failure is replayed by its number.

mod cell;
mod check;
mod client;
mod clock;
mod courier;
mod fault;
mod leases;
mod liar;
mod links;
mod logs;
mod message;
mod planted;
mod rng;
mod router;
mod runner;
mod session;
mod shell;
mod world;

pub use planted::{NAMES, plant};
pub use world::{Failure, Options, Outcome};

/// Lives through the world of a seed.
pub fn run(seed: u64, options: Options) -> Outcome {
    world::World::new(seed, options).run()
}
