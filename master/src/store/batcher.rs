//! Merges the transactions that wait into one log entry, so that they share one fsync. One entry is
//! under way at a time: while it is written, the next one's transactions wait in the queue.
//!
//! Openraft writes one entry after the other, so more of them would only be smaller.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{ClientWriteError, Fatal, RaftError};
use timonier_master_core::level::Level;
use timonier_master_core::op::{Mark, Txn};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::CommitError;
use super::log::Space;
use super::machine;
use super::raft::{Batch, Raft, Verdict, Vote, Waiting};

/// Transactions that wait to be gathered; a caller past this waits to be queued.
pub const QUEUE_MAX: usize = 4096;
/// Most transactions of one entry…
const BATCH_TXNS_MAX: usize = 1024;
/// …and bytes, though a transaction alone may have more.
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// An entry takes at most this part of a segment, so that what is under way fits the next one.
const SEGMENT_PARTS: u64 = 8;
/// The log says how much time has passed once so much has.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// At the end, what was proposed is waited for so long.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

/// A transaction that waits, with its JSON: encoding is done by each caller, at the same time.
pub struct Request {
    pub txn: Txn,
    pub encoded: Bytes,
    pub answer: oneshot::Sender<Verdict>,
    /// Its part of the queue's bytes.
    pub _room: OwnedSemaphorePermit,
}

/// Largest encoded transaction for a log of such segments, in bytes.
pub fn txn_bytes_max(segment_bytes: u64) -> u64 {
    segment_bytes / SEGMENT_PARTS
}

pub struct Batcher {
    pub raft: Raft,
    pub space: Space,
    pub requests: mpsc::Receiver<Request>,
    pub closing: CancellationToken,
    /// Set when the consensus has stopped for good.
    pub failure: watch::Sender<Option<String>>,
    /// Of one entry.
    pub bytes_max: u64,
    /// The leadership is being handed over: nothing is proposed.
    pub paused: watch::Receiver<bool>,
    pub machine: Arc<machine::Shared>,
}

/// Counts the time for the log. Between two leaders none is counted, so it is never ahead.
#[derive(Default)]
struct Counting {
    /// Of the leadership that it counts in, and what of it is in the log.
    since: Option<(Vote, Instant)>,
}

impl Counting {
    /// The time since the last mark, if there is enough of it.
    fn due(&mut self, vote: Vote, now: Instant) -> Option<Mark> {
        match &mut self.since {
            Some((counted, since)) if *counted == vote => {
                let elapsed = now.saturating_duration_since(*since);
                if elapsed < COUNT_INTERVAL {
                    return None;
                }
                let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                *since += Duration::from_millis(ms);
                Some(Mark::Elapsed(ms))
            }
            other => {
                *other = Some((vote, now));
                None
            }
        }
    }
}

#[derive(Default)]
struct Gathered {
    txns: Vec<Txn>,
    encoded: Vec<u8>,
    callers: Vec<oneshot::Sender<Verdict>>,
}

impl Gathered {
    fn add(&mut self, request: Request) {
        self.push(request.txn, &request.encoded);
        self.callers.push(request.answer);
    }

    fn push(&mut self, txn: Txn, encoded: &[u8]) {
        self.encoded.push(if self.txns.is_empty() { b'[' } else { b',' });
        self.encoded.extend_from_slice(encoded);
        self.txns.push(txn);
    }

    fn bytes(&self) -> u64 {
        self.encoded.len() as u64 + 1
    }
}

