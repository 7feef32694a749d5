//! Containers: name, image, environment, ports, resources, mounts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, EnvVar, ResourceRequirements, SecurityContext};
use timonier_proto::{names, quantity};

use super::field::{Field, Problems};
use super::pod::unsupported;
use super::probe;
use super::volume::RESOURCES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Init,
    Main,
}

/// What a container's validation needs to know of its pod.
pub struct Context<'a> {
    pub kind: Kind,
    /// Names of the pod's volumes.
    pub volumes: &'a BTreeSet<&'a str>,
    pub host_network: bool,
}

/// Fields that an environment variable may be taken from.
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub fn check<'a>(
    field: &Field<'_>,
    container: &'a Container,
    context: &Context<'_>,
    names_taken: &mut BTreeSet<&'a str>,
    problems: &mut Problems,
) {
    let name = container.name.as_str();
    problems.name(&field.name("name"), name, names::dns_label(name));
    if !names_taken.insert(name) {
        problems.duplicate(&field.name("name"), name);
    }
    match container.image.as_deref().unwrap_or_default() {
        "" => problems.required(&field.name("image"), ""),
        image if image.trim() != image || image.contains(char::is_whitespace) => {
            problems.invalid(&field.name("image"), image, "must not contain spaces");
        }
        _ => {}
    }
    problems.one_of(
        &field.name("imagePullPolicy"),
        container.image_pull_policy.as_deref().unwrap_or_default(),
        &["Always", "IfNotPresent", "Never"],
    );
    unsupported!(problems, field, container, {
        volume_devices: "volumeDevices", "";
        resize_policy: "resizePolicy", "";
        restart_policy_rules: "restartPolicyRules", "";
    });
    restart_policy(field, container, context, problems);
    env(&field.name("env"), container, problems);
    env_from(&field.name("envFrom"), container, problems);
    ports(&field.name("ports"), container, context, problems);
    if let Some(required) = &container.resources {
        resources(&field.name("resources"), required, problems);
    }
    mounts(&field.name("volumeMounts"), container, context, problems);
    probe::check(field, container, context.kind, problems);
    if let Some(context) = &container.security_context {
        security(&field.name("securityContext"), context, problems);
    }
}

fn restart_policy(
    field: &Field<'_>,
    container: &Container,
    context: &Context<'_>,
    problems: &mut Problems,
) {
    let Some(policy) = container.restart_policy.as_deref() else { return };
    let field = field.name("restartPolicy");
    match context.kind {
        Kind::Init => problems.one_of(&field, policy, &["Always"]),
        Kind::Main => problems.forbidden(&field, "may not be set for non-init containers"),
    }
}

fn env(field: &Field<'_>, container: &Container, problems: &mut Problems) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let field = field.index(index);
        problems.name(&field.name("name"), &variable.name, names::env_name(&variable.name));
        value_from(&field.name("valueFrom"), variable, problems);
    }
}

fn value_from(field: &Field<'_>, variable: &EnvVar, problems: &mut Problems) {
    let Some(source) = &variable.value_from else { return };
    if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
        problems.invalid(field, "", "may not be specified when `value` is not empty");
    }
    unsupported!(problems, field, source, {
        file_key_ref: "fileKeyRef", "";
    });
    let given = [
        source.field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.secret_key_ref.is_some(),
        source.file_key_ref.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => problems.invalid(
            field,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ),
        1 => {}
        _ => problems.invalid(field, "", "may not have more than one field specified at a time"),
    }
    if let Some(reference) = &source.field_ref {
        let path = reference.field_path.as_str();
        let in_map = ["metadata.labels['", "metadata.annotations['"]
            .iter()
            .any(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("']")));
        if !in_map {
            let field = field.name("fieldRef");
            problems.one_of(&field.name("fieldPath"), path, FIELD_PATHS);
        }
    }
    if let Some(reference) = &source.config_map_key_ref {
        let field = field.name("configMapKeyRef");
        if reference.name.is_empty() {
            problems.required(&field.name("name"), "");
        }
        problems.name(&field.name("key"), &reference.key, names::config_key(&reference.key));
    }
    if let Some(reference) = &source.secret_key_ref {
        let field = field.name("secretKeyRef");
        if reference.name.is_empty() {
            problems.required(&field.name("name"), "");
        }
        problems.name(&field.name("key"), &reference.key, names::config_key(&reference.key));
    }
    if let Some(reference) = &source.resource_field_ref {
        let field = field.name("resourceFieldRef");
        problems.one_of(&field.name("resource"), &reference.resource, &RESOURCES);
    }
}

