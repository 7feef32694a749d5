//! The cluster's own secrets, and those who are not to have them.

use super::*;

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "namespace": "kube-system"}, "stringData": {"k": "v"}})
}

fn secrets_of(json: &[bytes::Bytes]) -> Vec<String> {
    let name = |json: &bytes::Bytes| tree(json)["metadata"]["name"].as_str().unwrap().to_owned();
    json.iter().map(name).collect()
}

/// `edit` in the whole cluster, once the role has its rules.
async fn editor(bench: &mut Bench) -> ControlClient<Channel> {
    let rbac = "rbac.authorization.k8s.io";
    let binding = json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
        "metadata": {"name": "ed"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "ed"}]});
    let channel = bench.master.dial_as(&Subject::person("ed", &[])).await.unwrap();
    let mut ed = ControlClient::new(channel);
    let ready = async {
        while bench.create(binding.clone()).await.is_err_and(|e| e.code() != Code::AlreadyExists)
            || ed.get(get("Secret", "kube-system", "db")).await.is_err()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ready).await.expect("the role is put together");
    ed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_s_own_secrets_are_not_for_editors() {
    let mut bench = Bench::start().await;
    bench.create(secret("db")).await.unwrap();
    let mut ed = editor(&mut bench).await;
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("one of the cluster's own secrets"), "{status}");
    };
    let ca = || reference("Secret", "kube-system", "timonier-ca");
    refused(ed.get(get("Secret", "kube-system", "timonier-ca")).await.unwrap_err());
    let patch = PatchRequest {
        r#ref: ca(),
        r#type: patch_request::Type::Merge.into(),
        patch: "{}".into(),
        ..Default::default()
    };
    refused(ed.patch(patch).await.unwrap_err());
    let delete = DeleteRequest { r#ref: ca(), ..Default::default() };
    refused(ed.delete(delete.clone()).await.unwrap_err());
    let write = WriteOp { op: Some(write_op::Op::Delete(delete)) };
    let commit = CommitRequest { ops: vec![write], ..Default::default() };
    refused(ed.commit(commit).await.unwrap_err());
    let mut generated = secret("");
    generated["metadata"] = json!({"generateName": "join-token-", "namespace": "kube-system"});
    for object in [secret("join-token-mine"), secret("timonier-ca"), generated] {
        let create = CreateRequest { json: bytes(&object), ..Default::default() };
        let write = WriteOp { op: Some(write_op::Op::Create(create.clone())) };
        refused(ed.create(create).await.unwrap_err());
        let commit = CommitRequest { ops: vec![write], ..Default::default() };
        refused(ed.commit(commit).await.unwrap_err());
    }
    let update = UpdateRequest { json: bytes(&secret("timonier-ca")), ..Default::default() };
    refused(ed.update(update).await.unwrap_err());
    for name in ["timonier-ca", "join-token-mine"] {
        let apply = ApplyRequest { json: bytes(&secret(name)), ..Default::default() };
        refused(ed.apply(apply).await.unwrap_err());
    }

    let list = ListRequest { kind: "Secret".into(), ..Default::default() };
    let seen = secrets_of(&ed.list(list.clone()).await.unwrap().into_inner().items);
    assert_eq!(seen, ["db"]);
    let all = secrets_of(&bench.client.list(list).await.unwrap().into_inner().items);
    assert!(all.iter().any(|name| name == "timonier-ca"), "{all:?}");
    assert!(all.iter().any(|name| name.starts_with("join-token-")), "{all:?}");
    // In a watch, neither what is there nor what comes.
    let watch = WatchRequest { kind: "Secret".into(), ..Default::default() };
    let mut events = ed.watch(watch).await.unwrap().into_inner();
    bench.create(secret("join-token-new")).await.unwrap();
    bench.create(secret("last")).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|name| name != "last") {
        let event = tokio::time::timeout(DEADLINE, events.message()).await.unwrap();
        let event = event.unwrap().unwrap();
        if event.r#type() != Type::Bookmark {
            told.extend(secrets_of(&[event.json]));
        }
    }
    assert_eq!(told, ["db", "last"]);
    bench.master.shutdown().await.unwrap();
}
