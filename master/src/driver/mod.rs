//! The one loop that runs every reconciler, on the leader only: it hands each key that may have
//! changed to its reconciler, checks the plan that comes back, stamps it and writes it.
//!
//! It decides nothing itself, and it knows no kind. A key is looked at again after its plan is
//! written, with a snapshot that has the plan in it, until there is nothing left to do.

mod bootstrap;
mod clock;
mod queue;
mod roles;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use timonier_master_core::invariants;
use timonier_master_core::op::{Change, Txn};
use timonier_master_core::reconcile::{Reconciler, all};
use timonier_master_core::world::{Plan, Settings, Telemetry, World};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use self::bootstrap::NAMESPACES;
use self::clock::Clock;
use self::queue::{Item, Queue};
use crate::stamp::stamp;
use crate::store::{Changes, ChangesError, CommitError, Committed, Store};

/// Plans that may be being written at the same time.
const COMMITS_MAX: usize = 64;
/// Keys that are looked at with one snapshot.
const KEYS_PER_TURN_MAX: usize = 64;
/// Everything is looked at again this often, for what no change told of.
const RESYNC_INTERVAL: Duration = Duration::from_secs(300);
/// The agents' signals wake the loops at most this often.
const SIGNALS_INTERVAL: Duration = Duration::from_millis(100);
/// A look that was asked for later than this comes at this time: a timer is never lost for long.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(3600);
/// A key that wrote so many plans in a row without coming to rest is looked at less often: in a
/// burst that makes fewer writes of many, and a loop that never rests does little harm.
const STREAK_MAX: u32 = 100;
/// Pause between two plans of such a key.
const STREAK_PAUSE: Duration = Duration::from_millis(50);
/// So many in a row are no burst any more.
const STREAK_SUSPICIOUS: u32 = 1_000;
/// Pause of a key whose plan broke a rule.
const PENALTY: Duration = Duration::from_secs(5);
/// Pause before a leadership that could not begin is tried again.
const START_RETRY: Duration = Duration::from_millis(500);

/// Where the driver learns what the agents last said; the telemetry hub implements it.
pub trait Signals: Clone + Send + Sync + 'static {
    /// The soft state as it is now, with its times as on a clock that shows `now`.
    fn signals(&self, now: Timestamp) -> Arc<Telemetry>;

    /// Resolves when an agent connected, disconnected, or became able or unable to run pods since
    /// the last call. May resolve too often.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// This master leads from now on: agents are given time before they count as lost.
    fn lead(&self) {}
}

/// Runs until `shutdown`; works while this master leads.
pub async fn run<S: Signals>(
    store: Store,
    signals: S,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let mut leadership = store.leadership();
    loop {
        let leads = tokio::select! {
            () = shutdown.cancelled() => return,
            leads = leadership.wait_for(|leads| *leads) => leads.is_ok(),
        };
        if !leads {
            return;
        }
        info!("this master leads: running the control loops");
        signals.lead();
        let mut driver = Driver::new(store.clone(), signals.clone(), settings.clone());
        let lost = async { leadership.wait_for(|leads| !*leads).await.map(drop) };
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = lost => info!("this master no longer leads: control loops stopped"),
            ended = driver.lead() => match ended {
                Ended::Closed => return,
                Ended::Retry => tokio::time::sleep(START_RETRY).await,
                Ended::ClockSet(by) => warn!(
                    "this master's clock was set by {} ms: the control loops begin anew",
                    by.as_millis()
                ),
            },
        }
    }
}

/// Why a leadership ended by itself.
enum Ended {
    /// The store is shutting down.
    Closed,
    /// Not the leader after all, or the start failed.
    Retry,
    /// Times that were written down before mean something else now.
    ClockSet(SignedDuration),
}

type Written = (Item, Result<Committed, CommitError>);

struct Driver<S> {
    clock: Clock,
    store: Store,
    signals: S,
    settings: Settings,
    loops: Vec<Box<dyn Reconciler>>,
    queue: Queue,
    commits: FuturesUnordered<Pin<Box<dyn Future<Output = Written> + Send>>>,
    telemetry: Arc<Telemetry>,
    /// When the loops that follow signals are to be woken.
    signals_due: Option<Instant>,
    signals_seen: Instant,
}

