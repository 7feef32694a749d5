//! 1 KiB transactions through gRPC with 1 and 64 concurrent writers, beside etcd with a like client
//! on the same disk: same connections, same number of keys, same size, both durable.

use std::fmt::Write;
use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use timonier_identity::Subject;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{CommitRequest, CreateRequest, UpdateRequest, WriteOp, write_op};
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::measure::{Figures, percentile};
use tonic::transport::{Channel, Endpoint};

#[allow(clippy::all, missing_docs, unused_qualifications)]
mod etcd {
    tonic::include_proto!("etcdserverpb");
}

const KEYS: usize = 1024;
const VALUE_BYTES: usize = 1024;
const CONNECTIONS: usize = 8;
const WRITERS: usize = 64;
const WINDOW: Duration = Duration::from_secs(8);
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn run() -> Result<String> {
    super::set_up("etcd")?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let ours = ours().await?;
        eprintln!("round {round}: ours {ours:?}");
        let etcd = etcd_writes().await?;
        eprintln!("round {round}: etcd {etcd:?}");
        figures.add(&[
            ("ours_1_p50_us", ours.one_p50_us),
            ("ours_64_per_s", ours.many_per_s),
            ("ours_64_p99_ms", ours.many_p99_ms),
            ("etcd_1_p50_us", etcd.one_p50_us),
            ("etcd_64_per_s", etcd.many_per_s),
            ("etcd_64_p99_ms", etcd.many_p99_ms),
            ("vs_etcd", ours.many_per_s / etcd.many_per_s),
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

async fn channels(address: &str) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        channels.push(endpoint.connect().await?);
    }
    Ok(channels)
}

async fn ours() -> Result<Speeds> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(cluster.dial(&Subject::admin()).await?);
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

async fn etcd_writes() -> Result<Speeds> {
    let dir = tempfile::Builder::new().prefix("timonier-cluster-").tempdir()?;
    let server = Etcd::start(dir.path())?;
    let channels = wait_etcd(&server.address).await?;
    measure(move |writer, key| {
        let mut client = etcd::kv_client::KvClient::new(channels[writer % CONNECTIONS].clone());
        async move {
            let put = etcd::PutRequest {
                key: format!("/bench/{key}").into_bytes().into(),
                value: value(VALUE_BYTES).into_bytes().into(),
            };
            client.put(put).await?;
            Ok(())
        }
    })
    .await
}

async fn wait_etcd(address: &str) -> Result<Vec<Channel>> {
    timonier_tests::wait::until("etcd to answer", Duration::from_secs(20), || async {
        let channels = channels(address).await?;
        let mut client = etcd::kv_client::KvClient::new(channels[0].clone());
        client.put(etcd::PutRequest { key: "ready".into(), value: "".into() }).await?;
        Ok(channels)
    })
    .await
}

struct Etcd {
    child: Child,
    address: String,
}

impl Etcd {
    fn start(dir: &Path) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let client = format!("http://{address}");
        let child = Command::new("etcd")
            .args(["--name", "bench", "--logger", "zap", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .args(["--quota-backend-bytes", "8589934592"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start etcd")?;
        ensure!(child.id() > 0, "etcd has no process");
        Ok(Self { child, address })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
