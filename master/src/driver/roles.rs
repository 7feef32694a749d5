//! The default roles and bindings, and the key that signs service accounts' tokens: made when a cluster begins, and completed at the start of each
//! leadership, so that a newer version's rules reach an older cluster.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use timonier_master_core::access::defaults;
use timonier_master_core::object::name_of;
use timonier_master_core::op::{Op, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Kinded;
use tracing::warn;

use crate::stamp::stamp;
use crate::store::{CommitError, Store};
use crate::tokens;

/// Creates what is missing and completes what lacks rules.
pub(super) async fn ensure(store: &Store) -> Result<(), CommitError> {
    let ops = missing(&store.snapshot());
    if ops.is_empty() {
        return Ok(());
    }
    store.commit_leading(Txn::of(ops)).await.map(drop)
}

fn missing(snapshot: &Snapshot) -> Vec<Op> {
    let now = Timestamp::now();
    let mut ops = Vec::new();
    for role in defaults::cluster_roles() {
        match snapshot.get::<ClusterRole>("", name_of(&role.metadata)) {
            None => ops.push(stamp(Op::Create(role.into_object()), now)),
            Some(stored) => ops.extend(
                defaults::completed(stored, &role).map(|role| Op::Replace(role.into_object())),
            ),
        }
    }
    for binding in defaults::cluster_role_bindings() {
        if snapshot.get::<ClusterRoleBinding>("", name_of(&binding.metadata)).is_none() {
            ops.push(stamp(Op::Create(binding.into_object()), now));
        }
    }
    if snapshot.get::<Secret>(tokens::KEYS_NAMESPACE, tokens::KEYS_NAME).is_none() {
        match tokens::new_keys() {
            Ok(keys) => ops.push(stamp(Op::Create(keys.into_object()), now)),
            Err(_) => warn!("make a key to sign tokens with: the system gives no random bytes"),
        }
    }
    ops
}
