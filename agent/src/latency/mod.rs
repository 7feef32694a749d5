//! Measures how fast pods answer, as a client next to them sees it, every
//! [`BEAT_INTERVAL_MS`](timonier_proto::latency::BEAT_INTERVAL_MS).

use std::net::IpAddr;

use timonier_proto::compiled::LatencyMeasurement;
use timonier_proto::v1::LatencyBeat;
use tokio::sync::mpsc;

/// A pod whose answers are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub uid: String,
    pub namespace: String,
    pub pod: String,
    pub ip: IpAddr,
    pub measurements: Vec<LatencyMeasurement>,
}

/// What measures. Ends when dropped.
pub struct Latency {}

impl Latency {
    /// Batches go to `beats`, ten a second while there are any; dropped when it is full.
    /// Must be called in a Tokio runtime.
    pub fn start(beats: mpsc::Sender<Vec<LatencyBeat>>) -> Self {
        let _ = beats;
        Self {}
    }

    /// From now on exactly these are measured. Those that stay are not disturbed. Must be called
    /// in a Tokio runtime.
    pub fn set(&self, targets: Vec<Target>) {
        let _ = targets;
    }
}
