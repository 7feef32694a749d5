//! The lease under which this node may run pods that must be unique.
//!
//! A master renews it by answering heartbeats. It counts from when the heartbeat was *sent*, on a
//! clock that goes on while the host sleeps, so whatever held the answer up shortens it. Where it
//! stands is in a small file, for an agent that starts and for the watchdog: a process of its own
//! that kills those pods when the agent is not there, or frozen.
//!
//! Nothing here stops a pod but the watchdog; the pods' supervisor follows the lease.

mod file;
mod watchdog;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timonier_proto::unique::FENCE_AFTER_MS_DEFAULT;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub use file::LEASE_FILE;
use file::Record;
pub use watchdog::{LOCK_FILE as WATCHDOG_LOCK_FILE, Watchdog, run as run_watchdog};

/// How often it is looked at whether the lease has run out: timers stand still while a host sleeps.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Heartbeats whose answer may still come.
const BEATS_MAX: usize = 64;

/// Milliseconds since the host started, sleep included.
pub(crate) fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or_default()
}

/// Counts milliseconds.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// Clones are the same lease.
#[derive(Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    /// Where it is written down, and who watches it; `None` in tests.
    kept: Option<Kept>,
    state: Mutex<State>,
    /// Counts renewals.
    renewed: watch::Sender<u64>,
    wanted: watch::Sender<bool>,
}

struct Kept {
    file: file::LeaseFile,
    watchdog: Watchdog,
}

#[derive(Debug)]
struct State {
    /// 0: there is no fencing.
    fence_after_ms: u64,
    /// When the beat was sent that was answered last.
    renewed_ms: Option<u64>,
    /// Beats of this session, with when each was sent; oldest first.
    sent: std::collections::VecDeque<(u64, u64)>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("state", &*self.lock()).finish_non_exhaustive()
    }
}

impl Lease {
    /// The lease as the agent before this one left it.
    pub fn open(data_dir: &Path, boot_id: &str, watchdog: Watchdog) -> Self {
        let file = file::LeaseFile::new(data_dir, boot_id);
        let record = file.read();
        let state = State {
            fence_after_ms: record
                .as_ref()
                .map_or(FENCE_AFTER_MS_DEFAULT.into(), |record| record.fence_after_ms),
            renewed_ms: record.map(|record| record.renewed_ms),
            sent: std::collections::VecDeque::new(),
        };
        Self::with(Box::new(boot_ms), Some(Kept { file, watchdog }), state)
    }

    /// One that never runs out, for tests and tools without a master.
    pub fn always() -> Self {
        Self::with(Box::new(boot_ms), None, State::new(0))
    }

    /// One that is kept nowhere, on a clock of the caller's that counts milliseconds: for tests and
    /// simulations.
    pub fn on_clock(clock: Clock, fence_after_ms: u64) -> Self {
        Self::with(clock, None, State::new(fence_after_ms))
    }

