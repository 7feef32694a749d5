//! The roles and bindings that every cluster begins with: Kubernetes' own, for what is served here
//! and what its clients ask for.
//!
//! `admin`, `edit` and `view` hold no rules themselves: they are put together from the cluster roles
//! that carry their label, so that a kind of somebody's own is added by one more role.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{AUTHENTICATED, RBAC_GROUP, SUPERUSERS, UNAUTHENTICATED, covers};

/// On roles that every start of a leadership completes; `"false"` leaves one to its owner.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const METRICS: &str = "metrics.k8s.io";
const OWN_SCALING: &str = "autoscaling.timonier.io";

const APPS: &[&str] = &[
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];
const CORE_WRITTEN: &[&str] = &[
    "configmaps",
    "endpoints",
    "events",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "secrets",
    "serviceaccounts",
    "services",
    "services/proxy",
];
const CORE_READ: &[&str] = &[
    "bindings",
    "configmaps",
    "endpoints",
    "events",
    "limitranges",
    "namespaces",
    "namespaces/status",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "pods/log",
    "pods/status",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
    "serviceaccounts",
    "services",
    "services/status",
];
const POD_STREAMS: &[&str] = &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
const BATCH: &[&str] = &["cronjobs", "jobs"];
const NETWORKING: &[&str] = &["ingresses", "networkpolicies"];

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> PolicyRule {
    PolicyRule {
        verbs: words(verbs),
        api_groups: Some(words(&[group])),
        resources: Some(words(resources)),
        ..Default::default()
    }
}

fn paths(list: &[&str]) -> PolicyRule {
    PolicyRule { verbs: words(GET), non_resource_urls: Some(words(list)), ..Default::default() }
}

/// The rules of `cluster-admin`.
pub fn everything() -> Vec<PolicyRule> {
    let all = PolicyRule {
        verbs: words(&["*"]),
        non_resource_urls: Some(words(&["*"])),
        ..Default::default()
    };
    vec![rule(&["*"], "*", &["*"]), all]
}

fn admin() -> Vec<PolicyRule> {
    let verbs = [READ, WRITE].concat();
    vec![
        rule(CREATE, "authorization.k8s.io", &["localsubjectaccessreviews"]),
        rule(&verbs, RBAC_GROUP, &["rolebindings", "roles"]),
    ]
}

fn edit() -> Vec<PolicyRule> {
    let secrets = [POD_STREAMS, &["secrets", "services/proxy"]].concat();
    let pods = [POD_STREAMS, &["pods"]].concat();
    vec![
        rule(READ, "", &secrets),
        rule(&["impersonate"], "", &["serviceaccounts"]),
        rule(WRITE, "", &pods),
        rule(CREATE, "", &["pods/eviction", "serviceaccounts/token"]),
        rule(WRITE, "", CORE_WRITTEN),
        rule(WRITE, "apps", APPS),
        rule(WRITE, "autoscaling", &["horizontalpodautoscalers"]),
        rule(WRITE, OWN_SCALING, &["latencyautoscalers"]),
        rule(WRITE, "batch", BATCH),
        rule(WRITE, "policy", &["poddisruptionbudgets"]),
        rule(WRITE, "networking.k8s.io", NETWORKING),
    ]
}

fn view() -> Vec<PolicyRule> {
    let apps = [APPS, &["controllerrevisions", "deployments/status", "replicasets/status"]];
    vec![
        rule(READ, "", CORE_READ),
        rule(READ, "discovery.k8s.io", &["endpointslices"]),
        rule(READ, "apps", &apps.concat()),
        rule(READ, "autoscaling", &["horizontalpodautoscalers"]),
        rule(READ, OWN_SCALING, &["latencyautoscalers", "latencyautoscalers/beats"]),
        rule(READ, "batch", BATCH),
        rule(READ, "policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(READ, "networking.k8s.io", NETWORKING),
        rule(READ, METRICS, &["nodes", "pods"]),
    ]
}

/// What a node's program would need if it read the API; the agents here do not.
fn node() -> Vec<PolicyRule> {
    vec![
        rule(READ, "", &["nodes", "pods", "services"]),
        rule(GET, "", &["configmaps", "secrets"]),
        rule(CREATE, "", &["events", "serviceaccounts/token"]),
    ]
}

const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

fn meta(name: &str, aggregates_to: Option<&str>) -> ObjectMeta {
    let mut labels =
        BTreeMap::from([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned())]);
    if let Some(role) = aggregates_to {
        labels.insert(format!("{AGGREGATE}{role}"), "true".to_owned());
    }
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels),
        annotations: Some(BTreeMap::from([(AUTO_UPDATE.to_owned(), "true".to_owned())])),
        ..Default::default()
    }
}

