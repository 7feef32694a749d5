//! What must exist in every cluster: its first namespaces.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_master_core::op::{Op, Txn};
use timonier_proto::Kinded;

use crate::stamp::stamp;
use crate::store::{CommitError, Store};

/// Made when a cluster begins; the doors refuse to delete them.
pub const NAMESPACES: &[&str] = &[timonier_proto::DEFAULT_NAMESPACE, "kube-system"];

/// Creates those of [`NAMESPACES`] that are missing.
pub(super) async fn ensure_namespaces(store: &Store) -> Result<(), CommitError> {
    let snapshot = store.snapshot();
    let missing = NAMESPACES.iter().filter(|name| snapshot.get::<Namespace>("", name).is_none());
    let ops: Vec<Op> = missing
        .map(|name| {
            let namespace = Namespace {
                metadata: ObjectMeta {
                    name: Some((*name).to_owned()),
                    labels: Some(BTreeMap::from([(
                        "kubernetes.io/metadata.name".to_owned(),
                        (*name).to_owned(),
                    )])),
                    ..Default::default()
                },
                status: Some(NamespaceStatus {
                    phase: Some("Active".to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            };
            stamp(Op::Create(namespace.into_object()), Timestamp::now())
        })
        .collect();
    if ops.is_empty() {
        return Ok(());
    }
    store.commit_leading(Txn::of(ops)).await.map(drop)
}
