//! Questions to a state with roles and bindings.

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};
use timonier_proto::decode::decode;
use timonier_proto::{Kind, Kinded, Object};

use super::*;
use crate::harness::Cluster;

fn cluster(objects: Value) -> Cluster {
    let mut cluster = Cluster::new(1);
    for role in defaults::cluster_roles() {
        cluster.create(role);
    }
    for binding in defaults::cluster_role_bindings() {
        cluster.create(binding);
    }
    cluster.create(Namespace {
        metadata: serde_json::from_value(json!({"name": "team"})).unwrap(),
        ..Default::default()
    });
    for mut object in objects.as_array().unwrap().clone() {
        object["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        match decode(&object).unwrap() {
            Object::Role(o) => cluster.create(Role::clone(&o)),
            Object::RoleBinding(o) => cluster.create(RoleBinding::clone(&o)),
            Object::ClusterRole(o) => cluster.create(ClusterRole::clone(&o)),
            Object::ClusterRoleBinding(o) => cluster.create(ClusterRoleBinding::clone(&o)),
            _ => unreachable!("only roles and bindings"),
        };
    }
    cluster.settle();
    cluster
}

fn user(name: &str) -> UserInfo {
    UserInfo::authenticated(name, Vec::new())
}

fn bound(role_kind: &str, role: &str, subject: Value) -> Value {
    json!({"kind": "RoleBinding", "metadata": {"name": format!("b-{role}"), "namespace": "team"},
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": role_kind, "name": role}, "subjects": [subject]})
}

fn person(name: &str) -> Value {
    json!({"apiGroup": RBAC_GROUP, "kind": "User", "name": name})
}

/// `verb resource[.group][/sub] [namespace] [name]`
fn asked(text: &str) -> Attributes {
    let words: Vec<&str> = text.split(' ').collect();
    let leak = |word: &str| Cow::Owned(word.to_owned());
    if words[1].starts_with('/') {
        return Attributes { verb: leak(words[0]), path: leak(words[1]), ..Default::default() };
    }
    let (resource, sub) = words[1].split_once('/').unwrap_or((words[1], ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    Attributes {
        verb: leak(words[0]),
        group: leak(group),
        resource: leak(resource),
        subresource: leak(sub),
        namespace: words.get(2).map(|w| (*w).to_owned()).unwrap_or_default(),
        name: words.get(3).map(|w| (*w).to_owned()).unwrap_or_default(),
        path: "".into(),
    }
}

fn table(cluster: &Cluster, user: &UserInfo, rows: &[(&str, bool)]) {
    for (row, allowed) in rows {
        let decision = authorize(&cluster.snapshot, user, &asked(row));
        assert_eq!(decision.allowed, *allowed, "{}: {row}: {}", user.name, decision.why);
    }
}

#[test]
fn the_default_roles_say_what_kubernetes_says() {
    let cluster = cluster(json!([
        bound("ClusterRole", "view", person("vera")),
        bound("ClusterRole", "edit", person("ed")),
        bound("ClusterRole", "admin", person("ada")),
    ]));
    table(
        &cluster,
        &user("vera"),
        &[
            ("get pods team a", true),
            ("list pods team", true),
            ("get pods/log team a", true),
            ("list pods", false),
            ("list pods default", false),
            ("create pods/exec team a", false),
            ("get secrets team s", false),
            ("list secrets team", false),
            ("delete pods team a", false),
            ("list deployments.apps team", true),
            ("patch deployments.apps team web", false),
            ("list nodes", false),
            ("list roles.rbac.authorization.k8s.io team", false),
            ("create selfsubjectaccessreviews.authorization.k8s.io", true),
            ("get /version", true),
            ("get /metrics", false),
        ],
    );
    table(
        &cluster,
        &user("ed"),
        &[
            ("list pods team", true),
            ("create pods/exec team a", true),
            ("create pods/portforward team a", true),
            ("get secrets team s", true),
            ("patch deployments.apps team web", true),
            ("create latencyautoscalers.autoscaling.timonier.io team", true),
            ("create serviceaccounts/token team default", true),
            ("update resourcequotas team q", false),
            ("create rolebindings.rbac.authorization.k8s.io team", false),
            ("create pods default", false),
        ],
    );
    table(
        &cluster,
        &user("ada"),
        &[
            ("create rolebindings.rbac.authorization.k8s.io team", true),
            ("create clusterrolebindings.rbac.authorization.k8s.io", false),
            ("delete pods team a", true),
            ("update resourcequotas team q", false),
            ("delete namespaces  team", false),
        ],
    );
    table(
        &cluster,
        &UserInfo::anonymous(),
        &[
            ("get /version", true),
            ("get /cluster-info", false),
            ("get pods team a", false),
            ("create selfsubjectreviews.authentication.k8s.io", false),
        ],
    );
    let root = UserInfo::authenticated("admin", vec![SUPERUSERS.into()]);
    table(&cluster, &root, &[("delete nodes  n1", true), ("escalate anything.at/all x y", true)]);
    let node = UserInfo::authenticated("system:node:n1", vec![NODES.into()]);
    table(
        &cluster,
        &node,
        &[
            ("get nodes  n1", true),
            ("get nodes  n2", false),
            ("list nodes", false),
            ("get secrets team s", false),
            ("list pods", false),
        ],
    );
    // The name alone makes no node.
    table(&cluster, &user("system:node:n1"), &[("get nodes  n1", false)]);
}

#[test]
fn rules_match_as_in_kubernetes() {
    let cluster = cluster(json!([
        {"kind": "Role", "metadata": {"name": "r", "namespace": "team"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]},
            {"verbs": ["update"], "apiGroups": ["*"], "resources": ["*/scale"]},
            {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]},
        bound("Role", "r", json!({"kind": "ServiceAccount", "name": "robot"})),
        bound("Role", "missing", person("nobody")),
        {"kind": "ClusterRole", "metadata": {"name": "paths"},
         "rules": [{"verbs": ["get"], "nonResourceURLs": ["/logs/*"]}]},
        {"kind": "ClusterRoleBinding", "metadata": {"name": "g"},
         "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "paths"},
         "subjects": [{"apiGroup": RBAC_GROUP, "kind": "Group", "name": "readers"}]},
    ]));
    let robot = UserInfo::of_service_account("team", "robot", "u");
    table(
        &cluster,
        &robot,
        &[
            ("get configmaps team one", true),
            ("get configmaps team two", false),
            ("list configmaps team", false),
            ("delete deployments.apps team web", true),
            ("get deployments.apps/status team web", true),
            ("update replicationcontrollers/scale team x", true),
            ("update replicationcontrollers team x", false),
            ("list pods team", true),
            ("list pods/log team", false),
        ],
    );
    let other = UserInfo::of_service_account("default", "robot", "u");
    table(&cluster, &other, &[("list pods team", false)]);
    table(&cluster, &user("nobody"), &[("list pods team", false)]);
    let reader = UserInfo::authenticated("x", vec!["readers".into()]);
    table(&cluster, &reader, &[("get /logs/today", true), ("get /log", false)]);
    let why = authorize(&cluster.snapshot, &robot, &asked("list pods team")).why;
    expect![[r#"RBAC: allowed by RoleBinding "b-r/team" of Role "r" to ServiceAccount "robot""#]]
        .assert_eq(&why);
}

#[test]
fn a_refusal_says_it_as_kubernetes_does() {
    let cluster = cluster(json!([]));
    let told = |row: &str, expected: Expect| {
        let error = require(&cluster.snapshot, &user("x"), &asked(row)).unwrap_err();
        expected.assert_eq(&error.message);
    };
    told(
        "list pods y",
        expect![[r#"
        pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "y"
        hint: timonctl auth can-i --list shows what you may do; a role binding allows more"#]],
    );
    told(
        "create deployments.apps/scale y web",
        expect![[r#"
        deployments.apps "web" is forbidden: User "x" cannot create resource "deployments/scale" in API group "apps" in the namespace "y"
        hint: timonctl auth can-i --list shows what you may do; a role binding allows more"#]],
    );
    told(
        "get nodes  n1",
        expect![[r#"
        nodes "n1" is forbidden: User "x" cannot get resource "nodes" in API group "" at the cluster scope
        hint: timonctl auth can-i --list shows what you may do; a role binding allows more"#]],
    );
    told(
        "get /metrics",
        expect![[r#"
        forbidden: User "x" cannot get path "/metrics"
        hint: timonctl auth can-i --list shows what you may do; a role binding allows more"#]],
    );
}

#[test]
fn nobody_gives_what_he_does_not_have() {
    let cluster = cluster(json!([
        bound("ClusterRole", "admin", person("ada")),
        {"kind": "Role", "metadata": {"name": "escalate", "namespace": "team"}, "rules": [
            {"verbs": ["bind"], "apiGroups": [RBAC_GROUP], "resources": ["clusterroles"],
             "resourceNames": ["cluster-admin"]}]},
        bound("Role", "escalate", person("bob")),
    ]));
    let role = |rules: Value| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "new", "namespace": "team"}, "rules": rules});
        decode(&role).unwrap()
    };
    let binding = |role: &str| {
        let mut binding = bound("ClusterRole", role, person("eve"));
        binding["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
        decode(&binding).unwrap()
    };
    let check =
        |who: &str, object: &Object| escalation::check(&cluster.snapshot, &user(who), None, object);
    let pods =
        role(json!([{"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}]));
    check("ada", &pods).unwrap();
    check("ada", &binding("view")).unwrap();
    check("ada", &binding("admin")).unwrap();
    check("bob", &binding("cluster-admin")).unwrap();
    assert!(check("bob", &binding("view")).is_err());
    assert!(check("ada", &binding("cluster-admin")).is_err());
    assert_eq!(check("ada", &binding("ghost")).unwrap_err().reason, Reason::NotFound);
    let nodes = role(
        json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["nodes", "pods"]}]),
    );
    expect![[r#"
        roles.rbac.authorization.k8s.io "new" is forbidden: user "ada" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:
        {APIGroups:[""], Resources:["nodes"], Verbs:["get"]}
        {APIGroups:[""], Resources:["nodes"], Verbs:["list"]}"#]]
    .assert_eq(&check("ada", &nodes).unwrap_err().message);
    // What is there already may be written again with other labels.
    let old = nodes.clone();
    let mut new = nodes;
    new.meta_mut().labels = Some([("a".to_owned(), "b".to_owned())].into());
    escalation::check(&cluster.snapshot, &user("ada"), Some(&old), &new).unwrap();
}

#[test]
fn default_roles_are_completed_and_left_alone_where_asked() {
    let wanted = defaults::cluster_roles()
        .into_iter()
        .find(|r| r.metadata.name.as_deref() == Some("system:aggregate-to-view"));
    let wanted = wanted.unwrap();
    assert_eq!(defaults::completed(&wanted, &wanted), None);
    let mut stored = wanted.clone();
    stored.rules.as_mut().unwrap().truncate(2);
    let completed = defaults::completed(&stored, &wanted).unwrap();
    assert!(covers(completed.rules.as_ref().unwrap(), wanted.rules.as_ref().unwrap()));
    stored
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert(defaults::AUTO_UPDATE.into(), "false".into());
    assert_eq!(defaults::completed(&stored, &wanted), None);
    let object = wanted.into_object();
    assert_eq!(object.kind(), Kind::ClusterRole);
    crate::admission::validate(&object).unwrap();
}

#[test]
fn the_cluster_s_own_secrets_are_for_those_who_have_the_cluster() {
    let everywhere = |role: &str, name: &str| {
        json!({"kind": "ClusterRoleBinding", "metadata": {"name": format!("c-{role}-{name}")},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [person(name)]})
    };
    let cluster = cluster(json!([
        everywhere("edit", "ed"),
        everywhere("admin", "ada"),
        everywhere("cluster-admin", "root"),
        {"kind": "RoleBinding", "metadata": {"name": "all", "namespace": "kube-system"},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [person("local")]},
    ]));
    let state = &cluster.snapshot;
    let on = |namespace: &str, name: &str| Attributes::on("get", Kind::Secret, namespace, name);
    for name in
        ["timonier-ca", "service-account-signing-keys", "revoked-certificates", "join-token-x"]
    {
        let asked = on("kube-system", name);
        for who in ["ed", "ada", "local", "nobody"] {
            let error = reserved::require(state, &user(who), &asked).unwrap_err();
            assert_eq!(error.reason, Reason::Forbidden);
            assert!(error.message.contains("one of the cluster's own secrets"), "{error:?}");
        }
        reserved::require(state, &user("root"), &asked).unwrap();
        let own = UserInfo::authenticated("x", vec![SUPERUSERS.to_owned()]);
        reserved::require(state, &own, &asked).unwrap();
        assert!(reserved::is_reserved(&timonier_proto::ObjectKey::new(
            Kind::Secret,
            "kube-system",
            name
        )));
    }
    // `edit` could read and write them otherwise, and reads and writes the others.
    assert!(authorize(state, &user("ed"), &on("kube-system", "timonier-ca")).allowed);
    for (namespace, name) in [("team", "timonier-ca"), ("kube-system", "db"), ("kube-system", "")] {
        reserved::require(state, &user("ed"), &on(namespace, name)).unwrap();
    }
    let map = Attributes::on("get", Kind::ConfigMap, "kube-system", "timonier-ca");
    reserved::require(state, &user("ed"), &map).unwrap();
    // A name that the master completes is told by its beginning.
    let new = |meta: Value| {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta});
        let object = decode(&object).unwrap();
        reserved::require_to_create(state, &user("ed"), &object).is_ok()
    };
    assert!(!new(json!({"generateName": "join-token-", "namespace": "kube-system"})));
    assert!(!new(json!({"name": "timonier-ca", "namespace": "kube-system"})));
    assert!(new(json!({"generateName": "db-", "namespace": "kube-system"})));
}
