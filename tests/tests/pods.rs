//! Pods on real Docker: containers, volumes, environment, probes, and what goes wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::wait;

const SECONDS_30: Duration = Duration::from_secs(30);

/// Waits until `timonctl get pod NAME` shows this in its STATUS column.
async fn wait_shown(cluster: &Cluster, pod: &str, status: &str) -> Result<()> {
    wait::until(&format!("pod {pod} to show {status}"), SECONDS_30, || async {
        let shown = cluster.ctl(&["get", "pod", pod, "--no-headers"]).await?.ok()?;
        ensure!(shown.contains(status), "{shown}");
        Ok(())
    })
    .await
}

async fn pod(cluster: &Cluster, name: &str) -> Result<Value> {
    let json = cluster.ctl(&["get", "pod", name, "-o", "json"]).await?.ok()?;
    Ok(serde_json::from_str(&json)?)
}

async fn describe_until(cluster: &Cluster, pod: &str, text: &str) -> Result<()> {
    wait::until(&format!("describe pod {pod} to say {text:?}"), SECONDS_30, || async {
        let described = cluster.ctl(&["describe", "pod", pod]).await?.ok()?;
        ensure!(described.contains(text), "{described}");
        Ok(())
    })
    .await
}

const FULL_POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: "hello from a config map", level: debug}
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  initContainers:
  - {name: prepare, image: "timonier/web:v1", command: ["/web", "--exit-after-ms", "10", "--exit-code", "0"]}
  containers:
  - name: web
    image: timonier/web:v1
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}
    - {name: BOTH, value: "$(POD_NAME)-$(LEVEL)"}
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {memory: 64Mi}}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}}
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: shared, mountPath: /shared}
  - name: printer
    image: timonier/web:v1
    command: ["/web", "--port", "9090", "--print-every-ms", "100"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: shared, emptyDir: {}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_everything_runs_and_its_logs_exec_and_port_are_reached() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    cluster.apply(FULL_POD).await?;
    cluster.ctl(&["wait", "pod/full", "--for=condition=Ready", "--timeout=40s"]).await?.ok()?;
    let shown = cluster.ctl(&["get", "pod", "full", "--no-headers"]).await?.ok()?;
    assert!(shown.contains("2/2") && shown.contains("Running"), "{shown}");

    let exec = ["exec", "full", "-c", "web", "--", "/web", "--cat", "/etc/settings/greeting"];
    let printed = wait::until("exec to print the file", SECONDS_30, || async {
        let args = [&exec[..], &["--exit-after-ms", "0", "--exit-code", "0"][..]].concat();
        cluster.ctl(&args).await?.ok()
    })
    .await?;
    assert!(printed.contains("hello from a config map"), "{printed}");

    let logs = cluster.ctl(&["logs", "full", "-c", "printer", "--tail", "2"]).await?.ok()?;
    assert_eq!(logs.lines().count(), 2, "{logs}");
    let ambiguous = cluster.ctl(&["logs", "full", "-c", "nope"]).await?.failed()?;
    assert!(ambiguous.contains("nope"), "{ambiguous}");

    let value = pod(&cluster, "full").await?;
    assert_eq!(value["status"]["phase"], "Running");
    assert_eq!(value["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(value["status"]["qosClass"], "Burstable");

    let failing = cluster.ctl(&[
        "exec",
        "full",
        "-c",
        "web",
        "--",
        "/web",
        "--exit-after-ms",
        "0",
        "--exit-code",
        "7",
    ]);
    assert_eq!(failing.await?.code, 7, "the command's exit code is passed on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    cluster
        .apply(
            r#"
apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec: {containers: [{name: c, image: "127.0.0.1:1/nothing:here"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec: {containers: [{name: c, image: "timonier/web:v1", command: ["/web", "--exit-after-ms", "1", "--exit-code", "3"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: too-big}
spec: {containers: [{name: c, image: "timonier/web:v1", resources: {requests: {cpu: "4000"}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-command}
spec: {containers: [{name: c, image: "timonier/web:v1", command: ["/does-not-exist"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-config}
spec:
  containers: [{name: c, image: "timonier/web:v1", volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, configMap: {name: absent}}]
"#,
        )
        .await?;
    wait_shown(&cluster, "no-image", "ErrImagePull").await?;
    wait_shown(&cluster, "no-image", "ImagePullBackOff").await?;
    describe_until(&cluster, "no-image", "127.0.0.1:1/nothing:here").await?;
    wait_shown(&cluster, "crash", "CrashLoopBackOff").await?;
    let crash = pod(&cluster, "crash").await?;
    let last = &crash["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 3, "{crash}");
    cluster.ctl(&["logs", "crash", "--previous"]).await?.ok()?;
    wait_shown(&cluster, "too-big", "Pending").await?;
    describe_until(&cluster, "too-big", "0/1 nodes are available").await?;
    describe_until(&cluster, "too-big", "nsufficient cpu").await?;
    describe_until(&cluster, "no-command", "/does-not-exist").await?;
    describe_until(&cluster, "no-config", "absent").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_host_port_and_a_full_node_keep_a_pod_pending_until_there_is_room() -> Result<()> {
    let agent_args = vec!["--max-pods".into(), "2".into()];
    let cluster = Cluster::start(Options { agents: 1, agent_args, ..Options::default() }).await?;
    let host_port = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, \
             image: \"timonier/web:v1\", ports: [{{containerPort: 8080, hostPort: 28931}}]}}]}}\n"
        )
    };
    cluster.apply(&host_port("first")).await?;
    cluster.ctl(&["wait", "pod/first", "--for=condition=Ready", "--timeout=30s"]).await?.ok()?;
    cluster.apply(&host_port("second")).await?;
    describe_until(&cluster, "second", "port").await?;
    wait_shown(&cluster, "second", "Pending").await?;
    cluster.ctl(&["delete", "pod", "first"]).await?.ok()?;
    cluster.ctl(&["wait", "pod/second", "--for=condition=Ready", "--timeout=30s"]).await?.ok()?;
    wait::until("the host port to answer", SECONDS_30, || async {
        let url = "http://127.0.0.1:28931/";
        let args = ["load", url, "--requests", "2", "--interval", "1", "--fail-on-error"];
        cluster.ctl(&args).await?.ok()
    })
    .await?;

    let small = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"timonier/web:v1\"}}]}}\n"
        )
    };
    cluster.apply(&small("third")).await?;
    cluster.ctl(&["wait", "pod/third", "--for=condition=Ready", "--timeout=30s"]).await?.ok()?;
    cluster.apply(&small("fourth")).await?;
    describe_until(&cluster, "fourth", "oo many pods").await?;
    cluster.ctl(&["delete", "pod", "third"]).await?.ok()?;
    cluster.ctl(&["wait", "pod/fourth", "--for=condition=Ready", "--timeout=30s"]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_liveness_probe_restarts_the_container_and_readiness_gates_the_service()
-> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    cluster
        .apply(
            r#"
apiVersion: v1
kind: Pod
metadata: {name: sick, labels: {app: sick}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: timonier/web:v1
    livenessProbe: {httpGet: {path: /nothing-here, port: 9}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: ["/web", "--get", "http://127.0.0.1:9/"]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: sick}
spec: {selector: {app: sick}, ports: [{port: 80, targetPort: 8080}]}
"#,
        )
        .await?;
    wait::until("the container to be restarted", SECONDS_30, || async {
        let restarts =
            pod(&cluster, "sick").await?["status"]["containerStatuses"][0]["restartCount"]
                .as_i64()
                .context("no count")?;
        ensure!(restarts >= 1, "{restarts} restarts");
        Ok(())
    })
    .await?;
    describe_until(&cluster, "sick", "Liveness probe failed").await?;
    let endpoints = cluster.ctl(&["get", "endpoints", "sick", "--no-headers"]).await?.ok()?;
    assert!(endpoints.contains("<none>"), "{endpoints}");
    Ok(())
}
