//! The environment of a container, and `$(VAR)` in its command: as Kubernetes defines both.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, EnvVarSource, ObjectFieldSelector, Pod,
    ResourceFieldSelector, Secret,
};
use timonier_proto::compiled::CompiledPod;
use timonier_proto::quantity::{cpu_millis, units};

/// What is known of a pod only once it is on a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeFacts {
    pub(super) node: String,
    pub(super) host_ip: String,
    pub(super) pod_ip: String,
    pub(super) cpu_millis: i64,
    pub(super) memory_bytes: i64,
    /// The lowest out-of-memory score that this host lets us give.
    pub(super) oom_score_min: i64,
}

/// Needed to give a score below 0; a host may itself be confined.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

impl NodeFacts {
    /// Of this host; a pod's address comes later.
    pub(super) fn of_host(config: &super::PodsConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = rustix::system::sysinfo();
        Self {
            node: config.node.clone(),
            host_ip: config.host_ip.clone(),
            pod_ip: String::new(),
            cpu_millis: i64::try_from(cores * 1000).unwrap_or(i64::MAX),
            memory_bytes: i64::try_from(memory.totalram * u64::from(memory.mem_unit))
                .unwrap_or(i64::MAX),
            oom_score_min: if may_protect_from_oom() { -1000 } else { 0 },
        }
    }
}

fn may_protect_from_oom() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & CAP_SYS_RESOURCE != 0)
}

/// Variables in the order in which they were defined; a later one of the same name replaces the
/// value in place.
#[derive(Debug, Default)]
pub(super) struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    /// `NAME=value`.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |name: &String| Some(format!("{name}={}", self.values.get(name)?));
        self.order.iter().filter_map(line).collect()
    }

    /// Replaces `$(NAME)` by its value; `$$` stands for `$`; what is not defined stays as it is.
    pub(super) fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
            match name {
                Some((name, after)) => {
                    match self.values.get(name) {
                        Some(value) => out.push_str(value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = after;
                }
                None => out.push('$'),
            }
        }
        out.push_str(rest);
        out
    }
}

/// The error is the message of a `CreateContainerConfigError`.
pub(super) fn environment(
    compiled: &CompiledPod,
    container: &Container,
    facts: &NodeFacts,
) -> Result<Environment, String> {
    let mut env = Environment::default();
    for source in container.env_from.as_deref().unwrap_or_default() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.secret_ref {
            let optional = reference.optional == Some(true);
            let Some(secret) = secret(compiled, &reference.name, optional)? else { continue };
            for key in secret.data.iter().flat_map(|data| data.keys()) {
                let value = secret_text(secret, key)?.unwrap_or_default();
                env.set(&format!("{prefix}{key}"), value);
            }
            continue;
        }
        let Some(reference) = &source.config_map_ref else { continue };
        let optional = reference.optional == Some(true);
        let Some(map) = config_map(compiled, &reference.name, optional)? else { continue };
        for (key, value) in map.data.iter().flatten() {
            env.set(&format!("{prefix}{key}"), value.clone());
        }
    }
    for variable in container.env.as_deref().unwrap_or_default() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match from_source(compiled, container, source, facts)? {
                Some(value) => value,
                None => continue,
            },
            (Some(value), None) => env.expand(value),
            (None, None) => String::new(),
        };
        env.set(&variable.name, value);
    }
    Ok(env)
}

fn config_map<'a>(
    compiled: &'a CompiledPod,
    name: &str,
    optional: bool,
) -> Result<Option<&'a ConfigMap>, String> {
    match compiled.config_maps.get(name).and_then(Option::as_ref) {
        Some(map) => Ok(Some(map)),
        None if optional => Ok(None),
        None => Err(format!("configmap \"{name}\" not found")),
    }
}

fn secret<'a>(
    compiled: &'a CompiledPod,
    name: &str,
    optional: bool,
) -> Result<Option<&'a Secret>, String> {
    match compiled.secrets.get(name).and_then(Option::as_ref) {
        Some(secret) => Ok(Some(secret)),
        None if optional => Ok(None),
        None => Err(format!("secret \"{name}\" not found")),
    }
}

