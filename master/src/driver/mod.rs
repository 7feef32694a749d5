//! The one loop that runs every reconciler, on the leader only.

use std::future::Future;
use std::sync::Arc;

use timonier_master_core::world::Telemetry;

/// Where the driver learns what the agents last said; the telemetry hub implements it.
pub trait Signals: Clone + Send + Sync + 'static {
    /// The soft state as it is now.
    fn signals(&self) -> Arc<Telemetry>;

    /// Resolves when an agent connected, disconnected, or became able or unable to run pods since
    /// the last call. May resolve too often.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}