fn role(name: &str, aggregates_to: Option<&str>, rules: Vec<PolicyRule>) -> ClusterRole {
    ClusterRole { metadata: meta(name, aggregates_to), rules: Some(rules), aggregation_rule: None }
}

/// A role that is put together from those that aggregate to it.
fn aggregated(name: &str, aggregates_to: Option<&str>) -> ClusterRole {
    let selector = LabelSelector {
        match_labels: Some(BTreeMap::from([(format!("{AGGREGATE}{name}"), "true".to_owned())])),
        ..Default::default()
    };
    ClusterRole {
        metadata: meta(name, aggregates_to),
        rules: None,
        aggregation_rule: Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) }),
    }
}

/// Every default cluster role.
pub fn cluster_roles() -> Vec<ClusterRole> {
    let info = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery =
        ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/cluster-info"];
    let reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    vec![
        role("cluster-admin", None, everything()),
        aggregated("admin", None),
        aggregated("edit", Some("admin")),
        aggregated("view", Some("edit")),
        role("system:aggregate-to-admin", Some("admin"), admin()),
        role("system:aggregate-to-edit", Some("edit"), edit()),
        role("system:aggregate-to-view", Some("view"), view()),
        role(
            "system:basic-user",
            None,
            vec![
                rule(CREATE, "authorization.k8s.io", &reviews),
                rule(CREATE, "authentication.k8s.io", &["selfsubjectreviews"]),
            ],
        ),
        role(
            "system:discovery",
            None,
            vec![paths(&[info.as_slice(), discovery.as_slice()].concat())],
        ),
        role("system:public-info-viewer", None, vec![paths(&info)]),
        role("system:node", None, node()),
    ]
}

/// Every default binding, each of the role of its own name.
pub fn cluster_role_bindings() -> Vec<ClusterRoleBinding> {
    [
        ("cluster-admin", &[SUPERUSERS][..]),
        ("system:basic-user", &[AUTHENTICATED]),
        ("system:discovery", &[AUTHENTICATED]),
        ("system:public-info-viewer", &[AUTHENTICATED, UNAUTHENTICATED]),
    ]
    .into_iter()
    .map(|(name, groups)| ClusterRoleBinding {
        metadata: meta(name, None),
        role_ref: RoleRef {
            api_group: RBAC_GROUP.to_owned(),
            kind: "ClusterRole".to_owned(),
            name: name.to_owned(),
        },
        subjects: Some(groups.iter().map(|group| group_subject(group)).collect()),
    })
    .collect()
}

fn group_subject(name: &str) -> Subject {
    Subject {
        api_group: Some(RBAC_GROUP.to_owned()),
        kind: "Group".to_owned(),
        name: name.to_owned(),
        namespace: None,
    }
}

/// `stored` with the rules that it lacks of `wanted`; `None` when it lacks none, is put together
/// from others, or is left to its owner.
pub fn completed(stored: &ClusterRole, wanted: &ClusterRole) -> Option<ClusterRole> {
    let left_alone = stored
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(AUTO_UPDATE))
        .is_some_and(|value| value == "false");
    let held = stored.rules.as_deref().unwrap_or_default();
    let rules = wanted.rules.as_deref().unwrap_or_default();
    if left_alone || wanted.aggregation_rule.is_some() || covers(held, rules) {
        return None;
    }
    let mut completed = stored.clone();
    let own = completed.rules.get_or_insert_default();
    own.extend(rules.iter().filter(|rule| !covers(held, std::slice::from_ref(rule))).cloned());
    Some(completed)
}
