//! 1 KiB transactions through gRPC with 1 and 64 concurrent writers, beside etcd with a like client
//! on the same disk: same connections, same number of keys, same size, both durable. Then the same
//! with three members each, all writers at the one that leads.

use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{CommitRequest, CreateRequest, UpdateRequest, WriteOp, write_op};
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::measure::{Figures, percentile};

use crate::etcd::Etcd;
use crate::etcd::proto::PutRequest;
use crate::etcd::proto::kv_client::KvClient;

const KEYS: usize = 1024;
const VALUE_BYTES: usize = 1024;
const CONNECTIONS: usize = 8;
const WRITERS: usize = 64;
/// Of a cluster that bears the loss of one.
const MEMBERS: usize = 3;
/// etcd's defaults, and ours: heartbeat and election timeout in milliseconds.
const ETCD_TIMING: (u64, u64) = (100, 1000);
const WINDOW: Duration = Duration::from_secs(8);
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn run() -> Result<String> {
    super::set_up("etcd")?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let ours = our_writes(1).await?;
        eprintln!("round {round}: ours {ours:?}");
        let etcd = etcd_writes(1).await?;
        eprintln!("round {round}: etcd {etcd:?}");
        let ours3 = our_writes(MEMBERS).await?;
        eprintln!("round {round}: ours with {MEMBERS} masters {ours3:?}");
        let etcd3 = etcd_writes(MEMBERS).await?;
        eprintln!("round {round}: etcd with {MEMBERS} members {etcd3:?}");
        figures.add(&[
            ("ours_1_p50_us", ours.one_p50_us),
            ("ours_64_per_s", ours.many_per_s),
            ("ours_64_p99_ms", ours.many_p99_ms),
            ("etcd_1_p50_us", etcd.one_p50_us),
            ("etcd_64_per_s", etcd.many_per_s),
            ("etcd_64_p99_ms", etcd.many_p99_ms),
            ("vs_etcd", ours.many_per_s / etcd.many_per_s),
            ("ours3_1_p50_us", ours3.one_p50_us),
            ("ours3_64_per_s", ours3.many_per_s),
            ("ours3_64_p99_ms", ours3.many_p99_ms),
            ("etcd3_1_p50_us", etcd3.one_p50_us),
            ("etcd3_64_per_s", etcd3.many_per_s),
            ("etcd3_64_p99_ms", etcd3.many_p99_ms),
            ("vs_etcd3", ours3.many_per_s / etcd3.many_per_s),
        ]);
    }
    Ok(figures.line("store-writes", &[]))
}

#[derive(Debug)]
struct Speeds {
    one_p50_us: f64,
    many_per_s: f64,
    many_p99_ms: f64,
}

/// One writer, then 64, each waiting for its acknowledgement before the next write.
async fn measure<F, Fut>(write: F) -> Result<Speeds>
where
    F: Fn(usize, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let write = Arc::new(write);
    writers(&write, WRITERS, WARM_UP).await?;
    let (one, _) = writers(&write, 1, WINDOW).await?;
    let (many, seconds) = writers(&write, WRITERS, WINDOW).await?;
    Ok(Speeds {
        one_p50_us: percentile(&one, 50.0),
        many_per_s: many.len() as f64 / seconds,
        many_p99_ms: percentile(&many, 99.0) / 1000.0,
    })
}

/// Latencies in microseconds of all writes in the window, and how long it was in seconds.
async fn writers<F, Fut>(write: &Arc<F>, count: usize, window: Duration) -> Result<(Vec<f64>, f64)>
where
    F: Fn(usize, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..count {
        let write = write.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < window {
                let sent = Instant::now();
                write(writer, fastrand::usize(..KEYS)).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended.context("join a writer")??);
    }
    Ok((all, start.elapsed().as_secs_f64()))
}

async fn our_writes(masters: usize) -> Result<Speeds> {
    let mut cluster = Cluster::start(Options { masters, ..Options::default() }).await?;
    let leader = cluster.leader().await?;
    let admin = cluster.admin()?;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(cluster.dial(leader, &admin).await?);
    }
    let mut client = ControlClient::new(channels[0].clone());
    for key in 0..KEYS {
        let create = CreateRequest { json: config_map(key).into(), ..Default::default() };
        client.commit(commit(write_op::Op::Create(create))).await?;
    }
    let speeds = measure(move |writer, key| {
        let mut client = ControlClient::new(channels[writer % CONNECTIONS].clone());
        async move {
            let update = UpdateRequest { json: config_map(key).into(), ..Default::default() };
            client.commit(commit(write_op::Op::Update(update))).await?;
            Ok(())
        }
    })
    .await?;
    cluster.stop()?;
    Ok(speeds)
}

fn commit(op: write_op::Op) -> CommitRequest {
    CommitRequest { ops: vec![WriteOp { op: Some(op) }], id: String::new() }
}

/// A ConfigMap of 1 KiB as JSON, its value new each time. Written as cheaply as etcd's value is: the
/// client shares the machine with the server.
fn config_map(key: usize) -> Vec<u8> {
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"bench-{key}","namespace":"default"}},"data":{{"value":""#
    );
    let tail = r#""}}"#;
    let value = value(VALUE_BYTES.saturating_sub(head.len() + tail.len()));
    [head.as_bytes(), value.as_bytes(), tail.as_bytes()].concat()
}

fn value(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes);
    let _ = write!(text, "{:016x}", fastrand::u64(..));
    text.extend(std::iter::repeat_n('x', bytes.saturating_sub(text.len())));
    text
}

async fn etcd_writes(members: usize) -> Result<Speeds> {
    let server = Etcd::start(members, ETCD_TIMING).await?;
    let leader = server.leader().await?;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(server.channel(leader)?);
    }
    measure(move |writer, key| {
        let mut client = KvClient::new(channels[writer % CONNECTIONS].clone());
        async move {
            let put = PutRequest {
                key: format!("/bench/{key}").into_bytes().into(),
                value: value(VALUE_BYTES).into_bytes().into(),
            };
            client.put(put).await?;
            Ok(())
        }
    })
    .await
}
