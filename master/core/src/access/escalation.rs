//! Nobody gives what he does not have: a role may hold only rules that its writer has himself, and a
//! binding may give only a role whose rules its writer has, unless he may `escalate` or `bind`.
//!
//! Also what the store holds of the rest of Kubernetes' rule: a binding's role never changes.

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use timonier_proto::{ApiError, Kind, Object, Reason};

use super::{
    Attributes, RBAC_GROUP, UserInfo, authorize, covers, defaults, describe, rules_for, rules_of,
    uncovered,
};
use crate::snapshot::Snapshot;

/// Rules that a refusal names; more are counted.
const TOLD_MAX: usize = 5;

/// Whether `user` may write `new` over `old`. Of kinds that give nothing it says yes.
pub fn check(
    snapshot: &Snapshot,
    user: &UserInfo,
    old: Option<&Object>,
    new: &Object,
) -> Result<(), ApiError> {
    let namespace = new.meta().namespace.as_deref().unwrap_or_default();
    match new {
        Object::Role(role) => {
            let same = matches!(old, Some(Object::Role(old)) if old.rules == role.rules);
            if same {
                return Ok(());
            }
            grants(snapshot, user, new, namespace, role.rules.as_deref().unwrap_or_default())
        }
        Object::ClusterRole(role) => {
            let same = matches!(old, Some(Object::ClusterRole(old))
                if old.rules == role.rules && old.aggregation_rule == role.aggregation_rule);
            if same {
                return Ok(());
            }
            if role.aggregation_rule.is_some() {
                let all = defaults::everything();
                if !may(snapshot, user, "escalate", new, namespace)
                    && !covers(&rules_for(snapshot, user, ""), &all)
                {
                    let why = "must have cluster-admin privileges to use an aggregationRule";
                    return Err(forbidden(new, why.to_owned()));
                }
            }
            grants(snapshot, user, new, "", role.rules.as_deref().unwrap_or_default())
        }
        Object::RoleBinding(binding) => {
            let same = matches!(old, Some(Object::RoleBinding(old))
                if old.role_ref == binding.role_ref && old.subjects == binding.subjects);
            if same { Ok(()) } else { binds(snapshot, user, new, namespace, &binding.role_ref) }
        }
        Object::ClusterRoleBinding(binding) => {
            let same = matches!(old, Some(Object::ClusterRoleBinding(old))
                if old.role_ref == binding.role_ref && old.subjects == binding.subjects);
            if same { Ok(()) } else { binds(snapshot, user, new, "", &binding.role_ref) }
        }
        _ => Ok(()),
    }
}

fn binds(
    snapshot: &Snapshot,
    user: &UserInfo,
    new: &Object,
    namespace: &str,
    role: &RoleRef,
) -> Result<(), ApiError> {
    let kind = if role.kind == "Role" { Kind::Role } else { Kind::ClusterRole };
    let mut bind = Attributes::on("bind", kind, namespace, &role.name);
    // In a namespace, the right to bind a cluster role may come from a role of the namespace.
    namespace.clone_into(&mut bind.namespace);
    if authorize(snapshot, user, &bind).allowed {
        return Ok(());
    }
    let found = match kind {
        Kind::Role => Kind::Role,
        _ => Kind::ClusterRole,
    };
    let key = timonier_proto::ObjectKey::new(
        found,
        if found == Kind::Role { namespace } else { "" },
        &role.name,
    );
    if snapshot.object(&key).is_none() {
        // What a role that does not exist yet will hold is not known.
        return Err(ApiError::not_found(&key));
    }
    let wanted = rules_of(snapshot, role, namespace);
    missing(snapshot, user, new, namespace, wanted)
}

fn grants(
    snapshot: &Snapshot,
    user: &UserInfo,
    new: &Object,
    namespace: &str,
    rules: &[PolicyRule],
) -> Result<(), ApiError> {
    if may(snapshot, user, "escalate", new, namespace) {
        return Ok(());
    }
    missing(snapshot, user, new, namespace, rules)
}

fn may(
    snapshot: &Snapshot,
    user: &UserInfo,
    verb: &'static str,
    new: &Object,
    namespace: &str,
) -> bool {
    let key = new.key();
    authorize(snapshot, user, &Attributes::on(verb, key.kind, namespace, &key.name)).allowed
}

fn missing(
    snapshot: &Snapshot,
    user: &UserInfo,
    new: &Object,
    namespace: &str,
    wanted: &[PolicyRule],
) -> Result<(), ApiError> {
    let held = rules_for(snapshot, user, namespace);
    let missing = uncovered(&held, wanted, usize::MAX);
    if missing.is_empty() {
        return Ok(());
    }
    let mut told: Vec<String> = missing.iter().take(TOLD_MAX).map(describe).collect();
    if missing.len() > TOLD_MAX {
        told.push(format!("and {} more", missing.len() - TOLD_MAX));
    }
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        told.join("\n")
    );
    Err(forbidden(new, why))
}

fn forbidden(object: &Object, why: String) -> ApiError {
    let key = object.key();
    let plural = key.kind.info().plural;
    let why = format!("{plural}.{RBAC_GROUP} {:?} is forbidden: {why}", key.name);
    ApiError::new(Reason::Forbidden, why)
}
