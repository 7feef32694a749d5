//! Pod specs, alone or in a template. What the agents cannot do is refused by name.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, PodTemplateSpec};
use timonier_proto::names;

use super::container::{self, Kind};
use super::field::{Field, Problems};
use super::unique;
use super::{meta, volume};

/// Grace periods above a year are slips.
const GRACE_SECONDS_MAX: i64 = 365 * 24 * 3600;

/// Reports each field that is set although nothing here acts on it.
macro_rules! unsupported {
    ($problems:ident, $field:ident, $of:expr, { $($member:ident: $name:literal, $instead:literal;)* }) => {
        $(if super::pod::says_something(&$of.$member) {
            $problems.not_supported(&$field.name($name), $instead);
        })*
    };
}
pub(super) use unsupported;

/// Whether an optional field asks for anything: an empty list or string, or `false`, does not.
pub(super) fn says_something<T: Asks>(field: &Option<T>) -> bool {
    field.as_ref().is_some_and(Asks::asks)
}

pub(super) trait Asks {
    fn asks(&self) -> bool {
        true
    }
}

impl Asks for bool {
    fn asks(&self) -> bool {
        *self
    }
}

impl Asks for String {
    fn asks(&self) -> bool {
        !self.is_empty()
    }
}

impl<T> Asks for Vec<T> {
    fn asks(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> Asks for std::collections::BTreeMap<K, V> {
    fn asks(&self) -> bool {
        !self.is_empty()
    }
}

macro_rules! always_asks {
    ($($type:ident),*) => { $(impl Asks for k8s_openapi::api::core::v1::$type {})* };
}

always_asks!(
    Affinity,
    AppArmorProfile,
    GRPCAction,
    PodOS,
    ResourceRequirements,
    SELinuxOptions,
    FileKeySelector,
    WindowsSecurityContextOptions,
    WorkloadReference
);

impl Asks for i32 {}
impl Asks for i64 {}

pub fn check(field: &Field<'_>, spec: &PodSpec, problems: &mut Problems) {
    check_supported(field, spec, problems);
    let volumes = volume::check(&field.name("volumes"), spec, problems);
    let host_network = spec.host_network == Some(true);
    let mut names = BTreeSet::new();
    let init = field.name("initContainers");
    for (index, one) in spec.init_containers.iter().flatten().enumerate() {
        let context = container::Context { kind: Kind::Init, volumes: &volumes, host_network };
        container::check(&init.index(index), one, &context, &mut names, problems);
    }
    let main = field.name("containers");
    if spec.containers.is_empty() {
        problems.required(&main, "");
    }
    for (index, one) in spec.containers.iter().enumerate() {
        let context = container::Context { kind: Kind::Main, volumes: &volumes, host_network };
        container::check(&main.index(index), one, &context, &mut names, problems);
    }
    host_ports(&main, spec, problems);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    problems.one_of(
        &field.name("restartPolicy"),
        &text(&spec.restart_policy),
        &["Always", "OnFailure", "Never"],
    );
    problems.one_of(
        &field.name("dnsPolicy"),
        &text(&spec.dns_policy),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    let grace = field.name("terminationGracePeriodSeconds");
    problems.at_least(&grace, spec.termination_grace_period_seconds, 0);
    if let Some(value) =
        spec.termination_grace_period_seconds.filter(|value| *value > GRACE_SECONDS_MAX)
    {
        let why = format!("must be less than or equal to {GRACE_SECONDS_MAX}");
        problems.invalid(&grace, value, why);
    }
    meta::labels(&field.name("nodeSelector"), spec.node_selector.as_ref(), problems);
    for (name, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            problems.name(&field.name(name), value, names::dns_label(value));
        }
    }
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        problems.name(&field.name("nodeName"), node, names::dns_subdomain(node));
    }
    tolerations(&field.name("tolerations"), spec, problems);
    let pulls = field.name("imagePullSecrets");
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let field = pulls.index(index);
        problems.name(&field.name("name"), &secret.name, names::dns_subdomain(&secret.name));
    }
    if let Some(context) = &spec.security_context {
        security(&field.name("securityContext"), context, problems);
    }
}