impl<S: Signals> Driver<S> {
    fn new(store: Store, signals: S, settings: Settings) -> Self {
        let clock = Clock::begin();
        let telemetry = signals.signals(clock.now());
        Self {
            clock,
            store,
            signals,
            settings,
            loops: all(),
            queue: Queue::default(),
            commits: FuturesUnordered::new(),
            telemetry,
            signals_due: None,
            signals_seen: Instant::now(),
        }
    }

    async fn lead(&mut self) -> Ended {
        // What the leader before this one wrote may be in the log only: a plan that does not know of
        // it would do the same again.
        if let Err(error) = self.store.linearize().await {
            debug!("wait for what was written before: {error}");
            return Ended::Retry;
        }
        if let Err(error) = bootstrap::ensure_namespaces(&self.store).await {
            warn!("create the first namespaces: {error}");
            return Ended::Retry;
        }
        if let Err(error) = roles::ensure(&self.store).await {
            warn!("create the default roles: {error}");
            return Ended::Retry;
        }
        let Ok(mut changes) = self.store.changes(None) else { return Ended::Retry };
        self.resync();
        let mut resync = tokio::time::interval(RESYNC_INTERVAL);
        resync.tick().await;
        let signals = self.signals.clone();
        let mut signalled = Box::pin(signals.changed());
        loop {
            if let Some(by) = self.clock.was_set() {
                return Ended::ClockSet(by);
            }
            self.take_turn();
            // Looks at what is there without waiting, between two turns of a long line.
            let pause = if self.can_go_on() { Some(Instant::now()) } else { self.next_due() };
            let wake = tokio::time::sleep_until(pause.unwrap_or_else(far_away).into());
            tokio::select! {
                batch = changes.next_batch() => match self.take_changes(batch, &mut changes) {
                    Ok(()) => {}
                    Err(ended) => return ended,
                },
                Some(written) = self.commits.next(), if !self.commits.is_empty() => {
                    if let Err(ended) = self.settle(written) {
                        return ended;
                    }
                }
                () = &mut signalled => {
                    signalled = Box::pin(signals.changed());
                    self.signals_due.get_or_insert(self.signals_seen + SIGNALS_INTERVAL);
                }
                _ = resync.tick() => self.resync(),
                () = wake => {}
            }
            self.wake_due();
        }
    }

    fn can_go_on(&self) -> bool {
        !self.queue.is_empty() && self.commits.len() < COMMITS_MAX
    }

    fn next_due(&self) -> Option<Instant> {
        [self.queue.next_due(), self.signals_due].into_iter().flatten().min()
    }

    fn wake_due(&mut self) {
        let now = Instant::now();
        self.queue.wake(now);
        if self.signals_due.is_some_and(|due| due <= now) {
            self.signals_due = None;
            self.signals_seen = now;
            self.push_all(|of| of.follows_signals());
        }
    }

    fn resync(&mut self) {
        self.push_all(|_| true);
    }

    fn push_all(&mut self, which: impl Fn(&dyn Reconciler) -> bool) {
        let snapshot = self.store.snapshot();
        for (of, reconciler) in self.loops.iter().enumerate() {
            if which(reconciler.as_ref()) {
                for key in reconciler.all_keys(&snapshot) {
                    self.queue.push(Item { of, key });
                }
            }
        }
    }

    fn take_changes(
        &mut self,
        batch: Result<Vec<Arc<Change>>, ChangesError>,
        changes: &mut Changes,
    ) -> Result<(), Ended> {
        match batch {
            Ok(batch) => {
                let snapshot = self.store.snapshot();
                for change in batch {
                    for (of, reconciler) in self.loops.iter().enumerate() {
                        for key in reconciler.keys(&change, &snapshot) {
                            self.queue.push(Item { of, key });
                        }
                    }
                }
                Ok(())
            }
            Err(ChangesError::Compacted(compacted)) => {
                warn!("the control loops fell behind ({compacted}); looking at everything again");
                *changes = self.store.changes(None).map_err(|_| Ended::Retry)?;
                self.resync();
                Ok(())
            }
            Err(ChangesError::Closed) => Err(Ended::Closed),
        }
    }

