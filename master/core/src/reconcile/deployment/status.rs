//! A deployment's status: counts out of its sets' statuses, and the two conditions with Kubernetes'
//! reasons and texts.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSetStatus};

use super::replica_sets::{Rollout, Set};
use crate::object::{after_seconds, name_of, stored_time};

/// Seconds without progress after which a rollout counts as stuck, where the spec names none.
const PROGRESS_DEADLINE_SECONDS_DEFAULT: i32 = 600;

const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

impl Rollout<'_> {
    /// Says in the Progressing condition that the deployment was paused or resumed.
    pub fn note_pause(&mut self) {
        let Some(_) = self.deadline_seconds() else { return };
        let reason = self.progressing().and_then(|c| c.reason.clone()).unwrap_or_default();
        if reason == TIMED_OUT {
            return;
        }
        let is_paused = self.spec.paused == Some(true);
        if is_paused && reason != PAUSED {
            self.set_condition("Progressing", "Unknown", PAUSED, "Deployment is paused".to_owned());
        } else if !is_paused && reason == PAUSED {
            let message = "Deployment is resumed".to_owned();
            self.set_condition("Progressing", "Unknown", RESUMED, message);
        }
    }

    pub fn note_created(&mut self, set: &str) {
        if self.deadline_seconds().is_some() {
            let message = format!("Created new replica set \"{set}\"");
            self.set_condition("Progressing", "True", "NewReplicaSetCreated", message);
        }
    }

    pub fn note_found(&mut self, set: &str) {
        if self.deadline_seconds().is_some() && self.progressing().is_none() {
            let message = format!("Found new replica set \"{set}\"");
            self.set_condition("Progressing", "True", "FoundNewReplicaSet", message);
        }
    }

    /// Counts, and the Available condition.
    pub fn sync_status(&mut self) {
        let sum = |read: fn(&ReplicaSetStatus) -> i32| -> i32 {
            self.sets.iter().filter(|s| !s.removed).map(|s| s.status(read)).sum()
        };
        let available = sum(|s| s.available_replicas.unwrap_or(0));
        let counts = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: Some(sum(|s| s.replicas)),
            ready_replicas: Some(sum(|s| s.ready_replicas.unwrap_or(0))),
            available_replicas: Some(available),
            unavailable_replicas: Some((self.total_replicas() - available).max(0)),
            updated_replicas: Some(self.new.map_or(0, |i| self.sets[i].status(|s| s.replicas))),
            ..Default::default()
        };
        self.status = DeploymentStatus {
            conditions: self.status.conditions.take(),
            collision_count: self.status.collision_count,
            ..counts
        };
        if available >= self.replicas() - self.bounds.max_unavailable {
            let message = "Deployment has minimum availability.".to_owned();
            self.set_condition("Available", "True", "MinimumReplicasAvailable", message);
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            self.set_condition("Available", "False", "MinimumReplicasUnavailable", message);
        }
    }

    /// Counts and both conditions; asks to be looked at again when the deadline would be missed.
    pub fn sync_rollout_status(&mut self) {
        self.sync_status();
        let Some(deadline_seconds) = self.deadline_seconds() else {
            self.status.conditions.get_or_insert_default().retain(|c| c.type_ != "Progressing");
            return;
        };
        let was_complete =
            self.progressing().is_some_and(|c| c.reason.as_deref() == Some(COMPLETE))
                && self.status.replicas == self.status.updated_replicas;
        if was_complete {
            return;
        }
        let subject = match self.new {
            Some(index) => format!("ReplicaSet \"{}\"", self.sets[index].name()),
            None => format!("Deployment \"{}\"", name_of(&self.deployment.metadata)),
        };
        if self.is_complete() {
            let message = format!("{subject} has successfully progressed.");
            self.set_condition("Progressing", "True", COMPLETE, message);
            return;
        }
        if self.progressed() {
            // Set anew even when it says the same: its update time is what the deadline counts from.
            let message = format!("{subject} is progressing.");
            self.refresh_condition("Progressing", "True", "ReplicaSetUpdated", message);
        }
        let Some(last_update) = self.waiting_since() else { return };
        let deadline = after_seconds(last_update, i64::from(deadline_seconds));
        if self.world.now > deadline {
            let message = format!("{subject} has timed out progressing.");
            self.set_condition("Progressing", "False", TIMED_OUT, message);
        } else {
            self.again_at = Some(after_seconds(deadline, 1));
        }
    }

    /// All pods are of the new set, as many as asked for, and available.
    pub fn is_complete(&self) -> bool {
        let replicas = self.replicas();
        let sum = |read: fn(&ReplicaSetStatus) -> i32| -> i32 {
            self.sets.iter().map(|s| s.status(read)).sum()
        };
        self.new.is_some_and(|i| self.sets[i].status(|s| s.replicas) == replicas)
            && self.total_replicas() == replicas
            && sum(|s| s.replicas) == replicas
            && self.sets.iter().map(Set::available).sum::<i32>() == replicas
    }

    /// Compared with the stored status: more new pods, fewer old ones, more ready or available.
    fn progressed(&self) -> bool {
        let stored = self.deployment.status.clone().unwrap_or_default();
        let count = |n: Option<i32>| n.unwrap_or(0);
        let old = |s: &DeploymentStatus| count(s.replicas) - count(s.updated_replicas);
        let now = &self.status;
        count(now.updated_replicas) > count(stored.updated_replicas)
            || old(now) < old(&stored)
            || count(now.ready_replicas) > count(stored.ready_replicas)
            || count(now.available_replicas) > count(stored.available_replicas)
    }

    /// Since when the deadline runs; `None` when it has been missed already, or nothing is awaited.
    fn waiting_since(&self) -> Option<Timestamp> {
        let condition = self.progressing()?;
        match condition.reason.as_deref() {
            Some(COMPLETE | TIMED_OUT) => None,
            _ => condition.last_update_time.as_ref().map(|t| t.0),
        }
    }

    fn deadline_seconds(&self) -> Option<i32> {
        let seconds =
            self.spec.progress_deadline_seconds.unwrap_or(PROGRESS_DEADLINE_SECONDS_DEFAULT);
        (seconds != i32::MAX).then_some(seconds)
    }

    fn progressing(&self) -> Option<&DeploymentCondition> {
        self.status.conditions.iter().flatten().find(|c| c.type_ == "Progressing")
    }

    /// Leaves a condition alone that has this status and reason already.
    fn set_condition(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let is_same =
            self.status.conditions.iter().flatten().any(|c| {
                c.type_ == type_ && c.status == status && c.reason.as_deref() == Some(reason)
            });
        if !is_same {
            self.refresh_condition(type_, status, reason, message);
        }
    }

    fn refresh_condition(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let now = stored_time(self.world.now);
        let conditions = self.status.conditions.get_or_insert_default();
        let transition = conditions
            .iter()
            .find(|c| c.type_ == type_ && c.status == status)
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or_else(|| now.clone());
        conditions.retain(|c| c.type_ != type_);
        conditions.push(DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(transition),
            last_update_time: Some(now),
        });
    }
}
