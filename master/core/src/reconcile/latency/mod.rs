//! LatencyAutoscaler: more replicas while the workload answers too slowly, fewer when it has been
//! good for long enough. The agents measure; this only compares and counts.

mod policy;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use timonier_proto::latency::{LatencyAutoscaler, LatencyAutoscalerStatus};
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

use self::policy::{Step, decide};
use super::Reconciler;
use super::record::Recorder;
use crate::object::{after_millis, after_seconds, is_ending, is_ready, key_of, stored_time};
use crate::op::{Change, Op};
use crate::snapshot::Snapshot;
use crate::world::{LatencySample, Plan, World};

/// Time between two looks: a few of the agents' beats.
const LOOK_INTERVAL_MS: i64 = 250;
/// What is compared is the median of each pod's samples of this long.
const WINDOW_MS: i64 = 1_000;
/// Samples older than this say nothing about now.
const SAMPLE_AGE_MS_MAX: i64 = 3_000;
/// The status follows the measured latency at most this often.
const STATUS_INTERVAL_SECONDS: i64 = 2;
/// A reason for not scaling is said again after this long.
const QUIET_SECONDS: i64 = 300;

/// The latency loop; keys are latency autoscalers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatencyLoop;

impl Reconciler for LatencyLoop {
    fn name(&self) -> &'static str {
        "latency-autoscaler"
    }

    fn keys(&self, change: &Change, _snapshot: &Snapshot) -> Vec<ObjectKey> {
        // Everything else that matters is seen at the next look, which is never far.
        (change.key.kind == Kind::LatencyAutoscaler)
            .then(|| change.key.clone())
            .into_iter()
            .collect()
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<LatencyAutoscaler>(None).map(|a| key_of(&**a)).collect()
    }

    fn reads_telemetry(&self) -> bool {
        true
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(scaler) = world.snapshot.get::<LatencyAutoscaler>(&key.namespace, &key.name)
        else {
            return Plan::default();
        };
        if is_ending(&scaler.metadata) {
            return Plan::default();
        }
        let recorder = Recorder { component: "latency-autoscaler", now: world.now };
        let again_at = Some(after_millis(world.now, LOOK_INTERVAL_MS));
        let say = |reason: &str, message: String| {
            let event =
                recorder.warning_once(&world.snapshot, &**scaler, reason, message, QUIET_SECONDS);
            Plan { ops: event.into_iter().collect(), again_at, ..Plan::default() }
        };
        let reference = &scaler.spec.scale_target_ref;
        let described = format!("{} {}", reference.kind.to_ascii_lowercase(), reference.name);
        let Some(target) = Target::find(world, scaler) else {
            let message = format!("{described} not found: nothing is scaled");
            return say("TargetNotFound", message);
        };
        let Some(median_us) = median_us(world, key) else {
            if target.replicas == 0 {
                return Plan { again_at, ..Plan::default() };
            }
            let message = format!(
                "no latency of {described} was measured in the last {} s: it is left at {} replicas",
                SAMPLE_AGE_MS_MAX / 1000,
                target.replicas
            );
            return say("LatencyUnknown", message);
        };
        let mut plan = Plan { again_at, ..Plan::default() };
        let stored = scaler.status.clone().unwrap_or_default();
        let (status, step) =
            decide(&scaler.spec, &stored, target.replicas, median_us, stored_time(world.now));
        match &step {
            Step::Stay => {}
            Step::To { replicas, why } => {
                plan.ops.push(Op::Replace(target.scaled(*replicas)));
                let message =
                    format!("{why}: scaled {described} from {} to {replicas}", target.replicas);
                plan.ops.push(recorder.normal(&**scaler, "SuccessfulRescale", message));
            }
            Step::Refused { why } => {
                let event = recorder.warning_once(
                    &world.snapshot,
                    &**scaler,
                    "ScalingLimited",
                    why.clone(),
                    QUIET_SECONDS,
                );
                plan.ops.extend(event);
            }
        }
        if is_worth_writing(&stored, &status, world.now) {
            let mut scaler = LatencyAutoscaler::clone(scaler);
            scaler.status = Some(status);
            plan.ops.push(Op::ReplaceStatus(scaler.into_object()));
        }
        plan
    }
}

/// At once when something was decided, else now and then.
fn is_worth_writing(
    stored: &LatencyAutoscalerStatus,
    status: &LatencyAutoscalerStatus,
    now: Timestamp,
) -> bool {
    let settled = |s: &LatencyAutoscalerStatus| LatencyAutoscalerStatus {
        latency_microseconds: None,
        measured_at: None,
        ..s.clone()
    };
    if settled(stored) != settled(status) {
        return true;
    }
    let is_due = stored
        .measured_at
        .as_ref()
        .is_none_or(|at| after_seconds(at.0, STATUS_INTERVAL_SECONDS) <= now);
    is_due && stored.latency_microseconds != status.latency_microseconds
}

/// The workload that is scaled.
struct Target {
    object: Object,
    replicas: i32,
}

impl Target {
    fn find(world: &World, scaler: &LatencyAutoscaler) -> Option<Self> {
        let reference = &scaler.spec.scale_target_ref;
        let namespace = scaler.metadata.namespace.as_deref().unwrap_or_default();
        let kind = match reference.kind.as_str() {
            "Deployment" => Kind::Deployment,
            "ReplicaSet" => Kind::ReplicaSet,
            _ => return None,
        };
        let object = world.snapshot.object(&ObjectKey::new(kind, namespace, &reference.name))?;
        let replicas = match object {
            Object::Deployment(d) => d.spec.as_ref()?.replicas,
            Object::ReplicaSet(s) => s.spec.as_ref()?.replicas,
            _ => None,
        };
        (!is_ending(object.meta()))
            .then(|| Self { object: object.clone(), replicas: replicas.unwrap_or(1) })
    }

    /// The object with that many replicas; its resourceVersion stays, so that a change made
    /// meanwhile is not undone.
    fn scaled(&self, replicas: i32) -> Object {
        match &self.object {
            Object::Deployment(d) => {
                let mut d = Deployment::clone(d);
                d.spec.get_or_insert_default().replicas = Some(replicas);
                d.into_object()
            }
            Object::ReplicaSet(s) => {
                let mut s = ReplicaSet::clone(s);
                s.spec.get_or_insert_default().replicas = Some(replicas);
                s.into_object()
            }
            other => other.clone(),
        }
    }
}

/// Median over the target's ready pods of each pod's median of the last second. A pod that isn't
/// ready gets no requests, so its silence says nothing about the workload.
fn median_us(world: &World, key: &ObjectKey) -> Option<u32> {
    let pods = world.telemetry.latency.get(key)?;
    let oldest = after_millis(world.now, -SAMPLE_AGE_MS_MAX);
    let mut medians: Vec<u32> = pods
        .iter()
        .filter(|(name, _)| {
            world.snapshot.get::<Pod>(&key.namespace, name).is_some_and(|pod| is_ready(pod))
        })
        .filter_map(|(_, samples)| {
            let last = samples.iter().map(|s| s.at).max().filter(|at| *at >= oldest)?;
            let from = after_millis(last, -WINDOW_MS);
            let in_window = |s: &&LatencySample| s.at > from;
            middle(samples.iter().filter(in_window).map(|s| s.latency_us).collect())
        })
        .collect();
    middle(std::mem::take(&mut medians))
}

/// The middle value, the upper of two.
fn middle(mut values: Vec<u32>) -> Option<u32> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
