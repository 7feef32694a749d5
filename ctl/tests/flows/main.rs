//! Commands against a master that is played: what is printed, what is asked, what the exit code is.

#![allow(clippy::unwrap_used)] // a test may stop at once

mod access;
mod again;
mod backup;
mod played;

use std::time::Duration;

use expect_test::{Expect, expect};
use played::Played;
use serde_json::json;
use timonier_proto::v1::StreamEnd;
use timonier_proto::{ApiError, Reason};

struct Ran {
    code: u8,
    out: String,
    err: String,
}

async fn run(master: &Played, args: &[&str]) -> Ran {
    let all = ["--server", master.address.as_str()].into_iter().chain(args.iter().copied());
    let config = Some(master.config.path().to_owned());
    let run = timonctl::run_captured(all, config);
    let (code, printed) =
        tokio::time::timeout(Duration::from_secs(30), run).await.expect("the command ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code, out: text(printed.out), err: text(printed.err) }
}

async fn check(master: &Played, args: &[&str], code: u8, expected: Expect) {
    let ran = run(master, args).await;
    expected.assert_eq(&format!("{}{}", ran.out, ran.err));
    assert_eq!(ran.code, code, "{args:?}");
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[tokio::test]
async fn apply_goes_on_after_a_refusal_and_says_where_it_stood() {
    let master = Played::start().await;
    let file = file(
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n---\n\
         kind: ConfigMap\napiVersion: v1\nmetadata: {name: b}\nrefuse: unknown field \"datas\"\n---\n\
         kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n",
    );
    let path = file.path().display().to_string();
    let ran = run(&master, &["apply", "-f", &path]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.out, "configmap/a created\nconfigmap/c created\n");
    let name = format!(
        "error: {path}, document 2 (ConfigMap b): strict decoding error: unknown field \"datas\"\n"
    );
    assert!(ran.err.starts_with(&name), "{}", ran.err);
    assert!(ran.err.contains("\nhint: "), "{}", ran.err);

    let again = run(&master, &["apply", "-f", &path]).await;
    assert_eq!(again.out, "configmap/a unchanged\nconfigmap/c unchanged\n");
}

#[tokio::test]
async fn another_namespace_than_the_objects_own_is_refused() {
    let master = Played::start().await;
    let file = file("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a, namespace: team}\n");
    let ran =
        run(&master, &["apply", "-n", "other", "-f", &file.path().display().to_string()]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("\"team\" does not match the namespace \"other\""), "{}", ran.err);
    assert!(master.asked().is_empty());
}

#[tokio::test]
async fn delete_waits_until_the_object_is_gone() {
    let master = Played::start().await;
    let pod =
        json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default", "uid": "u1"}});
    master.put(pod);
    master.remove_after_delete(Duration::from_millis(300));
    let started = std::time::Instant::now();
    check(
        &master,
        &["delete", "pod", "web-1"],
        0,
        expect![[r#"
        pod "web-1" deleted
    "#]],
    )
    .await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    check(
        &master,
        &["delete", "pod", "web-1"],
        1,
        expect![[r#"
        Error from server (NotFound): pods "web-1" not found
    "#]],
    )
    .await;
    check(&master, &["delete", "pod", "web-1", "--ignore-not-found"], 0, expect![""]).await;
}

#[tokio::test]
async fn delete_gives_up_at_its_timeout() {
    let master = Played::start().await;
    master.put(
        json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default", "uid": "u1"}}),
    );
    master.remove_after_delete(Duration::from_secs(60));
    check(
        &master,
        &["delete", "pod", "web-1", "--timeout", "200ms"],
        1,
        expect![[r#"
        pod "web-1" deleted
        error: timed out waiting for the condition on pod/web-1
    "#]],
    )
    .await;
}

fn deployment(updated: i64, available: i64, generation: i64) -> serde_json::Value {
    json!({"kind": "Deployment", "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": generation},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}},
        "status": {"observedGeneration": 1, "replicas": updated, "updatedReplicas": updated, "availableReplicas": available}})
}

#[tokio::test]
async fn rollout_status_follows_to_the_end() {
    let master = Played::start().await;
    master.put(deployment(1, 0, 1));
    let rollout = async {
        for (updated, available) in [(3, 1), (3, 3)] {
            master.watched().await;
            master.put(deployment(updated, available, 1));
        }
    };
    let args = ["rollout", "status", "deploy/web", "--timeout", "20s"];
    let (ran, ()) = tokio::join!(run(&master, &args), rollout);
    assert_eq!(ran.code, 0, "{}", ran.err);
    expect![[r#"
        Waiting for deployment "web" rollout to finish: 1 out of 3 new replicas have been updated...
        Waiting for deployment "web" rollout to finish: 1 of 3 updated replicas are available...
        deployment "web" successfully rolled out
    "#]]
    .assert_eq(&ran.out);
}

#[tokio::test]
async fn a_rollout_that_hangs_names_the_pod_and_the_way_back() {
    let master = Played::start().await;
    let mut hung = deployment(3, 2, 1);
    hung["status"]["conditions"] =
        json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
    master.put(hung);
    master.put(json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"}, "status": {"containerStatuses": [
        {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image nope:v1"}}}]}}));
    check(&master, &["rollout", "status", "deploy/web"], 1, expect![[r#"
        error: deployment "web" exceeded its progress deadline (pod web-1: ErrImagePull: no such image nope:v1)
        hint: timonctl rollout undo deployment/web goes back to the revision before
    "#]])
    .await;
}

#[tokio::test]
async fn wait_sees_the_condition_come() {
    let master = Played::start().await;
    let pod = |ready: &str| {
        json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    };
    master.put(pod("False"));
    let change = async {
        master.watched().await;
        master.put(pod("True"));
    };
    let args = ["wait", "--for=condition=Ready", "pod/web-1", "--timeout", "20s"];
    let (ran, ()) = tokio::join!(run(&master, &args), change);
    assert_eq!((ran.code, ran.out.as_str()), (0, "pod/web-1 condition met\n"), "{}", ran.err);
    check(
        &master,
        &["wait", "--for=delete", "pod/web-1", "--timeout", "100ms"],
        1,
        expect![[r#"
        error: timed out waiting for the condition on pods/web-1
        hint: timonctl describe pod web-1 tells what it is doing
    "#]],
    )
    .await;
}

#[tokio::test]
async fn the_commands_exit_code_is_passed_on() {
    let master = Played::start().await;
    master.put(json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"},
        "spec": {"containers": [{"name": "web"}, {"name": "proxy"}]}, "status": {"phase": "Running"}}));
    master.play(vec![
        played::data("out\n"),
        played::stderr("err\n"),
        played::end(StreamEnd { exit_code: 7, ..Default::default() }),
    ]);
    check(
        &master,
        &["exec", "web-1", "--", "false"],
        7,
        expect![[r#"
        out
        Defaulted container "web" out of: web, proxy
        err
        command terminated with exit code 7
    "#]],
    )
    .await;
}

#[tokio::test]
async fn logs_by_label_have_their_pods_name() {
    let master = Played::start().await;
    for name in ["web-1", "web-2"] {
        master.put(json!({"kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web"}]}}));
        master.play(vec![played::data("one\ntwo\n"), played::end(StreamEnd::default())]);
    }
    check(
        &master,
        &["logs", "-l", "app=web"],
        0,
        expect![[r#"
        [pod/web-1/web] one
        [pod/web-1/web] two
        [pod/web-2/web] one
        [pod/web-2/web] two
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_master_that_cannot_now_is_asked_again() {
    let master = Played::start().await;
    master.put(json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"}}));
    for _ in 0..2 {
        master.answer_next(ApiError::new(Reason::Unavailable, "no leader right now"));
    }
    let ran = run(&master, &["get", "pod", "web-1", "-o", "name"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "pod/web-1\n"), "{}", ran.err);
}

#[tokio::test]
async fn the_second_server_is_tried_when_the_first_is_away() {
    let master = Played::start().await;
    master.put(json!({"kind": "Pod", "metadata": {"name": "web-1", "namespace": "default"}}));
    let servers = format!("127.0.0.1:1,{}", master.address);
    let args = ["get", "pods", "-o", "name", "--server", &servers];
    let config = Some(master.config.path().to_owned());
    let (code, printed) = timonctl::run_captured(args, config).await;
    assert_eq!((code, String::from_utf8_lossy(&printed.out).as_ref()), (0, "pod/web-1\n"));
}
