//! Writers that create objects through any master and record which creations were acknowledged, and
//! with which revision.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{CommitRequest, CreateRequest, UpdateRequest, WriteOp, write_op};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::cluster::{ChaosCluster, MASTERS};

pub const NAMESPACE: &str = "chaos";
const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(40);
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Of one value of [`flood`].
const FLOOD_BYTES: usize = 400 << 10;
/// A write whose fate is unknown is sent again, with the same id, so often; then it is given up and
/// counts for nothing.
const TRIES_MAX: usize = 20;

pub struct Writers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The last acknowledgement, and the longest time without one since it was asked for.
    last: Option<Instant>,
    pause: Duration,
    /// Name to what the store's revision was after it.
    acked: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Seen {
    fn acknowledged(&mut self, name: String, revision: u64) {
        self.acked.insert(name, revision);
        self.pause = self.pause.max(self.last.map_or(Duration::ZERO, |last| last.elapsed()));
        self.last = Some(Instant::now());
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writers {
    pub fn start(chaos: &ChaosCluster) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let admin = chaos.cluster.admin()?;
        let channels: Vec<Channel> =
            (0..MASTERS).map(|m| chaos.cluster.dial_lazily(m, &admin)).collect::<Result<_>>()?;
        let tasks = (0..WRITERS)
            .map(|writer| tokio::spawn(write(writer, channels.clone(), shared.clone())))
            .collect();
        Ok(Self { shared, tasks })
    }

    pub fn acked(&self) -> usize {
        self.shared.seen().acked.len()
    }

    /// The longest time without an acknowledgement since the last call.
    pub fn longest_pause(&self) -> Duration {
        let mut seen = self.shared.seen();
        let running = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        std::mem::take(&mut seen.pause).max(running)
    }

    /// Names and revisions.
    pub fn all_acked(&self) -> BTreeMap<String, u64> {
        self.shared.seen().acked.clone()
    }

    /// What was seen since the last call.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.seen().violations)
    }

    /// How many writes were acknowledged in all.
    pub async fn stop(self) -> Result<usize> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("join a writer")?;
        }
        let acked = self.shared.seen().acked.len();
        Ok(acked)
    }
}

async fn write(writer: usize, channels: Vec<Channel>, shared: Arc<Shared>) {
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("w{writer}-{number}");
        for _ in 0..TRIES_MAX {
            let channel = channels[fastrand::usize(..channels.len())].clone();
            let call = create(channel, &name);
            match tokio::time::timeout(WRITE_TIMEOUT, call).await {
                Ok(Ok(revision)) => {
                    shared.seen().acknowledged(name.clone(), revision);
                    break;
                }
                // Nobody else writes this name: it was done, and not known as this one.
                Ok(Err(status)) if status.code() == Code::AlreadyExists => {
                    let what = format!("the write of {name} was done twice: {}", status.message());
                    shared.seen().violations.push(what);
                    break;
                }
                Ok(Err(_)) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes large values, the same few objects again and again, until it is dropped. Whether they are
/// taken does not matter.
pub async fn flood(channels: Vec<Channel>) {
    let floods = (0..WRITERS).map(|number| {
        let channel = channels[number % channels.len()].clone();
        async move {
            let mut written = 0_u64;
            loop {
                written += 1;
                let object = serde_json::json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": format!("flood-{number}"), "namespace": "default"},
                    "data": {"of": written.to_string(), "filler": "x".repeat(FLOOD_BYTES)},
                });
                let op = |op| WriteOp { op: Some(op) };
                let json: bytes::Bytes = object.to_string().into();
                let mut client = ControlClient::new(channel.clone());
                for ops in [
                    op(write_op::Op::Create(CreateRequest {
                        json: json.clone(),
                        ..Default::default()
                    })),
                    op(write_op::Op::Update(UpdateRequest { json, ..Default::default() })),
                ] {
                    let request = CommitRequest { ops: vec![ops], id: String::new() };
                    let _ = tokio::time::timeout(WRITE_TIMEOUT, client.commit(request)).await;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    futures::future::join_all(floods).await;
}

async fn create(channel: Channel, name: &str) -> Result<u64, tonic::Status> {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE}, "data": {"of": name},
    });
    let create = CreateRequest { json: object.to_string().into(), ..Default::default() };
    let op = WriteOp { op: Some(write_op::Op::Create(create)) };
    let request = CommitRequest { ops: vec![op], id: format!("chaos-{name}") };
    Ok(ControlClient::new(channel).commit(request).await?.into_inner().revision)
}
