//! The kinds table: one row a kind, and the [`Object`] that holds any of them.
//!
//! Validation, defaults and columns live with those who use them; the table says what a kind *is*.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1 as apps, core::v1 as core, policy::v1 as policy, rbac::v1 as rbac,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::latency::LatencyAutoscaler;

/// What a kind is called and where it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    pub kind: Kind,
    /// CamelCase, as in manifests.
    pub name: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// Lower-case plural, as typed.
    pub plural: &'static str,
    /// Lower-case singular, as typed.
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub namespaced: bool,
}

impl KindInfo {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pod` or `deployment.apps`, as kubectl prefixes names.
    pub fn qualified_singular(&self) -> String {
        if self.group.is_empty() {
            self.singular.to_owned()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }
}

/// A Rust type that is one of the kinds.
pub trait Kinded: Sized + Send + Sync + 'static {
    const KIND: Kind;
    fn from_object(object: &Object) -> Option<&Arc<Self>>;
    fn into_object(self) -> Object;
    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

macro_rules! kinds {
    ($($name:ident : $type:ty, $group:literal, $version:literal, $plural:literal, $singular:literal, [$($short:literal),*], $namespaced:literal;)*) => {
        /// Every kind this build serves.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Kind { $($name),* }

        /// The table, in the order in which `get all`-like listings print.
        pub const KINDS: &[KindInfo] = &[$(KindInfo {
            kind: Kind::$name, name: stringify!($name), group: $group, version: $version,
            plural: $plural, singular: $singular, short: &[$($short),*], namespaced: $namespaced,
        }),*];

        /// One object of any kind. Clones share the contents.
        #[derive(Clone, PartialEq)]
        pub enum Object { $($name(Arc<$type>)),* }

        /// For logs: whole, but for what a secret keeps.
        impl fmt::Debug for Object {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if let Object::Secret(secret) = self {
                    return crate::secret::Redacted(secret).fmt(f);
                }
                match self { $(Object::$name(o) => f.debug_tuple(stringify!($name)).field(o).finish()),* }
            }
        }

        impl Object {
            pub fn kind(&self) -> Kind { match self { $(Object::$name(_) => Kind::$name),* } }
            pub fn meta(&self) -> &ObjectMeta { match self { $(Object::$name(o) => &o.metadata),* } }
            /// Copies the contents first when they are shared.
            pub fn meta_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Object::$name(o) => &mut Arc::make_mut(o).metadata),* }
            }
            /// Kubernetes JSON with `apiVersion` and `kind`.
            pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
                match self { $(Object::$name(o) => serde_json::to_vec(&**o)),* }
            }
            /// As [`Self::to_json`], as a tree.
            pub fn to_value(&self) -> Result<serde_json::Value, serde_json::Error> {
                match self { $(Object::$name(o) => serde_json::to_value(&**o)),* }
            }
            /// Lenient: unknown fields are dropped. Manifests from people go through the strict
            /// decoder instead.
            pub fn from_json(kind: Kind, json: &[u8]) -> Result<Object, serde_json::Error> {
                Ok(match kind { $(Kind::$name => Object::$name(Arc::new(serde_json::from_slice(json)?))),* })
            }
            /// As [`Self::from_json`], through any deserializer.
            pub fn deserialize_as<'de, D: serde::Deserializer<'de>>(kind: Kind, de: D) -> Result<Object, D::Error> {
                Ok(match kind { $(Kind::$name => Object::$name(Arc::new(<$type>::deserialize(de)?))),* })
            }
        }

        $(impl Kinded for $type {
            const KIND: Kind = Kind::$name;
            fn from_object(object: &Object) -> Option<&Arc<Self>> {
                match object { Object::$name(o) => Some(o), _ => None }
            }
            fn into_object(self) -> Object { Object::$name(Arc::new(self)) }
            fn meta(&self) -> &ObjectMeta { &self.metadata }
            fn meta_mut(&mut self) -> &mut ObjectMeta { &mut self.metadata }
        })*
    };
}

kinds! {
    Namespace: core::Namespace, "", "v1", "namespaces", "namespace", ["ns"], false;
    Node: core::Node, "", "v1", "nodes", "node", ["no"], false;
    Pod: core::Pod, "", "v1", "pods", "pod", ["po"], true;
    Service: core::Service, "", "v1", "services", "service", ["svc"], true;
    Deployment: apps::Deployment, "apps", "v1", "deployments", "deployment", ["deploy"], true;
    ReplicaSet: apps::ReplicaSet, "apps", "v1", "replicasets", "replicaset", ["rs"], true;
    ConfigMap: core::ConfigMap, "", "v1", "configmaps", "configmap", ["cm"], true;
    Endpoints: core::Endpoints, "", "v1", "endpoints", "endpoints", ["ep"], true;
    Event: core::Event, "", "v1", "events", "event", ["ev"], true;
    LatencyAutoscaler: LatencyAutoscaler, "autoscaling.timonier.io", "v1", "latencyautoscalers", "latencyautoscaler", ["la"], true;
    Secret: core::Secret, "", "v1", "secrets", "secret", [], true;
    ServiceAccount: core::ServiceAccount, "", "v1", "serviceaccounts", "serviceaccount", ["sa"], true;
    ResourceQuota: core::ResourceQuota, "", "v1", "resourcequotas", "resourcequota", ["quota"], true;
    LimitRange: core::LimitRange, "", "v1", "limitranges", "limitrange", ["limits"], true;
    PodDisruptionBudget: policy::PodDisruptionBudget, "policy", "v1", "poddisruptionbudgets", "poddisruptionbudget", ["pdb"], true;
    Role: rbac::Role, "rbac.authorization.k8s.io", "v1", "roles", "role", [], true;
    RoleBinding: rbac::RoleBinding, "rbac.authorization.k8s.io", "v1", "rolebindings", "rolebinding", [], true;
    ClusterRole: rbac::ClusterRole, "rbac.authorization.k8s.io", "v1", "clusterroles", "clusterrole", [], false;
    ClusterRoleBinding: rbac::ClusterRoleBinding, "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "clusterrolebinding", [], false;
}

impl Kind {
    pub fn info(self) -> &'static KindInfo {
        KINDS.iter().find(|info| info.kind == self).expect("every kind has its row")
    }

    /// By CamelCase name, as in manifests and on the wire.
    pub fn by_name(name: &str) -> Option<Kind> {
        KINDS.iter().find(|info| info.name == name).map(|info| info.kind)
    }

    /// By `apiVersion` and `kind` of a manifest.
    pub fn by_api(api_version: &str, kind: &str) -> Option<Kind> {
        KINDS
            .iter()
            .find(|info| info.name == kind && info.api_version() == api_version)
            .map(|info| info.kind)
    }

    /// By what a person types: plural, singular, short name, kind in any case, or `deployments.apps`.
    pub fn by_typed(word: &str) -> Option<Kind> {
        let word = word.to_ascii_lowercase();
        KINDS
            .iter()
            .find(|info| {
                let plain = word.strip_suffix(info.group).and_then(|w| w.strip_suffix('.'));
                [Some(word.as_str()), plain].into_iter().flatten().any(|w| {
                    w == info.plural
                        || w == info.singular
                        || info.short.contains(&w)
                        || w == info.name.to_ascii_lowercase()
                })
            })
            .map(|info| info.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

/// Identifies one object; `namespace` is empty for cluster-wide kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self::new(kind, "", name)
    }
}

/// `deployments.apps "web"`-like: `pod default/web-1`, `node n1`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.info().singular;
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let meta = self.meta();
        ObjectKey::new(
            self.kind(),
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }

    pub fn get<T: Kinded>(&self) -> Option<&Arc<T>> {
        T::from_object(self)
    }

    pub fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    /// 0 when the object has none.
    pub fn resource_version(&self) -> u64 {
        self.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

#[derive(Serialize, Deserialize)]
struct Tagged<T> {
    kind: Kind,
    object: T,
}

/// `{"kind": <Kind>, "object": <Kubernetes JSON>}`: the form in the log and in snapshots.
impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let json = self.to_json().map_err(S::Error::custom)?;
        let json = String::from_utf8(json).map_err(S::Error::custom)?;
        let object = serde_json::value::RawValue::from_string(json).map_err(S::Error::custom)?;
        Tagged { kind: self.kind(), object }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let tagged = Tagged::<Box<serde_json::value::RawValue>>::deserialize(deserializer)?;
        Object::from_json(tagged.kind, tagged.object.get().as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_words_find_their_kind() {
        for (word, kind) in [
            ("po", Some(Kind::Pod)),
            ("Pods", Some(Kind::Pod)),
            ("deploy", Some(Kind::Deployment)),
            ("deployments.apps", Some(Kind::Deployment)),
            ("replicaset.apps", Some(Kind::ReplicaSet)),
            ("la", Some(Kind::LatencyAutoscaler)),
            ("pods.apps", None),
            ("nothing", None),
        ] {
            assert_eq!(Kind::by_typed(word), kind, "{word}");
        }
    }

    #[test]
    fn an_object_survives_its_stored_form() {
        let json = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"b"},"data":{"k":"v"}}"#;
        let object = Object::from_json(Kind::ConfigMap, json).unwrap();
        let stored = serde_json::to_vec(&object).unwrap();
        assert_eq!(serde_json::from_slice::<Object>(&stored).unwrap(), object);
        assert_eq!(object.key().to_string(), "configmap b/a");
    }
}
