//! How the lists of the served kinds merge: Kubernetes' patch strategies and merge keys, as one
//! table. A list that is not in it is replaced as a whole.

use serde_json::Value;
use timonier_proto::Kind;

/// What kind of map a value is, as far as its lists merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Nothing in it merges by key.
    Plain,
    Root(Kind),
    Meta,
    PodTemplate,
    PodSpec,
    Container,
    Volume,
    DeploymentSpec,
    ReplicaSetSpec,
    Strategy,
    ServiceSpec,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Replaced as a whole.
    Atomic,
    /// Elements with the same key are the same element. A further key counts too, where it has a
    /// default: ports of both protocols are different ports.
    Keyed(&'static str, Option<(&'static str, &'static str)>),
    /// Scalars without order or repetition.
    Set,
}

use List::{Atomic, Keyed, Set};

const PROTOCOL: Option<(&str, &str)> = Some(("protocol", "TCP"));

const TABLE: &[(Type, &str, Type, List)] = &[
    (Type::Meta, "ownerReferences", Type::Plain, Keyed("uid", None)),
    (Type::Meta, "finalizers", Type::Plain, Set),
    (Type::Root(Kind::Pod), "spec", Type::PodSpec, Atomic),
    (Type::Root(Kind::Deployment), "spec", Type::DeploymentSpec, Atomic),
    (Type::Root(Kind::ReplicaSet), "spec", Type::ReplicaSetSpec, Atomic),
    (Type::Root(Kind::Service), "spec", Type::ServiceSpec, Atomic),
    (Type::DeploymentSpec, "template", Type::PodTemplate, Atomic),
    (Type::DeploymentSpec, "strategy", Type::Strategy, Atomic),
    (Type::ReplicaSetSpec, "template", Type::PodTemplate, Atomic),
    (Type::PodTemplate, "metadata", Type::Meta, Atomic),
    (Type::PodTemplate, "spec", Type::PodSpec, Atomic),
    (Type::PodSpec, "containers", Type::Container, Keyed("name", None)),
    (Type::PodSpec, "initContainers", Type::Container, Keyed("name", None)),
    (Type::PodSpec, "ephemeralContainers", Type::Container, Keyed("name", None)),
    (Type::PodSpec, "volumes", Type::Volume, Keyed("name", None)),
    (Type::PodSpec, "imagePullSecrets", Type::Plain, Keyed("name", None)),
    (Type::PodSpec, "hostAliases", Type::Plain, Keyed("ip", None)),
    (Type::PodSpec, "topologySpreadConstraints", Type::Plain, Keyed("topologyKey", None)),
    (Type::Container, "ports", Type::Plain, Keyed("containerPort", PROTOCOL)),
    (Type::Container, "env", Type::Plain, Keyed("name", None)),
    (Type::Container, "volumeMounts", Type::Plain, Keyed("mountPath", None)),
    (Type::Container, "volumeDevices", Type::Plain, Keyed("devicePath", None)),
    (Type::ServiceSpec, "ports", Type::Plain, Keyed("port", PROTOCOL)),
    (Type::Status, "conditions", Type::Plain, Keyed("type", None)),
    (Type::Status, "addresses", Type::Plain, Keyed("type", None)),
    (Type::Status, "podIPs", Type::Plain, Keyed("ip", None)),
    (Type::Status, "hostIPs", Type::Plain, Atomic),
];

impl Type {
    pub fn of(kind: Kind) -> Self {
        Type::Root(kind)
    }

    /// What the field's value (or each of its elements) is, and how it merges if it is a list.
    pub fn field(self, name: &str) -> (Type, List) {
        match (self, name) {
            (Type::Root(_), "metadata") => return (Type::Meta, Atomic),
            (Type::Root(_), "status") => return (Type::Status, Atomic),
            _ => {}
        }
        TABLE
            .iter()
            .find(|(of, field, _, _)| *of == self && *field == name)
            .map_or((Type::Plain, Atomic), |(_, _, type_, list)| (*type_, *list))
    }

    /// One of several members is set, and setting another takes the first away: volume sources, and
    /// the settings of a strategy.
    pub fn is_union(self) -> bool {
        matches!(self, Type::Volume | Type::Strategy)
    }
}

impl List {
    /// What tells the element from others, or `None` where it has no key.
    pub fn key_of(self, element: &Value) -> Option<String> {
        match self {
            Atomic => None,
            Set => (!element.is_object() && !element.is_array()).then(|| element.to_string()),
            Keyed(key, further) => {
                let mut text = element.get(key).filter(|value| !value.is_null())?.to_string();
                if let Some((key, default)) = further {
                    text.push('/');
                    let value = element.get(key).and_then(Value::as_str);
                    text.push_str(value.filter(|v| !v.is_empty()).unwrap_or(default));
                }
                Some(text)
            }
        }
    }

    /// The keys of all elements, if each has one and no two are the same.
    pub fn keys_of(self, elements: &[Value]) -> Option<Vec<String>> {
        let keys: Vec<String> = elements.iter().map(|e| self.key_of(e)).collect::<Option<_>>()?;
        let mut seen = std::collections::BTreeSet::new();
        keys.iter().all(|key| seen.insert(key.as_str())).then_some(keys)
    }
}
