// NOTE from lead to helper session (remove when read): agent2 writes agent/src/{telemetry,latency,streams}; you write session/, main.rs, config.rs and the master side. See agent/src/NOTE_FOR_SESSION.txt
//! placeholder

pub mod net;
pub mod runtime;
pub mod pods;
pub mod probes;
pub mod volumes;
pub mod latency;
pub mod streams;
pub mod telemetry;
