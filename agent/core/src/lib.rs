//! What an agent decides, in pure code: the life of its pods and the plan of its network.
//!
//! No clock, no I/O, no randomness: time comes in with events, and what is to be done goes out as
//! data.

pub mod net;
pub mod pod;
