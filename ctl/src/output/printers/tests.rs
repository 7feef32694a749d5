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
        expect![[""]],
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
    check(Kind::Node, false, &nodes, expect![[""]]);
    check(Kind::Node, true, &nodes[..1], expect![[""]]);
}

#[test]
fn workloads_show_their_counts() {
    let meta = json!({"name": "web", "creationTimestamp": "2026-01-01T00:05:00Z"});
    let template = json!({"spec": {"containers": [{"name": "web", "image": "timonier/web:v1"}]}});
    let deployment = json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
    check(Kind::Deployment, false, std::slice::from_ref(&deployment), expect![[""]]);
    check(Kind::Deployment, true, &[deployment], expect![[""]]);
    let set = json!({"metadata": meta, "spec": {"replicas": 3}, "status": {"replicas": 3, "readyReplicas": 1}});
    check(Kind::ReplicaSet, false, &[set], expect![[""]]);
    let service = json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIP": "10.96.0.10",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 443}]}});
    check(Kind::Service, true, &[service], expect![[""]]);
    let endpoints = json!({"metadata": meta, "subsets": [{"ports": [{"port": 80}],
        "addresses": [{"ip": "10.244.0.2"}, {"ip": "10.244.0.3"}, {"ip": "10.244.1.2"}, {"ip": "10.244.1.3"}]}]});
    check(Kind::Endpoints, false, &[endpoints], expect![[""]]);
    let autoscaler = json!({"metadata": meta, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"},
        "latencyMilliseconds": 150, "step": 3}, "status": {"state": "Weak", "latencyMicroseconds": 231_450,
        "currentReplicas": 4, "baseReplicas": 1}});
    check(Kind::LatencyAutoscaler, true, &[autoscaler], expect![[""]]);
    check(
        Kind::ConfigMap,
        false,
        &[json!({"metadata": meta, "data": {"a": "1", "b": "2"}})],
        expect![[""]],
    );
}

#[test]
fn events_say_how_often() {
    let event = json!({"type": "Warning", "reason": "BackOff", "count": 4, "message": "Back-off restarting\n",
        "firstTimestamp": "2026-01-01T00:05:00Z", "lastTimestamp": "2026-01-01T00:09:30Z",
        "involvedObject": {"kind": "Pod", "name": "web-1"}});
    check(Kind::Event, false, &[event], expect![[""]]);
}
