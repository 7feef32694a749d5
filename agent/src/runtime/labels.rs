//! The labels on a container that hold the identity of its pod: the agent's only database.

use std::collections::BTreeMap;

/// Before every label that the agent sets.
pub const LABEL_PREFIX: &str = "io.timonier.";

/// Names of the labels, with their prefix.
pub mod label {
    pub const NODE: &str = "io.timonier.node";
    pub const POD_UID: &str = "io.timonier.pod.uid";
    pub const POD_NAME: &str = "io.timonier.pod.name";
    pub const POD_NAMESPACE: &str = "io.timonier.pod.namespace";
    pub const POD_IP: &str = "io.timonier.pod.ip";
    pub const CONTAINER: &str = "io.timonier.container";
    pub const ROLE: &str = "io.timonier.role";
    pub const ATTEMPT: &str = "io.timonier.attempt";
    pub const SPEC_HASH: &str = "io.timonier.spec-hash";
    pub const GRACE_S: &str = "io.timonier.grace-seconds";
    pub const UNIQUE: &str = "io.timonier.unique";
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContainerRole {
    /// Holds the network namespace of a pod that has several containers.
    Sandbox,
    Init,
    #[default]
    Main,
}

impl ContainerRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Init => "init",
            Self::Main => "main",
        }
    }
}

/// The labels of one container, read or to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerLabels {
    pub node: String,
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    /// Empty for pods in the host's network.
    pub pod_ip: String,
    /// Empty for a sandbox.
    pub container: String,
    pub role: ContainerRole,
    /// 0 for the first start, then one more each restart.
    pub attempt: u32,
    /// Of the container's part of the spec, in hexadecimal.
    pub spec_hash: String,
    /// The pod's grace period, for stopping a pod whose spec is not at hand any more.
    pub grace_s: u32,
    /// Never to run beside another of its kind: only under a lease.
    pub unique: bool,
}

impl ContainerLabels {
    pub fn to_map(&self) -> BTreeMap<String, String> {
        [
            (label::NODE, self.node.clone()),
            (label::POD_UID, self.pod_uid.clone()),
            (label::POD_NAME, self.pod_name.clone()),
            (label::POD_NAMESPACE, self.pod_namespace.clone()),
            (label::POD_IP, self.pod_ip.clone()),
            (label::CONTAINER, self.container.clone()),
            (label::ROLE, self.role.as_str().to_owned()),
            (label::ATTEMPT, self.attempt.to_string()),
            (label::SPEC_HASH, self.spec_hash.clone()),
            (label::GRACE_S, self.grace_s.to_string()),
            (label::UNIQUE, self.unique.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// `None` for a container that is not of a pod. Labels that are missing or malformed read as
    /// empty or 0.
    pub fn from_lookup<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let text = |name| get(name).unwrap_or_default().to_owned();
        let number = |name| get(name).and_then(|v| v.parse().ok()).unwrap_or_default();
        Some(Self {
            node: text(label::NODE),
            pod_uid: get(label::POD_UID)?.to_owned(),
            pod_name: text(label::POD_NAME),
            pod_namespace: text(label::POD_NAMESPACE),
            pod_ip: text(label::POD_IP),
            container: text(label::CONTAINER),
            role: match get(label::ROLE) {
                Some("sandbox") => ContainerRole::Sandbox,
                Some("init") => ContainerRole::Init,
                _ => ContainerRole::Main,
            },
            attempt: number(label::ATTEMPT),
            spec_hash: text(label::SPEC_HASH),
            grace_s: number(label::GRACE_S),
            unique: get(label::UNIQUE) == Some("true"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_back_as_written() {
        let labels = ContainerLabels {
            node: "n1".into(),
            pod_uid: "u".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
            pod_ip: "10.244.0.2".into(),
            container: "web".into(),
            role: ContainerRole::Init,
            attempt: 3,
            spec_hash: "ab12".into(),
            grace_s: 30,
            unique: true,
        };
        let map = labels.to_map();
        let read = ContainerLabels::from_lookup(|name| map.get(name).map(String::as_str));
        assert_eq!(read, Some(labels));
        assert_eq!(ContainerLabels::from_lookup(|_| None), None);
    }
}