/// The template of a workload: no more than its labels and its spec.
pub fn template(field: &Field<'_>, template: &PodTemplateSpec, problems: &mut Problems) {
    let metadata = field.name("metadata");
    if let Some(meta) = &template.metadata {
        meta::labels(&metadata.name("labels"), meta.labels.as_ref(), problems);
        meta::annotations(&metadata.name("annotations"), meta.annotations.as_ref(), problems);
        unique::annotation(&metadata.name("annotations"), meta.annotations.as_ref(), problems);
    }
    match &template.spec {
        Some(spec) => check(&field.name("spec"), spec, problems),
        None => problems.required(&field.name("spec"), ""),
    }
}

fn check_supported(field: &Field<'_>, spec: &PodSpec, problems: &mut Problems) {
    unsupported!(problems, field, spec, {
        affinity: "affinity", "use nodeSelector";
        topology_spread_constraints: "topologySpreadConstraints", "replicas are spread over the nodes anyway";
        active_deadline_seconds: "activeDeadlineSeconds", "";
        ephemeral_containers: "ephemeralContainers", "";
        priority_class_name: "priorityClassName", "";
        runtime_class_name: "runtimeClassName", "";
        readiness_gates: "readinessGates", "";
        scheduling_gates: "schedulingGates", "";
        resource_claims: "resourceClaims", "";
        resources: "resources", "set the resources of each container";
        overhead: "overhead", "";
        hostname_override: "hostnameOverride", "use hostname";
        set_hostname_as_fqdn: "setHostnameAsFQDN", "";
        share_process_namespace: "shareProcessNamespace", "";
        workload_ref: "workloadRef", "";
    });
    if spec.host_users == Some(false) {
        problems.not_supported(&field.name("hostUsers"), "");
    }
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    if let Some(name) = account {
        problems.name(&field.name("serviceAccountName"), name, names::dns_subdomain(name));
    }
    if spec.service_account.as_deref().is_some_and(|old| !old.is_empty() && Some(old) != account) {
        problems.not_supported(&field.name("serviceAccount"), "use serviceAccountName");
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        problems.not_supported(&field.name("os"), "only linux");
    }
    if spec.priority.is_some_and(|priority| priority != 0) {
        problems.not_supported(&field.name("priority"), "");
    }
    if spec.scheduler_name.as_deref().is_some_and(|name| name != "default-scheduler") {
        problems.not_supported(&field.name("schedulerName"), "only default-scheduler");
    }
}

/// One host port cannot be two containers' of one pod.
fn host_ports(field: &Field<'_>, spec: &PodSpec, problems: &mut Problems) {
    let mut taken = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|p| *p != 0) else { continue };
            let address = port.host_ip.as_deref().unwrap_or_default();
            if !taken.insert((port.protocol.as_deref().unwrap_or("TCP"), address, number)) {
                let container = field.index(index);
                let ports = container.name("ports");
                problems.duplicate(&ports.index(at).name("hostPort"), number);
            }
        }
    }
}

fn tolerations(field: &Field<'_>, spec: &PodSpec, problems: &mut Problems) {
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        let field = field.index(index);
        let operator = toleration.operator.as_deref().unwrap_or_default();
        if !operator.is_empty() {
            problems.one_of(&field.name("operator"), operator, &["Equal", "Exists"]);
        }
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !effect.is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            problems.one_of(&field.name("effect"), effect, &effects);
        }
        let key = toleration.key.as_deref().unwrap_or_default();
        if key.is_empty() && operator != "Exists" {
            problems.invalid(
                &field.name("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !key.is_empty() {
            problems.name(&field.name("key"), key, names::label_key(key));
        }
        if operator == "Exists" && says_something(&toleration.value) {
            let why = "value must be empty when `operator` is 'Exists'";
            problems.invalid(&field.name("value"), &toleration.value, why);
        }
    }
}

fn security(field: &Field<'_>, context: &PodSecurityContext, problems: &mut Problems) {
    unsupported!(problems, field, context, {
        fs_group: "fsGroup", "";
        app_armor_profile: "appArmorProfile", "";
        se_linux_options: "seLinuxOptions", "";
        windows_options: "windowsOptions", "";
    });
    problems.at_least(&field.name("runAsUser"), context.run_as_user, 0);
    problems.at_least(&field.name("runAsGroup"), context.run_as_group, 0);
    if let Some(profile) = &context.seccomp_profile
        && profile.type_ == "Localhost"
    {
        problems.not_supported(&field.name("seccompProfile"), "only RuntimeDefault");
    }
}
