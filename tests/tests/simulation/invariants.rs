//! What must hold whatever happens, in one list. Each failure begins with its number.
//!
//! 1. No acknowledged write is lost.
//! 2. The history of each register is linearizable.
//! 3. At most one master leads in a term.
//! 4. All masters have the same state at the same revision.
//! 5. When the faults end, the cluster converges: one leader, all masters at the same revision, every
//!    node ready, the deployment as it was written last, and nothing else running.
//! 6. A pod runs on one node only.
//! 7. A pod's phase never goes back.
//! 8. A deployment never has more pods than its surge allows, and no control loop's plan breaks the
//!    product's own rules (surge, unavailability, bindings).

use std::collections::BTreeMap;
use std::fmt::Write;

use timonier_master::store::Store;

use crate::linear::{self, Operation};
use crate::workload::{Record, key};

/// What was seen so far.
#[derive(Default)]
pub struct Observer {
    /// By term.
    leaders: BTreeMap<u64, u64>,
    pub terms: usize,
}

impl Observer {
    /// Looks at one master.
    pub fn observe(&mut self, store: &Store) -> Result<(), String> {
        let status = store.status();
        if !status.leader {
            return Ok(());
        }
        let known = *self.leaders.entry(status.term).or_insert(status.id);
        self.terms = self.leaders.len();
        if known == status.id {
            return Ok(());
        }
        Err(format!("[3] masters {known} and {} both led in term {}", status.id, status.term))
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
            let same = expected.revision == snapshot.revision
                && expected.all_objects().eq(snapshot.all_objects());
            if !same {
                let (a, b) = (first.status().id, other.status().id);
                return Err(format!("[4] masters {a} and {b} differ"));
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