    /// Looks at some of the keys in line, and begins to write what is to be written.
    fn take_turn(&mut self) {
        let room = COMMITS_MAX.saturating_sub(self.commits.len()).min(KEYS_PER_TURN_MAX);
        let items: Vec<Item> = std::iter::from_fn(|| self.queue.pop()).take(room).collect();
        if items.is_empty() {
            return;
        }
        let now = self.clock.now();
        if items.iter().any(|item| self.loops[item.of].reads_telemetry()) {
            self.telemetry = self.signals.signals(now);
        }
        let mut world = World {
            snapshot: self.store.snapshot(),
            now,
            telemetry: self.telemetry.clone(),
            settings: self.settings.clone(),
            seed: 0,
        };
        for item in items {
            world.seed = fastrand::u64(..);
            self.look(&world, item);
        }
    }

    fn look(&mut self, world: &World, item: Item) {
        let reconciler = &self.loops[item.of];
        let name = reconciler.name();
        // A bug in one loop must not stop the others.
        let plan = catch_unwind(AssertUnwindSafe(|| reconciler.reconcile(world, &item.key)));
        let Ok(plan) = plan else {
            error!("the {name} loop panicked at {}; trying again later", item.key);
            self.queue.rest(&item, Some(Instant::now() + PENALTY));
            return;
        };
        let due = plan.again_at.map(|at| instant_of(at, world.now));
        if plan.ops.is_empty() {
            self.queue.rest(&item, due);
            return;
        }
        if let Err(violation) = invariants::check(world, &plan) {
            error!("the {name} loop's plan for {} breaks a rule: {violation}: {plan:?}", item.key);
            self.queue.rest(&item, Some(Instant::now() + PENALTY));
            return;
        }
        debug!("{name} {}: {} operations", item.key, plan.ops.len());
        self.write(item, plan, world.now);
    }

    fn write(&mut self, item: Item, plan: Plan, now: Timestamp) {
        self.queue.busy(&item);
        let ops = plan.ops.into_iter().map(|op| stamp(op, now)).collect();
        let txn = Txn { preconditions: plan.preconditions, ..Txn::of(ops) };
        let store = self.store.clone();
        self.commits.push(Box::pin(async move {
            let result = store.commit_leading(txn).await;
            (item, result)
        }));
    }

    fn settle(&mut self, (item, result): Written) -> Result<(), Ended> {
        let name = self.loops[item.of].name();
        let now = Instant::now();
        match result {
            Ok(_) => {
                let streak = self.queue.written(&item);
                if streak > STREAK_MAX {
                    self.queue.slow_down(&item, now + STREAK_PAUSE);
                }
                if streak == STREAK_SUSPICIOUS {
                    warn!("the {name} loop does not come to rest at {}", item.key);
                }
                Ok(())
            }
            Err(CommitError::Rejected(rejection)) => {
                debug!("{name} {}: {rejection}; looking again", item.key);
                self.queue.failed(&item, true, now, fastrand::f64());
                Ok(())
            }
            Err(CommitError::ShuttingDown) => Err(Ended::Closed),
            Err(CommitError::NotLeader { .. } | CommitError::NoLeader(_)) => Err(Ended::Retry),
            Err(error @ (CommitError::StorageFailure(_) | CommitError::Timeout(_))) => {
                let pause = self.queue.failed(&item, false, now, fastrand::f64());
                warn!("{name} {}: {error}; trying again in {} ms", item.key, pause.as_millis());
                Ok(())
            }
        }
    }
}

fn far_away() -> Instant {
    Instant::now() + LOOK_AGAIN_MAX
}

fn instant_of(at: Timestamp, now: Timestamp) -> Instant {
    let wait = Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO);
    // Rounded up, so that it is really past `at` then.
    Instant::now() + (wait + Duration::from_millis(1)).min(LOOK_AGAIN_MAX)
}
