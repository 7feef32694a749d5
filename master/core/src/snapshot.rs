//! [`Snapshot`]: the whole state at one revision. A clone is a few pointers, so lists, watches and
//! reconcilers never hold up writers.
//!
//! Reading only; [`crate::apply`] is the one place that changes it.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use k8s_openapi::api::core::v1::Pod;
use timonier_proto::{Kind, Kinded, Object, ObjectKey, REQUEST_ID_KEPT};

use crate::level::Level;
use crate::object::{controller_of, node_of};

/// The state remembers so many transaction ids, and answers a repeated one with what it did.
pub const TXN_IDS_MAX: usize = 200_000;
/// Each for so long.
pub const TXN_ID_KEPT_MS: u64 = REQUEST_ID_KEPT.as_millis() as u64;
/// Before [`Level::TIMED_IDS`]: so many, however old.
const UNTIMED_IDS_MAX: usize = 10_000;

/// What is remembered of a transaction that had an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Of the state after it.
    pub revision: u64,
    /// [`Snapshot::elapsed_ms`] then.
    pub at_ms: u64,
}

/// The replicated state, immutable to all but [`crate::apply`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Counts the changes of all objects since the cluster began; the resourceVersion of the object
    /// that changed last.
    pub revision: u64,
    /// The rules that all masters go by.
    pub level: Level,
    /// Time that the leaders counted, by clocks that are never set: never more than has passed.
    pub elapsed_ms: u64,
    // Keys are shared: changing a map that a clone shares copies a few of its nodes, keys included.
    pub(crate) objects: OrdMap<Arc<ObjectKey>, Object>,
    /// (node, pod), for bound pods.
    pub(crate) pods_by_node: OrdSet<(Arc<str>, Arc<ObjectKey>)>,
    /// (owner's uid, object), for objects with a controlling owner.
    pub(crate) by_owner: OrdSet<(Arc<str>, Arc<ObjectKey>)>,
    /// The last transactions that had an id.
    pub(crate) answered: OrdMap<Arc<str>, Answered>,
    /// The ids in `answered`, oldest first.
    pub(crate) answered_order: Vector<Arc<str>>,
}

impl Snapshot {
    /// The state with these objects, as they were stored, and these answered transactions (oldest
    /// first, as [`Self::answered`] gives them); the indexes are derived. Its level and time are
    /// those of a new cluster.
    pub fn rebuild(
        revision: u64,
        objects: impl IntoIterator<Item = Object>,
        answered: impl IntoIterator<Item = (String, Answered)>,
    ) -> Self {
        let mut snapshot = Self { revision, ..Self::default() };
        for object in objects {
            snapshot.put(Arc::new(object.key()), Some(object));
        }
        for (id, answered) in answered {
            snapshot.keep(&id, answered);
        }
        snapshot
    }

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
        let start = Arc::new(ObjectKey::new(kind, namespace.unwrap_or_default(), ""));
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

    /// In order of kind, namespace and name.
    pub fn all_objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> + use<'_> {
        self.indexed(&self.pods_by_node, node).filter_map(Pod::from_object)
    }

    /// What the object with this uid controls (ownerReferences with `controller: true`).
    pub fn owned_by<T: Kinded>(&self, uid: &str) -> impl Iterator<Item = &Arc<T>> + use<'_, T> {
        self.indexed(&self.by_owner, uid).filter_map(T::from_object)
    }

    /// The revision after the transaction with this id, while it is remembered.
    pub fn answered_at(&self, id: &str) -> Option<u64> {
        self.answered.get(id).map(|answered| answered.revision)
    }

    /// The last transactions that had an id, oldest first.
    pub fn answered(&self) -> impl Iterator<Item = (&str, Answered)> {
        self.answered_order.iter().filter_map(|id| Some((&**id, *self.answered.get(id)?)))
    }

    fn indexed<'a>(
        &'a self,
        index: &'a OrdSet<(Arc<str>, Arc<ObjectKey>)>,
        word: &str,
    ) -> impl Iterator<Item = &'a Object> + use<'a> {
        let word: Arc<str> = word.into();
        let start = (word.clone(), Arc::new(ObjectKey::new(Kind::Namespace, "", "")));
        index
            .range(start..)
            .take_while(move |(w, _)| *w == word)
            .filter_map(|(_, key)| self.objects.get(key))
    }

    /// Puts, replaces or (with `None`) removes one object, and keeps the indexes. Answers what was
    /// there.
    pub(crate) fn put(&mut self, key: Arc<ObjectKey>, after: Option<Object>) -> Option<Object> {
        let owner = after.as_ref().and_then(owner_in_index).map(str::to_owned);
        let node = after.as_ref().and_then(node_in_index).map(str::to_owned);
        let before = match after {
            Some(object) => self.objects.insert(key.clone(), object),
            None => self.objects.remove(&key),
        };
        let owner_before = before.as_ref().and_then(owner_in_index);
        let node_before = before.as_ref().and_then(node_in_index);
        move_in_index(&mut self.by_owner, &key, owner_before, owner.as_deref());
        move_in_index(&mut self.pods_by_node, &key, node_before, node.as_deref());
        before
    }

    /// Remembers that the transaction was applied, and forgets those past the bound.
    pub(crate) fn remember(&mut self, id: &str) {
        self.keep(id, Answered { revision: self.revision, at_ms: self.elapsed_ms });
        self.forget();
    }

    fn keep(&mut self, id: &str, answered: Answered) {
        let id: Arc<str> = id.into();
        if self.answered.insert(id.clone(), answered).is_none() {
            self.answered_order.push_back(id);
        }
    }

    fn forget(&mut self) {
        let timed = self.level >= Level::TIMED_IDS;
        let ids_max = if timed { TXN_IDS_MAX } else { UNTIMED_IDS_MAX };
        while let Some(oldest) = self.answered_order.front() {
            let at_ms = self.answered.get(oldest).map_or(0, |answered| answered.at_ms);
            let is_old = timed && self.elapsed_ms.saturating_sub(at_ms) > TXN_ID_KEPT_MS;
            if !is_old && self.answered_order.len() <= ids_max {
                return;
            }
            if let Some(oldest) = self.answered_order.pop_front() {
                self.answered.remove(&oldest);
            }
        }
    }
}

fn owner_in_index(object: &Object) -> Option<&str> {
    controller_of(object.meta()).map(|owner| owner.uid.as_str())
}

fn node_in_index(object: &Object) -> Option<&str> {
    object.get::<Pod>().and_then(|pod| node_of(pod))
}

fn move_in_index(
    index: &mut OrdSet<(Arc<str>, Arc<ObjectKey>)>,
    key: &Arc<ObjectKey>,
    before: Option<&str>,
    after: Option<&str>,
) {
    if before == after {
        return;
    }
    if let Some(word) = before {
        index.remove(&(Arc::from(word), key.clone()));
    }
    if let Some(word) = after {
        index.insert((Arc::from(word), key.clone()));
    }
}
