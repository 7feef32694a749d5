//! A pod as an agent gets it: with everything it refers to already resolved, so that an agent
//! reads no API and sees only what its own pods use.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccountTokenProjection};
use serde::{Deserialize, Serialize};

use crate::secret::RegistryCredentials;

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompiledPod {
    pub pod: Pod,
    /// By name, in the pod's namespace; `None` where the object does not exist.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// As the config maps. Only those that volumes and variables refer to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// What its image pull secrets hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryCredentials>,
    /// Tokens of its service account that its volumes show, by [`token_key`]; absent where there is
    /// none to be had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, String>,
    /// Latency measurements wanted of this pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<LatencyMeasurement>,
}

/// Under which a compiled pod has the token: equal ones share it.
pub fn token_key(token: &ServiceAccountTokenProjection) -> String {
    let life_s = token.expiration_seconds.unwrap_or_default();
    format!("{life_s} {}", token.audience.as_deref().unwrap_or_default())
}

/// Without what its secrets keep.
impl fmt::Debug for CompiledPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledPod")
            .field("pod", &self.pod)
            .field("config_maps", &self.config_maps)
            .field("secrets", &self.secrets.keys())
            .field("registries", &self.registries)
            .field("tokens", &self.tokens.keys())
            .field("latency", &self.latency)
            .finish()
    }
}

/// What to measure every [`crate::latency::BEAT_INTERVAL_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyMeasurement {
    /// Name of the LatencyAutoscaler, in the pod's namespace.
    pub policy: String,
    pub port: u16,
    /// HTTP path; `None` means a TCP connect.
    pub path: Option<String>,
    /// Longest wait for an answer, in milliseconds.
    pub deadline_ms: u32,
}
