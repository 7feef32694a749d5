//! `kill -9` of the leader under 64 writers, twenty rounds, beside a three-member etcd under the
//! same fault with the same heartbeat and election timeout, by the same writers.
//!
//! The gap of a round is the time from the kill to when new writes are acknowledged again. Each
//! writer has a key of its own and writes a growing number; after each round the stored number must
//! not be smaller than the last one that was acknowledged.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use timonier_tests::measure::{median, percentile};
use timonier_tests::wait::until;

mod ours;
mod theirs;

const MEMBERS: usize = 3;
const WRITERS: usize = 64;
/// etcd's defaults, and ours.
const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: u64 = 1000;
const ROUNDS: usize = 20;
/// Steady writing before each fault and after the first acknowledged write.
const STEADY: Duration = Duration::from_secs(1);
const RECOVERY_DEADLINE: Duration = Duration::from_secs(30);
/// A write that a member does not answer for so long is sent to the next one.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// One of the two clusters under test.
trait Members: Send + Sync {
    /// Puts `value` under the writer's key through a member.
    fn write(
        &self,
        member: usize,
        writer: usize,
        value: u64,
    ) -> impl Future<Output = Result<()>> + Send;
    /// The number stored under the writer's key, as of all acknowledged writes.
    fn read(&self, writer: usize) -> impl Future<Output = Result<u64>> + Send;
    fn leader(&self) -> impl Future<Output = Result<usize>> + Send;
    fn kill(&self, member: usize) -> impl Future<Output = Result<()>> + Send;
    /// Starts it again and waits until it answers.
    fn start(&self, member: usize) -> impl Future<Output = Result<()>> + Send;
}

#[derive(Debug, Default)]
struct Outcome {
    gaps_ms: Vec<f64>,
    acked: u64,
    lost: u64,
}

pub async fn run() -> Result<String> {
    super::set_up("etcd")?;
    let rounds = std::env::var("ROUNDS").ok().and_then(|t| t.parse().ok()).unwrap_or(ROUNDS);
    let ours = Arc::new(ours::Ours::start().await?);
    let theirs = Arc::new(theirs::Theirs::start().await?);
    let (mut our, mut their) = (Outcome::default(), Outcome::default());
    for round in 1..=rounds {
        one_round(&ours, &mut our).await.context("timonier")?;
        one_round(&theirs, &mut their).await.context("etcd")?;
        let last = |outcome: &Outcome| outcome.gaps_ms.last().copied().unwrap_or_default();
        eprintln!("round {round}: timonier {:.0} ms, etcd {:.0} ms", last(&our), last(&their));
    }
    ours.stop().await?;
    let line = serde_json::json!({
        "name": "failover",
        "ours_gap_p50_ms": median(&our.gaps_ms).round(),
        "ours_gap_p99_ms": percentile(&our.gaps_ms, 99.0).round(),
        "etcd_gap_p50_ms": median(&their.gaps_ms).round(),
        "etcd_gap_p99_ms": percentile(&their.gaps_ms, 99.0).round(),
        "acked": our.acked,
        "lost": our.lost,
        "vs_etcd": (median(&our.gaps_ms) / median(&their.gaps_ms) * 1000.0).round() / 1000.0,
        "rounds": rounds,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
    });
    Ok(line.to_string())
}

/// What the writers of a round share.
#[derive(Default)]
struct Writing {
    stop: AtomicBool,
    acked: AtomicU64,
    struck: Mutex<Option<Struck>>,
}

/// Since the leader was killed.
struct Struck {
    at: Instant,
    acked: usize,
    resumed: Option<Duration>,
}

/// Each writer may hear of one write that was done before the kill, and of another when it asks for
/// it again; what is acknowledged after so many is new.
const OLD_ACKS_MAX: usize = 2 * WRITERS;

impl Writing {
    fn struck(&self) -> std::sync::MutexGuard<'_, Option<Struck>> {
        self.struck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self) {
        self.acked.fetch_add(1, Ordering::Relaxed);
        if let Some(struck) = self.struck().as_mut() {
            struck.acked += 1;
            if struck.acked == OLD_ACKS_MAX + 1 {
                struck.resumed = Some(struck.at.elapsed());
            }
        }
    }

    fn strike(&self) {
        *self.struck() = Some(Struck { at: Instant::now(), acked: 0, resumed: None });
    }

    fn resumed(&self) -> Option<Duration> {
        self.struck().as_ref().and_then(|struck| struck.resumed)
    }
}

async fn one_round<M: Members + 'static>(members: &Arc<M>, outcome: &mut Outcome) -> Result<()> {
    let writing = Arc::new(Writing::default());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_on(members.clone(), writing.clone(), writer));
    }
    tokio::time::sleep(STEADY).await;
    let leader = members.leader().await?;
    writing.strike();
    members.kill(leader).await?;
    let gap = until("writes to be acknowledged again", RECOVERY_DEADLINE, || async {
        writing.resumed().context("none since the leader was killed")
    })
    .await?;
    tokio::time::sleep(STEADY).await;
    outcome.gaps_ms.push(gap.as_secs_f64() * 1000.0);
    members.start(leader).await?;
    writing.stop.store(true, Ordering::Relaxed);
    outcome.acked += writing.acked.load(Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        let (writer, last) = ended.context("join a writer")??;
        let stored = members.read(writer).await?;
        if stored < last {
            eprintln!("lost: writer {writer} was acknowledged {last}, stored is {stored}");
            outcome.lost += last - stored;
        }
    }
    Ok(())
}

/// Writes growing numbers until it is told to stop; the last one that was acknowledged. One whose
/// fate is not known is sent to the next member, the same again.
async fn write_on<M: Members>(
    members: Arc<M>,
    writing: Arc<Writing>,
    writer: usize,
) -> Result<(usize, u64)> {
    let mut member = writer % MEMBERS;
    let mut last = members.read(writer).await.with_context(|| format!("read key {writer}"))?;
    while !writing.stop.load(Ordering::Relaxed) {
        let write = members.write(member, writer, last + 1);
        if let Ok(Ok(())) = tokio::time::timeout(WRITE_TIMEOUT, write).await {
            last += 1;
            writing.acknowledged();
        } else {
            member = (member + 1) % MEMBERS;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
    Ok((writer, last))
}
