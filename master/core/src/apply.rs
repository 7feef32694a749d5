//! What a write does to the state. Deterministic: the same transactions in the same order give the
//! same state on every master, so nothing here asks a clock or throws dice.
//!
//! Judges only what keeps the state whole (existence, incarnation, concurrent changes). Whether an
//! object makes sense is admission's, before the transaction is proposed.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod, PodCondition, PodStatus};
use timonier_proto::{Kinded, Object, ObjectKey};

use crate::ipam;
use crate::object::{after_seconds, is_ending, node_of, stored_time};
use crate::op::{Change, Mark, Op, Precondition, Rejection, Txn};
use crate::policy;
use crate::snapshot::Snapshot;

/// The condition that binding sets; it is the scheduler's, so an agent's status does not drop it.
const POD_SCHEDULED: &str = "PodScheduled";

/// What a transaction did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// In order, each with a revision of its own, one higher than the one before. Empty when
    /// nothing changed.
    pub changes: Vec<Change>,
    /// The state's revision after the transaction.
    pub revision: u64,
    /// Its id was applied before; nothing was done this time.
    pub repeated: bool,
}

impl Snapshot {
    /// Applies all operations of `txn` or, when it is refused, none.
    ///
    /// Each change of an object takes the next revision, which becomes its resourceVersion: one
    /// number stands for one change, so a watch that resumes after it misses and repeats nothing.
    pub fn apply(&mut self, txn: &Txn) -> Result<Applied, Rejection> {
        if let Some(id) = &txn.id
            && let Some(revision) = self.answered_at(id)
        {
            return Ok(Applied { changes: Vec::new(), revision, repeated: true });
        }
        for precondition in &txn.preconditions {
            self.check(precondition)?;
        }
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            match self.apply_op(op) {
                Ok(None) => {}
                Ok(Some(change)) => changes.push(change),
                Err(rejection) => {
                    self.revert(changes);
                    return Err(rejection);
                }
            }
        }
        if let Some(id) = &txn.id {
            self.remember(id);
        }
        match txn.mark {
            Some(Mark::Level(level)) => self.level = self.level.max(level),
            Some(Mark::Elapsed(ms)) => self.elapsed_ms = self.elapsed_ms.saturating_add(ms),
            None => {}
        }
        Ok(Applied { changes, revision: self.revision, repeated: false })
    }

    fn revert(&mut self, changes: Vec<Change>) {
        self.revision -= changes.len() as u64;
        for change in changes.into_iter().rev() {
            self.put(Arc::new(change.key), change.before);
        }
    }

    fn check(&self, precondition: &Precondition) -> Result<(), Rejection> {
        match precondition {
            Precondition::Exists(key) => self.existing(key, None).map(drop),
            Precondition::Absent(key) if self.object(key).is_some() => {
                Err(Rejection::AlreadyExists(key.clone()))
            }
            Precondition::Absent(_) | Precondition::Knows(_) => Ok(()),
            Precondition::Revision(key, expected) => {
                let found = self.existing(key, None)?.resource_version();
                if found == *expected {
                    return Ok(());
                }
                Err(Rejection::Conflict { key: key.clone(), expected: *expected, found })
            }
            Precondition::Uid(key, uid) => self.existing(key, Some(uid)).map(drop),
            Precondition::Free { what, by } => match ipam::holder(self, what, by) {
                Some(by) => Err(Rejection::Taken { what: what.to_string(), by }),
                None => Ok(()),
            },
        }
    }

    /// The object, of this incarnation if a (non-empty) uid is given.
    fn existing(&self, key: &ObjectKey, uid: Option<&str>) -> Result<&Object, Rejection> {
        let object = self.object(key).ok_or_else(|| Rejection::NotFound(key.clone()))?;
        match uid.filter(|uid| !uid.is_empty()) {
            Some(uid) if uid != object.uid() => Err(Rejection::OtherUid(key.clone())),
            _ => Ok(object),
        }
    }

    fn apply_op(&mut self, op: &Op) -> Result<Option<Change>, Rejection> {
        let key = op.key();
        let next = match op {
            Op::Create(object) => Some(self.created(&key, object)?),
            Op::Replace(object) => self.replaced(&key, object)?,
            Op::ReplaceStatus(object) => self.status_replaced(&key, object)?,
            Op::Bind { uid, node, at, .. } => Some(self.bound(&key, uid, node, *at)?),
            Op::MarkDeleted { uid, at, grace_seconds, .. } => {
                self.marked(&key, uid.as_deref(), *at, *grace_seconds)?
            }
            Op::RecordEvent(object) => Some(self.recorded(&key, object)?),
            Op::Remove { uid, .. } => {
                self.existing(&key, uid.as_deref())?;
                return Ok(Some(self.change(key, None)));
            }
        };
        Ok(next.map(|object| self.change(key, Some(object))))
    }

    /// Stores what comes of the object under the next revision.
    fn change(&mut self, key: ObjectKey, mut after: Option<Object>) -> Change {
        self.revision += 1;
        if let Some(object) = &mut after {
            object.meta_mut().resource_version = Some(self.revision.to_string());
        }
        let before = self.put(Arc::new(key.clone()), after.clone());
        Change { revision: self.revision, key, before, after }
    }

    fn created(&self, key: &ObjectKey, object: &Object) -> Result<Object, Rejection> {
        if self.object(key).is_some() {
            return Err(Rejection::AlreadyExists(key.clone()));
        }
        let invalid = |why: &str| Rejection::Invalid { key: key.clone(), why: why.to_owned() };
        if key.name.is_empty() {
            return Err(invalid("it has no name"));
        }
        if key.kind.info().namespaced == key.namespace.is_empty() {
            return Err(invalid(if key.namespace.is_empty() {
                "it has no namespace"
            } else {
                "its kind is cluster-wide, so it has no namespace"
            }));
        }
        if object.uid().is_empty() {
            return Err(invalid("it has no uid"));
        }
        self.within_quota(key, None, object)?;
        let mut object = object.clone();
        object.meta_mut().generation = has_spec(&object).then_some(1);
        Ok(object)
    }

    fn replaced(&self, key: &ObjectKey, object: &Object) -> Result<Option<Object>, Rejection> {
        let stored = self.existing(key, Some(object.uid()))?;
        let expected = object.resource_version();
        let found = stored.resource_version();
        if expected != 0 && expected != found {
            return Err(Rejection::Conflict { key: key.clone(), expected, found });
        }
        let mut next = with_status_of(object, stored).unwrap_or_else(|| object.clone());
        keep_node(key, &mut next, stored)?;
        let before = stored.meta();
        let meta = next.meta_mut();
        meta.uid.clone_from(&before.uid);
        meta.creation_timestamp.clone_from(&before.creation_timestamp);
        meta.generate_name.clone_from(&before.generate_name);
        meta.deletion_timestamp.clone_from(&before.deletion_timestamp);
        meta.deletion_grace_period_seconds = before.deletion_grace_period_seconds;
        meta.generation = before.generation;
        meta.resource_version.clone_from(&before.resource_version);
        if !same_spec(&next, stored) {
            let meta = next.meta_mut();
            meta.generation = Some(meta.generation.unwrap_or_default() + 1);
        }
        if next == *stored {
            return Ok(None);
        }
        self.within_quota(key, Some(stored), &next)?;
        Ok(Some(next))
    }

    /// Here, where writes come one after the other, no two of them take the same last place.
    fn within_quota(
        &self,
        key: &ObjectKey,
        old: Option<&Object>,
        new: &Object,
    ) -> Result<(), Rejection> {
        policy::admits(self, old, new)
            .map_err(|exceeded| Rejection::OverQuota { key: key.clone(), why: exceeded.0 })
    }

    fn status_replaced(
        &self,
        key: &ObjectKey,
        object: &Object,
    ) -> Result<Option<Object>, Rejection> {
        let stored = self.existing(key, Some(object.uid()))?;
        let Some(mut next) = with_status_of(stored, object) else {
            return Err(Rejection::Invalid { key: key.clone(), why: "it has no status".into() });
        };
        keep_pod_scheduled(&mut next, stored);
        Ok((next != *stored).then_some(next))
    }

    fn bound(
        &self,
        key: &ObjectKey,
        uid: &str,
        node: &str,
        at: Timestamp,
    ) -> Result<Object, Rejection> {
        let stored = self.existing(key, Some(uid))?;
        let invalid = |why: &str| Rejection::Invalid { key: key.clone(), why: why.to_owned() };
        let pod = stored.get::<Pod>().ok_or_else(|| invalid("only pods are bound to nodes"))?;
        if let Some(node) = node_of(pod) {
            return Err(Rejection::AlreadyBound { key: key.clone(), node: node.to_owned() });
        }
        if is_ending(&pod.metadata) {
            return Err(invalid("it is ending, so it is not bound to a node"));
        }
        let mut pod = Pod::clone(pod);
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        let scheduled = PodCondition {
            type_: POD_SCHEDULED.to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(stored_time(at)),
            ..Default::default()
        };
        set_condition(pod.status.get_or_insert_default(), scheduled);
        Ok(pod.into_object())
    }

    fn marked(
        &self,
        key: &ObjectKey,
        uid: Option<&str>,
        at: Timestamp,
        grace_seconds: i64,
    ) -> Result<Option<Object>, Rejection> {
        let stored = self.existing(key, uid)?;
        if is_ending(stored.meta()) {
            return Ok(None);
        }
        let mut next = stored.clone();
        let meta = next.meta_mut();
        meta.deletion_timestamp = Some(stored_time(after_seconds(at, grace_seconds.max(0))));
        meta.deletion_grace_period_seconds = Some(grace_seconds.max(0));
        Ok(Some(next))
    }

    fn recorded(&self, key: &ObjectKey, object: &Object) -> Result<Object, Rejection> {
        let Some(newer) = object.get::<Event>() else {
            return Err(Rejection::Invalid { key: key.clone(), why: "it is not an event".into() });
        };
        let again = newer.count.unwrap_or(1).max(1);
        let Some(stored) = self.object(key).and_then(Event::from_object) else {
            let mut first = Event::clone(newer);
            first.count = Some(again);
            return self.created(key, &first.into_object());
        };
        let mut event = Event::clone(stored);
        event.count = Some(event.count.unwrap_or(1).saturating_add(again));
        if newer.last_timestamp.is_some() {
            event.last_timestamp.clone_from(&newer.last_timestamp);
        }
        event.message.clone_from(&newer.message);
        Ok(event.into_object())
    }
}

