//! Every method, some of them more than once, with who is let in.

use prost::Message;
use serde_json::{Value, json};
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request as Stream;
use timonier_proto::v1::{self, write_op};

/// A call and who is let in: the letters of [`super::callers`], in their order.
pub struct Row {
    pub method: &'static str,
    pub message: Vec<u8>,
    pub let_in: &'static str,
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

/// What only looks.
pub fn reads() -> Vec<Row> {
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
        row("Control/Get", get("Pod", "p"), "vems"),
        row("Control/Get", get("Secret", "x"), "ems"),
        row("Control/Get", get("Role", "x"), "ms"),
        row("Control/List", list("Pod", "team"), "vems"),
        row("Control/List", list("Secret", "team"), "ems"),
        row("Control/List", list("Pod", ""), "ms"),
        row("Control/List", list("Pod", "default"), "ms"),
        row("Control/List", list("Node", ""), "ms"),
        row("Control/Watch", watch("Pod", "team"), "vems"),
        row("Control/Watch", watch("Secret", "kube-system"), "ms"),
        row("Control/ClusterInfo", v1::ClusterInfoRequest {}, "tvenoms"),
        row("Control/EncryptionStatus", v1::EncryptionStatusRequest {}, "ms"),
        row("Control/Monitor", v1::MonitorRequest { with_pods: true, ..Default::default() }, "ms"),
        row("Control/Monitor", v1::MonitorRequest::default(), "ms"),
        row(
            "Control/Beats",
            v1::BeatsRequest { namespace: "team".into(), name: "x".into() },
            "vems",
        ),
        row("Control/ListMasters", v1::ListMastersRequest {}, "ms"),
        row("Control/Backup", v1::BackupRequest {}, "ms"),
        row("Control/CanI", v1::CanIRequest::default(), "tvenoms"),
        row("Control/ListRules", v1::ListRulesRequest::default(), "tvenoms"),
        row("Control/WhoAmI", v1::WhoAmIRequest {}, "tvenoms"),
        row("Join/Join", v1::JoinRequest::default(), "atvenoms"),
        row("Join/Renew", v1::RenewRequest::default(), "no"),
        row("Join/Follow", v1::FollowRequest {}, "venoms"),
        row("Trust/Status", v1::CertificateStatusRequest {}, "ms"),
        row("Trust/RenewAuthority", v1::RenewAuthorityRequest {}, "ms"),
        row("Trust/Issue", v1::IssueRequest::default(), "ms"),
        row("Trust/Revoke", v1::RevokeRequest::default(), "ms"),
    ]
}

/// What changes something.
pub fn writes() -> Vec<Row> {
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
        row("Control/ChangeMasters", v1::ChangeMastersRequest::default(), "ms"),
        row("Control/RotateEncryption", v1::RotateEncryptionRequest {}, "ms"),
        row("Control/Create", create(map()), "ems"),
        row("Control/Create", create(manifest("ConfigMap", "m", "default", json!({}))), "ms"),
        row("Control/Create", create(role), "ms"),
        row("Control/Create", create("not an object".into()), "atvenoms"),
        row("Control/Update", update(map(), false), "ems"),
        row("Control/Update", update(manifest("Pod", "p", "team", json!({})), true), "ms"),
        row("Control/Patch", patch("ConfigMap", "team"), "ems"),
        row("Control/Patch", patch("Node", ""), "ms"),
        row("Control/Apply", apply, "ems"),
        row("Control/Delete", delete("Pod", "team"), "ems"),
        row("Control/Delete", delete("Namespace", ""), "ms"),
        row("Control/Evict", delete("Pod", "team"), "ems"),
        row("Control/Commit", commit(write_op::Op::Delete(delete("Secret", "team"))), "ems"),
        row("Control/Commit", commit(write_op::Op::Delete(delete("Secret", "default"))), "ms"),
        row("Control/CreateToken", token("team"), "ems"),
        row("Control/CreateToken", token("default"), "ms"),
    ]
}

/// What goes on: streams of people, agents and masters.
pub fn streams() -> Vec<Row> {
    let (namespace, pod) = ("team".to_owned(), "none".to_owned());
    let logs =
        v1::LogsRequest { namespace: namespace.clone(), pod: pod.clone(), ..Default::default() };
    let exec =
        v1::ExecRequest { namespace: namespace.clone(), pod: pod.clone(), ..Default::default() };
    let forward = v1::PortForwardRequest { namespace, pod, ..Default::default() };
    // Of the master that the callers have a certificate of.
    let relayed = v1::RelayFrame { master: 7, ..Default::default() };
    // Of the node whose certificate one of the two has.
    let hello = v1::Hello { node_name: "n1".into(), agent_id: "a".into(), ..Default::default() };
    let hello = v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello)) };
    vec![
        row("Control/Open", frame(Stream::Logs(logs)), "vems"),
        row("Control/Open", frame(Stream::Exec(exec)), "ems"),
        row("Control/Open", frame(Stream::PortForward(forward)), "ems"),
        row("Control/LoadImage", v1::StreamFrame::default(), "ms"),
        row("Agent/Session", hello, "n"),
        row("Agent/Stream", v1::StreamFrame::default(), "no"),
        row("Raft/Append", v1::AppendRequest::default(), "m"),
        row("Raft/Vote", v1::VoteRequest::default(), "m"),
        row("Raft/InstallSnapshot", v1::InstallSnapshotRequest::default(), "m"),
        row("Raft/Propose", v1::ProposeRequest::default(), "m"),
        row("Raft/ReadIndex", v1::ReadIndexRequest::default(), "m"),
        row("Raft/Handover", v1::HandoverRequest::default(), "m"),
        row("Raft/ChangeMember", v1::ChangeMemberRequest::default(), "m"),
        row("Raft/PeerStatus", v1::PeerStatusRequest::default(), "m"),
        row("Raft/JoinMaster", v1::JoinMasterRequest::default(), "m"),
        row("Relay/Follow", relayed, "m"),
    ]
}
