//! The latest status of each pod on its way to a master.
//!
//! Statuses of one pod replace each other, so the board is never larger than the pods it tells
//! of. What was taken counts as told only when a master has stored it; after a reconnect all of it
//! is told again, since nobody knows what arrived.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use timonier_proto::v1::PodStatusUpdate;
use tokio::sync::Notify;

/// A number for what [`StatusBoard::take`] gave, to acknowledge it with.
pub type Batch = u64;

/// Shared by the pods' tasks and the session.
#[derive(Debug, Default)]
pub struct StatusBoard {
    inner: Mutex<Inner>,
    dirty: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// By uid.
    latest: HashMap<String, PodStatusUpdate>,
    /// Uids to tell, in the order in which they changed.
    queue: VecDeque<String>,
    queued: HashSet<String>,
    /// Uids told and not acknowledged, by batch.
    in_flight: HashMap<Batch, BTreeSet<String>>,
    next_batch: Batch,
}

impl Inner {
    fn enqueue(&mut self, uid: &str) {
        if self.queued.insert(uid.to_owned()) {
            self.queue.push_back(uid.to_owned());
        }
    }
}

impl StatusBoard {
    /// Waits until [`Self::take`] has something to give.
    pub async fn dirty(&self) {
        loop {
            let notified = self.dirty.notified();
            if !self.lock().queue.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Up to `max` statuses that no master has stored yet, oldest change first; empty when there
    /// are none.
    pub fn take(&self, max: usize) -> (Batch, Vec<PodStatusUpdate>) {
        let mut inner = self.lock();
        inner.next_batch += 1;
        let batch = inner.next_batch;
        let mut updates = Vec::new();
        let mut uids = BTreeSet::new();
        while updates.len() < max {
            let Some(uid) = inner.queue.pop_front() else { break };
            inner.queued.remove(&uid);
            if let Some(update) = inner.latest.get(&uid) {
                updates.push(update.clone());
                uids.insert(uid);
            }
        }
        if !updates.is_empty() {
            inner.in_flight.insert(batch, uids);
        }
        (batch, updates)
    }

    /// The master has stored that batch: pods that are gone are forgotten.
    pub fn stored(&self, batch: Batch) {
        let mut inner = self.lock();
        for uid in inner.in_flight.remove(&batch).unwrap_or_default() {
            let gone = inner.latest.get(&uid).is_some_and(|update| update.terminated);
            if gone && !inner.queued.contains(&uid) {
                inner.latest.remove(&uid);
            }
        }
    }

    /// Tells every pod's status again: a new session has begun.
    pub fn requeue_all(&self) {
        let mut inner = self.lock();
        inner.in_flight.clear();
        let mut uids: Vec<String> = inner.latest.keys().cloned().collect();
        uids.sort_unstable();
        for uid in uids {
            inner.enqueue(&uid);
        }
        drop(inner);
        self.dirty.notify_waiters();
    }

    /// Posts a pod's status; the same as before is not told again.
    pub(super) fn post(&self, update: PodStatusUpdate) {
        let mut inner = self.lock();
        if inner.latest.get(&update.uid) == Some(&update) {
            return;
        }
        inner.enqueue(&update.uid);
        inner.latest.insert(update.uid.clone(), update);
        drop(inner);
        self.dirty.notify_waiters();
    }

    /// Drops a pod that the master itself has forgotten.
    pub(super) fn forget(&self, uid: &str) {
        let mut inner = self.lock();
        inner.latest.remove(uid);
        if inner.queued.remove(uid) {
            inner.queue.retain(|queued| queued != uid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete in itself.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(uid: &str, text: &str) -> PodStatusUpdate {
        PodStatusUpdate {
            uid: uid.into(),
            status_json: text.to_owned().into(),
            ..Default::default()
        }
    }

    fn uids(updates: &[PodStatusUpdate]) -> Vec<&str> {
        updates.iter().map(|u| u.uid.as_str()).collect()
    }

    #[test]
    fn statuses_of_a_pod_replace_each_other_and_keep_their_turn() {
        let board = StatusBoard::default();
        for (uid, text) in [("a", "1"), ("b", "1"), ("a", "2")] {
            board.post(update(uid, text));
        }
        let (_, taken) = board.take(10);
        assert_eq!(taken, [update("a", "2"), update("b", "1")]);
        assert!(board.take(10).1.is_empty());
        board.post(update("a", "2"));
        assert!(board.take(10).1.is_empty(), "nothing new was said");
    }

    #[test]
    fn all_is_told_again_after_a_reconnect_until_the_gone_are_acknowledged() {
        let board = StatusBoard::default();
        board.post(update("a", "1"));
        board.post(PodStatusUpdate { terminated: true, ..update("b", "1") });
        let (lost, taken) = board.take(10);
        assert_eq!(taken.len(), 2);
        board.requeue_all();
        board.stored(lost);
        let (batch, taken) = board.take(1);
        assert_eq!(uids(&taken), ["a"]);
        let (second, taken) = board.take(1);
        assert_eq!(uids(&taken), ["b"]);
        board.stored(batch);
        board.stored(second);
        board.requeue_all();
        assert_eq!(uids(&board.take(10).1), ["a"]);
    }

    #[tokio::test]
    async fn dirty_waits_for_news() {
        let board = StatusBoard::default();
        let mut waiting = std::pin::pin!(board.dirty());
        assert!(futures::poll!(&mut waiting).is_pending());
        board.post(update("a", "1"));
        waiting.await;
    }
}
