//! The door as a client sees it: a real master in this process, over TCP.

mod deletions;
mod objects;
mod once;
mod own_secrets;
mod process;
mod reading;

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
