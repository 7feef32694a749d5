//! `LatencyAutoscaler` (`autoscaling.timonier.io/v1`): scale a workload on the response latency
//! that the agents measure, ten times a second, next to its pods.
//!
//! It is what `timonctl scale NAME --latency MS --by N` declares.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

/// Time between two measurements of one pod, in milliseconds.
pub const BEAT_INTERVAL_MS: u32 = 100;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatencyAutoscaler {
    pub metadata: ObjectMeta,
    pub spec: LatencyAutoscalerSpec,
    pub status: Option<LatencyAutoscalerStatus>,
}

/// All durations in seconds, latency in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyAutoscalerSpec {
    pub scale_target_ref: ScaleTargetRef,
    /// Above this the workload is weak.
    pub latency_milliseconds: u32,
    /// Replicas added each time the workload turns weak. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Default: the replicas the target had when the autoscaler was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    /// Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<i32>,
    /// No second scale-up before this. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown_seconds: Option<i32>,
    /// Good for this long before one step is taken back. Default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down_seconds: Option<i32>,
    /// What is measured; default: `GET /` on the first container port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<LatencyProbe>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTargetRef {
    /// `apps/v1`; may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Deployment or ReplicaSet.
    pub kind: String,
    pub name: String,
}

/// An HTTP GET, or a TCP connect when `path` is `None` and `tcp` is true.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyProbe {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tcp: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyAutoscalerStatus {
    /// `Good` or `Weak`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Median over the target's pods and the last second, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_microseconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_replicas: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// Since when the workload has been good without a break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_since: Option<Time>,
    /// When `latency_microseconds` was last written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<Time>,
    /// Replicas the target had when the autoscaler first saw it: the default minimum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_replicas: Option<i32>,
}

const API_VERSION: &str = "autoscaling.timonier.io/v1";
const KIND: &str = "LatencyAutoscaler";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<S, M, T> {
    api_version: S,
    kind: S,
    metadata: M,
    spec: T,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<LatencyAutoscalerStatus>,
}

impl Serialize for LatencyAutoscaler {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire {
            api_version: API_VERSION,
            kind: KIND,
            metadata: &self.metadata,
            spec: &self.spec,
            status: self.status.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LatencyAutoscaler {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::<String, ObjectMeta, LatencyAutoscalerSpec>::deserialize(deserializer)?;
        if wire.kind != KIND {
            return Err(serde::de::Error::invalid_value(
                serde::de::Unexpected::Str(&wire.kind),
                &KIND,
            ));
        }
        Ok(Self { metadata: wire.metadata, spec: wire.spec, status: wire.status })
    }
}

impl LatencyAutoscalerSpec {
    pub fn step(&self) -> i32 {
        self.step.unwrap_or(1)
    }
    pub fn max_replicas(&self) -> i32 {
        self.max_replicas.unwrap_or(10)
    }
    pub fn cooldown_seconds(&self) -> i32 {
        self.cooldown_seconds.unwrap_or(5)
    }
    pub fn scale_down_seconds(&self) -> i32 {
        self.scale_down_seconds.unwrap_or(60)
    }
}
