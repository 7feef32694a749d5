use expect_test::{Expect, expect};
use serde_json::{Value, json};
use timonier_proto::ApiError;
use timonier_proto::decode::decode;

use super::*;

fn admit(value: &Value) -> Result<Value, ApiError> {
    admit_new(decode(value).expect("the manifest decodes")).map(|o| o.to_value().unwrap())
}

fn refused(value: Value, expected: Expect) {
    let error = admit(&value).expect_err("it should be refused");
    expected.assert_eq(&error.message.replace("; ", "\n"));
}

/// `base` with `value` at the JSON pointer `at`.
fn with(mut base: Value, at: &str, value: Value) -> Value {
    let (parent, key) = at.rsplit_once('/').unwrap();
    match base.pointer_mut(parent).expect("the parent exists") {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        _ => panic!("{parent} is no container"),
    }
    base
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "a:1"}]}})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "a"}]}}}})
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}})
}

fn scaler() -> Value {
    json!({"apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "latencyMilliseconds": 20}})
}

#[test]
fn a_pod_gets_its_defaults() {
    let pod = with(
        pod(),
        "/spec/containers/0",
        json!({"name": "c", "image": "a", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": 1}},
            "readinessProbe": {"httpGet": {"port": 80}}}),
    );
    let text = serde_json::to_string_pretty(&admit(&pod).unwrap()["spec"]).unwrap();
    expect![[r#"
        {
          "containers": [
            {
              "image": "a",
              "imagePullPolicy": "Always",
              "name": "c",
              "ports": [
                {
                  "containerPort": 80,
                  "protocol": "TCP"
                }
              ],
              "readinessProbe": {
                "failureThreshold": 3,
                "httpGet": {
                  "path": "/",
                  "port": 80,
                  "scheme": "HTTP"
                },
                "periodSeconds": 10,
                "successThreshold": 1,
                "timeoutSeconds": 1
              },
              "resources": {
                "limits": {
                  "cpu": "1"
                },
                "requests": {
                  "cpu": "1"
                }
              }
            }
          ],
          "dnsPolicy": "ClusterFirst",
          "restartPolicy": "Always",
          "schedulerName": "default-scheduler",
          "securityContext": {},
          "terminationGracePeriodSeconds": 30
        }"#]]
    .assert_eq(&text);
}

#[test]
fn other_kinds_get_their_defaults() {
    let spec = admit(&deployment()).unwrap()["spec"].clone();
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    let spec = admit(&service()).unwrap()["spec"].clone();
    assert_eq!(spec["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
    assert_eq!(spec["type"], "ClusterIP");
    assert_eq!(spec["sessionAffinity"], "None");
    assert_eq!(admit(&scaler()).unwrap()["spec"]["maxReplicas"], 10);
    for (image, policy) in [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        ("host:5000/a", "Always"),
        ("host:5000/a:1", "IfNotPresent"),
        ("a@sha256:00", "IfNotPresent"),
    ] {
        let pod = admit(&with(pod(), "/spec/containers/0/image", json!(image))).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn filling_defaults_twice_changes_nothing() {
    for value in [pod(), deployment(), service(), scaler()] {
        let mut object = admit_new(decode(&value).unwrap()).unwrap();
        let once = object.clone();
        defaults::fill(&mut object);
        assert_eq!(object, once);
        // And an update to itself is no change.
        assert_eq!(admit_change(&once, once.clone()).unwrap(), once);
    }
}

#[test]
fn what_the_server_owns_is_not_taken_from_a_new_object() {
    let mut value = pod();
    value["metadata"]["uid"] = json!("u");
    value["metadata"]["resourceVersion"] = json!("7");
    value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    value["status"] = json!({"phase": "Running"});
    let made = admit(&value).unwrap();
    assert_eq!(made["metadata"], json!({"name": "p", "namespace": "default"}));
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
}

#[test]
fn names_are_checked() {
    refused(
        with(deployment(), "/metadata/name", json!("Web_1")),
        expect![[
            r#"Deployment.apps "Web_1" is invalid: metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#
        ]],
    );
    refused(
        with(pod(), "/metadata/name", json!("")),
        expect![[
            r#"Pod "" is invalid: metadata.name: Required value: name or generateName is required"#
        ]],
    );
    refused(
        with(service(), "/metadata/name", json!("1a")),
        expect![[
            r#"Service "1a" is invalid: metadata.name: Invalid value: "1a": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"#
        ]],
    );
    refused(
        with(pod(), "/metadata/labels", json!({"a b": "c", "ok": "-"})),
        expect![[r#"
            Pod "p" is invalid: metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            metadata.labels[ok]: Invalid value: "-": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"#]],
    );
    refused(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "namespace": "b",
            "annotations": {"timonier.io/network": "islated"}}}),
        expect![[r#"
            Namespace "a" is invalid: metadata.namespace: Forbidden: not allowed on this type
            metadata.annotations[timonier.io/network]: Unsupported value: "islated": supported values: "isolated""#]],
    );
}

#[test]
fn containers_are_checked() {
    refused(
        with(pod(), "/spec/containers", json!([])),
        expect![[r#"Pod "p" is invalid: spec.containers: Required value"#]],
    );
    refused(
        with(
            pod(),
            "/spec/containers",
            json!([{"name": "c", "ports": [{"containerPort": 80, "name": "x"}, {"containerPort": 70000, "name": "x"},
                    {"containerPort": 80, "hostPort": 1}]},
                {"name": "c", "image": "a b", "imagePullPolicy": "Sometimes",
                    "env": [{"name": "A=B"}, {"name": "C", "value": "v", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}],
                    "resources": {"requests": {"cpu": 2, "memory": "lots", "gpu": 1}, "limits": {"cpu": 1}},
                    "volumeMounts": [{"name": "gone", "mountPath": "/a"}]}]),
        ),
        expect![[r#"
            Pod "p" is invalid: spec.containers[0].image: Required value
            spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
            spec.containers[0].ports[1].name: Duplicate value: "x"
            spec.containers[0].ports[2].containerPort: Duplicate value: "80/TCP"
            spec.containers[1].name: Duplicate value: "c"
            spec.containers[1].image: Invalid value: "a b": must not contain spaces
            spec.containers[1].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
            spec.containers[1].env[0].name: Invalid value: "A=B": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.containers[1].env[1].valueFrom: Invalid value: "": may not be specified when `value` is not empty
            spec.containers[1].env[1].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.nope": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
            spec.containers[1].resources.requests[gpu]: Forbidden: not supported here (only cpu, memory and ephemeral-storage)
            spec.containers[1].resources.requests[memory]: Invalid value: "lots": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got "lots"
            spec.containers[1].resources.requests[cpu]: Invalid value: "2": must be less than or equal to cpu limit of 1
            spec.containers[1].volumeMounts[0].name: Not found: "gone""#]],
    );
    refused(
        with(
            pod(),
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"port": "web", "path": "x"}, "exec": {}, "periodSeconds": -1, "successThreshold": 2}),
        ),
        expect![[r#"
            Pod "p" is invalid: spec.containers[0].livenessProbe: Forbidden: may not specify more than 1 handler type
            spec.containers[0].livenessProbe.exec.command: Required value
            spec.containers[0].livenessProbe.httpGet.path: Invalid value: "x": must be an absolute path, such as /
            spec.containers[0].livenessProbe.httpGet.port: Invalid value: "web": no port of this container has that name
            spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 1
            spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"#]],
    );
    refused(
        with(pod(), "/spec/containers/0/readinessProbe", json!({"periodSeconds": 3})),
        expect![[
            r#"Pod "p" is invalid: spec.containers[0].readinessProbe: Required value: must specify a handler type"#
        ]],
    );
}

#[test]
fn what_no_agent_does_is_refused_by_name() {
    let mut value = pod();
    value["spec"]["restartPolicy"] = json!("Sometimes");
    value["spec"]["affinity"] = json!({});
    value["spec"]["serviceAccountName"] = json!("Robot");
    value["spec"]["tolerations"] =
        json!([{"operator": "Exists"}, {"key": "a", "operator": "Near"}]);
    value["spec"]["volumes"] = json!([
        {"name": "a", "secret": {"secretName": "s"}}, {"name": "a", "emptyDir": {}}, {"name": "b"},
        {"name": "c", "emptyDir": {}, "hostPath": {"path": "rel"}}, {"name": "d", "configMap": {"name": ""}}
    ]);
    value["spec"]["containers"][0]["livenessProbe"] = json!({"grpc": {"port": 0}});
    refused(
        value,
        expect![[r#"
            Pod "p" is invalid: spec.affinity: Forbidden: not supported here (use nodeSelector)
            spec.serviceAccountName: Invalid value: "Robot": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.volumes[1].name: Duplicate value: "a"
            spec.volumes[2]: Required value: must specify a volume type
            spec.volumes[3].hostPath: Forbidden: may not specify more than 1 volume type
            spec.volumes[3].hostPath.path: Invalid value: "rel": must be an absolute path without '..'
            spec.volumes[4].configMap.name: Required value
            spec.containers[0].livenessProbe.grpc.port: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
            spec.tolerations[1].operator: Unsupported value: "Near": supported values: "Equal", "Exists""#]],
    );
    let mut fine = pod();
    fine["spec"]["automountServiceAccountToken"] = json!(true);
    let token = |token: Value| json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
    fine["spec"]["volumes"] = token(json!({"path": "token", "audience": "vault"}));
    fine["spec"]["serviceAccountName"] = json!("default");
    fine["spec"]["imagePullSecrets"] = json!([]);
    admit(&fine).unwrap();
    fine["spec"]["volumes"] = token(json!({"path": "../token", "expirationSeconds": 599}));
    refused(
        fine,
        expect![[r#"
            Pod "p" is invalid: spec.volumes[0].projected.sources[0].serviceAccountToken.path: Invalid value: "../token": must be a relative path without '..'
            spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"#]],
    );
}

#[test]
fn workloads_are_checked() {
    refused(
        with(deployment(), "/spec/template/metadata/labels", json!({"app": "other"})),
        expect![[
            r#"Deployment.apps "web" is invalid: spec.template.metadata.labels: Invalid value: {"app": "other"}: `selector` does not match template `labels`"#
        ]],
    );
    refused(
        with(deployment(), "/spec/selector", json!({})),
        expect![[
            r#"Deployment.apps "web" is invalid: spec.selector: Required value: empty selector is invalid for a workload"#
        ]],
    );
    let mut value = with(deployment(), "/spec/replicas", json!(-1));
    value["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
    value["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    value["spec"]["minReadySeconds"] = json!(700);
    refused(
        value,
        expect![[r#"
            Deployment.apps "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0
            spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
            spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds
            spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"#]],
    );
    let strategy = json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}});
    refused(
        with(deployment(), "/spec/strategy", strategy),
        expect![[
            r#"Deployment.apps "web" is invalid: spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"#
        ]],
    );
    let strategy = json!({"rollingUpdate": {"maxSurge": "x", "maxUnavailable": "120%"}});
    refused(
        with(deployment(), "/spec/strategy", strategy),
        expect![[r#"
            Deployment.apps "web" is invalid: spec.strategy.rollingUpdate.maxSurge: Invalid value: "x": must be an integer or percentage (e.g '5' or '5%')
            spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 120: must not be greater than 100%"#]],
    );
}

#[test]
fn services_config_maps_and_scalers_are_checked() {
    let mut value = service();
    value["spec"]["type"] = json!("NodePort");
    value["spec"]["ports"] = json!([{"port": 80, "nodePort": 80}, {"port": 80, "targetPort": "A"}]);
    value["spec"]["sessionAffinity"] = json!("Sticky");
    refused(
        value,
        expect![[r#"
            Service "web" is invalid: spec.sessionAffinity: Unsupported value: "Sticky": supported values: "ClientIP", "None"
            spec.ports[0].name: Required value
            spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767
            spec.ports[1].name: Required value
            spec.ports[1].targetPort: Invalid value: "A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            spec.ports[1]: Duplicate value: "80/TCP""#]],
    );
    refused(
        with(service(), "/spec/type", json!("LoadBalancer")),
        expect![[
            r#"Service "web" is invalid: spec.type: Forbidden: not supported here (use NodePort)"#
        ]],
    );
    refused(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"},
            "data": {"a/b": "", "k": ""}, "binaryData": {"k": ""}}),
        expect![[r#"
            ConfigMap "c" is invalid: data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            binaryData[k]: Invalid value: "k": duplicate of key present in data"#]],
    );
    let mut value = scaler();
    value["spec"]["scaleTargetRef"]["kind"] = json!("Pod");
    value["spec"]["latencyMilliseconds"] = json!(0);
    value["spec"]["step"] = json!(0);
    value["spec"]["minReplicas"] = json!(20);
    refused(
        value,
        expect![[r#"
            LatencyAutoscaler.autoscaling.timonier.io "web" is invalid: spec.scaleTargetRef.kind: Unsupported value: "Pod": supported values: "Deployment", "ReplicaSet"
            spec.latencyMilliseconds: Invalid value: 0: must be between 1 and 600000, inclusive
            spec.step: Invalid value: 0: must be greater than or equal to 1
            spec.minReplicas: Invalid value: 20: must be less than or equal to maxReplicas (10)"#]],
    );
}

fn a_secret(type_: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": type_, "data": data,
        "metadata": {"name": "s", "namespace": "n"}})
}

#[test]
fn secrets_are_filled_and_checked() {
    let mut given = a_secret("", json!({"a": "b2xk"}));
    given["stringData"] = json!({"a": "new", "b": "text"});
    let stored = admit_new(decode(&given).unwrap()).unwrap().to_value().unwrap();
    assert_eq!(stored["data"], json!({"a": "bmV3", "b": "dGV4dA=="}));
    assert_eq!((&stored["type"], stored.get("stringData")), (&json!("Opaque"), None));
    refused(
        a_secret("kubernetes.io/tls", json!({"tls.crt": "YQ==", "no/t": ""})),
        expect![[r#"
            Secret "s" is invalid: data[no/t]: Invalid value: "no/t": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            data[tls.key]: Required value"#]],
    );
    refused(
        a_secret("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "c2VjcmV0"})),
        expect![[
            r#"Secret "s" is invalid: data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": it is not as Docker's config.json: {"auths": {SERVER: {"username": …, "password": …}}}"#
        ]],
    );
    for (type_, data) in [
        ("kubernetes.io/basic-auth", json!({})),
        ("kubernetes.io/ssh-auth", json!({"x": ""})),
        ("kubernetes.io/service-account-token", json!({})),
    ] {
        let error = admit_new(decode(&a_secret(type_, data)).unwrap()).unwrap_err();
        assert!(error.message.contains("Required value"), "{type_}: {}", error.message);
    }
    let large = "YWFh".repeat(400_000);
    let error = admit_new(decode(&a_secret("", json!({"k": large}))).unwrap()).unwrap_err();
    assert!(error.message.len() < 200 && error.message.contains("1048576"), "{}", error.message);
    // What is no base64 is refused, and not quoted.
    let error = decode(&a_secret("", json!({"k": "hunter2-is-no-base64!"}))).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(error.to_string().contains("data"), "{error}");
}

#[test]
fn a_secret_keeps_its_type_and_an_immutable_one_its_values() {
    let mut old = a_secret("", json!({"k": "YQ=="}));
    let typed = a_secret("example.com/x", json!({"k": "YQ=="}));
    let error = change(&old, &typed).unwrap_err();
    expect![[r#"Secret "s" is invalid: type: Invalid value: "example.com/x": field is immutable"#]]
        .assert_eq(&error.message);
    change(&old, &a_secret("", json!({"k": "Yg=="}))).unwrap();
    old["immutable"] = json!(true);
    let mut new = old.clone();
    new["data"]["k"] = json!("Yg==");
    let error = change(&old, &new).unwrap_err();
    expect![[
        r#"Secret "s" is invalid: data: Forbidden: field is immutable when `immutable` is set"#
    ]]
    .assert_eq(&error.message);
}

#[test]
fn pods_may_use_secrets() {
    let mut value = pod();
    value["spec"]["imagePullSecrets"] = json!([{"name": "registry"}]);
    value["spec"]["volumes"] = json!([
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "p", "projected": {"sources": [{"secret": {"name": "s"}}]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]);
    value["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]);
    let stored = admit_new(decode(&value).unwrap()).unwrap().to_value().unwrap();
    assert_eq!(stored["spec"]["volumes"][0]["secret"]["defaultMode"], 0o644);
    value["spec"]["volumes"] = json!([
        {"name": "s", "secret": {"items": [{"key": "k", "path": "../x"}]}},
        {"name": "p", "projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}, {}]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "status.podIP"}}]}},
    ]);
    refused(
        value,
        expect![[r#"
        Pod "p" is invalid: spec.volumes[0].secret.secretName: Required value
        spec.volumes[0].secret.items[0].path: Invalid value: "../x": must be a relative path without '..'
        spec.volumes[1].projected.sources[0].clusterTrustBundle: Forbidden: not supported here
        spec.volumes[1].projected.sources[1]: Forbidden: must specify exactly 1 volume type
        spec.volumes[2].downwardAPI.items[0].fieldRef.fieldPath: Unsupported value: "status.podIP": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations""#]],
    );
}

fn change(old: &Value, new: &Value) -> Result<Value, ApiError> {
    let old = admit_new(decode(old).unwrap()).unwrap();
    admit_change(&old, decode(new).unwrap()).map(|o| o.to_value().unwrap())
}

#[test]
fn what_may_not_change_does_not() {
    let mut moved = deployment();
    moved["spec"]["selector"]["matchLabels"]["app"] = json!("moved");
    moved["spec"]["template"]["metadata"]["labels"]["app"] = json!("moved");
    let error = change(&deployment(), &moved).unwrap_err();
    expect![[r#"Deployment.apps "web" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"moved"}}: field is immutable"#]]
        .assert_eq(&error.message);

    change(&pod(), &with(pod(), "/spec/containers/0/image", json!("a:2"))).unwrap();
    let error =
        change(&pod(), &with(pod(), "/spec/containers/0/command", json!(["x"]))).unwrap_err();
    expect![[r#"Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.tolerations` and `spec.terminationGracePeriodSeconds`"#]]
        .assert_eq(&error.message);

    let fixed = with(service(), "/spec/clusterIP", json!("10.96.0.7"));
    let error =
        change(&fixed, &with(service(), "/spec/clusterIP", json!("10.96.0.8"))).unwrap_err();
    expect![[r#"Service "web" is invalid: spec.clusterIP: Invalid value: "10.96.0.8": field is immutable"#]]
        .assert_eq(&error.message);
}

#[test]
fn a_service_keeps_its_address_and_ports() {
    let mut made = with(service(), "/spec/clusterIP", json!("10.96.0.7"));
    made["spec"]["type"] = json!("NodePort");
    made["spec"]["ports"][0]["nodePort"] = json!(30001);
    let mut asked = service();
    asked["spec"]["type"] = json!("NodePort");
    let kept = change(&made, &asked).unwrap();
    assert_eq!(kept["spec"]["clusterIP"], "10.96.0.7");
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30001);
    // Back to ClusterIP, as a merge with the live object writes it: the node port goes.
    let mut back = made.clone();
    back["spec"]["type"] = json!("ClusterIP");
    let back = change(&made, &back).unwrap();
    assert_eq!(back["spec"]["ports"][0].get("nodePort"), None);
}
