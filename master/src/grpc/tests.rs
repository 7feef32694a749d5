//! The door as a client sees it: a real master in this process, over TCP.

mod own_secrets;

use std::time::Duration;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use timonier_identity::Subject;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::watch_event::Type;
use timonier_proto::v1::{
    ApplyRequest, CommitRequest, CreateRequest, DeleteRequest, GetRequest, ListRequest,
    MonitorRequest, ObjectRef, PatchRequest, UpdateRequest, WatchEvent, WatchRequest, WriteOp,
    apply_reply, patch_request, write_op,
};
use timonier_proto::{ApiError, REQUEST_ID_HEADER, Reason};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::limits;
use crate::{Config, Master, RunningMaster};

const DEADLINE: Duration = Duration::from_secs(30);

struct Bench {
    master: RunningMaster,
    client: ControlClient<Channel>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // No agents here: a node that the tests make is not to be given up.
        let node_grace = Duration::from_secs(3600);
        let config = Config { node_grace, ..Config::new(dir.path()) };
        let master = Master::start(config).await.unwrap();
        let channel = master.dial_as(&Subject::admin()).await.unwrap();
        let mut client = ControlClient::new(channel);
        // The first namespaces are the control loops' work.
        let ready = async {
            while client.get(get("Namespace", "", "kube-system")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, ready).await.expect("the namespaces are made");
        Self { master, client, _dir: dir }
    }

    async fn create(&mut self, object: Value) -> Result<Value, Status> {
        let request = CreateRequest { json: bytes(&object), ..Default::default() };
        self.client.create(request).await.map(|reply| tree(&reply.into_inner().json))
    }

    async fn apply(&mut self, object: &Value) -> Result<(apply_reply::Result, Value), Status> {
        let request = ApplyRequest { json: bytes(object), ..Default::default() };
        let reply = self.client.apply(request).await?.into_inner();
        Ok((reply.result(), tree(&reply.json)))
    }

    async fn update(&mut self, object: &Value) -> Result<Value, Status> {
        let request = UpdateRequest { json: bytes(object), ..Default::default() };
        self.client.update(request).await.map(|reply| tree(&reply.into_inner().json))
    }

    async fn delete(&mut self, kind: &str, name: &str) -> Result<bool, Status> {
        let request = DeleteRequest { r#ref: reference(kind, "", name), ..Default::default() };
        self.client.delete(request).await.map(|reply| reply.into_inner().gone)
    }

    async fn watch(&mut self, request: WatchRequest) -> Streaming<WatchEvent> {
        self.client.watch(request).await.unwrap().into_inner()
    }
}

fn bytes(value: &Value) -> bytes::Bytes {
    value.to_string().into_bytes().into()
}

fn tree(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

fn reference(kind: &str, namespace: &str, name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { kind: kind.into(), namespace: namespace.into(), name: name.into() })
}

fn get(kind: &str, namespace: &str, name: &str) -> GetRequest {
    GetRequest { r#ref: reference(kind, namespace, name), linearizable: true }
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

fn labelled(name: &str, tier: &str) -> Value {
    let mut map = config_map(name, "v");
    map["metadata"]["labels"] = json!({"tier": tier});
    map
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "a:1"}]}})
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

fn service(name: &str, node_port: Option<i32>) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": "a"}, "ports": [{"port": 80, "nodePort": node_port}]}})
}

/// Paused, so that the control loops leave it alone.
fn deployment(name: &str, replicas: i32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "paused": true, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "a:1"}]}}}})
}

/// As a person sees it: the reason, and the text.
fn shown<T>(result: Result<T, Status>) -> String {
    let error = ApiError::from_grpc(&result.err().expect("it should be refused"));
    format!("{}: {}", error.reason.as_str(), error.message)
}

fn refused<T>(result: Result<T, Status>, expected: Expect) {
    expected.assert_eq(&shown(result));
}

