//! The cluster's own secrets: who reads or writes one of them has the cluster, so they are for those
//! who have it anyway.
//!
//! They are told by their names alone, as whoever uses them looks them up by name.

use timonier_proto::{ApiError, Kind, Object, ObjectKey, Reason};

use super::{Attributes, UserInfo, authorize};
use crate::snapshot::Snapshot;

/// Where all of them are.
pub const NAMESPACE: &str = "kube-system";
/// The CA with its key.
pub const CA_NAME: &str = "timonier-ca";
/// What the tokens of service accounts are signed with.
pub const SIGNING_KEYS_NAME: &str = "service-account-signing-keys";
/// Whose certificates were revoked.
pub const REVOKED_NAME: &str = "revoked-certificates";
/// A join token's is named this and the token's id.
pub const JOIN_TOKEN_PREFIX: &str = "join-token-";

/// Whether the key is that of a secret of the cluster's own.
pub fn is_reserved(key: &ObjectKey) -> bool {
    key.kind == Kind::Secret && is_reserved_name(&key.namespace, &key.name)
}

fn is_reserved_name(namespace: &str, name: &str) -> bool {
    namespace == NAMESPACE
        && (matches!(name, CA_NAME | SIGNING_KEYS_NAME | REVOKED_NAME)
            || name.starts_with(JOIN_TOKEN_PREFIX))
}

/// Whether the user has the cluster: all verbs on all resources everywhere.
pub fn has_cluster(snapshot: &Snapshot, user: &UserInfo) -> bool {
    user.is_superuser() || authorize(snapshot, user, &Attributes::virtually("*", "*", "*")).allowed
}

/// Refuses what names one of these secrets to those who do not have the cluster.
pub fn require(snapshot: &Snapshot, user: &UserInfo, asked: &Attributes) -> Result<(), ApiError> {
    let is_secret = asked.group.is_empty() && asked.resource == "secrets";
    match is_secret && is_reserved_name(&asked.namespace, &asked.name) {
        true if !has_cluster(snapshot, user) => Err(refused(user, &asked.verb, &asked.name)),
        _ => Ok(()),
    }
}

/// The same of an object that is to be made, whose name may not be whole yet.
pub fn require_to_create(
    snapshot: &Snapshot,
    user: &UserInfo,
    new: &Object,
) -> Result<(), ApiError> {
    let meta = new.meta();
    let given = meta.name.as_deref().filter(|name| !name.is_empty());
    let name = given.or(meta.generate_name.as_deref()).unwrap_or_default();
    let mut asked =
        Attributes::on("create", new.kind(), meta.namespace.as_deref().unwrap_or_default(), "");
    name.clone_into(&mut asked.name);
    require(snapshot, user, &asked)
}

fn refused(user: &UserInfo, verb: &str, name: &str) -> ApiError {
    let why = format!(
        "secrets {name:?} is forbidden: User {:?} cannot {verb} it: it is one of the cluster's own secrets, which are for those with all rights in the whole cluster; hint: cluster-admin, bound by a ClusterRoleBinding, gives them",
        user.name
    );
    ApiError::new(Reason::Forbidden, why)
}
