//! 1,000 simulated agents pushing every second into one real master over real gRPC, beside reading
//! the same figures by SSH: real logins to a real sshd on this machine, measured and scaled to the
//! same 1,000 hosts each second.
//!
//! Compared is what the collecting side spends: the master's CPU, and the `ssh` clients' CPU. What
//! the hosts' own side costs (`sshd` and its shell) is printed apart and not in the ratio.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost::Message;
use timonier_identity::{DialOptions, Identity, Subject, dial};
use timonier_proto::v1::MonitorRequest;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::measure::{Figures, cpu_time, percentile};
use timonier_tests::wait;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::simulated::{BEAT, beat, hello, message, node_name, unix_ms};

const AGENTS: usize = 1000;
const WINDOW: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(5);
const MONITOR_MS: u32 = 1000;
const LOGINS: usize = 50;
/// What a person's script reads on each host: the two figures of the exercise's table.
const REMOTE_COMMAND: &str = "head -1 /proc/stat; grep -E '^(MemTotal|MemAvailable)' /proc/meminfo";

pub async fn run() -> Result<String> {
    super::set_up("sshd")?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let pushed = push().await?;
        eprintln!(
            "round {round}: master {:.2} CPU s/min, staleness p99 {:.0} ms",
            pushed.cpu_s_per_min, pushed.staleness_p99_ms
        );
        let ssh = ssh().await?;
        eprintln!("round {round}: ssh {:.1} CPU s/min", ssh.client_s_per_min);
        figures.add(&[
            ("master_cpu_s_per_min", super::present(pushed.cpu_s_per_min, "the master's CPU")?),
            ("bytes_per_beat", pushed.bytes_per_beat),
            ("staleness_p50_ms", pushed.staleness_p50_ms),
            ("staleness_p99_ms", super::present(pushed.staleness_p99_ms, "staleness")?),
            ("ssh_cpu_s_per_min", super::present(ssh.client_s_per_min, "ssh's CPU")?),
            ("ssh_hosts_cpu_s_per_min", ssh.server_s_per_min),
            ("cpu_ratio", ssh.client_s_per_min / pushed.cpu_s_per_min),
        ]);
    }
    Ok(figures.line("telemetry", &[("agents", AGENTS as f64)]))
}

struct Pushed {
    cpu_s_per_min: f64,
    bytes_per_beat: f64,
    staleness_p50_ms: f64,
    staleness_p99_ms: f64,
}

async fn push() -> Result<Pushed> {
    // A /24 for each of a thousand nodes.
    let range = Some("10.128.0.0/10".to_owned());
    let mut cluster =
        Cluster::start(Options { cluster_range: range, ..Options::default() }).await?;
    let mut agents = tokio::task::JoinSet::new();
    for index in 0..AGENTS {
        let identity = cluster.identity(&Subject::node(&node_name(index)))?;
        agents.spawn(simulate(cluster.address(), identity, index));
    }
    wait::until("all simulated agents to be seen", Duration::from_secs(60), || async {
        let seen = monitor_once(&cluster).await?;
        ensure!(seen == AGENTS, "{seen} of {AGENTS} are");
        Ok(())
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    let pid = cluster.master_pid();
    let (before, start) = (cpu_time(pid)?, Instant::now());
    tokio::time::sleep(WINDOW).await;
    let used = cpu_time(pid)? - before;
    let cpu_s_per_min = used.as_secs_f64() * 60.0 / start.elapsed().as_secs_f64();
    // Staleness is read after the CPU window, since watching costs the master something too.
    let staleness = staleness(&cluster).await?;
    while let Some(ended) = agents.try_join_next() {
        ended.context("join a simulated agent")?.context("a simulated agent ended early")?;
    }
    agents.abort_all();
    cluster.stop()?;
    Ok(Pushed {
        cpu_s_per_min,
        bytes_per_beat: beat(1, AGENTS).encoded_len() as f64,
        staleness_p50_ms: percentile(&staleness, 50.0),
        staleness_p99_ms: percentile(&staleness, 99.0),
    })
}

/// One agent: Hello, then a heartbeat a second until the stream ends.
async fn simulate(address: String, identity: Identity, index: usize) -> Result<()> {
    // Spread over one beat, as jitter does with real ones.
    tokio::time::sleep(BEAT.mul_f64(index as f64 / AGENTS as f64)).await;
    let (sender, receiver) = mpsc::channel(4);
    sender.send(message(Up::Hello(hello(index)))).await?;
    let channel = dial(&address, &identity, &DialOptions::default()).await?;
    let mut client = AgentClient::new(channel);
    let mut down = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    let mut ticks = tokio::time::interval(BEAT);
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                sequence += 1;
                sender.send(beat(sequence, index)).await?;
            }
            received = down.message() => {
                received?.context("the master closed the session")?;
            }
        }
    }
}

