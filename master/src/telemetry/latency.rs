//! The response latencies that agents measure: the last seconds of each pod for the autoscaler, and
//! each beat as it comes in for those who watch.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use timonier_master_core::world::LatencySample;
use timonier_proto::latency::LatencyAutoscaler;
use timonier_proto::v1::{BeatsRequest, LatencyBeats};
use timonier_proto::{Kind, ObjectKey};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tonic::Status;

use super::Hub;
use crate::store::Store;

/// Samples older than this are forgotten.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(5);
/// Most samples kept of one pod: five seconds of beats, and some room.
const SAMPLES_PER_POD_MAX: usize = 64;
/// Most policies, and most pods of one, that are kept.
const POLICIES_MAX: usize = 1000;
const PODS_PER_POLICY_MAX: usize = 2000;
/// Batches of beats that a slow watcher may lag behind; older ones are skipped.
const WATCH_LAG_BATCHES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Latency {
    by_policy: Mutex<HashMap<ObjectKey, Pods>>,
    watchers: broadcast::Sender<Arc<LatencyBeats>>,
    /// What this master's own agents measured, for the other masters.
    own: broadcast::Sender<Arc<LatencyBeats>>,
}

type Pods = BTreeMap<String, VecDeque<Sample>>;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    latency_us: u32,
    failed: bool,
}

impl Sample {
    fn shown(&self, now: Timestamp) -> LatencySample {
        let Self { at, latency_us, failed } = *self;
        LatencySample { at: super::ago(now, at), latency_us, failed }
    }
}

/// Beats for one watcher, until it goes.
pub type BeatStream = Pin<Box<dyn Stream<Item = Result<LatencyBeats, Status>> + Send>>;

impl Latency {
    pub fn new() -> Self {
        Self {
            by_policy: Mutex::default(),
            watchers: broadcast::Sender::new(WATCH_LAG_BATCHES_MAX),
            own: broadcast::Sender::new(WATCH_LAG_BATCHES_MAX),
        }
    }

    /// Beats of this master's own agents, from now on.
    pub fn own(&self) -> broadcast::Receiver<Arc<LatencyBeats>> {
        self.own.subscribe()
    }

    /// Of an agent that has a session with this master.
    pub fn add_own(&self, beats: LatencyBeats, now: Instant) {
        if self.own.receiver_count() > 0 {
            let _ = self.own.send(Arc::new(beats.clone()));
        }
        self.add(beats, now);
    }

    /// `now` counts as the time of measurement, since the agents' clocks are not the master's.
    pub fn add(&self, beats: LatencyBeats, now: Instant) {
        {
            let mut by_policy = self.by_policy.lock().unwrap_or_else(PoisonError::into_inner);
            for beat in &beats.beats {
                let key = ObjectKey::new(
                    Kind::LatencyAutoscaler,
                    beat.namespace.as_str(),
                    beat.policy.as_str(),
                );
                let room = by_policy.len() < POLICIES_MAX;
                let Some(pods) = entry(&mut by_policy, key, room) else { continue };
                if !pods.contains_key(&beat.pod) && pods.len() >= PODS_PER_POLICY_MAX {
                    continue;
                }
                let samples = pods.entry(beat.pod.clone()).or_default();
                if samples.len() >= SAMPLES_PER_POD_MAX {
                    samples.pop_front();
                }
                samples.push_back(Sample {
                    at: now,
                    latency_us: beat.latency_us,
                    failed: beat.failed,
                });
            }
        }
        if self.watchers.receiver_count() > 0 {
            // Nobody may be left by now, which is no fault.
            let _ = self.watchers.send(Arc::new(beats));
        }
    }

    /// What is not too old, by a clock that shows `now`; forgets the rest.
    pub fn samples(
        &self,
        now: Timestamp,
    ) -> HashMap<ObjectKey, BTreeMap<String, Vec<LatencySample>>> {
        let mut by_policy = self.by_policy.lock().unwrap_or_else(PoisonError::into_inner);
        if by_policy.is_empty() {
            return HashMap::new();
        }
        by_policy.retain(|_, pods| {
            pods.retain(|_, samples| {
                while samples.front().is_some_and(|sample| sample.at.elapsed() > SAMPLE_AGE_MAX) {
                    samples.pop_front();
                }
                !samples.is_empty()
            });
            !pods.is_empty()
        });
        let copy = |(pod, samples): (&String, &VecDeque<Sample>)| {
            (pod.clone(), samples.iter().map(|sample| sample.shown(now)).collect())
        };
        by_policy.iter().map(|(key, pods)| (key.clone(), pods.iter().map(copy).collect())).collect()
    }
}

fn entry(
    by_policy: &mut HashMap<ObjectKey, Pods>,
    key: ObjectKey,
    room: bool,
) -> Option<&mut Pods> {
    if !room && !by_policy.contains_key(&key) {
        return None;
    }
    Some(by_policy.entry(key).or_default())
}

impl Hub {
    /// The beats of one policy as they come in, each with its target and whether it is weak.
    pub fn beats(&self, store: Store, request: BeatsRequest) -> BeatStream {
        let stream = BroadcastStream::new(self.inner.latency.watchers.subscribe());
        Box::pin(stream.filter_map(move |received| {
            // A watcher that lags misses beats and goes on with the newest.
            let answer = received.ok().and_then(|beats| select(&beats, &store, &request));
            std::future::ready(answer.map(Ok))
        }))
    }
}

fn select(beats: &LatencyBeats, store: &Store, request: &BeatsRequest) -> Option<LatencyBeats> {
    let wanted: Vec<_> = beats
        .beats
        .iter()
        .filter(|beat| beat.policy == request.name && beat.namespace == request.namespace)
        .cloned()
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let snapshot = store.snapshot();
    let policy = snapshot.get::<LatencyAutoscaler>(&request.namespace, &request.name);
    let mut answer = LatencyBeats { beats: wanted };
    if let Some(policy) = policy {
        let threshold_us = u64::from(policy.spec.latency_milliseconds) * 1000;
        for beat in &mut answer.beats {
            beat.weak = beat.failed || u64::from(beat.latency_us) > threshold_us;
            beat.target.clone_from(&policy.spec.scale_target_ref.name);
        }
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use timonier_proto::v1::LatencyBeat;

    use super::*;

    #[test]
    fn samples_are_bounded_and_grow_old() {
        let latency = Latency::new();
        let beat = LatencyBeat {
            namespace: "default".into(),
            policy: "web".into(),
            pod: "web-1".into(),
            latency_us: 900,
            ..Default::default()
        };
        let now = Instant::now();
        if let Some(old) = now.checked_sub(Duration::from_secs(60)) {
            latency.add(LatencyBeats { beats: vec![beat.clone()] }, old);
            assert!(latency.samples(Timestamp::now()).is_empty());
        }
        for _ in 0..200 {
            latency.add(LatencyBeats { beats: vec![beat.clone()] }, now);
        }
        let key = ObjectKey::new(Kind::LatencyAutoscaler, "default", "web");
        assert_eq!(latency.samples(Timestamp::now())[&key]["web-1"].len(), SAMPLES_PER_POD_MAX);
    }
}