/// For the kinds whose objects have a spec and a status, evaluates `$body` with `$a` and `$b` bound
/// to the two objects of that kind; else `$other`.
macro_rules! for_spec_and_status {
    ($left:expr, $right:expr, |$a:ident, $b:ident| $body:expr, $other:expr) => {
        match ($left, $right) {
            (Object::Namespace($a), Object::Namespace($b)) => $body,
            (Object::Node($a), Object::Node($b)) => $body,
            (Object::Pod($a), Object::Pod($b)) => $body,
            (Object::Service($a), Object::Service($b)) => $body,
            (Object::Deployment($a), Object::Deployment($b)) => $body,
            (Object::ReplicaSet($a), Object::ReplicaSet($b)) => $body,
            (Object::LatencyAutoscaler($a), Object::LatencyAutoscaler($b)) => $body,
            (Object::ResourceQuota($a), Object::ResourceQuota($b)) => $body,
            (Object::PodDisruptionBudget($a), Object::PodDisruptionBudget($b)) => $body,
            _ => $other,
        }
    };
}

fn has_spec(object: &Object) -> bool {
    for_spec_and_status!(object, object, |_a, _b| true, false)
}

/// Always true for kinds without a spec: their generation stays unset.
fn same_spec(left: &Object, right: &Object) -> bool {
    for_spec_and_status!(left, right, |a, b| a.spec == b.spec, true)
}