async fn next(events: &mut Streaming<WatchEvent>) -> Result<(Type, String), Status> {
    loop {
        let event = tokio::time::timeout(DEADLINE, events.message()).await.expect("an event comes");
        let event = event?.expect("the watch goes on");
        if event.r#type() != Type::Bookmark {
            let name = tree(&event.json)["metadata"]["name"].as_str().unwrap().to_owned();
            return Ok((event.r#type(), name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_lives_its_life() {
    let mut bench = Bench::start().await;
    let made = bench.create(config_map("a", "1")).await.unwrap();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(
        made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string()
    );
    let read = bench.client.get(get("ConfigMap", "", "a")).await.unwrap().into_inner();
    assert_eq!(tree(&read.json), made);

    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    let written = bench.update(&changed).await.unwrap();
    assert_eq!(written["data"]["k"], "2");
    assert_ne!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // The same again is no write.
    let again = bench.update(&config_map("a", "2")).await.unwrap();
    assert_eq!(again, written);
    // What was read before the change is stale.
    changed["data"]["k"] = json!("3");
    let conflict = bench.update(&changed).await;
    assert_eq!(conflict.as_ref().unwrap_err().code(), Code::Aborted);
    assert!(shown(conflict).starts_with("Conflict: configmap default/a was changed meanwhile"));

    assert!(bench.delete("ConfigMap", "a").await.unwrap());
    refused(
        bench.delete("ConfigMap", "a").await,
        expect![[r#"NotFound: configmaps "a" not found"#]],
    );
    bench.master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let mut bench = Bench::start().await;
    let malformed = CreateRequest { json: "{\"kind\":".into(), ..Default::default() };
    refused(
        bench.client.create(malformed).await,
        expect![
            "BadRequest: decode the object: malformed JSON: EOF while parsing a value at line 1 column 8"
        ],
    );
    let mut wrong = deployment("web", 1);
    wrong["spec"]["replicas"] = json!("three");
    refused(
        bench.create(wrong).await,
        expect![[
            r#"BadRequest: Deployment.apps "web": spec.replicas: invalid type: string "three", expected i32"#
        ]],
    );
    let mut unknown = deployment("web", 1);
    unknown["spec"]["template"]["spec"]["contaners"] = json!([]);
    refused(
        bench.apply(&unknown).await,
        expect![[r#"
            BadRequest: Deployment.apps "web": strict decoding error: unknown field "spec.template.spec.contaners"
            hint: did you mean containers instead of contaners?"#]],
    );
    let mut kind = config_map("a", "b");
    kind["kind"] = json!("ConfigMapp");
    refused(
        bench.create(kind).await,
        expect![[r#"
            BadRequest: no matches for kind "ConfigMapp" in version "v1"
            hint: did you mean ConfigMap (apiVersion v1)?"#]],
    );
    let bad_name = bench.create(config_map("Bad_Name", "b")).await;
    assert_eq!(bad_name.as_ref().unwrap_err().code(), Code::InvalidArgument);
    assert!(shown(bad_name).starts_with("Invalid: ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"));
    bench.create(config_map("one", "b")).await.unwrap();
    refused(
        bench.create(config_map("one", "b")).await,
        expect![[r#"AlreadyExists: configmaps "one" already exists"#]],
    );
    let mut elsewhere = config_map("two", "b");
    elsewhere["metadata"]["namespace"] = json!("nowhere");
    refused(
        bench.apply(&elsewhere).await,
        expect![[r#"NotFound: namespaces "nowhere" not found"#]],
    );
    let mut versioned = config_map("two", "b");
    versioned["metadata"]["resourceVersion"] = json!("7");
    refused(
        bench.create(versioned).await,
        expect![
            "BadRequest: create configmap default/two: resourceVersion should not be set on objects to be created"
        ],
    );
    refused(
        bench.client.get(get("Gizmo", "", "x")).await,
        expect![[r#"BadRequest: the server doesn't have a resource type "Gizmo""#]],
    );
    refused(
        bench.client.get(get("Deployment", "", "ghost")).await,
        expect![[r#"NotFound: deployments.apps "ghost" not found"#]],
    );
    refused(
        bench.delete("Namespace", "default").await,
        expect![[
            r#"Forbidden: namespaces "default" is forbidden: this namespace may not be deleted"#
        ]],
    );
    let selector =
        ListRequest { kind: "Pod".into(), label_selector: "a in b".into(), ..Default::default() };
    refused(
        bench.client.list(selector).await,
        expect![[r#"BadRequest: parse selector "a in b": "a in b" is not a label key"#]],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_configures_or_leaves_alone() {
    let mut bench = Bench::start().await;
    let (result, made) = bench.apply(&deployment("web", 1)).await.unwrap();
    assert_eq!(result, apply_reply::Result::Created);
    assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
    let (result, _) = bench.apply(&deployment("web", 1)).await.unwrap();
    assert_eq!(result, apply_reply::Result::Unchanged);
    let (result, changed) = bench.apply(&deployment("web", 3)).await.unwrap();
    assert_eq!(
        (result, &changed["spec"]["replicas"]),
        (apply_reply::Result::Configured, &json!(3))
    );
    // Scaled by hand, then applied by one who says nothing of replicas.
    let patch = PatchRequest {
        r#ref: reference("Deployment", "", "web"),
        r#type: patch_request::Type::Merge.into(),
        patch: r#"{"spec":{"replicas":5}}"#.into(),
        dry_run: false,
    };
    let patched = bench.client.patch(patch.clone()).await.unwrap().into_inner();
    assert_eq!(tree(&patched.json)["spec"]["replicas"], 5);
    assert_eq!(tree(&patched.json)["metadata"]["generation"], 3);
    let mut moved = deployment("web", 5);
    moved["spec"]["selector"]["matchLabels"]["app"] = json!("moved");
    moved["spec"]["template"]["metadata"]["labels"]["app"] = json!("moved");
    refused(
        bench.apply(&moved).await,
        expect![[
            r#"Invalid: Deployment.apps "web" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"moved"}}: field is immutable"#
        ]],
    );
    let bad = PatchRequest { patch: r#"{"spec":{"replicas":-5}}"#.into(), ..patch };
    refused(
        bench.client.patch(bad).await,
        expect![[
            r#"Invalid: Deployment.apps "web" is invalid: spec.replicas: Invalid value: -5: must be greater than or equal to 0"#
        ]],
    );
    let stale = {
        let mut value = deployment("web", 7);
        value["metadata"]["resourceVersion"] = json!("1");
        bench.apply(&value).await
    };
    assert!(shown(stale).starts_with("Conflict: deployment default/web was changed meanwhile"));
    let dry =
        ApplyRequest { json: bytes(&deployment("other", 1)), dry_run: true, ..Default::default() };
    let reply = bench.client.apply(dry).await.unwrap().into_inner();
    assert_eq!(reply.result(), apply_reply::Result::Created);
    assert!(bench.client.get(get("Deployment", "", "other")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_selected_and_paged() {
    let mut bench = Bench::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        bench.create(labelled(name, if name == "b" { "x" } else { "y" })).await.unwrap();
    }
    let mut request = ListRequest {
        kind: "ConfigMap".into(),
        label_selector: "tier=y".into(),
        limit: 2,
        ..Default::default()
    };
    let mut names = Vec::new();
    let mut remaining = Vec::new();
    loop {
        let page = bench.client.list(request.clone()).await.unwrap().into_inner();
        names.extend(
            page.items.iter().map(|j| tree(j)["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        remaining.push(page.remaining);
        if page.continue_token.is_empty() {
            break;
        }
        request.continue_token = page.continue_token;
    }
    assert_eq!((names.join(""), remaining), ("acde".to_owned(), vec![2, 0]));
    let by_field = ListRequest {
        kind: "ConfigMap".into(),
        field_selector: "metadata.name!=a,data.k=v".into(),
        ..Default::default()
    };
    assert_eq!(bench.client.list(by_field).await.unwrap().into_inner().items.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_start_resume_and_select() {
    let mut bench = Bench::start().await;
    bench.create(labelled("a", "x")).await.unwrap();
    bench.create(labelled("b", "y")).await.unwrap();
    let request = WatchRequest {
        kind: "ConfigMap".into(),
        namespace: "default".into(),
        label_selector: "tier=x".into(),
        ..Default::default()
    };
    let mut events = bench.watch(request.clone()).await;
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "a".into()));
    bench.update(&labelled("b", "x")).await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "b".into()));
    let left = bench.update(&labelled("a", "z")).await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Deleted, "a".into()));
    bench.create(pod("p")).await.unwrap();
    bench.delete("ConfigMap", "b").await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Deleted, "b".into()));
    drop(events);

    // Resumed, it begins with what came after.
    let revision: u64 = left["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let mut resumed =
        bench.watch(WatchRequest { from_revision: Some(revision), ..request.clone() }).await;
    assert_eq!(next(&mut resumed).await.unwrap(), (Type::Deleted, "b".into()));
    let future = WatchRequest { from_revision: Some(revision + 1_000_000), ..request.clone() };
    let error = bench.client.watch(future).await.map(|_| ()).unwrap_err();
    assert_eq!(ApiError::from_grpc(&error).reason, Reason::Expired);

    // A master that stops says so.
    bench.master.shutdown().await.unwrap();
    let ended = next(&mut resumed).await.unwrap_err();
    assert_eq!(ApiError::from_grpc(&ended).reason, Reason::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_of_their_own() {
    let mut bench = Bench::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..20 {
        let mut client = bench.client.clone();
        let json = bytes(&service(&format!("s{index}"), None));
        tasks.spawn(async move {
            let reply = client.create(CreateRequest { json, ..Default::default() }).await;
            tree(&reply.unwrap().into_inner().json)["spec"].clone()
        });
    }
    let specs = tasks.join_all().await;
    let distinct = |values: Vec<&Value>| {
        values.iter().map(|v| v.to_string()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(distinct(specs.iter().map(|s| &s["clusterIP"]).collect()), 20);
    assert_eq!(distinct(specs.iter().map(|s| &s["ports"][0]["nodePort"]).collect()), 20);
    assert!(specs[0]["clusterIP"].as_str().unwrap().starts_with("10.96."));

    let (_, fixed) = bench.apply(&service("fixed", Some(30_777))).await.unwrap();
    assert_eq!(fixed["spec"]["ports"][0]["nodePort"], 30_777);
    refused(
        bench.create(service("other", Some(30_777))).await,
        expect![[
            r#"Invalid: Service "other" is invalid: spec.ports[0].nodePort: node port 30777: provided port is already allocated"#
        ]],
    );
    // Applied without the port, it keeps it, and its address.
    let (result, kept) = bench.apply(&service("fixed", Some(30_777))).await.unwrap();
    assert_eq!(result, apply_reply::Result::Unchanged);
    assert_eq!(kept["spec"]["clusterIP"], fixed["spec"]["clusterIP"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_end_what_they_should() {
    let mut bench = Bench::start().await;
    // Nothing runs of a pod without a node.
    let mut held = pod("p");
    held["spec"]["nodeSelector"] = json!({"no": "where"});
    let made = bench.create(held.clone()).await.unwrap();
    let other = DeleteRequest {
        r#ref: reference("Pod", "", "p"),
        uid: "another".into(),
        ..Default::default()
    };
    refused(
        bench.client.delete(other).await,
        expect!["Conflict: pod default/p is another incarnation by now (its uid differs)"],
    );
    assert!(bench.delete("Pod", "p").await.unwrap());
    // On a node, the agent has the last word.
    bench.create(node("n1")).await.unwrap();
    let mut bound = pod("q");
    bound["spec"]["nodeName"] = json!("n1");
    bench.create(bound).await.unwrap();
    let request = DeleteRequest {
        r#ref: reference("Pod", "", "q"),
        grace_period_seconds: Some(7),
        ..Default::default()
    };
    let reply = bench.client.evict(request.clone()).await.unwrap().into_inner();
    assert!(!reply.gone);
    assert_eq!(tree(&reply.json)["metadata"]["deletionGracePeriodSeconds"], 7);
    let now = DeleteRequest { grace_period_seconds: Some(0), ..request };
    assert!(bench.client.delete(now).await.unwrap().into_inner().gone);

    // Left behind without its owner.
    let owner = bench.create(deployment("web", 0)).await.unwrap();
    let mut orphan = held;
    orphan["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment",
        "name": "web", "uid": owner["metadata"]["uid"], "controller": true}]);
    bench.create(orphan).await.unwrap();
    let request = DeleteRequest {
        r#ref: reference("Deployment", "", "web"),
        propagation: "Orphan".into(),
        ..Default::default()
    };
    assert!(bench.client.delete(request).await.unwrap().into_inner().gone);
    let left = bench.client.get(get("Pod", "", "p")).await.unwrap().into_inner();
    assert_eq!(tree(&left.json)["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len), 0);
    assert_ne!(tree(&left.json)["metadata"]["uid"], made["metadata"]["uid"]);
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_ends_takes_nothing_more_in() {
    let mut bench = Bench::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    bench.create(space).await.unwrap();
    // A pod on a node that never answers keeps the namespace from being gone.
    let mut held = pod("p");
    held["metadata"]["namespace"] = json!("team");
    held["spec"]["nodeName"] = json!("silent");
    bench.create(node("silent")).await.unwrap();
    bench.create(held).await.unwrap();
    assert!(!bench.delete("Namespace", "team").await.unwrap());
    let mut late = config_map("late", "1");
    late["metadata"]["namespace"] = json!("team");
    refused(
        bench.create(late).await,
        expect![
            "Forbidden: create configmap team/late: unable to create new content in namespace team because it is being terminated"
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_master_has_everything_and_its_watches_go_on() {
    let mut bench = Bench::start().await;
    let (_, made) = bench.apply(&deployment("web", 1)).await.unwrap();
    bench.master.shutdown().await.unwrap();
    let master = Master::start(Config::new(bench._dir.path())).await.unwrap();
    bench.client = ControlClient::new(master.dial_as(&Subject::admin()).await.unwrap());
    let read = bench.client.get(get("Deployment", "", "web")).await.unwrap().into_inner();
    assert_eq!(tree(&read.json)["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(tree(&read.json)["spec"], made["spec"]);
    // What is replayed from the log can be watched again: a client that was away misses nothing.
    let before =
        WatchRequest { kind: "Deployment".into(), from_revision: Some(1), ..Default::default() };
    let mut events = bench.client.watch(before).await.unwrap().into_inner();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "web".into()));
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_masters_do_not_share_a_port_or_a_folder() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let taken = Config { listen: bench.master.addr(), ..Config::new(dir.path()) };
    let error = Master::start(taken).await.unwrap_err().to_string();
    let port = bench.master.addr().port().to_string();
    expect!["listen on 127.0.0.1:PORT: Address already in use (os error 98); hint: another program (perhaps another master) has this port; stop it, or choose another with --listen"]
        .assert_eq(&error.replace(&port, "PORT"));
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

#[tokio::test(flavor = "multi_thread")]
async fn monitors_are_bounded() {
    let bench = Bench::start().await;
    let rarely = MonitorRequest { interval_ms: 3_600_000, ..Default::default() };
    let open = || {
        let (mut client, request) = (bench.client.clone(), rarely.clone());
        async move { client.monitor(request).await.map(Response::into_inner) }
    };
    let mut monitors = Vec::new();
    for _ in 0..limits::MONITORS_MAX {
        monitors.push(open().await.unwrap());
    }
    refused(open().await, expect!["TooManyRequests: monitor: 256 monitors are open already"]);
    // The place of one that ends is free again.
    monitors.pop();
    let again = async { while open().await.is_err() {} };
    tokio::time::timeout(DEADLINE, again).await.expect("there is a place again");
    drop(monitors);
    bench.master.shutdown().await.unwrap();
}
