//! LatencyAutoscalers: what is scaled, above which latency, by how much, within which bounds.

use timonier_proto::latency::LatencyAutoscalerSpec;
use timonier_proto::names;

use super::field::{Field, Problems};

/// Above this, in milliseconds, a threshold is a slip.
const LATENCY_MS_MAX: u32 = 600_000;

pub fn check(field: &Field<'_>, spec: &LatencyAutoscalerSpec, problems: &mut Problems) {
    let target = field.name("scaleTargetRef");
    problems.one_of(
        &target.name("kind"),
        &spec.scale_target_ref.kind,
        &["Deployment", "ReplicaSet"],
    );
    let name = spec.scale_target_ref.name.as_str();
    problems.name(&target.name("name"), name, names::dns_subdomain(name));
    if let Some(version) = spec.scale_target_ref.api_version.as_deref() {
        problems.one_of(&target.name("apiVersion"), version, &["apps/v1"]);
    }
    if !(1..=LATENCY_MS_MAX).contains(&spec.latency_milliseconds) {
        let why = format!("must be between 1 and {LATENCY_MS_MAX}, inclusive");
        problems.invalid(&field.name("latencyMilliseconds"), spec.latency_milliseconds, why);
    }
    for (name, value, least) in [
        ("step", spec.step, 1),
        ("minReplicas", spec.min_replicas, 1),
        ("maxReplicas", spec.max_replicas, 1),
        ("cooldownSeconds", spec.cooldown_seconds, 0),
        ("scaleDownSeconds", spec.scale_down_seconds, 0),
    ] {
        problems.at_least(&field.name(name), value.map(i64::from), least);
    }
    if let Some(least) = spec.min_replicas.filter(|least| *least > spec.max_replicas()) {
        let why = format!("must be less than or equal to maxReplicas ({})", spec.max_replicas());
        problems.invalid(&field.name("minReplicas"), least, why);
    }
    let Some(probe) = &spec.probe else { return };
    let field = field.name("probe");
    if probe.port == Some(0) {
        problems.port(&field.name("port"), 0);
    }
    if probe.tcp && probe.path.is_some() {
        problems.forbidden(&field.name("path"), "may not be specified when `tcp` is true");
    }
    if let Some(path) = probe.path.as_deref().filter(|path| !path.starts_with('/')) {
        problems.invalid(&field.name("path"), path, "must be an absolute path, such as /");
    }
}
