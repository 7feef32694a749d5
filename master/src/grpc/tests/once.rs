//! Writes that are whole, and done once however often they are sent.

use super::*;

fn create_op(object: &Value) -> WriteOp {
    let create = CreateRequest { json: bytes(object), ..Default::default() };
    WriteOp { op: Some(write_op::Op::Create(create)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_whole_and_can_be_repeated() {
    let mut bench = Bench::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let mut inside = config_map("in", "1");
    inside["metadata"]["namespace"] = json!("team");
    let ops = vec![create_op(&space), create_op(&inside), create_op(&config_map("x", "1"))];
    let commit = CommitRequest { ops, id: "one".into() };
    let first = bench.client.commit(commit.clone()).await.unwrap().into_inner();
    let again = bench.client.commit(commit.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    // Without the id it is another commit, and nothing of it is done.
    let ops = vec![create_op(&config_map("y", "1")), create_op(&config_map("x", "1"))];
    refused(
        bench.client.commit(CommitRequest { ops, id: String::new() }).await,
        expect![[r#"AlreadyExists: configmaps "x" already exists"#]],
    );
    assert!(bench.client.get(get("ConfigMap", "", "y")).await.is_err());
    let ops = vec![create_op(&config_map("y", "1")), create_op(&json!({"kind": "Pod"}))];
    refused(
        bench.client.commit(CommitRequest { ops, id: String::new() }).await,
        expect![[r#"
            BadRequest: operation 1: decode Pod: the field apiVersion is missing
            hint: Pod is served as apiVersion v1"#]],
    );
    // A repeated commit whose object is gone because of it.
    let delete = DeleteRequest { r#ref: reference("ConfigMap", "", "x"), ..Default::default() };
    let ops = vec![WriteOp { op: Some(write_op::Op::Delete(delete)) }];
    let commit = CommitRequest { ops, id: "two".into() };
    let first: Response<_> = bench.client.commit(commit.clone()).await.unwrap();
    let again = bench.client.commit(commit).await.unwrap();
    assert_eq!(first.into_inner(), again.into_inner());
}

/// The request with this id.
fn with_id<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(REQUEST_ID_HEADER, id.parse().unwrap());
    request
}

#[tokio::test]
async fn a_write_with_an_id_is_done_once() {
    let Bench { mut client, master, _dir } = Bench::start().await;
    let generated =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "m-"}});
    let create = CreateRequest { json: bytes(&generated), ..Default::default() };
    let mut names = Vec::new();
    for id in ["a", "a", "b"] {
        let reply = client.create(with_id(create.clone(), id)).await.unwrap().into_inner();
        names.push(tree(&reply.json)["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names[0], names[1]);
    assert_ne!(names[0], names[2]);
    let patch = json!([{"op": "add", "path": "/data", "value": {"n": "1"}}]);
    let patch = PatchRequest {
        r#ref: reference("ConfigMap", "default", &names[0]),
        r#type: patch_request::Type::Json.into(),
        patch: bytes(&patch),
        dry_run: false,
    };
    let first = client.patch(with_id(patch.clone(), "c")).await.unwrap().into_inner();
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names[0]}, "data": {"n": "2"}});
    let update = UpdateRequest { json: bytes(&other), ..Default::default() };
    client.update(update).await.unwrap();
    // Not done again: what came between stays.
    let again = client.patch(with_id(patch, "c")).await.unwrap().into_inner();
    assert_eq!(tree(&again.json)["data"]["n"], "2");
    assert_eq!(again.revision, first.revision);
    let delete =
        DeleteRequest { r#ref: reference("ConfigMap", "default", &names[0]), ..Default::default() };
    for _ in 0..2 {
        let reply = client.delete(with_id(delete.clone(), "d")).await.unwrap().into_inner();
        assert!(reply.gone);
    }
    let refused = client.delete(with_id(delete, "e")).await.unwrap_err();
    assert_eq!(ApiError::from_grpc(&refused).reason, Reason::NotFound);
    let apply = ApplyRequest { json: bytes(&config_map("x", "v")), ..Default::default() };
    for _ in 0..2 {
        let reply = client.apply(with_id(apply.clone(), "f")).await.unwrap().into_inner();
        assert_eq!(reply.result(), apply_reply::Result::Created);
    }
    master.shutdown().await.unwrap();
}
