//! The decisions of a master, as pure functions of immutable data: what a write does to the state
//! ([`apply`]), and what should be written next ([`reconcile`], [`schedule`]).
//!
//! Nothing in this crate touches a clock, a disk or a network; its dependencies keep it so.

pub mod access;
pub mod admission;
pub mod apply;
pub mod disruption;
pub mod endpoints;
#[cfg(test)]
mod harness;
pub mod hash;
pub mod invariants;
pub mod ipam;
pub mod level;
pub mod object;
pub mod op;
pub mod patch;
pub mod policy;
pub mod reconcile;
pub mod rollout;
pub mod schedule;
pub mod snapshot;
pub mod world;
