use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn check(kind: Kind, value: Value, related: Related, expected: Expect) {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    expected.assert_eq(&page(&Item { kind, value }, &related, now));
}

#[test]
fn a_pods_page() {
    let pod = json!({
        "metadata": {"name": "web-1", "namespace": "default", "uid": "u", "labels": {"app": "web", "pod-template-hash": "abc"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-abc", "controller": true}]},
        "spec": {"nodeName": "lab-1", "containers": [{"name": "web", "image": "timonier/web:v1",
            "ports": [{"containerPort": 80, "name": "http"}],
            "resources": {"requests": {"cpu": "50m"}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}],
            "volumes": [{"name": "tmp", "emptyDir": {}}]},
        "status": {"phase": "Running", "podIP": "10.244.0.2", "hostIP": "10.0.0.1", "qosClass": "Burstable",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "web", "containerID": "docker://1", "imageID": "sha256:2", "ready": true,
                "restartCount": 1, "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}},
                "lastState": {"terminated": {"reason": "Error", "exitCode": 137,
                    "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:04Z"}}}]},
    });
    let event = json!({"type": "Normal", "reason": "Started", "message": "Started container web",
        "source": {"component": "agent", "host": "lab-1"}, "lastTimestamp": "2026-01-01T00:00:05Z"});
    let related = Related { events: Some(vec![event]), ..Default::default() };
    check(
        Kind::Pod,
        pod,
        related,
        expect![[r#"
        Name:             web-1
        Namespace:        default
        Priority:         0
        Service Account:  default
        Node:             lab-1/10.0.0.1
        Start Time:       Thu, 01 Jan 2026 00:00:00 +0000
        Labels:           app=web
                          pod-template-hash=abc
        Annotations:      <none>
        Status:           Running
        IP:               10.244.0.2
        Controlled By:    ReplicaSet/web-abc
        Containers:
          web:
            Container ID:   docker://1
            Image:          timonier/web:v1
            Image ID:       sha256:2
            Port:           80/TCP
            Host Port:      0/TCP
            State:          Running
              Started:      Thu, 01 Jan 2026 00:00:05 +0000
            Last State:     Terminated
              Reason:       Error
              Exit Code:    137
              Started:      Thu, 01 Jan 2026 00:00:01 +0000
              Finished:     Thu, 01 Jan 2026 00:00:04 +0000
            Ready:          True
            Restart Count:  1
            Requests:
              cpu:      50m
            Readiness:  http-get http://:http/healthz delay=0s timeout=1s period=1s #success=1 #failure=3
            Environment:
              POD:   (v1:metadata.name)
            Mounts:
              /tmp from tmp (rw)
        Conditions:
          Type   Status
          ----   ------
          Ready  True
        Volumes:
          tmp:
            Type:        EmptyDir (a temporary directory that shares a pod's lifetime)
            Medium:
            SizeLimit:   <unset>
        QoS Class:       Burstable
        Node-Selectors:  <none>
        Tolerations:     <none>
        Events:
          Type    Reason   Age    From          Message
          ----    ------   ----   ----          -------
          Normal  Started  9m55s  agent, lab-1  Started container web
    "#]],
    );
}

#[test]
fn a_nodes_page_sums_what_its_pods_ask_for() {
    let node = json!({
        "metadata": {"name": "lab-1", "labels": {"kubernetes.io/hostname": "lab-1"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "the agent sends heartbeats",
            "lastTransitionTime": "2026-01-01T00:00:01Z"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "capacity": {"cpu": "2", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "8Gi", "pods": "110"},
            "nodeInfo": {"kernelVersion": "6.1", "containerRuntimeVersion": "docker://20.10.24"}},
    });
    let pod = |name: &str, phase: &str| {
        json!({"metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:05:00Z"},
            "status": {"phase": phase},
            "spec": {"containers": [{"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}}],
                "initContainers": [{"resources": {"requests": {"cpu": "1", "memory": "512Mi"}}}]}})
    };
    let usage = NodeSample {
        name: "lab-1".into(),
        age_ms: 420,
        usage: Some(timonier_proto::v1::HostUsage {
            cpu_percent: 12.5,
            memory_percent: 50.0,
            memory_used_bytes: 4 << 30,
            memory_total_bytes: 8 << 30,
            cores: 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    let related = Related {
        events: Some(Vec::new()),
        pods: vec![pod("a", "Running"), pod("b", "Running"), pod("c", "Succeeded")],
        usage: Some(usage),
        ..Default::default()
    };
    check(
        Kind::Node,
        node,
        related,
        expect![[r#"
        Name:               lab-1
        Roles:              <none>
        Labels:             kubernetes.io/hostname=lab-1
        Annotations:        <none>
        CreationTimestamp:  Thu, 01 Jan 2026 00:00:00 +0000
        Taints:             <none>
        Unschedulable:      false
        Conditions:
          Type   Status  LastTransition  Reason      Message
          ----   ------  --------------  ------      -------
          Ready  True    9m59s ago       AgentReady  the agent sends heartbeats
        Addresses:
          InternalIP:  10.0.0.1
        Capacity:
          cpu:     2
          memory:  8Gi
          pods:    110
        Allocatable:
          cpu:     2
          memory:  8Gi
          pods:    110
        System Info:
          Kernel Version:             6.1
          Container Runtime Version:  docker://20.10.24
        PodCIDR:                      10.244.0.0/24
        Non-terminated Pods:          (2 in total, 110 at most)
          Namespace                   Name  CPU Requests  CPU Limits  Memory Requests  Memory Limits  Age
          ---------                   ----  ------------  ----------  ---------------  -------------  ---
          default                     a     1 (50%)       0 (0%)      1Gi (12%)        2Gi (25%)      5m
          default                     b     1 (50%)       0 (0%)      1Gi (12%)        2Gi (25%)      5m
        Allocated resources:
          Resource  Requests   Limits
          --------  --------   ------
          cpu       2 (100%)   0 (0%)
          memory    2Gi (25%)  4Gi (50%)
        Measured use:
          cpu:             12.5% of 2 cores
          memory:          50.0% (4.0Gi of 8.0Gi)
          disk:            0.0Gi of 0.0Gi
          load:            0.00 0.00 0.00
          network:         0.0 KiB/s in, 0.0 KiB/s out
          last heartbeat:  420 ms ago
        Events:            <none>
    "#]],
    );
}

#[test]
fn a_deployments_and_a_services_page() {
    let deployment = json!({
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "w:2"}]}}},
        "status": {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 2, "unavailableReplicas": 1,
            "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}]},
    });
    let set = |name: &str, revision: &str, n: i64| {
        json!({"metadata": {"name": name, "annotations": {"deployment.kubernetes.io/revision": revision}},
            "spec": {"replicas": n}, "status": {"replicas": n}})
    };
    let related = Related {
        replica_sets: vec![set("web-1", "1", 0), set("web-2", "2", 3)],
        ..Default::default()
    };
    check(
        Kind::Deployment,
        deployment,
        related,
        expect![[r#"
        Name:                   web
        Namespace:              default
        CreationTimestamp:      Thu, 01 Jan 2026 00:00:00 +0000
        Labels:                 <none>
        Annotations:            deployment.kubernetes.io/revision: 2
        Selector:               app=web
        Replicas:               3 desired | 3 updated | 3 total | 2 available | 1 unavailable
        StrategyType:           RollingUpdate
        MinReadySeconds:        0
        RollingUpdateStrategy:  25% max unavailable, 25% max surge
        Pod Template:
          Labels:  app=web
          Containers:
            web:
              Image:        w:2
              Port:         <none>
              Host Port:    <none>
              Environment:  <none>
              Mounts:       <none>
          Volumes:          <none>
        Conditions:
          Type           Status  Reason
          ----           ------  ------
          Available      True    MinimumReplicasAvailable
        OldReplicaSets:  web-1 (0/0 replicas created)
        NewReplicaSet:   web-2 (3/3 replicas created)
    "#]],
    );
    let service = json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"}]}});
    let endpoints = json!({"subsets": [{"ports": [{"name": "http", "port": 8080}],
        "addresses": [{"ip": "10.244.0.2"}], "notReadyAddresses": [{"ip": "10.244.0.3"}]}]});
    let related = Related { endpoints: Some(endpoints), ..Default::default() };
    check(
        Kind::Service,
        service,
        related,
        expect![[r#"
        Name:              web
        Namespace:         default
        Labels:            <none>
        Annotations:       <none>
        Selector:          app=web
        Type:              NodePort
        IP:                10.96.0.9
        Port:              http  80/TCP
        TargetPort:        http/TCP
        NodePort:          http  30080/TCP
        Endpoints:         10.244.0.2:8080 (1 not ready)
        Session Affinity:  None
    "#]],
    );
}
