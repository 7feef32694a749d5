//! The doors' table: every method of every service, called as each sort of caller. A method that is
//! in the guard's table and not in this one fails the test.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, RoleBinding};
use prost::Message;
use prost::bytes::{Buf, BufMut};
use serde_json::{Value, json};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request as Stream;
use timonier_proto::v1::{self, write_op};
use timonier_proto::{Kinded, Object};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{IMPERSONATE_GROUP, IMPERSONATE_USER, METHODS};
use crate::{Config, Master};

const DEADLINE: Duration = Duration::from_secs(20);

/// Those who knock, in the order of the table's columns.
const CALLERS: [(&str, &[&str]); 5] = [
    ("system:anonymous", &[]),
    ("vera", &[]),
    ("ed", &[]),
    ("system:node:n1", &["system:nodes"]),
    ("root", &["system:masters"]),
];

/// Who is let in, as a letter each: **a**nonymous, **v**iewer and **e**ditor of the namespace team,
/// **n**ode, **s**uperuser.
const LETTERS: &str = "avens";

struct Row {
    method: &'static str,
    message: Vec<u8>,
    let_in: &'static str,
}

fn row(method: &'static str, message: impl Message, let_in: &'static str) -> Row {
    Row { method, message: message.encode_to_vec(), let_in }
}

fn reference(kind: &str, namespace: &str, name: &str) -> Option<v1::ObjectRef> {
    Some(v1::ObjectRef { kind: kind.into(), namespace: namespace.into(), name: name.into() })
}