/// The engine takes variables as text only.
fn secret_text(secret: &Secret, key: &str) -> Result<Option<String>, String> {
    let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
    match String::from_utf8(value.0.clone()) {
        Ok(text) if !text.contains('\0') => Ok(Some(text)),
        _ => {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            Err(format!(
                "key {key} in Secret {name} is not text, which a variable must be; hint: mount the \
                 secret as a volume"
            ))
        }
    }
}

/// None: the variable is left out.
fn from_source(
    compiled: &CompiledPod,
    container: &Container,
    source: &EnvVarSource,
    facts: &NodeFacts,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(&compiled.pod, field, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(&compiled.pod, container, resource, facts).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let map = config_map(compiled, &key.name, optional)?;
        let value = map.and_then(|map| map.data.as_ref()?.get(&key.key).cloned());
        if value.is_none() && !optional {
            let (key, name) = (&key.key, &key.name);
            return Err(format!("couldn't find key {key} in ConfigMap {name}"));
        }
        return Ok(value);
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = secret(compiled, &key.name, optional)? else { return Ok(None) };
        let value = secret_text(secret, &key.key)?;
        if value.is_none() && !optional {
            let namespace = compiled.pod.metadata.namespace.as_deref().unwrap_or_default();
            let (key, name) = (&key.key, &key.name);
            return Err(format!("couldn't find key {key} in Secret {namespace}/{name}"));
        }
        return Ok(value);
    }
    Err("valueFrom names no source".to_owned())
}

/// What a file of a `downwardAPI` volume holds.
pub(crate) fn downward(
    pod: &Pod,
    item: &DownwardAPIVolumeFile,
    facts: &NodeFacts,
) -> Result<String, String> {
    if let Some(resource) = &item.resource_field_ref {
        let none = Container::default();
        return resource_value(pod, &none, resource, facts);
    }
    let Some(field) = &item.field_ref else { return Err("it names no source".to_owned()) };
    let map = match field.field_path.as_str() {
        "metadata.labels" => &pod.metadata.labels,
        "metadata.annotations" => &pod.metadata.annotations,
        _ => return field_value(pod, field, facts),
    };
    // As Kubernetes writes them: a line each, the value quoted.
    let lines = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    facts: &NodeFacts,
) -> Result<String, String> {
    let meta = &pod.metadata;
    let path = field.field_path.as_str();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "spec.nodeName" => facts.node.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => {
            let keyed = |name: &str| path.strip_prefix(name)?.strip_suffix("']");
            let (map, key) = if let Some(key) = keyed("metadata.labels['") {
                (&meta.labels, key)
            } else if let Some(key) = keyed("metadata.annotations['") {
                (&meta.annotations, key)
            } else {
                return Err(format!("fieldRef {path} is not supported"));
            };
            map.as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default()
        }
    })
}