impl Batcher {
    /// Runs until `closing`; then refuses what is queued, and waits a while for what
    /// was proposed.
    pub async fn run(mut self) {
        let mut counting = Counting::default();
        // The one that did not fit the last entry.
        let mut left = None;
        loop {
            let first = match left.take() {
                Some(request) => Some(request),
                None => tokio::select! {
                    biased;
                    () = self.closing.cancelled() => None,
                    request = self.requests.recv() => request,
                },
            };
            let Some(first) = first else { break };
            let mut gathered = Gathered::default();
            gathered.add(first);
            if *self.paused.borrow() {
                let _ = self.paused.wait_for(|paused| !*paused).await;
            }
            left = self.gather(&mut gathered);
            self.mark(&mut gathered, &mut counting);
            self.propose(gathered).await;
        }
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            let _ = request.answer.send(Err(CommitError::ShuttingDown));
        }
    }

    /// Adds what is queued, up to the bounds; answers the one that did not fit.
    fn gather(&mut self, gathered: &mut Gathered) -> Option<Request> {
        let bytes_max = BATCH_BYTES_MAX.min(self.bytes_max);
        while gathered.txns.len() < BATCH_TXNS_MAX && gathered.bytes() < bytes_max {
            let request = self.requests.try_recv().ok()?;
            if request.answer.is_closed() {
                // Its caller has given up, or asked another master: it was never begun.
                continue;
            }
            if gathered.bytes() + request.encoded.len() as u64 > bytes_max {
                return Some(request);
            }
            gathered.add(request);
        }
        None
    }

    /// Adds the time that has passed, after all whose callers wait for a verdict.
    fn mark(&self, gathered: &mut Gathered, counting: &mut Counting) {
        let vote = self.raft.metrics().borrow().vote;
        let Some(mark) = counting.due(vote, Instant::now()) else { return };
        if self.machine.snapshot().level < Level::TIMED_IDS {
            return;
        }
        let txn = Txn::marking(mark);
        if let Ok(encoded) = serde_json::to_vec(&txn) {
            gathered.push(txn, &encoded);
        }
    }

    /// Returns when the entry is applied, or will not be by this master.
    async fn propose(&self, mut gathered: Gathered) {
        gathered.encoded.push(b']');
        let waiting = Arc::new(Waiting::new(gathered.callers));
        let _promise = match self.space.promise(gathered.encoded.len()).await {
            Ok(promise) => promise,
            Err(why) => return waiting.refuse(&CommitError::StorageFailure(why)),
        };
        let batch = Batch {
            txns: gathered.txns.into(),
            encoded: Bytes::from(gathered.encoded),
            waiting: Some(waiting.clone()),
        };
        // The state machine answers the callers; what is left are the entries that never get there.
        let proposed = tokio::select! {
            proposed = self.raft.client_write(batch) => proposed,
            // Without a majority it never comes to an end.
            () = self.closed_for(CLOSING_PATIENCE) => {
                return waiting.refuse(&CommitError::ShuttingDown);
            }
        };
        match proposed {
            Ok(_) => {}
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                waiting.refuse(&CommitError::NotLeader { leader: forward.leader_id });
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                waiting.refuse(&CommitError::StorageFailure(error.to_string()));
            }
            Err(RaftError::Fatal(fatal)) => waiting.refuse(&stopped(&fatal, &self.failure)),
        }
    }

    async fn closed_for(&self, time: Duration) {
        self.closing.cancelled().await;
        tokio::time::sleep(time).await;
    }
}

/// The consensus has stopped: because it was told to, or for good.
fn stopped(fatal: &Fatal<u64>, failure: &watch::Sender<Option<String>>) -> CommitError {
    if let Some(why) = &*failure.borrow() {
        return CommitError::StorageFailure(why.clone());
    }
    match fatal {
        Fatal::Stopped => CommitError::ShuttingDown,
        fatal => CommitError::StorageFailure(failure_text(fatal)),
    }
}

/// For people: what to do when the consensus has stopped for good.
pub fn failure_text(fatal: &Fatal<u64>) -> String {
    format!(
        "the store has stopped: {fatal}; hint: see that the disk is in order and start the master \
         again: nothing acknowledged is lost"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counting: &mut Counting, vote: Vote, now: Instant) -> Option<u64> {
        counting.due(vote, now).map(|mark| match mark {
            Mark::Elapsed(ms) => ms,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn time_is_counted_in_whole_milliseconds_and_none_is_lost() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let (leader, mut counting) = (Vote::new(3, 1), Counting::default());
        assert_eq!(counted(&mut counting, leader, at(0)), None);
        assert_eq!(counted(&mut counting, leader, at(999_999)), None);
        assert_eq!(counted(&mut counting, leader, at(1_500_700)), Some(1500));
        // From where the last mark ended, not from when it was made.
        assert_eq!(counted(&mut counting, leader, at(2_499_900)), None);
        assert_eq!(counted(&mut counting, leader, at(61_500_100)), Some(60_000));
    }

    #[test]
    fn between_two_leaders_no_time_is_counted() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (leader, mut counting) = (Vote::new(3, 1), Counting::default());
        assert_eq!(counted(&mut counting, leader, at(0)), None);
        assert_eq!(counted(&mut counting, leader, at(5)), Some(5000));
        // Another leader counted until this one leads again, in a later term.
        let again = Vote::new(5, 1);
        assert_eq!(counted(&mut counting, again, at(100)), None);
        assert_eq!(counted(&mut counting, again, at(102)), Some(2000));
    }
}
