//! Pods on the real Docker Engine and the real kernel's network.
//!
//! Wants root, a running Docker and the image `timonier/web:v1` (`deploy/images/build.sh web`).

#![allow(clippy::unwrap_used)]

mod bed;

use std::time::Instant;

use bed::{Bed, condition, container_id, deleted, get, pod, restarts, waiting, web};
use serde_json::json;
use timonier_agent::runtime::{ExecSpec, Runtime};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_serves_and_stops_within_its_grace() {
    let mut bed = Bed::start().await;
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1});
    let (uid, web) = pod(
        "web",
        json!({"containers": [{
            "name": "web", "image": "timonier/web:v1",
            "ports": [{"name": "http", "containerPort": 8080, "hostPort": 18080}],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "readinessProbe": probe,
        }]}),
    );
    bed.assign(std::slice::from_ref(&web)).await;
    let status = bed.ready(&uid).await;
    assert!(get(&status, "/").await.contains("web v1 pod web"), "{}", get(&status, "/").await);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let running = bed.pods.running();
    assert_eq!(running.len(), 1);
    assert!(running[0].ready && running[0].containers[0].pid > 0);
    assert_eq!(running[0].host_ports[0].port, 18080);
    for reason in ["Pulled", "Created", "Started"] {
        bed.event(reason, "").await;
    }

    let begun = Instant::now();
    bed.assign(&[deleted(&web, 30)]).await;
    bed.terminated(&uid).await;
    assert!(begun.elapsed().as_secs() < 10, "it heeds SIGTERM");
    bed.event("Killing", "Stopping container web").await;
    assert!(bed.containers().await.is_empty());
    assert!(bed.pods.running().is_empty());
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut bed = Bed::start().await;
    let (uid, web) = pod("deaf", json!({"containers": [web(&["--ignore-term"])]}));
    bed.assign(std::slice::from_ref(&web)).await;
    bed.ready(&uid).await;
    let begun = Instant::now();
    bed.assign(&[deleted(&web, 1)]).await;
    let status = bed.terminated(&uid).await;
    let took = begun.elapsed().as_millis();
    assert!((1000..8000).contains(&took), "{took} ms");
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 137);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_restart_policies_and_the_crash_loop() {
    let mut bed = Bed::start().await;
    let exits = |policy: &str, code: &str| {
        let container = web(&["--exit-after-ms", "0", "--exit-code", code]);
        pod("exits", json!({"restartPolicy": policy, "containers": [container]}))
    };
    let (never, a) = exits("Never", "3");
    let (done, b) = exits("OnFailure", "0");
    let (always, c) = exits("Always", "0");
    bed.assign(&[a, b, c]).await;
    let status = bed.status(&never, |s| s.phase.as_deref() == Some("Failed")).await;
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (3, Some("Error")));
    bed.status(&done, |s| s.phase.as_deref() == Some("Succeeded")).await;
    let status = bed.status(&always, |s| waiting(s).as_deref() == Some("CrashLoopBackOff")).await;
    assert_eq!(restarts(&status), 1);
    assert!(status.container_statuses.unwrap()[0].last_state.is_some());
    bed.event("BackOff", "Back-off restarting failed container web").await;
    let view = bed.pods.find(&always).unwrap();
    assert!(view.containers[0].previous_id.is_some() && view.containers[0].id.is_some());
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_container_is_replaced_and_a_failing_liveness_probe_restarts() {
    let mut bed = Bed::start().await;
    let (killed, a) = pod("killed", json!({"containers": [web(&[])]}));
    let mut sick = web(&[]);
    sick["livenessProbe"] = json!({"httpGet": {"path": "/none", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2});
    let (sick_uid, b) =
        pod("sick", json!({"containers": [sick], "terminationGracePeriodSeconds": 1}));
    bed.assign(&[a, b]).await;
    let before = bed.ready(&killed).await;
    bed.runtime
        .signal(&container_id(&before), timonier_agent::runtime::Signal::Kill)
        .await
        .unwrap();
    let after = bed.status(&killed, |s| restarts(s) == 1 && condition(s, "Ready")).await;
    assert_ne!(container_id(&before), container_id(&after));
    assert_eq!(before.pod_ip, after.pod_ip);
    assert!(get(&after, "/").await.contains("200 OK"), "it has its network again");

    bed.event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404").await;
    bed.event("Killing", "failed liveness probe, will be restarted").await;
    bed.status(&sick_uid, |s| restarts(s) >= 1).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_before_and_share_volumes_and_network() {
    let mut bed = Bed::start().await;
    let mount = json!([{"name": "data", "mountPath": "/data"}]);
    let mut first = web(&["--write", "/data/hello=from init", "--exit-after-ms", "0"]);
    first["name"] = json!("first");
    first["volumeMounts"] = mount.clone();
    let mut main = web(&["--cat", "/data/hello"]);
    main["volumeMounts"] = mount;
    let mut second = web(&["--port", "8081"]);
    second["name"] = json!("second");
    let (uid, many) = pod(
        "many",
        json!({
            "initContainers": [first],
            "containers": [main, second],
            "volumes": [{"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        }),
    );
    bed.assign(std::slice::from_ref(&many)).await;
    let status = bed.ready(&uid).await;
    assert!(condition(&status, "Initialized"));
    let init = &status.init_container_statuses.as_ref().unwrap()[0];
    assert!(init.ready);
    assert!(get(&status, "/").await.contains("200 OK"));
    let logs = bed.logs(&container_id(&status)).await;
    assert!(logs.contains("from init"), "{logs}");
    // The other container is at the same address, on its own port.
    let spec = ExecSpec {
        command: ["/web", "--get", "http://127.0.0.1:8081/healthz"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let mut session = bed.runtime.exec(&container_id(&status), spec).await.unwrap();
    while futures::StreamExt::next(&mut session.output).await.is_some() {}
    assert_eq!(bed.runtime.exec_exit_code(&session.id).await.unwrap(), Some(0));

    bed.assign(&[deleted(&many, 5)]).await;
    bed.terminated(&uid).await;
    assert!(bed.containers().await.is_empty(), "the sandbox is gone too");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sandbox_is_made_anew_with_all_that_was_in_it() {
    let mut bed = Bed::start().await;
    let mut other = web(&["--port", "8081"]);
    other["name"] = json!("other");
    let (uid, pair) = pod("pair", json!({"containers": [web(&[]), other]}));
    bed.assign(&[pair]).await;
    let before = bed.ready(&uid).await;
    let containers = bed.containers().await;
    let sandbox = containers.iter().find(|one| one.labels.container.is_empty()).unwrap();
    bed.runtime.signal(&sandbox.id, timonier_agent::runtime::Signal::Kill).await.unwrap();
    let after = bed.status(&uid, |s| restarts(s) == 1 && condition(s, "Ready")).await;
    assert_eq!(before.pod_ip, after.pod_ip);
    assert!(get(&after, "/").await.contains("200 OK"));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_reach_containers_and_their_absence_is_told() {
    let mut bed = Bed::start().await;
    let mut main = web(&["--cat", "/conf/text", "--env", "FROM_MAP"]);
    main["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf", "readOnly": true}]);
    main["env"] = json!([{"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "text"}}}]);
    let (uid, mut compiled) = pod(
        "conf",
        json!({
            "containers": [main],
            "volumes": [{"name": "conf", "configMap": {"name": "conf"}}],
        }),
    );
    compiled["configMaps"] = json!({"conf": null});
    bed.assign(std::slice::from_ref(&compiled)).await;
    bed.event("FailedMount", "config map \"conf\" not found").await;
    bed.status(&uid, |s| waiting(s).as_deref() == Some("ContainerCreating")).await;

    compiled["configMaps"] = json!({"conf": {"data": {"text": "bonjour"}}});
    bed.assign(&[compiled]).await;
    let status = bed.ready(&uid).await;
    let logs = bed.logs(&container_id(&status)).await;
    assert_eq!(logs.matches("bonjour").count(), 2, "{logs}");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_keeps_containers_and_stops_what_nobody_wants() {
    let mut bed = Bed::start().await;
    let mut other = web(&["--port", "8081"]);
    other["name"] = json!("other");
    let (kept, a) = pod("kept", json!({"containers": [web(&[])]}));
    let (pair, b) = pod("pair", json!({"containers": [web(&[]), other]}));
    let (stray, c) = pod("stray", json!({"containers": [web(&[])]}));
    bed.assign(&[a.clone(), b.clone(), c]).await;
    let mut before = Vec::new();
    for uid in [&kept, &pair, &stray] {
        before.push(bed.ready(uid).await);
    }
    bed.restart().await;
    bed.assign_set(true, &[a, b], &[]).await;
    for (uid, before) in [&kept, &pair].into_iter().zip(&before) {
        let after = bed.ready(uid).await;
        assert_eq!(container_id(&after), container_id(before));
        assert_eq!(after.pod_ip, before.pod_ip);
        assert_eq!(restarts(&after), 0);
        assert!(get(&after, "/").await.contains("200 OK"));
    }
    let gone = |found: &[timonier_agent::runtime::ContainerSummary]| {
        !found.iter().any(|one| one.labels.pod_uid == stray)
    };
    let begun = Instant::now();
    while !gone(&bed.containers().await) {
        assert!(begun.elapsed().as_secs() < 30, "the stray pod is still there");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bed.assign_set(false, &[], &[&kept]).await;
    let begun = Instant::now();
    while bed.containers().await.iter().any(|one| one.labels.pod_uid == kept) {
        assert!(begun.elapsed().as_secs() < 30, "the removed pod is still there");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_had_and_programs_that_are_not_there() {
    let mut bed = Bed::start().await;
    let with_image = |image: &str, policy: &str| {
        let container = json!({"name": "web", "image": image, "imagePullPolicy": policy});
        pod("image", json!({"containers": [container]}))
    };
    let (missing, a) = with_image("localhost:1/none:v1", "IfNotPresent");
    let (never, b) = with_image("timonier/none:v1", "Never");
    let (invalid, c) = with_image("Not/Valid:x", "IfNotPresent");
    let mut wrong = web(&[]);
    wrong["command"] = json!(["/no/such/program"]);
    let mut beside = web(&[]);
    beside["name"] = json!("beside");
    let (program, d) = pod("program", json!({"containers": [wrong, beside]}));
    bed.assign(&[a, b, c, d]).await;
    bed.status(&missing, |s| waiting(s).as_deref() == Some("ErrImagePull")).await;
    bed.status(&missing, |s| waiting(s).as_deref() == Some("ImagePullBackOff")).await;
    bed.status(&never, |s| waiting(s).as_deref() == Some("ErrImageNeverPull")).await;
    bed.status(&invalid, |s| waiting(s).as_deref() == Some("InvalidImageName")).await;
    bed.event("Failed", "Failed to pull image \"localhost:1/none:v1\"").await;
    bed.event("Failed", "no such file or directory").await;
    let status = bed.status(&program, |s| waiting(s).as_deref() == Some("CrashLoopBackOff")).await;
    let last = status.container_statuses.unwrap()[0].last_state.clone().unwrap();
    assert_eq!(last.terminated.unwrap().reason.as_deref(), Some("StartError"));
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept_and_an_out_of_memory_kill_is_told() {
    let mut bed = Bed::start().await;
    let mut hungry = web(&["--eat-mib", "64"]);
    hungry["resources"] = json!({"limits": {"memory": "16Mi", "cpu": "500m"}});
    let (uid, hungry) = pod("hungry", json!({"restartPolicy": "Never", "containers": [hungry]}));
    bed.assign(&[hungry]).await;
    let status = bed.status(&uid, |s| s.phase.as_deref() == Some("Failed")).await;
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.reason.as_deref(), Some("OOMKilled"));
    assert_eq!(status.qos_class.as_deref(), Some("Guaranteed"));
    bed.end().await;
}
