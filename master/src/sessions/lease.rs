//! Leases: an agent may run pods that must be unique only while a master has told it lately that its
//! node counts as alive.
//!
//! A lease is granted out of a state that was current after the heartbeat had come, and to nodes that
//! are not lost in it. Whoever condemns a lost node's unique pods does so after the loss is in that
//! state, so no lease that is granted later is about a beat that was sent later: the time after which
//! the pods can be taken to be gone does not depend on which master has the node's session. Before
//! the lease goes what the agent is to run in that state: else one that comes back would start again
//! what has been replaced meanwhile.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use timonier_master_core::object::node_ready_status;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{Lease, MasterMessage};
use tokio::sync::watch;

use super::registry::Claim;
use crate::store::Store;

/// A lease that waits for longer is not granted; the next heartbeat asks again.
const TOLD_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers the beat when the state is known to be current; not at all when that cannot be known, or
/// while an earlier beat of the session waits for its answer.
pub fn answer(store: &Store, told: &watch::Receiver<u64>, claim: &Arc<Claim>, sequence: u64) {
    let Some(turn) = claim.leasing.try_enter() else { return };
    let (store, told, claim) = (store.clone(), told.clone(), claim.clone());
    tokio::spawn(async move {
        if let Err(error) = store.linearize().await {
            tracing::debug!(node = claim.node, %error, "no lease is granted");
        } else if may_have(&store.snapshot(), &claim.node)
            && until_told(told, &claim, store.snapshot().revision).await
        {
            let lease = Lease { sequence };
            // An agent that cannot take it is cut off, or gone.
            let _ = claim.send(MasterMessage { message: Some(Down::Lease(lease)) });
        }
        drop(turn);
    });
}

/// False when that takes too long.
async fn until_told(mut told: watch::Receiver<u64>, claim: &Claim, revision: u64) -> bool {
    let mut joined = claim.joined.subscribe();
    let telling = async {
        joined.wait_for(|joined| *joined).await.is_ok()
            && told.wait_for(|told| *told >= revision).await.is_ok()
    };
    tokio::time::timeout(TOLD_TIMEOUT, telling).await.unwrap_or(false)
}

/// Whether a node may have a lease, in a state that is current.
pub fn may_have(snapshot: &Snapshot, node: &str) -> bool {
    snapshot.get::<Node>("", node).is_some_and(|node| node_ready_status(node) != "Unknown")
}
