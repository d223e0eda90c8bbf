//! Placement: which cell takes what. Pure: cells and requests in, cells or reasons out.
//!
//! [`Cells`] is an index that is kept up while things change: [`Cells::put_cell`],
//! [`Cells::hold`], [`Cells::release`]. [`Cells::place_batch`] places what waits;
//! [`Cells::rebalance`] proposes moves. What it answers depends on what is there, not on the order
//! in which it came, so an index that is made anew answers the same.
//!
//! # The rule
//!
//! 1. Only cells that take work, have everything the request needs and have room are looked at.
//! 2. Among these, the zones with the fewest copies of the group. A full zone is passed over.
//! 3. Among these, the cells with the fewest copies of the group.
//! 4. Among these, the cell with the lowest *score*; ties go to the lowest identifier.
//!
//! The score is how full a cell is in what it is shortest of (memory, disk, containers, CPU shares
//! or processes), plus the same of what is starting there, [`STARTING_WEIGHT`] times. Cells that
//! are alike in this are told apart by how full they are in everything together. All of it is in
//! whole numbers. `docs/decisions/0013-placement-by-the-scarcest-resource.md` says why.
//!
//! # How it is fast
//!
//! Cells that no request can tell apart but by their score are in one class (`classes.rs`), and a
//! tournament tree for each class (`tree.rs`) finds the lowest score without looking at the
//! others. Where a group has copies is known for each group (`groups.rs`). So a placement costs as
//! much as the number of classes, and hardly more with more cells.

#![expect(
    clippy::cast_possible_truncation,
    reason = "cells, groups and items are numbered in 32 bits: there are fewer than 4,294,967,295"
)]

mod batch;
mod cells;
mod choose;
mod classes;
mod groups;
mod rebalance;
mod request;
mod size;
mod tree;
mod unplaced;

pub use batch::{Item, Turn};
pub use cells::{Cells, Load, STARTING_WEIGHT, Weights};
pub use rebalance::{Budget, Move};
pub use request::{
    CellInfo, DEFAULT_DISK_MB, DEFAULT_MEMORY_MB, Needs, Offers, Request, Room, Stage,
};
pub use unplaced::{PinnedWhy, Resource, Unplaced};