    fn with(clock: Clock, kept: Option<Kept>, state: State) -> Self {
        let inner = Inner {
            clock,
            kept,
            state: Mutex::new(state),
            renewed: watch::Sender::new(0),
            wanted: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether unique pods may run now.
    pub fn is_valid(&self) -> bool {
        self.lock().is_valid((self.inner.clock)())
    }

    /// Waits until it is valid, or until it is not.
    pub async fn until(&self, valid: bool) {
        let mut renewed = self.inner.renewed.subscribe();
        while self.is_valid() != valid {
            // A renewal, or some time, may have changed it; the sender lives as long as this.
            let _ = timeout(LOOK_INTERVAL, renewed.changed()).await;
        }
    }

    /// Whether this node has pods that need it. Where it has none any more, the file and the
    /// watchdog go.
    pub fn want(&self, wanted: bool) {
        let changed = self.inner.wanted.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
        if changed && !wanted {
            let mut state = self.lock();
            state.renewed_ms = None;
            if let Some(kept) = &self.inner.kept {
                kept.file.remove();
            }
        }
    }

    pub fn is_wanted(&self) -> bool {
        *self.inner.wanted.borrow()
    }

    /// Waits until pods begin to need it.
    pub async fn needed(&self) {
        let mut wanted = self.inner.wanted.subscribe();
        wanted.borrow_and_update();
        loop {
            // The sender lives as long as this.
            let _ = wanted.changed().await;
            if *wanted.borrow_and_update() {
                return;
            }
        }
    }

    /// For how many milliseconds the one that this node holds is taken to last; 0 where it holds none.
    pub fn held_ms(&self) -> u32 {
        let state = self.lock();
        let held = state.renewed_ms.map_or(0, |_| state.fence_after_ms);
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// A session has begun, with a master that wants pods fenced after so long (0: not at all).
    pub fn begin_session(&self, fence_after_ms: u32) {
        let mut state = self.lock();
        state.sent.clear();
        state.fence_after_ms = fence_after_ms.into();
    }

    /// The beat of that sequence is about to be sent.
    pub fn beat(&self, sequence: u64) {
        let now = (self.inner.clock)();
        let mut state = self.lock();
        state.sent.push_back((sequence, now));
        while state.sent.len() > BEATS_MAX {
            state.sent.pop_front();
        }
    }

    /// A master has answered that beat.
    pub fn granted(&self, sequence: u64) {
        let mut state = self.lock();
        let sent = state.sent.iter().find(|(of, _)| *of == sequence).map(|(_, at)| *at);
        let Some(at) = sent.filter(|at| state.renewed_ms.is_none_or(|last| last < *at)) else {
            return;
        };
        if !self.is_wanted() {
            return;
        }
        // Written down and watched before it counts.
        if let Some(kept) = &self.inner.kept {
            let record = Record { renewed_ms: at, fence_after_ms: state.fence_after_ms };
            let kept = kept.file.write(&record).and_then(|()| kept.watchdog.ensure());
            if let Err(error) = kept {
                tracing::error!(error, "the lease of unique pods cannot be kept: they are not run");
                return;
            }
        }
        state.renewed_ms = Some(at);
        drop(state);
        self.inner.renewed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete in itself.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(fence_after_ms: u64) -> Self {
        Self { fence_after_ms, renewed_ms: None, sent: std::collections::VecDeque::new() }
    }

    fn is_valid(&self, now_ms: u64) -> bool {
        self.fence_after_ms == 0
            || self.renewed_ms.is_some_and(|at| now_ms.saturating_sub(at) < self.fence_after_ms)
    }
}

/// Pause between two looks of the watchdog.
pub(crate) async fn pause() {
    sleep(LOOK_INTERVAL).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_from_when_its_beat_was_sent() {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let clock = now.clone();
        let lease = Lease::on_clock(Box::new(move || clock.load(Ordering::SeqCst)), 10_000);
        lease.want(true);
        assert!(!lease.is_valid());
        lease.beat(1);
        now.fetch_add(4_000, Ordering::SeqCst);
        lease.beat(2);
        lease.granted(7);
        assert!(!lease.is_valid(), "an answer to no beat of this session");
        assert_eq!(lease.held_ms(), 0);
        lease.granted(1);
        lease.until(true).await;
        assert_eq!(lease.held_ms(), 10_000);
        now.fetch_add(5_999, Ordering::SeqCst);
        assert!(lease.is_valid());
        now.fetch_add(1, Ordering::SeqCst);
        lease.until(false).await;
        lease.granted(2);
        assert!(lease.is_valid());
        lease.granted(1);
        assert!(lease.is_valid(), "an older answer takes nothing away");
        lease.want(false);
        assert!(!lease.is_valid());
    }

    #[test]
    fn an_agent_that_starts_goes_on_with_the_lease_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot| Lease::open(dir.path(), boot, Watchdog::none());
        let lease = open("b1");
        assert!(!lease.is_valid());
        lease.want(true);
        lease.begin_session(60_000);
        lease.beat(1);
        lease.granted(1);
        assert!(lease.is_valid());
        assert!(open("b1").is_valid());
        assert!(!open("b2").is_valid(), "the host has started anew: its clock too");
        let lease = open("b1");
        lease.want(true);
        lease.want(false);
        assert!(!open("b1").is_valid());
    }
}