fn manifest(kind: &str, name: &str, namespace: &str, more: Value) -> bytes::Bytes {
    let group = if kind.ends_with("Role") { "rbac.authorization.k8s.io/v1" } else { "v1" };
    let mut object = json!({"apiVersion": group, "kind": kind,
        "metadata": {"name": name, "namespace": namespace}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object.to_string().into_bytes().into()
}

fn frame(request: Stream) -> v1::StreamFrame {
    let request = v1::StreamRequest { request: Some(request) };
    v1::StreamFrame { frame: Some(Frame::Request(request)) }
}

fn reads() -> Vec<Row> {
    let get = |kind: &str, name: &str| v1::GetRequest {
        r#ref: reference(kind, "team", name),
        linearizable: false,
    };
    let list = |kind: &str, namespace: &str| v1::ListRequest {
        kind: kind.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    let watch = |kind: &str, namespace: &str| v1::WatchRequest {
        kind: kind.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    vec![
        row("Control/Get", get("Pod", "p"), "ves"),
        row("Control/Get", get("Secret", "x"), "es"),
        row("Control/Get", get("Role", "x"), "s"),
        row("Control/List", list("Pod", "team"), "ves"),
        row("Control/List", list("Secret", "team"), "es"),
        row("Control/List", list("Pod", ""), "s"),
        row("Control/List", list("Pod", "default"), "s"),
        row("Control/List", list("Node", ""), "s"),
        row("Control/Watch", watch("Pod", "team"), "ves"),
        row("Control/Watch", watch("Secret", "kube-system"), "s"),
        row("Control/ClusterInfo", v1::ClusterInfoRequest {}, "vens"),
        row("Control/ListMasters", v1::ListMastersRequest {}, "s"),
        row("Control/Backup", v1::BackupRequest {}, "s"),
        row("Control/EncryptionStatus", v1::EncryptionStatusRequest {}, "s"),
        row("Control/Monitor", v1::MonitorRequest { with_pods: true, ..Default::default() }, "s"),
        row("Control/Monitor", v1::MonitorRequest::default(), "s"),
        row(
            "Control/Beats",
            v1::BeatsRequest { namespace: "team".into(), name: "x".into() },
            "ves",
        ),
        row("Control/CanI", v1::CanIRequest::default(), "vens"),
        row("Control/ListRules", v1::ListRulesRequest::default(), "vens"),
        row("Control/WhoAmI", v1::WhoAmIRequest {}, "vens"),
    ]
}

fn writes() -> Vec<Row> {
    let create = |json| v1::CreateRequest { json, dry_run: true, ..Default::default() };
    let update = |json, status| v1::UpdateRequest { json, status, ..Default::default() };
    let delete = |kind: &str, namespace: &str| v1::DeleteRequest {
        r#ref: reference(kind, namespace, "x"),
        ..Default::default()
    };
    let map = || manifest("ConfigMap", "m", "team", json!({}));
    let role = manifest(
        "Role",
        "r",
        "team",
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
    );
    let patch = |kind: &str, namespace: &str| v1::PatchRequest {
        r#ref: reference(kind, namespace, "x"),
        r#type: v1::patch_request::Type::Merge.into(),
        patch: "{}".into(),
        dry_run: true,
    };
    let apply = v1::ApplyRequest { json: map(), dry_run: true, ..Default::default() };
    let commit =
        |op| v1::CommitRequest { ops: vec![v1::WriteOp { op: Some(op) }], ..Default::default() };
    let token = |namespace: &str| v1::CreateTokenRequest {
        namespace: namespace.into(),
        name: "robot".into(),
        ..Default::default()
    };
    vec![
        row("Control/ChangeMasters", v1::ChangeMastersRequest::default(), "s"),
        row("Control/RotateEncryption", v1::RotateEncryptionRequest {}, "s"),
        row("Control/Create", create(map()), "es"),
        row("Control/Create", create(manifest("ConfigMap", "m", "default", json!({}))), "s"),
        row("Control/Create", create(role), "s"),
        row("Control/Create", create("not an object".into()), "avens"),
        row("Control/Update", update(map(), false), "es"),
        row("Control/Update", update(manifest("Pod", "p", "team", json!({})), true), "s"),
        row("Control/Patch", patch("ConfigMap", "team"), "es"),
        row("Control/Patch", patch("Node", ""), "s"),
        row("Control/Apply", apply, "es"),
        row("Control/Delete", delete("Pod", "team"), "es"),
        row("Control/Delete", delete("Namespace", ""), "s"),
        row("Control/Evict", delete("Pod", "team"), "es"),
        row("Control/Commit", commit(write_op::Op::Delete(delete("Secret", "team"))), "es"),
        row("Control/Commit", commit(write_op::Op::Delete(delete("Secret", "default"))), "s"),
        row("Control/CreateToken", token("team"), "es"),
        row("Control/CreateToken", token("default"), "s"),
    ]
}

fn streams() -> Vec<Row> {
    let (namespace, pod) = ("team".to_owned(), "none".to_owned());
    let logs =
        v1::LogsRequest { namespace: namespace.clone(), pod: pod.clone(), ..Default::default() };
    let exec =
        v1::ExecRequest { namespace: namespace.clone(), pod: pod.clone(), ..Default::default() };
    let forward = v1::PortForwardRequest { namespace, pod, ..Default::default() };
    vec![
        row("Control/Open", frame(Stream::Logs(logs)), "ves"),
        row("Control/Open", frame(Stream::Exec(exec)), "es"),
        row("Control/Open", frame(Stream::PortForward(forward)), "es"),
        row("Control/LoadImage", v1::StreamFrame::default(), "s"),
        row("Agent/Session", v1::AgentMessage::default(), "ns"),
        row("Agent/Stream", v1::StreamFrame::default(), "ns"),
        row("Raft/Append", v1::AppendRequest::default(), ""),
        row("Raft/Vote", v1::VoteRequest::default(), ""),
        row("Raft/InstallSnapshot", v1::InstallSnapshotRequest::default(), ""),
        row("Raft/Propose", v1::ProposeRequest::default(), ""),
        row("Raft/ReadIndex", v1::ReadIndexRequest::default(), ""),
        row("Raft/Handover", v1::HandoverRequest::default(), ""),
        row("Raft/ChangeMember", v1::ChangeMemberRequest::default(), ""),
        row("Raft/PeerStatus", v1::PeerStatusRequest::default(), ""),
        row("Raft/JoinMaster", v1::JoinMasterRequest::default(), "avens"),
        row("Relay/Follow", v1::RelayFrame::default(), ""),
    ]
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// How the call ends, or that it began to answer.
async fn call(channel: &Channel, row: &Row, user: &str, groups: &[&str]) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let message = row.message.clone();
    let mut request = Request::new(futures::stream::iter([message]));
    let metadata = request.metadata_mut();
    metadata.insert(IMPERSONATE_USER, user.parse().unwrap());
    for group in groups {
        metadata.append(IMPERSONATE_GROUP, group.parse().unwrap());
    }
    let path = format!("/timonier.v1.{}", row.method).parse().unwrap();
    let answer = tokio::time::timeout(DEADLINE, grpc.streaming(request, path, Raw));
    let mut stream = answer.await.expect("an answer comes")?.into_inner();
    // A stream that says nothing at first has been let in.
    match tokio::time::timeout(Duration::from_millis(200), stream.message()).await {
        Ok(Err(status)) => Err(status),
        _ => Ok(()),
    }
}

async fn prepare(master: &crate::RunningMaster) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let ready = || {
        let role = master.store().snapshot().get::<ClusterRole>("", "edit").cloned();
        role.is_some_and(|role| role.rules.as_ref().is_some_and(|rules| rules.len() > 15))
    };
    while !ready() {
        assert!(tokio::time::Instant::now() < deadline, "the default roles are put together");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let binding = |role: &str, user: &str| -> RoleBinding {
        let rbac = "rbac.authorization.k8s.io";
        serde_json::from_value(json!({"metadata": {"name": role, "namespace": "team"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": user}]}))
        .unwrap()
    };
    let namespace = json!({"metadata": {"name": "team"}});
    let namespace: k8s_openapi::api::core::v1::Namespace =
        serde_json::from_value(namespace).unwrap();
    let meta = json!({"metadata": {"name": "robot", "namespace": "team"}});
    let account: ServiceAccount = serde_json::from_value(meta).unwrap();
    let pod = json!({"metadata": {"name": "p", "namespace": "team"},
        "spec": {"containers": [{"name": "c", "image": "a"}], "nodeSelector": {"no": "where"}}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let objects: [Object; 5] = [
        namespace.into_object(),
        binding("view", "vera").into_object(),
        binding("edit", "ed").into_object(),
        account.into_object(),
        pod.into_object(),
    ];
    let ops = objects.map(|object| crate::stamp::stamp(Op::Create(object), jiff::Timestamp::now()));
    master.store().commit(Txn::of(ops.to_vec())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_lets_in_those_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let master = Master::start(Config::new(folder.path())).await.unwrap();
    prepare(&master).await;
    let address = format!("http://{}", master.addr());
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let rows: Vec<Row> = [reads(), writes(), streams()].into_iter().flatten().collect();
    for (path, _) in METHODS {
        let method = path.trim_start_matches("/timonier.v1.");
        assert!(rows.iter().any(|row| row.method == method), "no row says who may call {path}");
    }
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut let_in = String::new();
        for ((user, groups), letter) in CALLERS.iter().zip(LETTERS.chars()) {
            let outcome = call(&channel, row, user, groups).await;
            let refused = outcome.as_ref().err().is_some_and(|status| {
                matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
            });
            if !refused {
                let_in.push(letter);
            }
        }
        if let_in != row.let_in {
            wrong.push(format!("{index}: {}: {let_in}, not {}", row.method, row.let_in));
        }
    }
    assert!(wrong.is_empty(), "let in:\n{}", wrong.join("\n"));
    let unknown = Row { method: "Control/Nothing", message: Vec::new(), let_in: "" };
    let refused = call(&channel, &unknown, "root", &["system:masters"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Refusals and writes are in the audit log, reads of secrets too, their contents never.
    let log = || std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !log().contains("Control/Nothing") && !log().contains("\"method\":\"Nothing\"") {
        assert!(tokio::time::Instant::now() < deadline, "the refusal is written down");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let text = log();
    for line in [
        r#""method":"Get","asked":["get secrets x in team"],"result":"Forbidden""#,
        r#""method":"Create","asked":["create configmaps m in team"],"result":"ok""#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    master.shutdown().await.unwrap();
}
