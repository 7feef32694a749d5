//! Large writes that use up what is reserved for a master's log. Whether they are taken does not
//! matter.

use std::time::Duration;

use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{CommitRequest, CreateRequest, UpdateRequest, WriteOp, write_op};
use tonic::transport::Channel;

/// So many objects, written at the same time.
const OBJECTS: usize = 4;
const VALUE_BYTES: usize = 400 << 10;
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes the same few objects again and again, until it is dropped.
pub async fn flood(channels: Vec<Channel>) {
    let floods =
        (0..OBJECTS).map(|number| write(number, channels[number % channels.len()].clone()));
    futures::future::join_all(floods).await;
}

async fn write(number: usize, channel: Channel) {
    let mut written = 0_u64;
    loop {
        written += 1;
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("flood-{number}"), "namespace": "default"},
            "data": {"of": written.to_string(), "filler": "x".repeat(VALUE_BYTES)},
        });
        let json: bytes::Bytes = object.to_string().into();
        let create = CreateRequest { json: json.clone(), ..Default::default() };
        let update = UpdateRequest { json, ..Default::default() };
        let mut client = ControlClient::new(channel.clone());
        for op in [write_op::Op::Create(create), write_op::Op::Update(update)] {
            let request = CommitRequest { ops: vec![WriteOp { op: Some(op) }], id: String::new() };
            let _ = tokio::time::timeout(WRITE_TIMEOUT, client.commit(request)).await;
        }
        tokio::task::yield_now().await;
    }
}
