//! The master that leads is killed while 1,000 simulated agents have their sessions with it: how
//! long until each has been welcomed by another one, and what that costs the masters that are left.
//!
//! An agent does what the real one does: it dials the masters in turn, spread over a quarter of a
//! second, and its welcome comes out of a state that a new leader has confirmed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use timonier_identity::Subject;
use timonier_proto::Kind;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::master_message::Message as Down;
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::measure::{Figures, cpu_time};
use timonier_tests::wait;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::simulated::{BEAT, beat, hello, message, node_name};

const AGENTS: usize = 1000;
const MASTERS: usize = 3;
const SETTLE: Duration = Duration::from_secs(5);
const BACK_DEADLINE: Duration = Duration::from_secs(60);
/// As the agent's, of those that lost their session at the same moment.
const SPREAD: Duration = Duration::from_millis(250);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// The masters' CPU is read so long after the kill.
const CPU_WINDOW: Duration = Duration::from_secs(10);

pub async fn run() -> Result<String> {
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let storm = storm().await?;
        eprintln!(
            "round {round}: half were back after {:.0} ms, all after {:.0} ms; {:.2} CPU s",
            storm.half_back_ms, storm.all_back_ms, storm.cpu_s
        );
        figures.add(&[
            ("half_back_ms", storm.half_back_ms),
            ("all_back_ms", super::present(storm.all_back_ms, "the agents' return")?),
            ("cpu_s", super::present(storm.cpu_s, "the masters' CPU")?),
            ("not_ready", storm.not_ready as f64),
        ]);
    }
    Ok(figures.line("tls-storm", &[("agents", AGENTS as f64), ("masters", MASTERS as f64)]))
}

struct Storm {
    half_back_ms: f64,
    all_back_ms: f64,
    /// Of the masters that are left, within [`CPU_WINDOW`] of the kill.
    cpu_s: f64,
    /// Nodes that were not Ready at the end of it.
    not_ready: usize,
}

/// Who welcomed an agent last, and when.
type Welcomed = Arc<Mutex<Vec<Option<(usize, Instant)>>>>;

fn welcomed(all: &Welcomed) -> Vec<Option<(usize, Instant)>> {
    all.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn storm() -> Result<Storm> {
    // A /24 for each of a thousand nodes.
    let range = Some("10.128.0.0/10".to_owned());
    let options = Options { masters: MASTERS, cluster_range: range, ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let leader = cluster.leader().await?;
    let all: Welcomed = Arc::new(Mutex::new(vec![None; AGENTS]));
    let mut agents = tokio::task::JoinSet::new();
    for index in 0..AGENTS {
        let node = cluster.identity(&Subject::node(&node_name(index)))?;
        let channels =
            (0..MASTERS).map(|m| cluster.dial_lazily(m, &node)).collect::<Result<_>>()?;
        agents.spawn(Simulated { index, channels, welcomed: all.clone() }.run(leader));
    }
    wait::until("all simulated agents to be Ready", BACK_DEADLINE, || async {
        let ready = ready(&cluster).await?;
        ensure!(ready == AGENTS, "{ready} of {AGENTS} are");
        Ok(())
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    ensure!(cluster.leader().await? == leader, "the leader has changed by itself");

    let left: Vec<u32> =
        (0..MASTERS).filter(|m| *m != leader).map(|m| cluster.master_pid_at(m)).collect();
    let cpu = || left.iter().map(|pid| cpu_time(*pid)).sum::<Result<Duration>>();
    let (before, start) = (cpu()?, Instant::now());
    cluster.kill_master_at(leader)?;
    let taken = wait::until("all agents to be back", BACK_DEADLINE, || async {
        let now = welcomed(&all);
        let back: Vec<f64> = now
            .iter()
            .flatten()
            .filter(|(master, _)| *master != leader)
            .map(|(_, at)| at.duration_since(start).as_secs_f64() * 1000.0)
            .collect();
        ensure!(back.len() == AGENTS, "{} of {AGENTS} are", back.len());
        Ok(back)
    })
    .await?;
    tokio::time::sleep(CPU_WINDOW.saturating_sub(start.elapsed())).await;
    let cpu_s = (cpu()? - before).as_secs_f64();
    let not_ready = AGENTS - ready(&cluster).await?;
    agents.abort_all();
    cluster.stop()?;
    Ok(Storm {
        half_back_ms: timonier_tests::measure::percentile(&taken, 50.0),
        all_back_ms: timonier_tests::measure::percentile(&taken, 100.0),
        cpu_s,
        not_ready,
    })
}

async fn ready(cluster: &Cluster) -> Result<usize> {
    let nodes = cluster.list(Kind::Node, "").await?;
    Ok(nodes.iter().filter(|node| condition(node, "Ready") == "True").count())
}

struct Simulated {
    index: usize,
    /// To each master, a connection of its own.
    channels: Vec<Channel>,
    welcomed: Welcomed,
}

impl Simulated {
    async fn run(self, first: usize) {
        // Spread over one beat, as jitter does with real ones.
        tokio::time::sleep(BEAT.mul_f64(self.index as f64 / AGENTS as f64)).await;
        let mut master = first;
        let mut dials = 0;
        loop {
            dials += 1;
            // However it ended: the next master in turn.
            let _ = self.session(master, dials).await;
            master = (master + 1 + usize::from(fastrand::bool())) % MASTERS;
            tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
        }
    }

    async fn session(&self, master: usize, dial: u64) -> Result<()> {
        let (sender, receiver) = mpsc::channel(4);
        let hello = timonier_proto::v1::Hello { dial, ..hello(self.index) };
        sender.send(message(Up::Hello(hello))).await?;
        let mut client = AgentClient::new(self.channels[master].clone());
        let opening = async {
            let mut down = client.session(ReceiverStream::new(receiver)).await?.into_inner();
            anyhow::Ok((down.message().await?, down))
        };
        let (first, mut down) = tokio::time::timeout(WELCOME_TIMEOUT, opening).await??;
        let is_welcome = matches!(first.and_then(|m| m.message), Some(Down::Welcome(_)));
        ensure!(is_welcome, "it did not begin with a welcome");
        self.welcomed.lock().unwrap_or_else(PoisonError::into_inner)[self.index] =
            Some((master, Instant::now()));
        let mut ticks = tokio::time::interval(BEAT);
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    sequence += 1;
                    sender.send(beat(sequence, self.index)).await?;
                }
                received = down.message() => {
                    received?.context("the master closed the session")?;
                }
            }
        }
    }
}
