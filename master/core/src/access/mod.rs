//! Who may do what: Kubernetes' role based access control over the roles and bindings in the state.
//!
//! Pure. It answers whether a user may do something; who the user is (certificate, token) is
//! established at the edge, and which request needs which permission is the doors' table.

pub mod defaults;
pub mod escalation;
pub mod reserved;
mod rules;
#[cfg(test)]
mod tests;
mod user;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use timonier_proto::{ApiError, Kind, Reason};

use crate::object::name_of;
use crate::snapshot::Snapshot;

pub use rules::{covers, describe, uncovered};
pub use user::{
    ANONYMOUS, AUTHENTICATED, MASTERS, NODE_PREFIX, NODES, SERVICE_ACCOUNTS, SUPERUSERS,
    UNAUTHENTICATED, UserInfo,
};

/// The API group of roles and bindings.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// The API group of what only Timonier has: masters, backups, join tokens, images.
pub const OWN_GROUP: &str = "timonier.io";

/// What somebody wants to do: a verb on a resource, or on a path when `path` is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, or one of RBAC's own.
    pub verb: Cow<'static, str>,
    pub group: Cow<'static, str>,
    /// Lower-case plural.
    pub resource: Cow<'static, str>,
    pub subresource: Cow<'static, str>,
    /// Empty at the cluster's scope: for cluster-wide kinds and for all namespaces.
    pub namespace: String,
    /// Empty where no single object is meant.
    pub name: String,
    /// `/version`: then there is no resource.
    pub path: Cow<'static, str>,
}

impl Attributes {
    /// A verb on objects of a kind.
    pub fn on(verb: &'static str, kind: Kind, namespace: &str, name: &str) -> Self {
        let info = kind.info();
        let namespace = if info.namespaced { namespace } else { "" };
        Self {
            verb: verb.into(),
            group: info.group.into(),
            resource: info.plural.into(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// A verb on a resource that is no stored kind.
    pub fn virtually(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            ..Self::default()
        }
    }

    pub fn at_path(verb: &'static str, path: &'static str) -> Self {
        Self { verb: verb.into(), path: path.into(), ..Self::default() }
    }

    /// Of the object's part: `log`, `exec`, `status`.
    pub fn part(mut self, subresource: &'static str) -> Self {
        self.subresource = subresource.into();
        self
    }

    /// `pods/log`
    pub fn full_resource(&self) -> String {
        match self.subresource.is_empty() {
            true => self.resource.to_string(),
            false => format!("{}/{}", self.resource, self.subresource),
        }
    }
}

/// `list pods in default`, for logs and audit.
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            return write!(f, "{} {}", self.verb, self.path);
        }
        write!(f, "{} {}", self.verb, self.full_resource())?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if self.namespace.is_empty() { Ok(()) } else { write!(f, " in {}", self.namespace) }
    }
}

/// May or may not, and why it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// The binding that allows it; empty when nothing does.
    pub why: Cow<'static, str>,
}

impl Decision {
    fn allow(why: impl Into<Cow<'static, str>>) -> Self {
        Self { allowed: true, why: why.into() }
    }

    const DENY: Self = Self { allowed: false, why: Cow::Borrowed("") };
}

/// Whether `user` may do it, by the state's roles. Nodes and masters may do here what their
/// sessions need and nothing else; superusers may all.
pub fn authorize(snapshot: &Snapshot, user: &UserInfo, asked: &Attributes) -> Decision {
    if user.is_superuser() {
        return Decision::allow("the group system:masters may do everything");
    }
    if user.in_group(MASTERS) {
        return Decision::allow("a master of this cluster");
    }
    if let Some(node) = user.node()
        && asked.group.is_empty()
        && asked.resource == "nodes"
        && asked.subresource.is_empty()
        && asked.verb == "get"
        && asked.name == node
    {
        return Decision::allow("a node may read its own object");
    }
    let mut allowed = Decision::DENY;
    visit(snapshot, user, &asked.namespace, |grant| {
        let found = grant.rules.iter().any(|rule| rules::allows(rule, asked));
        if found {
            allowed = Decision::allow(grant.to_string());
        }
        !found
    });
    allowed
}

/// As [`authorize`], with Kubernetes' refusal.
pub fn require(snapshot: &Snapshot, user: &UserInfo, asked: &Attributes) -> Result<(), ApiError> {
    if authorize(snapshot, user, asked).allowed { Ok(()) } else { Err(refusal(user, asked)) }
}

