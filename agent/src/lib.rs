//! `timonier-agent`: runs a host's pods and tells the masters how they are.
//!
//! The edge: Docker, the kernel's network, files, clocks and sockets are here; what to do is decided
//! in `timonier-agent-core`.

mod blocking;
pub mod config;
pub mod join;
pub mod latency;
pub mod lease;
pub mod net;
pub mod pods;
pub mod probes;
pub mod runtime;
pub mod session;
pub mod shutdown;
pub mod streams;
pub mod telemetry;
pub mod volumes;
