//! Scaling a deployment, also in the middle of a rollout: then every set gets its share, so that
//! neither version is favoured.

use super::DESIRED_REPLICAS;
use super::MAX_REPLICAS;
use super::replica_sets::Rollout;
use crate::rollout::is_recreate;

impl Rollout<'_> {
    /// Whether a set in use was last scaled for another size of the deployment.
    pub fn is_scaling(&self) -> bool {
        self.sets.iter().filter(|set| set.replicas() > 0).any(|set| {
            set.annotation_number(DESIRED_REPLICAS)
                .is_some_and(|desired| desired != self.replicas())
        })
    }

    pub fn scale_in_proportion(&mut self) {
        let active: Vec<usize> =
            (0..self.sets.len()).filter(|i| self.sets[*i].replicas() > 0).collect();
        if active.len() <= 1 {
            let latest = active.first().copied().or(self.new).or(self.old().last().copied());
            if let Some(index) = latest {
                self.scale(index, self.replicas());
            }
            return;
        }
        if self.new_set_is_saturated() {
            for index in self.old() {
                if self.sets[index].replicas() > 0 {
                    self.scale(index, 0);
                }
            }
            if let Some(new) = self.new {
                self.scale(new, self.replicas());
            }
            return;
        }
        if !is_recreate(self.deployment) {
            self.share_out(active);
        }
    }

    /// Only the new set's pods count, and all of them are available.
    fn new_set_is_saturated(&self) -> bool {
        self.new.map(|i| &self.sets[i]).is_some_and(|set| {
            set.replicas() == self.replicas()
                && set.annotation_number(DESIRED_REPLICAS) == Some(self.replicas())
                && set.available() == self.replicas()
        })
    }

    fn share_out(&mut self, mut active: Vec<usize>) {
        let replicas = self.replicas();
        let allowed = if replicas > 0 { replicas + self.bounds.max_surge } else { 0 };
        let to_add = allowed - self.total_replicas();
        // Largest first; of equals the newest when adding and the oldest when taking away.
        active.sort_by_key(|i| {
            let age = i32::try_from(*i).unwrap_or(i32::MAX);
            (-self.sets[*i].replicas(), if to_add > 0 { -age } else { age })
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for index in &active {
            let share = self.share_of(*index, allowed, to_add, added);
            added += share;
            sizes.push(self.sets[*index].replicas() + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first += to_add - added;
        }
        for (index, size) in active.into_iter().zip(sizes) {
            self.scale(index, size.max(0));
        }
    }

    fn share_of(&self, index: usize, allowed: i32, to_add: i32, added: i32) -> i32 {
        let set = &self.sets[index];
        let left = to_add - added;
        if set.replicas() == 0 || left == 0 {
            return 0;
        }
        let fraction = if self.replicas() == 0 {
            -set.replicas()
        } else {
            let was_allowed = set
                .annotation_number(MAX_REPLICAS)
                .filter(|n| *n > 0)
                .or(self.status.replicas)
                .unwrap_or(1)
                .max(1);
            let exact = i64::from(set.replicas()) * i64::from(allowed);
            let (quotient, rest) = (exact / i64::from(was_allowed), exact % i64::from(was_allowed));
            let rounded = quotient + i64::from(rest * 2 >= i64::from(was_allowed));
            i32::try_from(rounded).unwrap_or(i32::MAX) - set.replicas()
        };
        if to_add > 0 { fraction.clamp(0, left) } else { fraction.clamp(left, 0) }
    }
}
