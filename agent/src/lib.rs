//! placeholder

pub mod net;
pub mod runtime;
