//! What an agent reports of its pods, on its way into the store: one transaction a batch.
//!
//! An agent speaks for the pods bound to its node and for no others; what it says of a pod that is
//! gone or is another incarnation by now is dropped. A pod's phase never goes back.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_master_core::ipam::Range;
use timonier_master_core::object::{is_ending, is_finished, name_of, node_of, phase, uid_of};
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
    keep_own_addresses(snapshot, node, pod, &mut status);
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

/// Drops addresses that are not the pod's to have: traffic of a service would go wherever a node that
/// lies wants it. A pod of the host's network has the node's address, any other one of its range;
/// what was stored before stays, as a node that registers anew may get another range.
fn keep_own_addresses(snapshot: &Snapshot, node: &str, pod: &Pod, status: &mut PodStatus) {
    let Some(host) = snapshot.get::<Node>("", node) else { return };
    let range = host.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref());
    let range = range.and_then(|range| Range::parse(range).ok());
    let is_on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let stored = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let is_own = |address: &str| {
        stored == Some(address)
            || match is_on_host {
                true => internal_address(host) == Some(address),
                false => range
                    .zip(address.parse::<Ipv4Addr>().ok())
                    .is_some_and(|(range, address)| range.contains(address)),
            }
    };
    if let Some(address) = status.pod_ip.take_if(|address| !address.is_empty() && !is_own(address))
    {
        let pod = name_of(&pod.metadata);
        tracing::warn!(node, pod, address, "the agent tells an address that is not its pod's");
    }
    if let Some(addresses) = &mut status.pod_ips {
        addresses.retain(|address| is_own(&address.ip));
    }
}

fn internal_address(node: &Node) -> Option<&str> {
    let mut addresses = node.status.as_ref()?.addresses.iter().flatten();
    addresses.find(|address| address.type_ == "InternalIP").map(|found| found.address.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_an_address_of_its_node_s_only() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .unwrap();
        let kept = |host_network: bool, stored: &str, told: &str| {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
                "spec": {"nodeName": "n1", "containers": [], "hostNetwork": host_network},
                "status": {"podIP": stored},
            }))
            .unwrap();
            let state = Snapshot::rebuild(1, [node.clone().into_object(), pod.into_object()], []);
            let status = serde_json::json!({
                "phase": "Running", "podIP": told, "podIPs": [{"ip": told}, {"ip": "1.1.1.1"}],
            });
            let status_json = status.to_string().into();
            let update = PodStatusUpdate { status_json, ..update("u1", "", false) };
            let Some(Op::ReplaceStatus(object)) = plan_one(&state, "n1", &update) else { panic!() };
            let status = object.get::<Pod>().unwrap().status.clone().unwrap();
            let all = status.pod_ips.unwrap().into_iter().map(|one| one.ip).collect::<Vec<_>>();
            assert_eq!(all, status.pod_ip.clone().into_iter().collect::<Vec<_>>());
            status.pod_ip.is_some()
        };
        assert!(kept(false, "", "10.244.1.9"));
        assert!(!kept(false, "", "10.244.2.9"));
        assert!(!kept(false, "", "10.96.0.1"));
        assert!(!kept(false, "", "192.0.2.1"));
        assert!(!kept(false, "", "fd00::1"));
        assert!(kept(true, "", "192.0.2.1"));
        assert!(!kept(true, "", "10.244.1.9"));
        // The range of before.
        assert!(kept(false, "10.244.7.9", "10.244.7.9"));
    }

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