/// `pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "y"`
pub fn refusal(user: &UserInfo, asked: &Attributes) -> ApiError {
    let who = &user.name;
    let hint = "hint: timonctl auth can-i --list shows what you may do; a role binding allows more";
    if !asked.path.is_empty() {
        let why =
            format!("forbidden: User {who:?} cannot {} path {:?}\n{hint}", asked.verb, asked.path);
        return ApiError::new(Reason::Forbidden, why);
    }
    let group = if asked.group.is_empty() { String::new() } else { format!(".{}", asked.group) };
    let name = if asked.name.is_empty() { String::new() } else { format!(" {:?}", asked.name) };
    let place = match asked.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!(
        "{}{group}{name} is forbidden: User {who:?} cannot {} resource {:?} in API group {:?} {place}\n{hint}",
        asked.resource,
        asked.verb,
        asked.full_resource(),
        asked.group,
    );
    ApiError::new(Reason::Forbidden, why)
}

/// Every rule that holds for the user in that namespace (empty: at the cluster's scope only).
pub fn rules_for(snapshot: &Snapshot, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    if user.is_superuser() || user.in_group(MASTERS) {
        all.extend(defaults::everything());
        return all;
    }
    visit(snapshot, user, namespace, |grant| {
        for rule in grant.rules {
            if !all.contains(rule) {
                all.push(rule.clone());
            }
        }
        true
    });
    all
}

/// Rules that a binding gives to a subject.
struct Grant<'a> {
    binding_kind: Kind,
    namespace: &'a str,
    binding: &'a str,
    role: &'a RoleRef,
    subject: &'a Subject,
    rules: &'a [PolicyRule],
}

impl fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.namespace.is_empty() { "" } else { "/" };
        write!(
            f,
            "RBAC: allowed by {} \"{}{place}{}\" of {} {:?} to {} {:?}",
            self.binding_kind,
            self.binding,
            self.namespace,
            self.role.kind,
            self.role.name,
            self.subject.kind,
            self.subject.name
        )
    }
}

/// Goes through what the user has been given, cluster-wide first, until `next` answers false. A
/// binding whose role does not exist gives nothing.
fn visit(
    snapshot: &Snapshot,
    user: &UserInfo,
    namespace: &str,
    mut next: impl FnMut(&Grant<'_>) -> bool,
) {
    for binding in snapshot.list::<ClusterRoleBinding>(None) {
        let Some(subject) = subject_of(binding.subjects.as_deref(), user, "") else { continue };
        let grant = Grant {
            binding_kind: Kind::ClusterRoleBinding,
            namespace: "",
            binding: name_of(&binding.metadata),
            role: &binding.role_ref,
            subject,
            rules: rules_of(snapshot, &binding.role_ref, ""),
        };
        if !next(&grant) {
            return;
        }
    }
    if namespace.is_empty() {
        return;
    }
    for binding in snapshot.list::<RoleBinding>(Some(namespace)) {
        let Some(subject) = subject_of(binding.subjects.as_deref(), user, namespace) else {
            continue;
        };
        let grant = Grant {
            binding_kind: Kind::RoleBinding,
            namespace,
            binding: name_of(&binding.metadata),
            role: &binding.role_ref,
            subject,
            rules: rules_of(snapshot, &binding.role_ref, namespace),
        };
        if !next(&grant) {
            return;
        }
    }
}

/// The rules of the role that a binding in `namespace` refers to; none when it does not exist.
pub fn rules_of<'a>(snapshot: &'a Snapshot, role: &RoleRef, namespace: &str) -> &'a [PolicyRule] {
    let rules = match role.kind.as_str() {
        "ClusterRole" => snapshot
            .get::<ClusterRole>("", &role.name)
            .map(|role: &Arc<ClusterRole>| role.rules.as_deref()),
        "Role" if !namespace.is_empty() => {
            snapshot.get::<Role>(namespace, &role.name).map(|role| role.rules.as_deref())
        }
        _ => None,
    };
    rules.flatten().unwrap_or_default()
}

/// The first of the subjects that is the user.
fn subject_of<'a>(
    subjects: Option<&'a [Subject]>,
    user: &UserInfo,
    namespace: &str,
) -> Option<&'a Subject> {
    subjects.unwrap_or_default().iter().find(|subject| match subject.kind.as_str() {
        "User" => subject.name == user.name,
        "Group" => user.in_group(&subject.name),
        "ServiceAccount" => {
            let own = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
            user.service_account() == Some((own, subject.name.as_str()))
        }
        _ => false,
    })
}
