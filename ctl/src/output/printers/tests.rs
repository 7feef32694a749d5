use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::output::objects::table_text;

fn check(kind: Kind, wide: bool, objects: &[Value], expected: Expect) {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    expected.assert_eq(&table_text(kind, wide, objects, now));
}

fn pod(name: &str, extra: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Pending"},
    });
    json_patch::merge(&mut pod, &extra);
    pod
}

#[test]
fn pods_show_what_they_are_doing() {
    let running = json!({"ready": true, "restartCount": 3, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:50Z"}}});
    let waiting = |reason: &str, restarts: i64| {
        json!({"status": {"phase": "Pending", "containerStatuses": [
            {"restartCount": restarts, "state": {"waiting": {"reason": reason}}}]}})
    };
    let ended = |reason: &str, code: i64| {
        json!({"status": {"containerStatuses": [{"restartCount": 0,
            "state": {"terminated": {"reason": reason, "exitCode": code}}}]}})
    };
    let init = |state: Value| {
        json!({"spec": {"initContainers": [{"name": "i"}]},
            "status": {"initContainerStatuses": [{"restartCount": 0, "state": state}],
                "containerStatuses": [{"restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}]}})
    };
    check(
        Kind::Pod,
        false,
        &[
            pod("unscheduled", json!({})),
            pod("running", json!({"status": {"phase": "Running", "containerStatuses": [running]}})),
            pod("creating", waiting("ContainerCreating", 0)),
            pod("no-image", waiting("ErrImagePull", 0)),
            pod("crashing", waiting("CrashLoopBackOff", 5)),
            pod("done", ended("Completed", 0)),
            pod("failed", ended("Error", 1)),
            pod("code", ended("", 7)),
            pod("init", init(json!({"running": {}}))),
            pod("init-failed", init(json!({"terminated": {"exitCode": 2, "reason": "Error"}}))),
            pod("evicted", json!({"status": {"phase": "Failed", "reason": "Evicted"}})),
            pod(
                "leaving",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:09:00Z"}, "status": {"phase": "Running"}}),
            ),
        ],
        expect![[r#"
            NAME          READY   STATUS              RESTARTS      AGE
            unscheduled   0/1     Pending             0             10m
            running       1/1     Running             3 (10s ago)   10m
            creating      0/1     ContainerCreating   0             10m
            no-image      0/1     ErrImagePull        0             10m
            crashing      0/1     CrashLoopBackOff    5             10m
            done          0/1     Completed           0             10m
            failed        0/1     Error               0             10m
            code          0/1     ExitCode:7          0             10m
            init          0/1     Init:0/1            0             10m
            init-failed   0/1     Init:Error          0             10m
            evicted       0/1     Evicted             0             10m
            leaving       0/1     Terminating         0             10m
        "#]],
    );
}

#[test]
fn nodes_show_their_state_and_system() {
    let node = |name: &str, ready: &str, cordoned: bool| {
        json!({
            "metadata": {"name": name, "creationTimestamp": "2025-12-30T00:00:00Z",
                "labels": {"node-role.kubernetes.io/worker": ""}},
            "spec": {"unschedulable": cordoned},
            "status": {"conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v0.1.0", "osImage": "Debian 12", "kernelVersion": "6.1",
                    "containerRuntimeVersion": "docker://20.10.24"}},
        })
    };
    let nodes = [node("a", "True", false), node("b", "True", true), node("c", "Unknown", false)];
    check(
        Kind::Node,
        false,
        &nodes,
        expect![[r#"
        NAME   STATUS                     ROLES    AGE   VERSION
        a      Ready                      worker   2d    v0.1.0
        b      Ready,SchedulingDisabled   worker   2d    v0.1.0
        c      NotReady                   worker   2d    v0.1.0
    "#]],
    );
    check(
        Kind::Node,
        true,
        &nodes[..1],
        expect![[r#"
        NAME   STATUS   ROLES    AGE   VERSION   INTERNAL-IP   EXTERNAL-IP   OS-IMAGE    KERNEL-VERSION   CONTAINER-RUNTIME
        a      Ready    worker   2d    v0.1.0    10.0.0.1      <none>        Debian 12   6.1              docker://20.10.24
    "#]],
    );
}

#[test]
fn workloads_show_their_counts() {
    let meta = json!({"name": "web", "creationTimestamp": "2026-01-01T00:05:00Z"});
    let template = json!({"spec": {"containers": [{"name": "web", "image": "timonier/web:v1"}]}});
    let deployment = json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
    check(
        Kind::Deployment,
        false,
        std::slice::from_ref(&deployment),
        expect![[r#"
        NAME   READY   UP-TO-DATE   AVAILABLE   AGE
        web    2/3     3            2           5m
    "#]],
    );
    check(
        Kind::Deployment,
        true,
        &[deployment],
        expect![[r#"
        NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES            SELECTOR
        web    2/3     3            2           5m    web          timonier/web:v1   app=web
    "#]],
    );
    let set = json!({"metadata": meta, "spec": {"replicas": 3}, "status": {"replicas": 3, "readyReplicas": 1}});
    check(
        Kind::ReplicaSet,
        false,
        &[set],
        expect![[r#"
        NAME   DESIRED   CURRENT   READY   AGE
        web    3         3         1       5m
    "#]],
    );
    let service = json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIP": "10.96.0.10",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 443}]}});
    check(
        Kind::Service,
        true,
        &[service],
        expect![[r#"
        NAME   TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)                AGE   SELECTOR
        web    NodePort   10.96.0.10   <none>        80:30080/TCP,443/TCP   5m    app=web
    "#]],
    );
    let endpoints = json!({"metadata": meta, "subsets": [{"ports": [{"port": 80}],
        "addresses": [{"ip": "10.244.0.2"}, {"ip": "10.244.0.3"}, {"ip": "10.244.1.2"}, {"ip": "10.244.1.3"}]}]});
    check(
        Kind::Endpoints,
        false,
        &[endpoints],
        expect![[r#"
        NAME   ENDPOINTS                                               AGE
        web    10.244.0.2:80,10.244.0.3:80,10.244.1.2:80 + 1 more...   5m
    "#]],
    );
    let autoscaler = json!({"metadata": meta, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"},
        "latencyMilliseconds": 150, "step": 3}, "status": {"state": "Weak", "latencyMicroseconds": 231_450,
        "currentReplicas": 4, "baseReplicas": 1}});
    check(
        Kind::LatencyAutoscaler,
        true,
        &[autoscaler],
        expect![[r#"
        NAME   TARGET           LATENCY   THRESHOLD   STATE   MINPODS   MAXPODS   REPLICAS   AGE   STEP   COOLDOWN
        web    Deployment/web   231.4ms   150ms       Weak    1         10        4          5m    3      5s
    "#]],
    );
    check(
        Kind::ConfigMap,
        false,
        &[json!({"metadata": meta, "data": {"a": "1", "b": "2"}})],
        expect![[r#"
            NAME   DATA   AGE
            web    2      5m
        "#]],
    );
}

#[test]
fn events_say_how_often() {
    let event = json!({"type": "Warning", "reason": "BackOff", "count": 4, "message": "Back-off restarting\n",
        "firstTimestamp": "2026-01-01T00:05:00Z", "lastTimestamp": "2026-01-01T00:09:30Z",
        "involvedObject": {"kind": "Pod", "name": "web-1"}});
    check(
        Kind::Event,
        false,
        &[event],
        expect![[r#"
        LAST SEEN          TYPE      REASON    OBJECT      MESSAGE
        30s (x4 over 5m)   Warning   BackOff   pod/web-1   Back-off restarting
    "#]],
    );
}
