//! `timonier-master`: the replicated store, the doors, the agents' sessions, and the driver that
//! runs the control loops.
//!
//! The edge: clocks, disks, sockets and randomness are here; what to decide is in
//! `timonier-master-core`.

pub mod caller;
pub mod config;
pub mod driver;
pub mod grpc;
pub mod guard;
pub mod incoming;
pub mod masters;
pub mod offline;
pub mod peers;
pub mod pki;
pub mod relay;
pub mod server;
pub mod sessions;
pub mod stamp;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod tokens;

pub use config::Config;
pub use server::{Master, RunningMaster, StartError};
