//! Timonier under the writers of the failover benchmark.

use anyhow::{Context, Result};
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{
    CommitRequest, CreateRequest, GetRequest, ObjectRef, UpdateRequest, WriteOp, write_op,
};
use timonier_tests::cluster::{Cluster, Options};
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::{MEMBERS, Members, WRITERS};

const NAMESPACE: &str = "default";

pub struct Ours {
    cluster: Mutex<Cluster>,
    channels: Vec<Channel>,
}

impl Ours {
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::start(Options { masters: MEMBERS, ..Options::default() }).await?;
        let admin = cluster.admin()?;
        let channels =
            (0..MEMBERS).map(|index| cluster.dial_lazily(index, &admin)).collect::<Result<_>>()?;
        let ours = Self { cluster: Mutex::new(cluster), channels };
        for writer in 0..WRITERS {
            let json = config_map(writer, 0).into();
            let create = CreateRequest { json, ..CreateRequest::default() };
            ours.commit(0, write_op::Op::Create(create), String::new()).await?;
        }
        Ok(ours)
    }

    async fn commit(&self, member: usize, op: write_op::Op, id: String) -> Result<()> {
        let mut client = ControlClient::new(self.channels[member].clone());
        client.commit(CommitRequest { ops: vec![WriteOp { op: Some(op) }], id }).await?;
        Ok(())
    }

    pub async fn stop(&self) -> Result<()> {
        self.cluster.lock().await.stop()
    }
}

fn name(writer: usize) -> String {
    format!("failover-{writer}")
}

fn config_map(writer: usize, value: u64) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name(writer), "namespace": NAMESPACE},
        "data": {"value": value.to_string()},
    })
    .to_string()
}

impl Members for Ours {
    async fn write(&self, member: usize, writer: usize, value: u64) -> Result<()> {
        let json = config_map(writer, value).into();
        let update = UpdateRequest { json, ..UpdateRequest::default() };
        // Sent again, it is done once.
        let id = format!("failover-{writer}-{value}");
        self.commit(member, write_op::Op::Update(update), id).await
    }

    async fn read(&self, writer: usize) -> Result<u64> {
        let reference =
            ObjectRef { kind: "ConfigMap".into(), namespace: NAMESPACE.into(), name: name(writer) };
        let request = GetRequest { r#ref: Some(reference), linearizable: true };
        let mut client = ControlClient::new(self.channels[writer % MEMBERS].clone());
        let json = client.get(request).await?.into_inner().json;
        let object: serde_json::Value = serde_json::from_slice(&json)?;
        Ok(object["data"]["value"].as_str().context("it has no value")?.parse()?)
    }

    async fn leader(&self) -> Result<usize> {
        self.cluster.lock().await.leader().await
    }

    async fn kill(&self, member: usize) -> Result<()> {
        self.cluster.lock().await.kill_master_at(member)
    }

    async fn start(&self, member: usize) -> Result<()> {
        let mut cluster = self.cluster.lock().await;
        cluster.run_master(member)?;
        cluster.wait_master(member).await
    }
}
