//! What must hold whatever happens, in one list. Each failure begins with its number.
//!
//! 1. No acknowledged write is lost.
//! 2. The history of each register is linearizable.
//! 3. At most one master leads in a term. To the consensus a term is a number and the candidate that
//!    began it: who says that it leads, and who sends as the leader, is that candidate. Each master's
//!    term, leader and vote only go forward, restarts included, so that no master helps two to lead in
//!    one term.
//! 4. All masters have the same state at the same revision.
//! 5. When the faults end, the cluster converges: one leader, all masters at the same revision, every
//!    node ready, the highest level that every master knows, the deployment as it was written last, and
//!    nothing else running.
//! 6. A pod runs on one node only.
//! 7. A pod's phase never goes back.
//! 8. A deployment's sets never come to ask for more pods than its surge allows, it never gets more than
//!    they ask for (they follow a deployment that is scaled down a moment later), and no control loop's
//!    plan breaks the product's own rules (surge, unavailability, bindings).
//! 9. Of pods that must be unique, never two run.
//! 10. A rolling update takes no available pod that `maxUnavailable` keeps it from taking, as far as
//!     whoever decided it could know; `availability` says exactly.
//! 11. A log id stands for one entry, an index is committed with one log id, and every later leader has
//!     that entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use timonier_master::store::Store;
use timonier_master_core::snapshot::Snapshot;

use crate::availability::{Availability, History};
use crate::consensus::Consensus;
use crate::engine::Engine;
use crate::linear::{self, Operation};
use crate::rollouts::{self, PodObserver};
use crate::workload::{Door, Record, key};

/// All who watch a run.
#[derive(Default)]
pub struct Observers {
    pub terms: TermObserver,
    pods: PodObserver,
    pub consensus: Consensus,
    history: History,
    pub availability: Availability,
}

impl Observers {
    /// Looks at all that is there now. Doors are by host.
    pub fn look(&mut self, doors: &[Door], engines: &[Engine]) -> Result<(), String> {
        for (host, door) in doors.iter().enumerate() {
            let Some(store) = door.store() else { continue };
            self.terms.observe(&store)?;
            self.pods.observe(host, &store)?;
            for change in self.history.next(&store) {
                self.availability.take(&change)?;
            }
        }
        self.consensus.check()?;
        rollouts::check_nodes(engines)
    }

    /// Whether no change was missed up to what this master has.
    pub fn saw_all(&self, store: &Store) -> bool {
        self.history.revision == store.snapshot().revision
    }
}

/// What the masters said of their terms so far.
#[derive(Default)]
pub struct TermObserver {
    /// By master: the number of the term, and who leads in it as far as the master knows.
    terms_of: BTreeMap<u64, (u64, Option<u64>)>,
    terms: BTreeSet<(u64, u64)>,
}

impl TermObserver {
    /// Looks at one master.
    pub fn observe(&mut self, store: &Store) -> Result<(), String> {
        let status = store.status();
        if status.leader {
            if status.leader_id != Some(status.id) {
                let (id, other) = (status.id, status.leader_id);
                return Err(format!("[3] master {id} leads in a term of {other:?}"));
            }
            self.terms.insert((status.term, status.id));
        }
        let seen = (status.term, status.leader_id);
        let before = self.terms_of.insert(status.id, seen).unwrap_or_default();
        let leaderless = seen.1.is_none() && seen.0 == before.0;
        if leaderless {
            // One that comes back, or that has lost its majority, may not know who leads.
            self.terms_of.insert(status.id, before);
        }
        if leaderless || seen >= before {
            return Ok(());
        }
        Err(format!("[3] master {} went from {before:?} back to {seen:?}", status.id))
    }

    /// In which somebody led.
    pub fn count(&self) -> usize {
        self.terms.len()
    }
}

/// After the cluster has converged.
pub fn check_end(stores: &[Store], record: &Record) -> Result<(), String> {
    for store in stores {
        let snapshot = store.snapshot();
        for name in &record.created {
            if snapshot.object(&key(name)).is_none() {
                let master = store.status().id;
                return Err(format!("[1] {name} was acknowledged, but master {master} has it not"));
            }
        }
    }
    if let [first, others @ ..] = stores {
        let expected = first.snapshot();
        for other in others {
            let snapshot = other.snapshot();
            let (a, b) = (first.status().id, other.status().id);
            if expected.revision != snapshot.revision {
                let (one, two) = (expected.revision, snapshot.revision);
                return Err(format!("[4] master {a} is at revision {one}, master {b} at {two}"));
            }
            if let Some(difference) = difference(&expected, &snapshot) {
                return Err(format!("[4] masters {a} and {b} differ: {difference}"));
            }
        }
    }
    for (register, history) in &record.history {
        if let Err(best) = linear::check(history) {
            let mut text =
                format!("[2] no order explains register {register}; as far as it goes:\n");
            for (index, operation) in history.iter().enumerate() {
                let mark = if best.contains(&index) { "  " } else { "? " };
                let Operation { action, called, answered, by } = operation;
                let _ = writeln!(text, "{mark}{called:?} to {answered:?}: {action:?} by {by}");
            }
            return Err(text);
        }
    }
    Ok(())
}

/// The first object that two copies of the state do not have alike.
fn difference(one: &Snapshot, two: &Snapshot) -> Option<String> {
    let mut objects = two.all_objects();
    for object in one.all_objects() {
        let other = objects.next();
        if other != Some(object) {
            return Some(format!("{object:?} and {other:?}"));
        }
    }
    objects.next().map(|object| format!("nothing and {object:?}"))
}
