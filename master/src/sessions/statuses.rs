//! What an agent reports of its pods, on its way into the store: one transaction a batch.
//!
//! An agent speaks for the pods bound to its node and for no others; what it says of a pod that is
//! gone or is another incarnation by now is dropped. A pod's phase never goes back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_master_core::object::{is_ending, is_finished, node_of, phase, uid_of};
use timonier_master_core::op::{Op, Precondition, Rejection, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{Events, MasterMessage, PodStatusUpdate, PodStatuses, StatusesStored};
use timonier_proto::{Kind, Kinded, Object, ObjectKey};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::events::EventGate;
use super::or_shutdown;
use super::registry::Claim;
use crate::stamp::stamp;
use crate::store::{CommitError, Store};

/// How often a batch that raced with another write is looked at anew before its parts are written
/// one by one.
const TRIES_MAX: usize = 3;
/// Pause before one of those parts is looked at once more.
const RACE_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a write that the store could not take is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum Report {
    Statuses(PodStatuses),
    Events(Events),
}

/// Stores what one agent reports, in order, until its session ends.
pub async fn store(
    store: Store,
    claim: Arc<Claim>,
    mut reports: mpsc::Receiver<Report>,
    cancel: CancellationToken,
) {
    let mut gate = EventGate::new(&claim.node);
    while let Some(Some(report)) = or_shutdown(reports.recv(), &cancel).await {
        match report {
            Report::Statuses(batch) => {
                let storing = store_statuses(&store, &claim.node, &batch.updates);
                if or_shutdown(storing, &cancel).await.is_none() {
                    return;
                }
                let stored = StatusesStored { batch: batch.batch };
                let message = MasterMessage { message: Some(Down::Stored(stored)) };
                if claim.send(message).is_err() {
                    return;
                }
            }
            Report::Events(events) => {
                let ops = gate.admit(events.events, &store.snapshot(), Timestamp::now());
                if or_shutdown(store_events(&store, &claim.node, ops), &cancel).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Writes what is new in these as one transaction, or, where others keep writing to the same pods,
/// one by one.
async fn store_statuses(store: &Store, node: &str, updates: &[PodStatusUpdate]) {
    for _ in 0..TRIES_MAX {
        match commit(store, node, plan(&store.snapshot(), node, updates)).await {
            None => return,
            Some(rejection) => tracing::debug!(node, %rejection, "statuses raced with a write"),
        }
    }
    for update in updates {
        let one = std::slice::from_ref(update);
        while let Some(rejection) = commit(store, node, plan(&store.snapshot(), node, one)).await {
            let pod = &update.name;
            if !matches!(rejection, Rejection::Conflict { .. } | Rejection::NotFound(_)) {
                tracing::warn!(node, pod, %rejection, "a status is dropped");
                break;
            }
            sleep(RACE_PAUSE).await;
        }
    }
}

/// Writes them all, or those that are not refused.
async fn store_events(store: &Store, node: &str, ops: Vec<Op>) {
    if commit(store, node, Txn::of(ops.clone())).await.is_none() {
        return;
    }
    for op in ops {
        let key = op.key();
        if let Some(rejection) = commit(store, node, Txn::of(vec![op])).await {
            tracing::warn!(node, %key, %rejection, "an event of the agent is dropped");
        }
    }
}

/// Tries until it is written, which is `None`, or refused.
async fn commit(store: &Store, node: &str, txn: Txn) -> Option<Rejection> {
    if txn.ops.is_empty() {
        return None;
    }
    loop {
        match store.commit(txn.clone()).await {
            Ok(_) => return None,
            Err(CommitError::Rejected(rejection)) => return Some(rejection),
            Err(error) => {
                tracing::warn!(node, %error, "cannot store what the agent reports, trying again");
                sleep(STORE_RETRY).await;
            }
        }
    }
}

/// What is to be written of what the node's agent says of its pods, unless somebody else writes to
/// them meanwhile: then a session that has ended, and does not know it, has nothing to say any more.
pub fn plan(snapshot: &Snapshot, node: &str, updates: &[PodStatusUpdate]) -> Txn {
    let mut txn = Txn::of(Vec::new());
    for op in updates.iter().filter_map(|update| plan_one(snapshot, node, update)) {
        let key = op.key();
        let revision = snapshot.object(&key).map(Object::resource_version);
        txn.preconditions.extend(revision.map(|seen| Precondition::Revision(key, seen)));
        txn.ops.push(stamp(op, Timestamp::now()));
    }
    txn
}

fn plan_one(snapshot: &Snapshot, node: &str, update: &PodStatusUpdate) -> Option<Op> {
    let pod = snapshot.get::<Pod>(&update.namespace, &update.name)?;
    if uid_of(&pod.metadata) != update.uid || node_of(pod) != Some(node) {
        return None;
    }
    if update.terminated && is_ending(&pod.metadata) {
        let key = ObjectKey::new(Kind::Pod, update.namespace.as_str(), update.name.as_str());
        return Some(Op::Remove { key, uid: Some(update.uid.clone()) });
    }
    if update.status_json.is_empty() {
        return None;
    }
    let mut status: PodStatus = match serde_json::from_slice(&update.status_json) {
        Ok(status) => status,
        Err(error) => {
            tracing::warn!(node, pod = update.name, %error, "the agent sent a malformed status");
            return None;
        }
    };
    let (old, new) = (phase(pod), status.phase.as_deref().unwrap_or("Pending"));
    if is_finished(pod) && new != old {
        return None;
    }
    if old == "Running" && new == "Pending" {
        status.phase = Some(old.to_owned());
    }
    if pod.status.as_ref() == Some(&status) {
        return None;
    }
    let wanted = Pod {
        metadata: ObjectMeta {
            namespace: Some(update.namespace.clone()),
            name: Some(update.name.clone()),
            uid: Some(update.uid.clone()),
            ..Default::default()
        },
        status: Some(status),
        ..Default::default()
    };
    Some(Op::ReplaceStatus(wanted.into_object()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(deleting: bool, phase: &str) -> Snapshot {
        let mut value = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": {"nodeName": "n1", "containers": [{"name": "web"}]},
            "status": {"phase": phase},
        });
        if deleting {
            value["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z".into();
        }
        let pod: Pod = serde_json::from_value(value).unwrap();
        Snapshot::rebuild(1, [pod.into_object()], [])
    }

    fn update(uid: &str, phase: &str, terminated: bool) -> PodStatusUpdate {
        PodStatusUpdate {
            namespace: "default".into(),
            name: "web".into(),
            uid: uid.into(),
            status_json: format!(r#"{{"phase":"{phase}"}}"#).into(),
            terminated,
        }
    }

    fn phase_written(op: Option<Op>) -> Option<String> {
        match op? {
            Op::ReplaceStatus(object) => object.get::<Pod>()?.status.clone()?.phase,
            Op::Remove { .. } => Some("removed".into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_agent_speaks_for_its_own_pods_and_time_does_not_run_back() {
        let written =
            |state: &Snapshot, node, update| phase_written(plan_one(state, node, &update));
        let running = state(false, "Running");
        assert_eq!(written(&running, "n1", update("u1", "Failed", false)), Some("Failed".into()));
        assert_eq!(written(&running, "n1", update("u1", "Pending", false)), None);
        assert_eq!(written(&running, "n2", update("u1", "Failed", false)), None);
        assert_eq!(written(&running, "n1", update("u2", "Failed", false)), None);
        // Its containers are gone, but nobody asked for that: the object stays.
        assert_eq!(written(&running, "n1", update("u1", "Failed", true)), Some("Failed".into()));
        let finished = state(false, "Succeeded");
        assert_eq!(written(&finished, "n1", update("u1", "Running", false)), None);
        let ending = state(true, "Running");
        assert_eq!(written(&ending, "n1", update("u1", "Running", true)), Some("removed".into()));
    }
}
