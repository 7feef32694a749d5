//! What the lifecycle needs to know of a pod's spec, read once.

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Probe, ResourceRequirements};
use timonier_proto::quantity::parse_millis;

/// Kubernetes' default grace period, in seconds.
pub const GRACE_DEFAULT_S: u32 = 30;

#[derive(Debug, Clone, PartialEq)]
pub struct PodPlan {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub host_ip: String,
    pub host_network: bool,
    pub restart: RestartPolicy,
    pub grace_s: u32,
    /// `Guaranteed`, `Burstable` or `BestEffort`.
    pub qos: &'static str,
    pub init: Vec<ContainerPlan>,
    pub main: Vec<ContainerPlan>,
    /// The status as the master has it, for what only it knows and for a start after a restart.
    pub prior: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    pub name: String,
    pub image: String,
    pub pull: PullPolicy,
    /// An init container that goes on running beside the main ones (`restartPolicy: Always`).
    pub sidecar: bool,
    pub post_start: bool,
    pub pre_stop: bool,
    pub startup: Option<ProbePlan>,
    pub liveness: Option<ProbePlan>,
    pub readiness: Option<ProbePlan>,
    /// Of what a running container cannot take over.
    pub spec_hash: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePlan {
    pub initial_delay_s: i64,
    pub period_s: i64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    /// Instead of the pod's, when this probe has the container killed.
    pub grace_s: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PodPlan {
    /// Unset fields mean what Kubernetes' defaults say.
    pub fn of(pod: &Pod, host_ip: &str) -> Self {
        let spec = pod.spec.as_ref();
        let containers = |list: &[Container]| list.iter().map(ContainerPlan::of).collect();
        let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let grace = spec.and_then(|s| s.termination_grace_period_seconds);
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            host_ip: host_ip.to_owned(),
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            restart: match spec.and_then(|s| s.restart_policy.as_deref()) {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            grace_s: grace.map_or(GRACE_DEFAULT_S, |s| s.clamp(0, i64::from(u32::MAX)) as u32),
            qos: qos_class(init.iter().chain(main)),
            init: containers(init),
            main: containers(main),
            prior: pod.status.clone().unwrap_or_default(),
        }
    }

    /// Whether the containers join a sandbox instead of being one container with a network of
    /// its own.
    pub fn needs_sandbox(&self) -> bool {
        !self.host_network && self.init.len() + self.main.len() > 1
    }
}

impl ContainerPlan {
    fn of(container: &Container) -> Self {
        let image = container.image.clone().unwrap_or_default();
        let lifecycle = container.lifecycle.as_ref();
        Self {
            name: container.name.clone(),
            pull: match container.image_pull_policy.as_deref() {
                Some("Always") => PullPolicy::Always,
                Some("Never") => PullPolicy::Never,
                Some(_) => PullPolicy::IfNotPresent,
                None if is_latest(&image) => PullPolicy::Always,
                None => PullPolicy::IfNotPresent,
            },
            sidecar: container.restart_policy.as_deref() == Some("Always"),
            post_start: lifecycle.is_some_and(|l| l.post_start.is_some()),
            pre_stop: lifecycle.is_some_and(|l| l.pre_stop.is_some()),
            startup: container.startup_probe.as_ref().map(ProbePlan::of),
            liveness: container.liveness_probe.as_ref().map(ProbePlan::of),
            readiness: container.readiness_probe.as_ref().map(ProbePlan::of),
            spec_hash: spec_hash(container),
            image,
        }
    }
}

impl ProbePlan {
    fn of(probe: &Probe) -> Self {
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            initial_delay_s: i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)),
            period_s: i64::from(count(probe.period_seconds, 10)),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
            grace_s: probe.termination_grace_period_seconds.and_then(|s| u32::try_from(s).ok()),
        }
    }
}

/// Kubernetes pulls `:latest`, said or not, each time.
fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// A short hash of a container's spec, to tell whether a running one is still what is wanted.
/// FNV-1a: stable over versions, and nothing here is an adversary.
pub fn spec_hash(container: &Container) -> String {
    let text = serde_json::to_vec(container).unwrap_or_default();
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn qos_class<'a>(containers: impl Iterator<Item = &'a Container>) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        let none = ResourceRequirements::default();
        let resources = container.resources.as_ref().unwrap_or(&none);
        for name in ["cpu", "memory"] {
            let millis = |list: &Option<std::collections::BTreeMap<String, _>>| {
                let quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                    list.as_ref().and_then(|list| list.get(name));
                quantity.and_then(|q| parse_millis(&q.0).ok()).filter(|v| *v > 0)
            };
            let (request, limit) = (millis(&resources.requests), millis(&resources.limits));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
