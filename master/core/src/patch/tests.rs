use expect_test::expect;
use proptest::prelude::*;
use serde_json::{Value, json};
use timonier_proto::Kind;

use super::*;
use crate::admission::{admit_change, admit_new};

/// Applies a manifest as a door does: `None` when nothing would change.
fn apply(live: Option<&Object>, manifest: &Value) -> Option<Object> {
    let mut desired = decode(manifest).unwrap();
    annotate(&mut desired).unwrap();
    let Some(live) = live else { return Some(admit_new(desired).unwrap()) };
    let merged = admit_change(live, merge_applied(live, &desired).unwrap()).unwrap();
    (merged != *live).then_some(merged)
}

fn deployment(spec: &Value, containers: &Value) -> Value {
    let mut value = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}}}
    });
    for (key, field) in spec.as_object().unwrap() {
        value["spec"][key] = field.clone();
    }
    value
}

fn edit(object: &Object, change: impl FnOnce(&mut Value)) -> Object {
    let mut value = object.to_value().unwrap();
    change(&mut value);
    Object::deserialize_as(object.kind(), value).unwrap()
}

#[test]
fn apply_removes_what_it_said_and_keeps_what_others_said() {
    let a = deployment(
        &json!({"minReadySeconds": 3}),
        &json!([{"name": "c", "image": "a:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]),
    );
    let live = apply(None, &a).unwrap();
    assert_eq!(apply(Some(&live), &a), None);
    // Somebody scales, adds a container, a variable and a label.
    let live = edit(&live, |v| {
        v["spec"]["replicas"] = json!(7);
        v["metadata"]["labels"] = json!({"by": "hand"});
        let containers = v["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers[0]["env"].as_array_mut().unwrap().insert(0, json!({"name": "H", "value": "h"}));
        containers.insert(0, json!({"name": "side", "image": "s:1"}));
    });
    let live = apply(Some(&live), &a).unwrap_or(live);
    let b = deployment(
        &json!({}),
        &json!([{"name": "c", "image": "a:2", "env": [{"name": "B", "value": "3"}]}]),
    );
    let merged = apply(Some(&live), &b).unwrap().to_value().unwrap();
    assert_eq!(merged["spec"]["replicas"], 7);
    assert_eq!(merged["spec"].get("minReadySeconds"), None);
    assert_eq!(merged["metadata"]["labels"], json!({"by": "hand"}));
    let containers = &merged["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["name"], "side");
    assert_eq!(containers[1]["image"], "a:2");
    assert_eq!(
        containers[1]["env"],
        json!([{"name": "H", "value": "h"}, {"name": "B", "value": "3"}])
    );
}

#[test]
fn apply_switches_members_of_unions() {
    let with = |volume: Value, strategy: Value| {
        let mut value =
            deployment(&json!({"strategy": strategy}), &json!([{"name": "c", "image": "a"}]));
        value["spec"]["template"]["spec"]["volumes"] = json!([volume]);
        value
    };
    let a = with(json!({"name": "v", "emptyDir": {}}), json!({"type": "RollingUpdate"}));
    let b = with(json!({"name": "v", "hostPath": {"path": "/a"}}), json!({"type": "Recreate"}));
    let live = apply(None, &a).unwrap();
    let merged = apply(Some(&live), &b).unwrap().to_value().unwrap();
    assert_eq!(merged["spec"]["strategy"], json!({"type": "Recreate"}));
    let volume = &merged["spec"]["template"]["spec"]["volumes"][0];
    assert_eq!(*volume, json!({"name": "v", "hostPath": {"path": "/a", "type": ""}}));
}

#[test]
fn apply_reorders_as_the_manifest_does() {
    let of = |names: &[&str]| {
        let init: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "i:1"})).collect();
        let mut value = deployment(&json!({}), &json!([{"name": "c", "image": "a:1"}]));
        value["spec"]["template"]["spec"]["initContainers"] = json!(init);
        value
    };
    let live = apply(None, &of(&["a", "b"])).unwrap();
    let merged = apply(Some(&live), &of(&["b", "n", "a"])).unwrap().to_value().unwrap();
    let init = merged["spec"]["template"]["spec"]["initContainers"].as_array().unwrap();
    let names: Vec<&str> = init.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b", "n", "a"]);
}

#[test]
fn an_applied_service_keeps_its_address() {
    let manifest = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let live = edit(&apply(None, &manifest).unwrap(), |v| {
        v["spec"]["clusterIP"] = json!("10.96.0.9");
        v["spec"]["clusterIPs"] = json!(["10.96.0.9"]);
        v["spec"]["ports"][0]["nodePort"] = json!(31000);
    });
    assert_eq!(apply(Some(&live), &manifest), None);
    let mut more = manifest.clone();
    more["spec"]["ports"] = json!([{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]);
    let merged = apply(Some(&live), &more).unwrap().to_value().unwrap();
    assert_eq!(merged["spec"]["clusterIP"], "10.96.0.9");
    assert_eq!(merged["spec"]["ports"][0]["nodePort"], 31000);
    assert_eq!(merged["spec"]["ports"][1]["port"], 81);
}

fn strategic_merge(kind: Kind, mut target: Value, patch: Value) -> Result<Value, String> {
    strategic::merge(schema::Type::of(kind), &mut target, patch)?;
    Ok(target)
}

#[test]
fn strategic_patches() {
    let pod = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {
        "containers": [{"name": "a", "image": "1", "args": ["x"], "ports": [{"containerPort": 53, "protocol": "UDP"}]},
            {"name": "b", "image": "1"}],
        "tolerations": [{"key": "x"}], "nodeSelector": {"k": "v", "l": "w"},
        "volumes": [{"name": "v", "emptyDir": {}}]}});
    let cases = [
        (
            "elements merge by name and new ones are added",
            json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
            "/spec/containers",
            json!([pod["spec"]["containers"][0], {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]),
        ),
        (
            "$patch: delete takes an element away",
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            "/spec/containers",
            json!([{"name": "b", "image": "1"}]),
        ),
        (
            "$patch: replace replaces a list",
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
            "/spec/containers",
            json!([{"name": "z"}]),
        ),
        (
            "$patch: replace replaces a map",
            json!({"spec": {"nodeSelector": {"$patch": "replace", "m": "n"}}}),
            "/spec/nodeSelector",
            json!({"m": "n"}),
        ),
        (
            "null removes",
            json!({"spec": {"nodeSelector": {"k": null}}}),
            "/spec/nodeSelector",
            json!({"l": "w"}),
        ),
        (
            "$setElementOrder orders",
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
                "containers": [{"name": "n"}]}}),
            "/spec/containers",
            json!([{"name": "b", "image": "1"}, {"name": "n"}, pod["spec"]["containers"][0]]),
        ),
        (
            "$retainKeys drops the rest",
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
            "/spec/volumes",
            json!([{"name": "v", "hostPath": {"path": "/"}}]),
        ),
        (
            "$deleteFromPrimitiveList",
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"]}}),
            "/metadata/finalizers",
            json!(["b", "c"]),
        ),
        (
            "lists without a key are replaced",
            json!({"spec": {"tolerations": [{"key": "y"}]}}),
            "/spec/tolerations",
            json!([{"key": "y"}]),
        ),
        (
            "ports of another protocol are other ports",
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 53}]}]}}),
            "/spec/containers/0/ports",
            json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]),
        ),
    ];
    for (what, patch, at, expected) in cases {
        let merged = strategic_merge(Kind::Pod, pod.clone(), patch).unwrap();
        assert_eq!(merged.pointer(at), Some(&expected), "{what}");
    }
    for bad in [
        json!({"spec": {"containers": [{"image": "x"}]}}),
        json!({"spec": {"$patch": "explode"}}),
        json!({"spec": {"$frobnicate": 1}}),
        json!({"spec": {"$retainKeys": 1}}),
    ] {
        assert!(strategic_merge(Kind::Pod, pod.clone(), bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn patches_of_each_type() {
    let live =
        apply(None, &deployment(&json!({}), &json!([{"name": "c", "image": "a:1"}]))).unwrap();
    let replicas = |object: &Object| object.to_value().unwrap()["spec"]["replicas"].clone();
    let merged = patch(&live, PatchType::Merge, br#"{"spec":{"replicas":5}}"#).unwrap();
    assert_eq!(replicas(&merged), 5);
    let merged = patch(&live, PatchType::Strategic, br#"{"spec":{"replicas":6}}"#).unwrap();
    assert_eq!(replicas(&merged), 6);
    let operations = br#"[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":7}]"#;
    assert_eq!(replicas(&patch(&live, PatchType::Json, operations).unwrap()), 7);
    let refused = |type_, text: &str| patch(&live, type_, text.as_bytes()).unwrap_err().message;
    expect![
        "patch deployment default/web: the patch is malformed: expected ident at line 1 column 2"
    ]
    .assert_eq(&refused(PatchType::Merge, "nonsense"));
    expect![[r#"
        Deployment.apps "web": strict decoding error: unknown field "spec.replica"
        hint: did you mean replicas instead of replica?"#]]
    .assert_eq(&refused(PatchType::Merge, r#"{"spec":{"replica":5}}"#));
    expect!["patch deployment default/web: the patch makes it deployment default/other; kind, namespace and name are fixed"]
        .assert_eq(&refused(PatchType::Strategic, r#"{"metadata":{"name":"other"}}"#));
    expect!["patch deployment default/web: operation '/0' failed at path '/spec/replicas': value did not match"]
        .assert_eq(&refused(PatchType::Json, r#"[{"op":"test","path":"/spec/replicas","value":2}]"#));
    expect!["patch deployment default/web: the JSON patch is malformed: invalid type: map, expected a sequence at line 1 column 0"]
        .assert_eq(&refused(PatchType::Json, "{}"));
}

#[test]
fn patches_of_secrets_are_refused_without_their_values() {
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"}});
    let secret = admit_new(decode(&secret).unwrap()).unwrap();
    for (type_, text) in [
        (PatchType::Merge, r#"{"stringData": {"pin": 4711}}"#),
        (PatchType::Strategic, r#"{"stringData": {"pin": 4711}}"#),
        (PatchType::Strategic, r#"{"stringData": {"$patch": 4711}}"#),
        (PatchType::Strategic, r#"{"metadata": {"finalizers": 4711}}"#),
        (PatchType::Json, r#"[{"op": "add", "path": "/data", "value": {"pin": 4711}}]"#),
    ] {
        let refused = patch(&secret, type_, text.as_bytes()).unwrap_err();
        assert!(!format!("{refused:?}").contains("4711"), "{text}: {refused:?}");
    }
}

/// Manifests out of few names, so that they overlap. Images have tags: the default of
/// imagePullPolicy follows the image only once.
fn manifests() -> impl Strategy<Value = Value> {
    let pairs = || proptest::collection::btree_map("[abc]", "[xy]", 0..3);
    let container = (
        proptest::sample::subsequence(vec!["A", "B", "C"], 0..=3).prop_shuffle(),
        "[12]",
        any::<bool>(),
    );
    (
        proptest::option::of(0..4_i32),
        proptest::option::of(0..9_i32),
        pairs(),
        proptest::collection::vec(container, 1..3),
        proptest::sample::subsequence(vec![80, 81, 82], 0..=3).prop_shuffle(),
    )
        .prop_map(|(replicas, ready, labels, containers, ports)| {
            let containers: Vec<Value> = containers
                .into_iter()
                .enumerate()
                .map(|(index, (env, tag, probe))| {
                    let env: Vec<Value> =
                        env.iter().map(|name| json!({"name": name, "value": tag})).collect();
                    let ports: Vec<Value> =
                        ports.iter().map(|port| json!({"containerPort": port})).collect();
                    let mut container = json!({"name": format!("c{index}"), "image": format!("i:{tag}"),
                        "env": env, "ports": ports});
                    if probe {
                        container["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
                    }
                    container
                })
                .collect();
            let mut spec = json!({});
            if let Some(replicas) = replicas {
                spec["replicas"] = json!(replicas);
            }
            if let Some(ready) = ready {
                spec["minReadySeconds"] = json!(ready);
            }
            let mut value = deployment(&spec, &json!(containers));
            value["metadata"]["labels"] = json!(labels);
            value
        })
}

/// Each doubles what the one before left.
#[test]
fn a_json_patch_cannot_blow_an_object_up() {
    let map = decode(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"},
        "data": {"a": "x".repeat(1000)},
    }))
    .unwrap();
    let wide: Vec<_> = (0..40)
        .map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/b{n}")}))
        .collect();
    let deep: Vec<_> = (0..14)
        .map(|n| format!("/data{}", "/b".repeat(1 << n)))
        .map(|path| json!({"op": "copy", "from": "/data", "path": path}))
        .collect();
    let move_: Vec<_> = (0..200)
        .flat_map(|_| {
            [
                json!({"op": "add", "path": "/new", "value": {}}),
                json!({"op": "move", "from": "/data", "path": "/new/a"}),
                json!({"op": "move", "from": "/new", "path": "/data"}),
            ]
        })
        .collect();
    for (operations, why) in [(wide, "bytes are copied"), (deep, "levels"), (move_, "levels")] {
        let patch_ = serde_json::to_vec(&operations).unwrap();
        let refused = patch(&map, PatchType::Json, &patch_).unwrap_err();
        assert!(refused.message.contains(why), "{refused}");
    }
}

proptest! {
    #[test]
    fn applying_again_changes_nothing(a in manifests(), b in manifests()) {
        let live = apply(None, &a).unwrap();
        prop_assert_eq!(apply(Some(&live), &a), None);
        let live = apply(Some(&live), &b).unwrap_or(live);
        prop_assert_eq!(apply(Some(&live), &b), None);
    }

    /// What only manifests have touched is what the last of them says.
    #[test]
    fn applying_b_over_a_is_b(a in manifests(), b in manifests()) {
        let live = apply(None, &a).unwrap();
        let merged = apply(Some(&live), &b).unwrap_or(live);
        prop_assert_eq!(merged.to_value().unwrap(), apply(None, &b).unwrap().to_value().unwrap());
    }

    #[test]
    fn what_others_said_stays(a in manifests(), b in manifests()) {
        let live = edit(&apply(None, &a).unwrap(), |v| {
            v["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
            v["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap()
                .push(json!({"name": "hand", "image": "h:1"}));
        });
        let live = admit_change(&live, live.clone()).unwrap();
        let merged = apply(Some(&live), &b).unwrap_or(live).to_value().unwrap();
        let spec = &merged["spec"]["template"]["spec"];
        prop_assert_eq!(&spec["nodeSelector"]["disk"], "ssd");
        prop_assert!(spec["containers"].as_array().unwrap().iter().any(|c| c["name"] == "hand"));
    }
}
