//! Delete and Evict. What ends in steps (a pod on a node, a namespace, an owner in the foreground)
//! is marked; the agent or a control loop removes it. Everything else is removed at once.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Endpoints, Pod};
use timonier_master_core::disruption;
use timonier_master_core::object::{
    GRACE_SECONDS_DEFAULT, is_ending, is_finished, is_unique, key_of, node_of,
};
use timonier_master_core::op::{Op, Precondition, Rejection, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::{DeleteReply, DeleteRequest};
use timonier_proto::{ApiError, Kind, Object, ObjectKey, Reason};

use super::read::encode;
use super::repeat::{RequestId, delete_again, once};
use super::select::parse_ref;
use super::{Inner, limits};
use crate::driver::NAMESPACES;
use crate::store::CommitError;

/// What a deletion comes to.
pub(super) struct Deletion {
    pub object: Object,
    pub ops: Vec<Op>,
    /// The object is removed by these operations, not merely marked.
    pub gone: bool,
}

impl Inner {
    pub(super) async fn delete(
        &self,
        request: DeleteRequest,
        id: &RequestId,
    ) -> Result<DeleteReply, ApiError> {
        let key = parse_ref(request.r#ref.clone())?;
        let work = || self.delete_object(&request, id);
        once(&self.store, id, work, |state| delete_again(id, state, &key)).await
    }

    async fn delete_object(
        &self,
        request: &DeleteRequest,
        id: &RequestId,
    ) -> Result<DeleteReply, ApiError> {
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let deletion = plan(&snapshot, request)?;
            let Deletion { object, ops, gone } = deletion;
            if request.dry_run || ops.is_empty() {
                return reply(&object, snapshot.revision, gone);
            }
            match self.store.commit(Txn { id: id.change(), ..Txn::of(ops) }).await {
                // A dependent that is orphaned changed meanwhile.
                Err(CommitError::Rejected(Rejection::Conflict { .. })) => {}
                outcome => {
                    let committed = outcome?;
                    let left = committed.objects.into_iter().next_back().flatten();
                    return reply(left.as_ref().unwrap_or(&object), committed.revision, gone);
                }
            }
        }
        let why = "delete: the object was changed meanwhile, again and again; hint: try again";
        Err(ApiError::new(Reason::Conflict, why))
    }

    pub(super) async fn evict(
        &self,
        mut request: DeleteRequest,
        id: &RequestId,
    ) -> Result<DeleteReply, ApiError> {
        if let Some(reference) = &mut request.r#ref {
            if reference.kind.is_empty() {
                reference.kind = Kind::Pod.to_string();
            }
            if reference.kind != Kind::Pod.to_string() {
                let why = format!("evict: only pods are evicted, not {}", reference.kind);
                return Err(ApiError::new(Reason::BadRequest, why));
            }
        }
        let key = parse_ref(request.r#ref.clone())?;
        let work = || self.evict_pod(&request, id);
        once(&self.store, id, work, |state| delete_again(id, state, &key)).await
    }

    /// What the budget counts is taken in the transaction that ends the pod, on condition that
    /// nobody took of it meanwhile.
    async fn evict_pod(
        &self,
        request: &DeleteRequest,
        id: &RequestId,
    ) -> Result<DeleteReply, ApiError> {
        // One after the other on this master; evictions on another one are what the retries are for.
        let _turn = self.evicting.lock().await;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let Deletion { object, ops: deletion, gone } = plan(&snapshot, request)?;
            let Some(pod) = object.get::<Pod>() else {
                return Err(ApiError::new(Reason::BadRequest, "evict: only pods are evicted"));
            };
            let (mut ops, preconditions) = allowed(&snapshot, pod)?;
            if request.dry_run || deletion.is_empty() {
                return reply(&object, snapshot.revision, gone);
            }
            ops.extend(deletion);
            match self.store.commit(Txn { id: id.change(), preconditions, ..Txn::of(ops) }).await {
                Err(CommitError::Rejected(Rejection::Conflict { .. })) => {}
                outcome => {
                    let committed = outcome?;
                    let left = committed.objects.into_iter().next_back().flatten();
                    return reply(left.as_ref().unwrap_or(&object), committed.revision, gone);
                }
            }
        }
        let why = "evict: the pod's disruption budget is in demand; hint: try again";
        Err(ApiError::new(Reason::TooManyRequests, why))
    }
}

