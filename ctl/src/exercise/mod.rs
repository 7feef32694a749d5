//! The exercise's commands: watch the nodes, scale on measured latency, move to a new image.
//!
//! They only show and ask; measuring is the agents' work and deciding is the master's.

pub mod monitor;
pub mod scale;
pub mod update;

#[cfg(test)]
pub mod script;
