use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn check(value: Value, expected: Expect) {
    let error = decode(&value).expect_err("it should be refused");
    expected.assert_eq(&error.message);
    // Text and tree are refused in the same words.
    let again = decode_json(value.to_string().as_bytes()).expect_err("it should be refused");
    assert_eq!(error, again);
    assert_eq!(error.reason, Reason::BadRequest);
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn container(container: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [container]}})
}

#[test]
fn unknown_fields_are_named_with_their_path() {
    check(
        deployment(json!({"template": {"spec": {"contaners": []}}})),
        expect![[r#"
            Deployment.apps "web": strict decoding error: unknown field "spec.template.spec.contaners"
            hint: did you mean containers instead of contaners?"#]],
    );
    check(
        container(json!({"name": "c", "imagePullpolicy": "Always", "zzz": 1})),
        expect![[r#"
            Pod "p": strict decoding error: unknown field "spec.containers[0].imagePullpolicy", unknown field "spec.containers[0].zzz"
            hint: did you mean imagePullPolicy instead of imagePullpolicy?"#]],
    );
    check(
        json!({"apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
            "metadata": {"name": "l"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "x"},
            "latencyMilliseconds": 20, "setp": 2}}),
        expect![[r#"
            LatencyAutoscaler.autoscaling.timonier.io "l": strict decoding error: unknown field "spec.setp"
            hint: did you mean step instead of setp?"#]],
    );
}

#[test]
fn mistyped_fields_are_named_with_their_path() {
    check(
        deployment(json!({"replicas": "three"})),
        expect![[
            r#"Deployment.apps "web": spec.replicas: invalid type: string "three", expected i32"#
        ]],
    );
    check(
        deployment(json!({"replicas": "3"})),
        expect![[r#"
            Deployment.apps "web": spec.replicas: invalid type: string "3", expected i32
            hint: write it without quotes: 3"#]],
    );
    check(
        container(json!({"name": "c", "env": [{"name": "A", "value": 1}]})),
        expect![[r#"
            Pod "p": spec.containers[0].env[0].value: invalid type: integer `1`, expected a string
            hint: quote it: "1""#]],
    );
    check(
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "c", "labels": {"a.b/c": true}}}),
        expect![[r#"
            ConfigMap "c": metadata.labels[a.b/c]: invalid type: boolean `true`, expected a string
            hint: quote it: "true""#]],
    );
    check(
        container(json!("c")),
        expect![[r#"Pod "p": spec.containers[0]: invalid type: string "c", expected Container"#]],
    );
    check(
        json!({"apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
            "metadata": {"name": "l"}, "spec": {"latencyMilliseconds": 20}}),
        expect![
            "LatencyAutoscaler.autoscaling.timonier.io \"l\": spec: missing field `scaleTargetRef`"
        ],
    );
}

#[test]
fn unknown_kinds_get_the_nearest() {
    let of = |api_version: &str, kind: &str| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}});
    check(
        of("v1", "Foo"),
        expect![[r#"
            no matches for kind "Foo" in version "v1"
            hint: the kinds served here are Namespace, Node, Pod, Service, Deployment, ReplicaSet, ConfigMap, Endpoints, Event, LatencyAutoscaler, Secret, ServiceAccount, ResourceQuota, LimitRange, PodDisruptionBudget, Role, RoleBinding, ClusterRole, ClusterRoleBinding"#]],
    );
    check(
        of("apps/v1", "Deploiment"),
        expect![[r#"
            no matches for kind "Deploiment" in version "apps/v1"
            hint: did you mean Deployment (apiVersion apps/v1)?"#]],
    );
    check(
        of("extensions/v1beta1", "Deployment"),
        expect![[r#"
            no matches for kind "Deployment" in version "extensions/v1beta1"
            hint: Deployment is served as apiVersion apps/v1"#]],
    );
    check(
        json!({"kind": "Pod", "metadata": {"name": "x"}}),
        expect![[r#"
            decode Pod "x": the field apiVersion is missing
            hint: Pod is served as apiVersion v1"#]],
    );
    check(
        json!({"apiVersion": "v1"}),
        expect![[r#"
            decode the manifest: the field kind is missing
            hint: begin with apiVersion and kind, for example `apiVersion: v1` and `kind: Pod`"#]],
    );
    check(json!([1]), expect!["a manifest must be a map with apiVersion and kind, found a list"]);
    check(
        json!({"apiVersion": "v1", "kind": 3}),
        expect!["kind: invalid type: a number, expected a string"],
    );
}

#[test]
fn what_kubernetes_accepts_is_accepted() {
    let pod = decode(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "creationTimestamp": null, "labels": null},
        "spec": {"containers": [{"name": "c", "image": "a", "ports": null,
            "resources": {"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"cpu": 1.5}}}],
            "nodeSelector": null},
        "status": {}
    }))
    .unwrap();
    let requests = pod.to_value().unwrap()["spec"]["containers"][0]["resources"].clone();
    assert_eq!(
        requests,
        json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "1.5"}})
    );
}

#[test]
fn lists_are_flattened() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod"});
    let bare = json!({"metadata": {"name": "a"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod, {"apiVersion": "v1", "kind": "ConfigMapList", "items": [bare]}, null
    ]});
    let flat = flatten(list).unwrap();
    assert_eq!(flat.len(), 2);
    assert_eq!(flat[0], pod);
    assert_eq!(flat[1]["kind"], "ConfigMap");
    assert_eq!(flatten(Value::Null).unwrap(), Vec::<Value>::new());
    assert_eq!(flatten(pod.clone()).unwrap(), vec![pod]);
    assert!(flatten(json!({"apiVersion": "v1", "kind": "List", "items": {}})).is_err());
}

#[test]
fn malformed_json_is_said_to_be() {
    let error = decode_json(b"{\"kind\": [").unwrap_err();
    expect!["decode the object: malformed JSON: EOF while parsing a list at line 1 column 10"]
        .assert_eq(&error.message);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
        let _ = decode_json(&bytes);
    }
}

/// Else the master that took it has other times in its memory than those that read it from the log.
#[test]
fn times_are_as_they_are_stored() {
    let value = container(json!({"name": "c"}));
    let pod = |time: &str| {
        let mut value = value.clone();
        value["metadata"]["deletionTimestamp"] = time.into();
        value
    };
    let whole = decode(&pod("2026-11-21T10:00:00Z")).unwrap();
    let exact = pod("2026-11-21T10:00:00.75Z");
    assert_eq!(decode(&exact).unwrap(), whole);
    assert_eq!(decode_json(exact.to_string().as_bytes()).unwrap(), whole);
}

#[test]
fn errors_of_secrets_name_no_values() {
    let secret = |field: &str, value: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, field: value});
    check(
        secret("stringData", json!({"pin": 4711})),
        expect![[r#"Secret "s": stringData.pin: invalid type: integer, expected a string"#]],
    );
    for (field, value) in [
        ("stringData", json!({"pin": 4711.5})),
        ("stringData", json!({"pin": ["4711"]})),
        ("stringData", json!({"pin": {"4711": true}})),
        ("stringData", json!("4711")),
        ("stringData", json!(["4711"])),
        ("data", json!({"pin": "!4711"})),
        ("data", json!({"pin": 4711})),
        ("data", json!("4711")),
        ("immutable", json!("4711")),
        ("immutable", json!(4711)),
        ("type", json!(4711)),
    ] {
        let manifest = secret(field, value);
        let error = decode(&manifest).expect_err("it should be refused");
        assert!(!format!("{error:?}").contains("4711"), "{error:?}");
        assert!(error.message.starts_with(&format!("Secret \"s\": {field}")), "{error}");
        assert_eq!(decode_json(manifest.to_string().as_bytes()), Err(error));
    }
}

#[test]
fn what_stands_in_place_of_a_manifest_is_not_named() {
    let secrets = |items: Value| json!({"apiVersion": "v1", "kind": "SecretList", "items": items});
    for value in [json!("4711"), json!(4711), json!(["4711"])] {
        for list in
            [secrets(json!([value])), json!({"apiVersion": "v1", "kind": "List", "items": [value]})]
        {
            let items = flatten(list).unwrap();
            let error = decode(&items[0]).expect_err("it is no map");
            assert!(!format!("{error:?}").contains("4711"), "{error:?}");
        }
    }
    for value in [json!("4711"), json!(4711), json!({"pin": "4711"})] {
        let list = secrets(value);
        for error in [flatten(list.clone()).unwrap_err(), decode(&list).unwrap_err()] {
            assert!(!format!("{error:?}").contains("4711"), "{error:?}");
        }
    }
    check(
        json!("4711"),
        expect!["a manifest must be a map with apiVersion and kind, found a string"],
    );
}