fn env_from(field: &Field<'_>, container: &Container, problems: &mut Problems) {
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let field = field.index(index);
        match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), None) if reference.name.is_empty() => {
                let field = field.name("configMapRef");
                problems.required(&field.name("name"), "");
            }
            (None, Some(reference)) if reference.name.is_empty() => {
                let field = field.name("secretRef");
                problems.required(&field.name("name"), "");
            }
            (None, None) => {
                problems.invalid(&field, "", "must specify one of: `configMapRef` or `secretRef`");
            }
            (Some(_), Some(_)) => {
                problems.invalid(
                    &field,
                    "",
                    "may not have more than one field specified at a time",
                );
            }
            _ => {}
        }
    }
}

fn ports(field: &Field<'_>, container: &Container, context: &Context<'_>, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let field = field.index(index);
        problems.port(&field.name("containerPort"), port.container_port);
        if let Some(host) = port.host_port.filter(|p| *p != 0) {
            problems.port(&field.name("hostPort"), host);
            if context.host_network && host != port.container_port {
                let why = "must match `containerPort` when `hostNetwork` is true";
                problems.invalid(&field.name("hostPort"), host, why);
            }
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        problems.one_of(&field.name("protocol"), protocol, &["TCP", "UDP"]);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            problems.name(&field.name("name"), name, names::port_name(name));
            if !seen.insert(name) {
                problems.duplicate(&field.name("name"), name);
            }
        }
    }
    let mut numbers = BTreeSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !numbers.insert((port.container_port, protocol)) {
            let field = field.index(index);
            problems.duplicate(
                &field.name("containerPort"),
                format!("{}/{protocol}", port.container_port),
            );
        }
    }
}

fn resources(field: &Field<'_>, resources: &ResourceRequirements, problems: &mut Problems) {
    unsupported!(problems, field, resources, { claims: "claims", ""; });
    let (requests, limits) = (field.name("requests"), field.name("limits"));
    for (field, list) in [(&requests, &resources.requests), (&limits, &resources.limits)] {
        for (name, amount) in list.iter().flatten() {
            let field = field.key(name);
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                problems.not_supported(&field, "only cpu, memory and ephemeral-storage");
            }
            match quantity::parse_millis(&amount.0) {
                Err(error) => problems.invalid(&field, &amount.0, error),
                Ok(value) if value < 0 => {
                    problems.invalid(&field, &amount.0, "must be greater than or equal to 0");
                }
                Ok(_) => {}
            }
        }
    }
    for (name, request) in resources.requests.iter().flatten() {
        let Some(limit) = resources.limits.as_ref().and_then(|list| list.get(name)) else {
            continue;
        };
        let (asked, most) = (quantity::parse_millis(&request.0), quantity::parse_millis(&limit.0));
        if let (Ok(asked), Ok(most)) = (asked, most)
            && asked > most
        {
            let why = format!("must be less than or equal to {name} limit of {}", limit.0);
            problems.invalid(&requests.key(name), &request.0, why);
        }
    }
}

fn mounts(
    field: &Field<'_>,
    container: &Container,
    context: &Context<'_>,
    problems: &mut Problems,
) {
    let mut paths = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let field = field.index(index);
        if mount.name.is_empty() {
            problems.required(&field.name("name"), "");
        } else if !context.volumes.contains(mount.name.as_str()) {
            problems.not_found(&field.name("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            problems.required(&field.name("mountPath"), "");
        } else if !mount.mount_path.starts_with('/') {
            problems.invalid(
                &field.name("mountPath"),
                &mount.mount_path,
                "must be an absolute path",
            );
        } else if !paths.insert(mount.mount_path.as_str()) {
            problems.invalid(&field.name("mountPath"), &mount.mount_path, "must be unique");
        }
        if let Some(path) = mount.sub_path.as_deref().filter(|path| !path.is_empty())
            && (path.starts_with('/') || path.split('/').any(|part| part == ".."))
        {
            let why = "must be a relative path without '..'";
            problems.invalid(&field.name("subPath"), path, why);
        }
        unsupported!(problems, field, mount, {
            sub_path_expr: "subPathExpr", "use subPath";
            recursive_read_only: "recursiveReadOnly", "";
        });
    }
}

fn security(field: &Field<'_>, context: &SecurityContext, problems: &mut Problems) {
    unsupported!(problems, field, context, {
        app_armor_profile: "appArmorProfile", "";
        se_linux_options: "seLinuxOptions", "";
        windows_options: "windowsOptions", "";
    });
    problems.at_least(&field.name("runAsUser"), context.run_as_user, 0);
    problems.at_least(&field.name("runAsGroup"), context.run_as_group, 0);
    if context.privileged == Some(true) && context.allow_privilege_escalation == Some(false) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        problems.invalid(field, "", why);
    }
    if context.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Localhost") {
        problems.not_supported(&field.name("seccompProfile"), "only RuntimeDefault");
    }
}
