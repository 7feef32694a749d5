//! What this host is and how it is used: read when a heartbeat is due, and kept nowhere.
//!
//! Nothing here sends, waits or keeps a history: the session puts what is read into its
//! heartbeats. A file that is gone or unreadable leaves its value out, or at 0: telemetry never
//! fails.

mod cgroup;
mod facts;
mod host;
mod pods;
#[cfg(test)]
mod tests;

pub use facts::{CapacityOptions, HostFacts, PODS_MAX_DEFAULT, capacity};
pub use host::HostSampler;
pub use pods::PodSampler;
