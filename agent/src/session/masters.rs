//! Which masters this agent knows, and which of them it dials next.
//!
//! Those it was started with, and those that a master told of: the latter are kept in a file, so
//! that an agent that starts while its first master is gone finds the others.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// In the data folder: the masters that were told of, a JSON list.
pub const MASTERS_FILE: &str = "masters.json";
/// Most masters that are remembered.
const MASTERS_MAX: usize = 16;

#[derive(Debug)]
pub struct Masters {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    given: Vec<String>,
    told: Vec<String>,
    /// Those of this round that were not dialled yet; the next one is the last. In an order of chance,
    /// so that agents spread over the masters, also those that lost the same one.
    untried: Vec<String>,
    dialled: Option<String>,
}

impl Known {
    /// As the masters told it, then what was given beside it.
    fn all(&self) -> Vec<String> {
        let mut all = self.told.clone();
        all.extend(self.given.iter().filter(|address| !self.told.contains(address)).cloned());
        all
    }
}

impl Masters {
    /// `given` has one at least, each `host:port`.
    pub fn open(given: Vec<String>, data_dir: &Path) -> Self {
        let path = data_dir.join(MASTERS_FILE);
        let told = std::fs::read(&path).ok();
        let told = told.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        let known = Known { given, told, untried: Vec::new(), dialled: None };
        Self { path, known: Mutex::new(known) }
    }

    /// The one to dial now: each once before any again, and none twice in a row.
    pub fn next(&self) -> String {
        let mut known = self.lock();
        let all = known.all();
        known.untried.retain(|address| all.contains(address));
        if known.untried.is_empty() {
            known.untried = all;
            fastrand::shuffle(&mut known.untried);
            if known.untried.last() == known.dialled.as_ref() {
                known.untried.rotate_right(1);
            }
        }
        known.dialled = known.untried.pop();
        known.dialled.clone().unwrap_or_default()
    }

    pub fn are_several(&self) -> bool {
        self.lock().all().len() > 1
    }

    /// A master says who the masters are.
    pub fn tell(&self, addresses: Vec<String>) {
        let mut known = self.lock();
        if addresses.is_empty() || known.told == addresses {
            return;
        }
        known.told = addresses;
        known.told.truncate(MASTERS_MAX);
        let json = serde_json::to_vec(&known.told).expect("a list of texts is plain data");
        let aside = self.path.with_extension("json.new");
        let written =
            std::fs::write(&aside, json).and_then(|()| std::fs::rename(&aside, &self.path));
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%error, "cannot write {path}; after a restart only the masters of the command line are known");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change under the lock is complete in itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn all_are_tried_in_turn_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let given = vec!["a:1".to_owned()];
        let masters = Masters::open(given.clone(), dir.path());
        assert!(!masters.are_several());
        assert_eq!((masters.next(), masters.next()), ("a:1".into(), "a:1".into()));
        masters.tell(vec!["b:1".into(), "c:1".into()]);
        let again = Masters::open(given, dir.path());
        let round: BTreeSet<String> = (0..3).map(|_| again.next()).collect();
        assert_eq!(round.len(), 3, "{round:?}");
        for _ in 0..20 {
            assert_ne!(again.next(), again.next(), "none is dialled twice in a row");
        }
        // Nobody tells of no master at all.
        again.tell(Vec::new());
        assert!(again.are_several());
    }

    #[test]
    fn agents_that_lose_a_master_spread_over_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut took = BTreeMap::<String, usize>::new();
        for _ in 0..300 {
            let given = ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec();
            let masters = Masters::open(given, dir.path());
            while masters.next() != "a:1" {}
            *took.entry(masters.next()).or_default() += 1;
        }
        assert!(took["b:1"] > 75 && took["c:1"] > 75, "{took:?}");
    }
}
