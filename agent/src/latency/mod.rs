//! Measures how fast pods answer, as a client next to them sees it: every
//! [`BEAT_INTERVAL_MS`] a new connection, a request, and the whole answer.
//!
//! It judges nothing (what is weak is the master's to say) and keeps nothing but each pod's last
//! latency. A pod never has two requests at a time from here, so measuring does not add to the
//! load of one that is slow already.

mod request;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use timonier_proto::compiled::LatencyMeasurement;
use timonier_proto::latency::BEAT_INTERVAL_MS;
use timonier_proto::v1::LatencyBeat;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

const BEAT_INTERVAL: Duration = Duration::from_millis(BEAT_INTERVAL_MS as u64);
/// Pods times measurements; more are not measured.
const MEASURED_MAX: usize = 1000;
/// Beats that wait for their batch; more are dropped.
const BEATS_WAITING_MAX: usize = 2 * MEASURED_MAX;
/// What a measurement may ask for is held to this.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// A pod whose answers are measured. Only pods that are ready should be: one that is starting
/// refuses, which counts as failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub uid: String,
    pub namespace: String,
    pub pod: String,
    pub ip: IpAddr,
    pub measurements: Vec<LatencyMeasurement>,
}

/// What measures. Ends when dropped.
pub struct Latency {
    measured: Mutex<HashMap<Measured, AbortOnDropHandle<()>>>,
    beats: mpsc::Sender<LatencyBeat>,
    _batches: AbortOnDropHandle<()>,
}

/// One pod by one measurement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Measured {
    uid: String,
    namespace: String,
    pod: String,
    policy: String,
    address: SocketAddr,
    /// `None`: only connect.
    path: Option<String>,
    deadline_ms: u32,
}

impl Latency {
    /// Batches go to `batches`, ten a second while there are any; dropped when it is full.
    /// Must be called in a Tokio runtime.
    pub fn start(batches: mpsc::Sender<Vec<LatencyBeat>>) -> Self {
        let (beats, waiting) = mpsc::channel(BEATS_WAITING_MAX);
        let task = tokio::spawn(batch(waiting, batches));
        Self { measured: Mutex::default(), beats, _batches: AbortOnDropHandle::new(task) }
    }

    /// From now on exactly these are measured. Those that stay are not disturbed. Must be called
    /// in a Tokio runtime.
    pub fn set(&self, targets: Vec<Target>) {
        let mut before = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        for measured in targets.into_iter().flat_map(measured) {
            if now.len() >= MEASURED_MAX {
                tracing::warn!(MEASURED_MAX, "too many latencies to measure; some are left out");
                break;
            }
            let task = before.remove(&measured).unwrap_or_else(|| {
                let task = beat(measured.clone(), self.beats.clone());
                AbortOnDropHandle::new(tokio::spawn(task))
            });
            now.insert(measured, task);
        }
        *before = now;
    }
}

fn measured(target: Target) -> impl Iterator<Item = Measured> {
    let Target { uid, namespace, pod, ip, measurements } = target;
    measurements.into_iter().map(move |measurement| Measured {
        uid: uid.clone(),
        namespace: namespace.clone(),
        pod: pod.clone(),
        policy: measurement.policy,
        address: SocketAddr::new(ip, measurement.port),
        path: measurement.path,
        deadline_ms: measurement.deadline_ms,
    })
}

/// Measures one pod for ever, a request at a time. A tick that finds the last request unanswered
/// starts none, but tells at once that the pod is slow: with the time waited so far, or with the
/// last latency while that is the longer. So a server that always takes half a second shows as
/// just that, and one that hangs shows after one beat.
async fn beat(measured: Measured, beats: mpsc::Sender<LatencyBeat>) {
    // Not all pods in the same instant: they would measure each other.
    let offset = Duration::from_millis(fastrand::u64(0..u64::from(BEAT_INTERVAL_MS)));
    let mut tick = interval_at(Instant::now() + offset, BEAT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let deadline = Duration::from_millis(measured.deadline_ms.max(1).into()).min(DEADLINE_MAX);
    let mut last = Duration::ZERO;
    loop {
        tick.tick().await;
        let start = Instant::now();
        let mut answer = pin!(timeout(deadline, measured.request()));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                _ = tick.tick() => {
                    report(&beats, &measured, start.elapsed().max(last).min(deadline), false);
                }
            }
        };
        let failed = match answer {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::trace!(%error, pod = measured.pod, "no good answer");
                true
            }
            Err(_) => true,
        };
        last = if failed { deadline } else { start.elapsed() };
        report(&beats, &measured, last, failed);
    }
}

impl Measured {
    async fn request(&self) -> Result<(), request::Error> {
        match &self.path {
            Some(path) => request::get(self.address, path).await,
            None => request::connect(self.address).await,
        }
    }
}

fn report(beats: &mpsc::Sender<LatencyBeat>, measured: &Measured, latency: Duration, failed: bool) {
    let beat = LatencyBeat {
        namespace: measured.namespace.clone(),
        policy: measured.policy.clone(),
        pod: measured.pod.clone(),
        latency_us: u32::try_from(latency.as_micros()).unwrap_or(u32::MAX),
        failed,
        at_unix_ms: jiff::Timestamp::now().as_millisecond(),
        ..LatencyBeat::default()
    };
    // Soft state: when nobody takes beats, the next will do.
    let _ = beats.try_send(beat);
}

/// Gathers beats. Does nothing while there are none.
async fn batch(mut waiting: mpsc::Receiver<LatencyBeat>, batches: mpsc::Sender<Vec<LatencyBeat>>) {
    while let Some(first) = waiting.recv().await {
        sleep(BEAT_INTERVAL).await;
        let mut beats = vec![first];
        while beats.len() < BEATS_WAITING_MAX
            && let Ok(beat) = waiting.try_recv()
        {
            beats.push(beat);
        }
        if let Err(mpsc::error::TrySendError::Closed(_)) = batches.try_send(beats) {
            return;
        }
    }
}
