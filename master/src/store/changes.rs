//! The ring of the last changes, from which watches resume.
//!
//! There are no queues per watcher: each holds the revision it has seen and reads on from there, so
//! a slow one costs nothing and finds out itself when what it needs is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timonier_master_core::op::Change;
use tokio::sync::watch;

/// Most changes that are remembered.
const CHANGES_MAX: usize = 16_384;
/// Most bytes that the remembered changes may take, counted as their transactions' encoded size.
const CHANGES_BYTES_MAX: usize = 16 << 20;
/// Most changes that one call of [`Changes::next_batch`] answers.
const BATCH_MAX: usize = 1024;

/// The changes after a revision are no longer remembered: list again and go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "revision {from} is too old: changes up to {compacted} are no longer remembered; hint: list \
     again and watch from the list's revision"
)]
pub struct Compacted {
    pub from: u64,
    /// Changes up to this revision are gone.
    pub compacted: u64,
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangesError {
    #[error(transparent)]
    Compacted(#[from] Compacted),
    #[error("the store is shutting down")]
    Closed,
}

#[derive(Debug)]
struct State {
    /// One revision each, without gaps.
    changes: VecDeque<(Arc<Change>, usize)>,
    bytes: usize,
    /// Changes up to this revision are gone (or lie before the ring's beginning).
    compacted: u64,
}

impl State {
    fn last(&self) -> u64 {
        self.compacted + self.changes.len() as u64
    }
}

/// The writer's side.
#[derive(Debug)]
pub(super) struct Ring {
    state: Arc<Mutex<State>>,
    /// The last revision that watchers may see; [`CLOSED`] when the store is closed.
    last: watch::Sender<u64>,
}

const CLOSED: u64 = u64::MAX;

impl Ring {
    /// Begins after `revision`.
    pub fn new(revision: u64) -> Self {
        let state = State { changes: VecDeque::new(), bytes: 0, compacted: revision };
        Self { state: Arc::new(Mutex::new(state)), last: watch::Sender::new(revision) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one transaction's changes, which took `bytes` in the log. Watchers see them after
    /// [`Self::publish`].
    pub fn add(&self, changes: Vec<Change>, bytes: usize) {
        let share = bytes / changes.len().max(1);
        let mut state = self.lock();
        for change in changes {
            debug_assert_eq!(change.revision, state.last() + 1, "revisions have no gaps");
            state.bytes += share;
            state.changes.push_back((Arc::new(change), share));
        }
        while state.changes.len() > CHANGES_MAX
            || (state.bytes > CHANGES_BYTES_MAX && state.changes.len() > 1)
        {
            if let Some((_, share)) = state.changes.pop_front() {
                state.bytes -= share;
                state.compacted += 1;
            }
        }
    }

    /// Wakes the watchers. Called once the state that readers see has the changes in it.
    pub fn publish(&self) {
        let last = self.lock().last();
        self.last.send_if_modified(|seen| *seen != CLOSED && std::mem::replace(seen, last) != last);
    }

    /// Ends every watch.
    pub fn close(&self) {
        self.last.send_replace(CLOSED);
    }

    /// Forgets everything and begins again after `revision`: a snapshot was installed.
    pub fn restart(&self, revision: u64) {
        *self.lock() = State { changes: VecDeque::new(), bytes: 0, compacted: revision };
        self.last.send_replace(revision);
    }

    pub fn subscribe(&self, from: u64) -> Result<Changes, Compacted> {
        let compacted = self.lock().compacted;
        if from < compacted {
            return Err(Compacted { from, compacted });
        }
        Ok(Changes { state: self.state.clone(), last: self.last.subscribe(), seen: from })
    }

    /// Returns when watchers may see this revision; false when the store is closed before.
    pub async fn reached(&self, revision: u64) -> bool {
        let mut last = self.last.subscribe();
        last.wait_for(|last| *last >= revision).await.is_ok_and(|last| *last != CLOSED)
    }

    /// The last revision that watchers may see.
    pub fn last(&self) -> u64 {
        (*self.last.borrow()).min(self.lock().last())
    }
}

/// A watcher's place in the ring.
#[derive(Debug)]
pub struct Changes {
    state: Arc<Mutex<State>>,
    last: watch::Receiver<u64>,
    seen: u64,
}

impl Changes {
    /// The revision up to which changes were handed out; resume from here.
    pub fn revision(&self) -> u64 {
        self.seen
    }

    /// The next change, in order of revision. Safe to cancel.
    pub async fn next(&mut self) -> Result<Arc<Change>, ChangesError> {
        let mut batch = self.next_up_to(1).await?;
        Ok(batch.swap_remove(0))
    }

    /// The next changes, at least one, bounded. Safe to cancel. After an error the watcher must
    /// list again.
    pub async fn next_batch(&mut self) -> Result<Vec<Arc<Change>>, ChangesError> {
        self.next_up_to(BATCH_MAX).await
    }

    /// What is there already; empty when the watcher has seen everything.
    pub fn try_next_batch(&mut self) -> Result<Vec<Arc<Change>>, ChangesError> {
        let last = *self.last.borrow_and_update();
        self.take(last, BATCH_MAX)
    }

    async fn next_up_to(&mut self, count_max: usize) -> Result<Vec<Arc<Change>>, ChangesError> {
        loop {
            let last = *self.last.borrow_and_update();
            let batch = self.take(last, count_max)?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            if last == CLOSED {
                return Err(ChangesError::Closed);
            }
            self.last.changed().await.map_err(|_| ChangesError::Closed)?;
        }
    }

    fn take(&mut self, last: u64, count_max: usize) -> Result<Vec<Arc<Change>>, ChangesError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.seen < state.compacted {
            return Err(Compacted { from: self.seen, compacted: state.compacted }.into());
        }
        let skip = usize::try_from(self.seen - state.compacted).unwrap_or(usize::MAX);
        let ready = usize::try_from(last.saturating_sub(self.seen)).unwrap_or(usize::MAX);
        let batch: Vec<_> = state
            .changes
            .iter()
            .skip(skip)
            .take(ready.min(count_max))
            .map(|(change, _)| change.clone())
            .collect();
        self.seen += batch.len() as u64;
        Ok(batch)
    }
}