async fn monitor_once(cluster: &Cluster) -> Result<usize> {
    let request = MonitorRequest { interval_ms: 0, ..Default::default() };
    let mut frames = cluster.client().await?.monitor(request).await?.into_inner();
    let frame = frames.message().await?.context("no frame")?;
    Ok(frame.nodes.iter().filter(|node| node.usage.is_some()).count())
}

/// Ages, in milliseconds, of every node's figure in every frame of a few seconds of `monitor`.
async fn staleness(cluster: &Cluster) -> Result<Vec<f64>> {
    let request = MonitorRequest { interval_ms: MONITOR_MS, ..Default::default() };
    let mut frames = cluster.client().await?.monitor(request).await?.into_inner();
    let mut ages = Vec::new();
    for _ in 0..10 {
        let frame = frames.message().await?.context("the monitor stream ended")?;
        let now = unix_ms();
        ensure!(frame.nodes.len() == AGENTS, "{} nodes in a frame", frame.nodes.len());
        let made = frame.nodes.iter().filter_map(|n| Some(n.usage.as_ref()?.disk_used_bytes));
        ages.extend(made.map(|at| now as f64 - at as f64));
    }
    Ok(ages)
}

struct Ssh {
    client_s_per_min: f64,
    server_s_per_min: f64,
}

/// CPU of [`LOGINS`] logins, scaled to 1,000 hosts asked every second for a minute.
async fn ssh() -> Result<Ssh> {
    let dir = tempfile::tempdir()?;
    let server = Sshd::start(dir.path())?;
    server.login(dir.path()).context("first login")?;
    let server_before = children_cpu(server.pid())?;
    let before = own_children_cpu();
    for _ in 0..LOGINS {
        server.login(dir.path())?;
    }
    let client = own_children_cpu() - before;
    let host = children_cpu(server.pid())? - server_before;
    let scale = AGENTS as f64 * 60.0 / LOGINS as f64;
    Ok(Ssh { client_s_per_min: client * scale, server_s_per_min: host * scale })
}

/// CPU seconds of this process's ended children.
fn own_children_cpu() -> f64 {
    children_cpu(std::process::id()).unwrap_or(0.0)
}

/// CPU seconds of a process's ended children (fields 16 and 17 of proc_pid_stat(5)).
fn children_cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("malformed stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[13].parse::<u64>()? + fields[14].parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// An sshd of the benchmark's own, on loopback, with its own keys.
struct Sshd {
    child: Child,
    port: u16,
}

impl Sshd {
    fn start(dir: &Path) -> Result<Self> {
        for key in ["host", "user"] {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .status()
                .context("run ssh-keygen")?;
            ensure!(status.success(), "ssh-keygen failed");
        }
        std::fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
        std::fs::create_dir_all("/run/sshd")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f", "/dev/null", "-p", &port.to_string()])
            .args(["-o", "ListenAddress=127.0.0.1", "-o", "StrictModes=no", "-o", "UsePAM=no"])
            .args(["-o", "PermitRootLogin=prohibit-password", "-o", "PidFile=none"])
            .arg("-o")
            .arg(format!("AuthorizedKeysFile={}", dir.join("authorized").display()))
            .arg("-h")
            .arg(dir.join("host"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sshd")?;
        let server = Self { child, port };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(10), "sshd does not listen");
            std::thread::yield_now();
        }
        Ok(server)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn login(&self, dir: &Path) -> Result<()> {
        let output = Command::new("ssh")
            .args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
            .args(["-p", &self.port.to_string(), "-i"])
            .arg(dir.join("user"))
            .args(["root@127.0.0.1", REMOTE_COMMAND])
            .stdin(Stdio::null())
            .output()
            .context("run ssh")?;
        let answer = String::from_utf8_lossy(&output.stdout);
        ensure!(
            answer.contains("cpu ") && answer.contains("MemTotal"),
            "ssh login failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