fn allowed(snapshot: &Snapshot, pod: &Pod) -> Result<(Vec<Op>, Vec<Precondition>), ApiError> {
    match disruption::evict(snapshot, pod, Timestamp::now()) {
        disruption::Answer::Allowed { ops, preconditions } => Ok((ops, preconditions)),
        disruption::Answer::Refused(why) => Err(ApiError::new(Reason::TooManyRequests, why)),
        disruption::Answer::TooManyBudgets(names) => {
            let why = format!(
                "evict {}: the pod has more than one disruption budget ({}), and only one can decide; hint: narrow their selectors",
                key_of(pod),
                names.join(", ")
            );
            Err(ApiError::new(Reason::InternalError, why))
        }
    }
}

fn reply(object: &Object, revision: u64, gone: bool) -> Result<DeleteReply, ApiError> {
    Ok(DeleteReply { json: encode(object)?.into(), revision, gone })
}

/// The operation on the object itself is the last one.
pub(super) fn plan(snapshot: &Snapshot, request: &DeleteRequest) -> Result<Deletion, ApiError> {
    let key = parse_ref(request.r#ref.clone())?;
    let object = snapshot.object(&key).ok_or_else(|| ApiError::not_found(&key))?.clone();
    if !request.uid.is_empty() && request.uid != object.uid() {
        return Err(CommitError::Rejected(Rejection::OtherUid(key)).into());
    }
    if key.kind == Kind::Namespace && NAMESPACES.contains(&key.name.as_str()) {
        let why =
            format!("namespaces \"{}\" is forbidden: this namespace may not be deleted", key.name);
        return Err(ApiError::new(Reason::Forbidden, why));
    }
    if let Some(grace) = request.grace_period_seconds.filter(|grace| *grace < 0) {
        let why = format!("delete {key}: a grace period of {grace} seconds is less than none");
        return Err(ApiError::new(Reason::BadRequest, why));
    }
    let uid = Some(object.uid().to_owned());
    let mark = |grace_seconds| {
        let (key, uid) = (key.clone(), uid.clone());
        vec![Op::MarkDeleted { key, uid, at: Timestamp::now(), grace_seconds }]
    };
    let remove = Op::Remove { key: key.clone(), uid: uid.clone() };
    let (ops, gone) = match (&object, request.propagation.as_str()) {
        (_, other) if !["", "Background", "Orphan", "Foreground"].contains(&other) => {
            let why = format!(
                "delete {key}: propagation {other:?} is none of Background, Orphan, Foreground"
            );
            return Err(ApiError::new(Reason::BadRequest, why));
        }
        (Object::Pod(pod), _) => match pod_grace(pod, request.grace_period_seconds) {
            Some(_) if is_ending(&pod.metadata) => (Vec::new(), false),
            Some(grace) => (mark(grace), false),
            None => (vec![remove], true),
        },
        (Object::Namespace(_), _) => (mark(0), false),
        (_, "Foreground") => (mark(0), false),
        (_, "Orphan") => {
            let mut ops = orphan(snapshot, object.uid());
            ops.push(remove);
            (ops, true)
        }
        _ => (vec![remove], true),
    };
    Ok(Deletion { object, ops, gone })
}

/// Seconds to end in, or `None` when nothing runs (or is waited for) and it can be removed.
fn pod_grace(pod: &Pod, asked: Option<i64>) -> Option<i64> {
    if node_of(pod).is_none() || is_finished(pod) {
        return None;
    }
    let usual = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let grace = asked.or(usual).unwrap_or(GRACE_SECONDS_DEFAULT);
    if is_unique(pod) {
        // Removed when it is known not to run: its place may be taken at once.
        return Some(grace);
    }
    (grace > 0 || asked != Some(0)).then_some(grace)
}

/// Takes the reference to the owner out of what it controls. Conditional on nothing having changed
/// it meanwhile.
fn orphan(snapshot: &Snapshot, owner: &str) -> Vec<Op> {
    let mut keys: Vec<ObjectKey> = Vec::new();
    keys.extend(snapshot.owned_by::<Pod>(owner).map(|o| key_of(&**o)));
    keys.extend(snapshot.owned_by::<ReplicaSet>(owner).map(|o| key_of(&**o)));
    keys.extend(snapshot.owned_by::<Endpoints>(owner).map(|o| key_of(&**o)));
    keys.iter()
        .filter_map(|key| snapshot.object(key))
        .map(|dependent| {
            let mut orphan = dependent.clone();
            if let Some(owners) = &mut orphan.meta_mut().owner_references {
                owners.retain(|reference| reference.uid != owner);
            }
            Op::Replace(orphan)
        })
        .collect()
}
