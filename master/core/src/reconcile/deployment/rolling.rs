//! The two strategies. RollingUpdate: the new set grows as far as the surge allows, the old ones
//! shrink as far as enough pods stay available, the unhealthy first. Recreate: the old pods go,
//! then the new ones come.

use k8s_openapi::api::core::v1::Pod;

use super::replica_sets::{Rollout, Set};
use crate::object::{is_finished, uid_of};

impl Rollout<'_> {
    pub fn roll(&mut self) {
        self.ensure_new_set();
        self.grow_new_set();
        self.shrink_old_sets();
        if self.is_complete() {
            self.forget_old_revisions();
        }
        self.sync_rollout_status();
    }

    pub fn recreate(&mut self) {
        self.find_new_set();
        for index in self.old() {
            if self.sets[index].replicas() > 0 {
                self.scale(index, 0);
            }
        }
        if !self.old_pods_run() {
            self.ensure_new_set();
            self.grow_new_set();
            if self.is_complete() {
                self.forget_old_revisions();
            }
        }
        self.sync_rollout_status();
    }

    /// Replicas that the new set may have now.
    pub fn new_set_replicas(&self) -> i32 {
        let current = self.new.map_or(0, |i| self.sets[i].replicas());
        if crate::rollout::is_recreate(self.deployment) {
            return self.replicas();
        }
        // A set that was just scaled down still has its pods until its own loop gets to work.
        let held: i32 = self.sets.iter().map(|s| s.replicas().max(s.status(|t| t.replicas))).sum();
        let room = self.replicas() + self.bounds.max_surge - held;
        if room <= 0 {
            return current;
        }
        current + room.min(self.replicas() - current).max(0)
    }

    fn grow_new_set(&mut self) {
        let Some(new) = self.new else { return };
        let current = self.sets[new].replicas();
        if current > self.replicas() {
            self.scale(new, self.replicas());
        } else if current < self.replicas() {
            let replicas = self.new_set_replicas();
            self.scale(new, replicas);
        }
    }

    fn shrink_old_sets(&mut self) {
        let Some(new) = self.new else { return };
        let old = self.old();
        if old.iter().all(|i| self.sets[*i].replicas() == 0) {
            return;
        }
        let min_available = self.replicas() - self.bounds.max_unavailable;
        let new_set = &self.sets[new];
        let new_unavailable = new_set.replicas() - new_set.available();
        let mut may_go = self.total_replicas() - min_available - new_unavailable;
        if may_go <= 0 {
            return;
        }
        // Those that are not available cost nothing, and would hold up the rollout for ever.
        for index in &old {
            let set = &self.sets[*index];
            let gone = (set.replicas() - set.available()).min(may_go);
            if gone > 0 {
                may_go -= gone;
                self.scale(*index, self.sets[*index].replicas() - gone);
            }
        }
        let available: i32 = self.sets.iter().map(Set::available).sum();
        let mut spare = available - min_available;
        for index in old {
            let gone = self.sets[index].replicas().min(spare);
            if gone > 0 {
                spare -= gone;
                self.scale(index, self.sets[index].replicas() - gone);
            }
        }
    }

    fn old_pods_run(&self) -> bool {
        self.old().into_iter().any(|index| {
            self.world
                .snapshot
                .owned_by::<Pod>(uid_of(&self.sets[index].wanted.metadata))
                .any(|pod| !is_finished(pod))
        })
    }

    /// Removes the sets of the oldest revisions beyond the history's limit, empty ones only.
    pub fn forget_old_revisions(&mut self) {
        let limit = usize::try_from(self.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let mut old = self.old();
        let Some(excess) = old.len().checked_sub(limit).filter(|n| *n > 0) else { return };
        old.sort_by_key(|i| self.sets[*i].revision());
        for index in old.into_iter().take(excess) {
            let set = &self.sets[index];
            let observed = set.stored.as_ref().and_then(|s| s.status.as_ref()?.observed_generation);
            let is_empty = set.replicas() == 0
                && set.status(|s| s.replicas) == 0
                && observed >= set.wanted.metadata.generation;
            if is_empty {
                self.sets[index].removed = true;
            }
        }
    }
}
