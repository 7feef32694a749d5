//! The doors' table: every method of every service, called as each sort of caller over real TLS. A
//! method that is in the guard's table and not in this one fails the test.

mod callers;
mod rows;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, RoleBinding};
use prost::bytes::{Buf, BufMut};
use serde_json::json;
use timonier_identity::Subject;
use timonier_master_core::op::{Op, Txn};
use timonier_proto::{Kinded, Object};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use self::callers::Knocking;
use self::rows::Row;
use super::METHODS;
use crate::{Config, Master, RunningMaster};

const DEADLINE: Duration = Duration::from_secs(20);
/// A stream that says nothing for so long has been let in.
const SILENCE: Duration = Duration::from_millis(200);
/// Nobody asks faster than this after being told that it was too often.
const RATE_RETRY: Duration = Duration::from_millis(60);

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
async fn call(knocking: &Knocking, row: &Row) -> Result<(), Status> {
    let mut grpc = Grpc::new(knocking.channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(format!("no way in: {error}")))?;
    let mut request = Request::new(futures::stream::iter([row.message.clone()]));
    knocking.sign(&mut request);
    let path = format!("/timonier.v1.{}", row.method).parse().unwrap();
    let answer = tokio::time::timeout(DEADLINE, grpc.streaming(request, path, Raw));
    let mut stream = answer.await.expect("an answer comes")?.into_inner();
    match tokio::time::timeout(SILENCE, stream.message()).await {
        Ok(Err(status)) => Err(status),
        _ => Ok(()),
    }
}

/// Whether it is let in; who asks too often waits.
async fn is_let_in(knocking: &Knocking, row: &Row) -> bool {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let Err(status) = call(knocking, row).await else { return true };
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => return false,
            // The handshake: there is no connection to ask over.
            Code::Unavailable | Code::Unknown | Code::Internal
                if status.message().contains("certificate") || is_broken(&status) =>
            {
                return false;
            }
            Code::ResourceExhausted if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(RATE_RETRY).await;
            }
            _ => return true,
        }
    }
}

/// Whether the connection failed, not the call.
fn is_broken(status: &Status) -> bool {
    let cause = std::error::Error::source(status);
    cause.is_some() && status.details().is_empty()
}

async fn prepare(master: &RunningMaster) {
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
    let account = |name: &str| -> ServiceAccount {
        let meta = json!({"metadata": {"name": name, "namespace": "team"}});
        serde_json::from_value(meta).unwrap()
    };
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    let pod = json!({"metadata": {"name": "p", "namespace": "team"},
        "spec": {"containers": [{"name": "c", "image": "a"}], "nodeSelector": {"no": "where"}}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let objects: [Object; 6] = [
        namespace.into_object(),
        binding("view", "vera").into_object(),
        binding("edit", "ed").into_object(),
        account("robot").into_object(),
        account("gone").into_object(),
        pod.into_object(),
    ];
    let ops = objects.map(|object| crate::stamp::stamp(Op::Create(object), jiff::Timestamp::now()));
    master.store().commit(Txn::of(ops.to_vec())).await.unwrap();
}

async fn start(folder: &std::path::Path) -> RunningMaster {
    let master = Master::start(Config::new(folder)).await.unwrap();
    prepare(&master).await;
    master
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_lets_in_those_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let master = start(folder.path()).await;
    let rows: Vec<Row> =
        [rows::reads(), rows::writes(), rows::streams()].into_iter().flatten().collect();
    for (path, _) in METHODS {
        let method = path.trim_start_matches("/timonier.v1.");
        assert!(rows.iter().any(|row| row.method == method), "no row says who may call {path}");
    }
    let callers = callers::all(&master).await;
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let outcomes = callers
            .iter()
            .map(|knocking| async { is_let_in(knocking, row).await.then_some(knocking.letter) });
        // One after the other: some of the calls change something.
        let mut let_in = String::new();
        for outcome in outcomes {
            let_in.extend(outcome.await);
        }
        if let_in != row.let_in {
            wrong.push(format!("{index}: {}: {let_in:?}, not {:?}", row.method, row.let_in));
        }
    }
    assert!(wrong.is_empty(), "let in:\n{}", wrong.join("\n"));
    let root = callers.iter().find(|knocking| knocking.letter == 's').unwrap();
    let unknown = Row { method: "Control/Nothing", message: Vec::new(), let_in: "" };
    let refused = call(root, &unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Refusals and writes are in the audit log, reads of secrets too, their contents never.
    let log = || std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !log().contains("\"method\":\"Nothing\"") {
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
    assert!(!text.contains("TooManyRequests"), "who asks too often fills no log");
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_acts_as_a_machine() {
    let folder = tempfile::tempdir().unwrap();
    let master = start(folder.path()).await;
    let root = master.dial_as(&Subject::admin()).await.unwrap();
    for (user, group) in
        [("system:node:n1", "system:nodes"), ("system:master:1", "timonier:masters")]
    {
        let acting = callers::acting(root.clone(), user, group);
        for row in rows::streams().iter().filter(|row| !row.method.starts_with("Control/")) {
            assert!(!is_let_in(&acting, row).await, "{} as {user}", row.method);
        }
    }
    master.shutdown().await.unwrap();
}