/// A copy of `object` with the status of `other`; `None` for kinds that have none.
fn with_status_of(object: &Object, other: &Object) -> Option<Object> {
    for_spec_and_status!(
        object,
        other,
        |a, b| {
            let mut next = (**a).clone();
            next.status.clone_from(&b.status);
            Some(next.into_object())
        },
        None
    )
}

/// A pod's node is written once, by binding.
fn keep_node(key: &ObjectKey, next: &mut Object, stored: &Object) -> Result<(), Rejection> {
    let (Object::Pod(next), Object::Pod(stored)) = (next, stored) else { return Ok(()) };
    let Some(node) = node_of(stored) else { return Ok(()) };
    match node_of(next) {
        Some(same) if same == node => {}
        Some(_) => {
            return Err(Rejection::AlreadyBound { key: key.clone(), node: node.to_owned() });
        }
        None => {
            Arc::make_mut(next).spec.get_or_insert_default().node_name = Some(node.to_owned());
        }
    }
    Ok(())
}

fn keep_pod_scheduled(next: &mut Object, stored: &Object) {
    let (Object::Pod(next), Object::Pod(stored)) = (next, stored) else { return };
    let find = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().find(|c| c.type_ == POD_SCHEDULED).cloned()
    };
    if find(next).is_none()
        && let Some(condition) = find(stored)
    {
        set_condition(Arc::make_mut(next).status.get_or_insert_default(), condition);
    }
}

fn set_condition(status: &mut PodStatus, condition: PodCondition) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.insert(0, condition);
}

#[cfg(test)]
mod tests;
