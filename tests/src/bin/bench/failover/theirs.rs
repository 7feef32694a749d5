//! etcd under the writers of the failover benchmark.

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::{ELECTION_MS, HEARTBEAT_MS, MEMBERS, Members, WRITERS};
use crate::etcd::Etcd;
use crate::etcd::proto::kv_client::KvClient;
use crate::etcd::proto::{PutRequest, RangeRequest};

pub struct Theirs {
    etcd: Mutex<Etcd>,
    channels: Vec<Channel>,
}

impl Theirs {
    pub async fn start() -> Result<Self> {
        let etcd = Etcd::start(MEMBERS, (HEARTBEAT_MS, ELECTION_MS)).await?;
        let channels = (0..MEMBERS).map(|index| etcd.channel(index)).collect::<Result<_>>()?;
        let theirs = Self { etcd: Mutex::new(etcd), channels };
        for writer in 0..WRITERS {
            theirs.write(0, writer, 0).await?;
        }
        Ok(theirs)
    }
}

fn key(writer: usize) -> bytes::Bytes {
    format!("/bench/{writer}").into_bytes().into()
}

impl Members for Theirs {
    async fn write(&self, member: usize, writer: usize, value: u64) -> Result<()> {
        let put = PutRequest { key: key(writer), value: value.to_string().into_bytes().into() };
        KvClient::new(self.channels[member].clone()).put(put).await?;
        Ok(())
    }

    async fn read(&self, writer: usize) -> Result<u64> {
        let mut client = KvClient::new(self.channels[writer % MEMBERS].clone());
        let found = client.range(RangeRequest { key: key(writer) }).await?.into_inner();
        let value = found.kvs.first().context("the key is not there")?;
        Ok(std::str::from_utf8(&value.value)?.parse()?)
    }

    async fn leader(&self) -> Result<usize> {
        self.etcd.lock().await.leader().await
    }

    async fn kill(&self, member: usize) -> Result<()> {
        self.etcd.lock().await.kill(member)
    }

    async fn start(&self, member: usize) -> Result<()> {
        let mut etcd = self.etcd.lock().await;
        etcd.start_member(member)?;
        etcd.wait_member(member).await
    }
}
