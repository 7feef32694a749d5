//! Kubernetes' defaults, filled in where a manifest says nothing. Filling twice changes nothing.
//!
//! `terminationMessagePath` and `terminationMessagePolicy` are left empty: no agent reads them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    ClientIPConfig, Container, ContainerPort, DownwardAPIVolumeFile, HTTPGetAction,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, ServiceSpec,
    SessionAffinityConfig, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::Object;
use timonier_proto::latency::LatencyAutoscalerSpec;

use super::access;

/// Seconds that a client stays with one pod under `sessionAffinity: ClientIP`.
const AFFINITY_SECONDS: i32 = 10_800;
const REVISION_HISTORY_LIMIT: i32 = 10;
const PROGRESS_DEADLINE_SECONDS: i32 = 600;
/// Of `maxSurge` and `maxUnavailable`.
const ROLLING_SHARE: &str = "25%";
/// How long a pod's token is valid: an hour.
const TOKEN_SECONDS: i64 = 3600;
/// Mode of a config map's files, and a secret's: 0644.
const FILE_MODE: i32 = 0o644;

pub fn fill(object: &mut Object) {
    match object {
        Object::Pod(pod) => {
            if let Some(spec) = &mut Arc::make_mut(pod).spec {
                pod_spec(spec);
            }
        }
        Object::Deployment(deployment) => {
            if let Some(spec) = &mut Arc::make_mut(deployment).spec {
                deployment_spec(spec);
            }
        }
        Object::ReplicaSet(set) => {
            if let Some(spec) = &mut Arc::make_mut(set).spec {
                spec.replicas.get_or_insert(1);
                if let Some(spec) = &mut spec.template {
                    template(spec);
                }
            }
        }
        Object::Service(service) => {
            if let Some(spec) = &mut Arc::make_mut(service).spec {
                service_spec(spec);
            }
        }
        Object::Secret(secret) => super::secret::fill(secret),
        Object::LatencyAutoscaler(scaler) => latency_spec(&mut Arc::make_mut(scaler).spec),
        Object::RoleBinding(binding) => {
            let binding = Arc::make_mut(binding);
            access::fill(&mut binding.role_ref, binding.subjects.as_deref_mut());
        }
        Object::ClusterRoleBinding(binding) => {
            let binding = Arc::make_mut(binding);
            access::fill(&mut binding.role_ref, binding.subjects.as_deref_mut());
        }
        Object::Namespace(_)
        | Object::Node(_)
        | Object::ConfigMap(_)
        | Object::ServiceAccount(_)
        | Object::ResourceQuota(_)
        | Object::LimitRange(_)
        | Object::PodDisruptionBudget(_)
        | Object::Role(_)
        | Object::ClusterRole(_)
        | Object::Endpoints(_)
        | Object::Event(_) => {}
    }
}

