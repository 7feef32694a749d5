//! Roles, bindings and service accounts: their form. Whether the writer may give what they give is
//! [`crate::access::escalation`]'s.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};
use timonier_proto::names;
use timonier_proto::selector::Selector;

use super::field::{Field, Problems};
use crate::access::RBAC_GROUP;

/// Rules of one role, subjects of one binding: more is refused, so that a question stays cheap.
const ENTRIES_MAX: usize = 1000;

pub fn rules(list: Option<&[PolicyRule]>, namespaced: bool, problems: &mut Problems) {
    let root = Field::root("rules");
    let list = list.unwrap_or_default();
    too_many(&root, list.len(), problems);
    for (index, rule) in list.iter().enumerate() {
        let field = root.index(index);
        if rule.verbs.is_empty() {
            problems.required(&field.name("verbs"), "verbs must contain at least one value");
        }
        let is_empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        if !is_empty(&rule.non_resource_urls) {
            let field = field.name("nonResourceURLs");
            let urls = rule.non_resource_urls.as_ref();
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                problems.invalid(&field, urls, why);
            }
            if !is_empty(&rule.api_groups)
                || !is_empty(&rule.resources)
                || !is_empty(&rule.resource_names)
            {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                problems.invalid(&field, urls, why);
            }
            continue;
        }
        if is_empty(&rule.api_groups) {
            problems.required(
                &field.name("apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if is_empty(&rule.resources) {
            problems.required(
                &field.name("resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

/// The API groups that a binding leaves out.
pub fn fill(role: &mut RoleRef, subjects: Option<&mut [Subject]>) {
    if role.api_group.is_empty() {
        RBAC_GROUP.clone_into(&mut role.api_group);
    }
    for subject in subjects.unwrap_or_default() {
        let is_empty = subject.api_group.as_deref().unwrap_or_default().is_empty();
        if is_empty && matches!(subject.kind.as_str(), "User" | "Group") {
            subject.api_group = Some(RBAC_GROUP.to_owned());
        }
    }
}

pub fn selectors(
    aggregation: Option<&k8s_openapi::api::rbac::v1::AggregationRule>,
    problems: &mut Problems,
) {
    let Some(aggregation) = aggregation else { return };
    let root = Field::root("aggregationRule");
    let root = root.name("clusterRoleSelectors");
    let list = aggregation.cluster_role_selectors.as_deref().unwrap_or_default();
    if list.is_empty() {
        problems.required(
            &root,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
    for (index, selector) in list.iter().enumerate() {
        if let Err(error) = Selector::from_label_selector(selector) {
            problems.invalid(&root.index(index), selector, error);
        }
    }
}

pub fn binding(
    role: &RoleRef,
    subjects: Option<&[Subject]>,
    namespaced: bool,
    problems: &mut Problems,
) {
    let root = Field::root("roleRef");
    problems.one_of(&root.name("apiGroup"), &role.api_group, &[RBAC_GROUP]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    problems.one_of(&root.name("kind"), &role.kind, kinds);
    problems.name(&root.name("name"), &role.name, path_segment(&role.name));
    let root = Field::root("subjects");
    let subjects = subjects.unwrap_or_default();
    too_many(&root, subjects.len(), problems);
    for (index, subject) in subjects.iter().enumerate() {
        self::subject(&root.index(index), subject, namespaced, problems);
    }
}

fn subject(field: &Field<'_>, subject: &Subject, namespaced: bool, problems: &mut Problems) {
    if subject.name.is_empty() {
        problems.required(&field.name("name"), "");
    }
    let group = subject.api_group.as_deref().unwrap_or_default();
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                let outcome = names::dns_subdomain(&subject.name);
                problems.name(&field.name("name"), &subject.name, outcome);
            }
            problems.one_of(&field.name("apiGroup"), group, &[""]);
            if !namespaced && subject.namespace.as_deref().unwrap_or_default().is_empty() {
                problems.required(&field.name("namespace"), "");
            }
        }
        "User" | "Group" => problems.one_of(&field.name("apiGroup"), group, &[RBAC_GROUP]),
        other => problems.one_of(&field.name("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

pub fn service_account(account: &ServiceAccount, problems: &mut Problems) {
    for (root, names) in [
        (
            "imagePullSecrets",
            account.image_pull_secrets.iter().flatten().map(|s| s.name.clone()).collect::<Vec<_>>(),
        ),
        ("secrets", account.secrets.iter().flatten().filter_map(|s| s.name.clone()).collect()),
    ] {
        let root = Field::root(root);
        too_many(&root, names.len(), problems);
        for (index, name) in names.iter().enumerate() {
            problems.name(&root.index(index).name("name"), name, names::dns_subdomain(name));
        }
    }
}

fn too_many(field: &Field<'_>, count: usize, problems: &mut Problems) {
    if count > ENTRIES_MAX {
        problems.forbidden(
            field,
            format_args!("Too many: {count}: must have at most {ENTRIES_MAX} items"),
        );
    }
}

/// Kubernetes' rule for the names of roles and bindings: anything that fits a path, so that
/// `system:node` does.
pub fn path_segment(name: &str) -> Result<(), String> {
    const NAME_BYTES_MAX: usize = 253;
    if name == "." || name == ".." {
        return Err(format!("may not be '{name}'"));
    }
    if let Some(bad) = name.chars().find(|c| matches!(c, '/' | '%') || c.is_control()) {
        return Err(format!("may not contain '{bad}'"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("must be no more than {NAME_BYTES_MAX} bytes"));
    }
    Ok(())
}
