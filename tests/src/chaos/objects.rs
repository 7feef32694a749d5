//! The objects that writers write, and what they ask a master for: ConfigMaps with a value.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use timonier_proto::Kind;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::write_op::Op;
use timonier_proto::v1::{
    CommitRequest, CreateRequest, DeleteRequest, GetRequest, ObjectRef, UpdateRequest, WriteOp,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::record::Stored;

pub const NAMESPACE: &str = "chaos";

pub fn create(name: &str, value: u64) -> Op {
    let json = object(name, value, None).into();
    Op::Create(CreateRequest { json, ..Default::default() })
}

/// Refused unless the object is at that revision.
pub fn update(name: &str, value: u64, revision: u64) -> Op {
    let json = object(name, value, Some(revision)).into();
    Op::Update(UpdateRequest { json, ..Default::default() })
}

pub fn delete(name: &str) -> Op {
    Op::Delete(DeleteRequest { r#ref: Some(reference(name)), ..Default::default() })
}

/// Done once, however often it is sent with this id. The store's revision after it.
pub async fn commit(channel: Channel, op: Op, id: String) -> Result<u64, Status> {
    let request = CommitRequest { ops: vec![WriteOp { op: Some(op) }], id };
    Ok(ControlClient::new(channel).commit(request).await?.into_inner().revision)
}

/// By a linearizable read, as JSON; none where there is no such object.
pub async fn read(channel: Channel, name: &str) -> Result<Option<Bytes>, Status> {
    let request = GetRequest { r#ref: Some(reference(name)), linearizable: true };
    match ControlClient::new(channel).get(request).await {
        Ok(reply) => Ok(Some(reply.into_inner().json)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// The name too. An error is a violation: no writer writes such an object.
pub fn parse(value: &Value) -> Result<(String, Stored)> {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let metadata = &value["metadata"];
    let name = text(&metadata["name"]);
    let number = |field| text(field).parse::<u64>().with_context(|| format!("{name} is {value}"));
    let stored = Stored {
        value: number(&value["data"]["value"])?,
        revision: number(&metadata["resourceVersion"])?,
        uid: text(&metadata["uid"]),
    };
    ensure!(value["data"]["of"] == name.as_str(), "{name} is {value}");
    Ok((name, stored))
}

fn object(name: &str, value: u64, revision: Option<u64>) -> String {
    let revision = revision.map(|revision| revision.to_string());
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": revision},
        "data": {"of": name, "value": value.to_string()},
    })
    .to_string()
}

fn reference(name: &str) -> ObjectRef {
    let (kind, namespace) = (Kind::ConfigMap.to_string(), NAMESPACE.to_owned());
    ObjectRef { kind, namespace, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_another_writer_is_not_taken_for_this_one() {
        let json = |of: &str, value: &str| {
            json!({
                "metadata": {"name": "a", "resourceVersion": "7", "uid": "u"},
                "data": {"of": of, "value": value},
            })
        };
        let stored = Stored { value: 3, revision: 7, uid: "u".to_owned() };
        assert_eq!(parse(&json("a", "3")).unwrap(), ("a".to_owned(), stored));
        assert!(parse(&json("b", "3")).is_err());
        assert!(parse(&json("a", "")).is_err());
    }
}