/// Limits that are not set are the node's capacity, as in Kubernetes.
fn resource_value(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldSelector,
    facts: &NodeFacts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match named {
        None => container,
        Some(name) => spec
            .and_then(|s| s.containers.iter().find(|c| c.name == name))
            .ok_or_else(|| format!("resourceFieldRef: the pod has no container \"{name}\""))?,
    };
    let resources = container.resources.clone().unwrap_or_default();
    let (list, name) = match field.resource.split_once('.') {
        Some(("limits", name)) => (&resources.limits, name),
        Some(("requests", name)) => (&resources.requests, name),
        _ => return Err(format!("resourceFieldRef {} is not supported", field.resource)),
    };
    let quantity = list.as_ref().and_then(|list| list.get(name));
    let is_limit = field.resource.starts_with("limits");
    let (value, divisor) = match name {
        "cpu" => {
            let node = if is_limit { facts.cpu_millis } else { 0 };
            let value = quantity.map_or(node, |q| cpu_millis(Some(q)));
            (value, field.divisor.as_ref().map_or(0, |d| cpu_millis(Some(d))).max(0))
        }
        _ => {
            let node = if is_limit && name == "memory" { facts.memory_bytes } else { 0 };
            let value = quantity.map_or(node, |q| units(Some(q)));
            (value, field.divisor.as_ref().map_or(0, |d| units(Some(d))).max(0))
        }
    };
    let unit = if name == "cpu" { 1000 } else { 1 };
    let divisor = if divisor == 0 { unit } else { divisor };
    Ok((value.max(0) as u64).div_ceil(divisor as u64).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn env(container: serde_json::Value) -> Result<Vec<String>, String> {
        let container: Container = serde_json::from_value(container).unwrap();
        let compiled = CompiledPod {
            pod: serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u",
                             "labels": {"app": "web"}, "annotations": {"a/b": "c"}}
            }))
            .unwrap(),
            config_maps: [
                (
                    "conf".into(),
                    Some(serde_json::from_value(json!({"data": {"K": "1", "L": "2"}})).unwrap()),
                ),
                ("gone".into(), None),
            ]
            .into(),
            secrets: [(
                "s".to_owned(),
                Some(
                    serde_json::from_value(json!({
                        "metadata": {"name": "s"},
                        "data": {"pass": "aHVudGVyMg==", "binary": "/w=="}
                    }))
                    .unwrap(),
                ),
            )]
            .into(),
            ..CompiledPod::default()
        };
        let facts = NodeFacts {
            node: "n1".into(),
            host_ip: "192.0.2.1".into(),
            pod_ip: "10.244.0.5".into(),
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            oom_score_min: 0,
        };
        environment(&compiled, &container, &facts).map(|env| env.lines())
    }

    #[test]
    fn sources_and_their_order() {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let resource = |name: &str, of: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": of, "divisor": divisor}}});
        let lines = env(json!({
            "name": "c",
            "resources": {"limits": {"cpu": "1500m"}},
            "envFrom": [{"prefix": "X_", "configMapRef": {"name": "conf"}},
                        {"configMapRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(X_K)-$(NONE)-$$(A)-$"},
                {"name": "X_K", "value": "over"},
                {"name": "E"},
                field("NAME", "metadata.name"),
                field("APP", "metadata.labels['app']"),
                field("ANN", "metadata.annotations['a/b']"),
                field("IP", "status.podIP"),
                field("NODE", "spec.nodeName"),
                resource("CPU", "limits.cpu", "0"),
                resource("CPU_M", "limits.cpu", "1m"),
                resource("MEM_MI", "limits.memory", "1Mi"),
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "K"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "no", "optional": true}}},
            ]
        }))
        .unwrap();
        assert_eq!(
            lines,
            [
                "X_K=over",
                "X_L=2",
                "A=1",
                "B=1-1-$(NONE)-$(A)-$",
                "E=",
                "NAME=p",
                "APP=web",
                "ANN=c",
                "IP=10.244.0.5",
                "NODE=n1",
                "CPU=2",
                "CPU_M=1500",
                "MEM_MI=1024",
                "K=1"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let from = |source: serde_json::Value| {
            env(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]})).unwrap_err()
        };
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "gone", "key": "k"}})),
            "configmap \"gone\" not found"
        );
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "conf", "key": "k"}})),
            "couldn't find key k in ConfigMap conf"
        );
        assert!(from(json!({"fieldRef": {"fieldPath": "spec.x"}})).contains("spec.x"));
        assert_eq!(
            from(json!({"secretKeyRef": {"name": "gone", "key": "k"}})),
            "secret \"gone\" not found"
        );
        assert!(
            from(json!({"secretKeyRef": {"name": "s", "key": "k"}}))
                .starts_with("couldn't find key k in Secret ")
        );
        assert!(from(json!({"secretKeyRef": {"name": "s", "key": "binary"}})).contains("not text"));
    }

    #[test]
    fn secrets_become_variables() {
        let lines = env(json!({
            "name": "c",
            "envFrom": [{"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pass"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
            ]
        }))
        .unwrap();
        assert_eq!(lines, ["P=hunter2"]);
    }
}
