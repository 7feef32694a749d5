//! [`Snapshot`]: the whole state at one revision. A clone is a few pointers, so lists, watches and
//! reconcilers never hold up writers.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use k8s_openapi::api::core::v1::Pod;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

/// The replicated state, immutable to all but [`crate::apply`].
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Log index of the last applied write.
    pub revision: u64,
    pub(crate) objects: OrdMap<ObjectKey, Object>,
    /// (node, pod), for bound pods.
    pub(crate) pods_by_node: OrdSet<(String, ObjectKey)>,
    /// (owner's uid, object), for objects with a controlling owner.
    pub(crate) by_owner: OrdSet<(String, ObjectKey)>,
}

impl Snapshot {
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// `namespace` is empty for cluster-wide kinds.
    pub fn get<T: Kinded>(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.objects.get(&ObjectKey::new(T::KIND, namespace, name)).and_then(T::from_object)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// In order of namespace and name; `None` means all namespaces.
    pub fn objects_of(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = &Object> + use<'_> {
        let start = ObjectKey::new(kind, namespace.unwrap_or_default(), "");
        let namespace = namespace.map(str::to_owned);
        self.objects
            .range(start..)
            .take_while(move |(key, _)| {
                key.kind == kind && namespace.as_ref().is_none_or(|n| *n == key.namespace)
            })
            .map(|(_, object)| object)
    }

    pub fn list<T: Kinded>(
        &self,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = &Arc<T>> + use<'_, T> {
        self.objects_of(T::KIND, namespace).filter_map(T::from_object)
    }

    pub fn all_objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> + use<'_> {
        let start = (node.to_owned(), ObjectKey::new(Kind::Namespace, "", ""));
        let node = node.to_owned();
        self.pods_by_node
            .range(start..)
            .take_while(move |(n, _)| *n == node)
            .filter_map(|(_, key)| self.objects.get(key).and_then(Pod::from_object))
    }

    /// What the object with this uid controls (ownerReferences with `controller: true`).
    pub fn owned_by<T: Kinded>(&self, uid: &str) -> impl Iterator<Item = &Arc<T>> + use<'_, T> {
        let start = (uid.to_owned(), ObjectKey::new(Kind::Namespace, "", ""));
        let uid = uid.to_owned();
        self.by_owner
            .range(start..)
            .take_while(move |(u, _)| *u == uid)
            .filter_map(|(_, key)| self.objects.get(key).and_then(T::from_object))
    }
}