fn set(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

fn template(template: &mut PodTemplateSpec) {
    if let Some(spec) = &mut template.spec {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut PodSpec) {
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(crate::object::GRACE_SECONDS_DEFAULT);
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    let host_network = spec.host_network == Some(true);
    let all = spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut());
    for one in all {
        container(one, host_network);
    }
    for one in spec.volumes.iter_mut().flatten() {
        volume(one);
    }
}

fn container(container: &mut Container, host_network: bool) {
    let image = container.image.as_deref().unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    set(&mut container.image_pull_policy, policy);
    for port in container.ports.iter_mut().flatten() {
        container_port(port, host_network);
    }
    let resources = container.resources.get_or_insert_with(ResourceRequirements::default);
    // A limit without a request asks for as much.
    for (name, limit) in resources.limits.iter().flatten() {
        let requests = resources.requests.get_or_insert_default();
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable.value_from.as_mut().and_then(|v| v.field_ref.as_mut()) {
            set(&mut field.api_version, "v1");
        }
    }
    let probes = [
        &mut container.liveness_probe,
        &mut container.readiness_probe,
        &mut container.startup_probe,
    ];
    for one in probes.into_iter().flatten() {
        probe(one);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        let hooks = [&mut lifecycle.post_start, &mut lifecycle.pre_stop];
        for http in hooks.into_iter().flatten().filter_map(|hook| hook.http_get.as_mut()) {
            http_get(http);
        }
    }
}

fn container_port(port: &mut ContainerPort, host_network: bool) {
    set(&mut port.protocol, "TCP");
    if host_network && port.host_port.unwrap_or(0) == 0 {
        port.host_port = Some(port.container_port);
    }
}

fn probe(probe: &mut Probe) {
    probe.timeout_seconds = Some(probe.timeout_seconds.filter(|v| *v != 0).unwrap_or(1));
    probe.period_seconds = Some(probe.period_seconds.filter(|v| *v != 0).unwrap_or(10));
    probe.success_threshold = Some(probe.success_threshold.filter(|v| *v != 0).unwrap_or(1));
    probe.failure_threshold = Some(probe.failure_threshold.filter(|v| *v != 0).unwrap_or(3));
    if let Some(http) = &mut probe.http_get {
        http_get(http);
    }
}

fn http_get(http: &mut HTTPGetAction) {
    set(&mut http.path, "/");
    set(&mut http.scheme, "HTTP");
}

fn volume(volume: &mut Volume) {
    if let Some(path) = &mut volume.host_path {
        path.type_.get_or_insert_default();
    }
    if let Some(map) = &mut volume.config_map {
        map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
        }
        let items = projected.sources.iter_mut().flatten().filter_map(|s| s.downward_api.as_mut());
        for item in items.flat_map(|d| d.items.iter_mut().flatten()) {
            downward_item(item);
        }
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        for item in downward.items.iter_mut().flatten() {
            downward_item(item);
        }
    }
}

fn downward_item(item: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut item.field_ref {
        set(&mut field.api_version, "v1");
    }
}

/// Kubernetes pulls `:latest`, said or not, each time.
fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn deployment_spec(spec: &mut DeploymentSpec) {
    spec.replicas.get_or_insert(1);
    spec.revision_history_limit.get_or_insert(REVISION_HISTORY_LIMIT);
    spec.progress_deadline_seconds.get_or_insert(PROGRESS_DEADLINE_SECONDS);
    let strategy = spec.strategy.get_or_insert_with(DeploymentStrategy::default);
    set(&mut strategy.type_, "RollingUpdate");
    if strategy.type_.as_deref() == Some("RollingUpdate") {
        let rolling = strategy.rolling_update.get_or_insert_default();
        let share = || IntOrString::String(ROLLING_SHARE.to_owned());
        rolling.max_surge.get_or_insert_with(share);
        rolling.max_unavailable.get_or_insert_with(share);
    }
    template(&mut spec.template);
}

fn service_spec(spec: &mut ServiceSpec) {
    set(&mut spec.type_, "ClusterIP");
    set(&mut spec.session_affinity, "None");
    set(&mut spec.internal_traffic_policy, "Cluster");
    set(&mut spec.ip_family_policy, "SingleStack");
    spec.ip_families.get_or_insert_with(|| vec!["IPv4".to_owned()]);
    if spec.type_.as_deref() == Some("NodePort") {
        set(&mut spec.external_traffic_policy, "Cluster");
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config =
            spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
        client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    for port in spec.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        let unset = matches!(&port.target_port, None | Some(IntOrString::Int(0)))
            || matches!(&port.target_port, Some(IntOrString::String(s)) if s.is_empty());
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
        port.node_port = port.node_port.filter(|p| *p != 0);
    }
}

fn latency_spec(spec: &mut LatencyAutoscalerSpec) {
    spec.step = Some(spec.step());
    spec.max_replicas = Some(spec.max_replicas());
    spec.cooldown_seconds = Some(spec.cooldown_seconds());
    spec.scale_down_seconds = Some(spec.scale_down_seconds());
}
