//! Whether a rolling update keeps what `maxUnavailable` promises, by an observer of its own: it follows
//! every change of the ordinary deployment, its sets and its pods, in the order of the log.
//!
//! Faults take pods as well, and whoever decides knows what was written when it looked, not when its
//! transaction is applied. So each decision is judged by all that it can have known: each is made on
//! condition that one object has not changed, and was made after that object's last change. It is
//! wrong if there is no revision since then at which it was right.
//!
//! - The deployment's loop sizes the sets, on condition that the deployment has not changed, by what
//!   the sets say. Of each set as many pods stay as it says are available, at most its size. These are
//!   not fewer than replicas − maxUnavailable, unless they were before, and then no fewer than that.
//!   A deployment that is scaled has its sets sized in proportion, whatever is available; together
//!   they still ask for replicas − maxUnavailable.
//! - A set's loop says how many pods are available, on condition that the set has not changed: no more
//!   than were.
//! - It ends pods on the same condition: never more than are over the set's size, and none that was
//!   available while one that was not is kept.
//!
//! Nobody else ends these pods in a simulation: those of lost nodes are removed without being asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use timonier_master::store::Store;
use timonier_master_core::op::Change;
use timonier_proto::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use timonier_proto::k8s_openapi::api::core::v1::Pod;
use timonier_proto::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::{Kind, Kinded, Object};

use crate::rollouts::{WEB, Wanted};

/// For what size of the deployment a set was sized.
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";

/// All changes, each once, from whichever master has it.
#[derive(Default)]
pub struct History {
    /// Of the last change that was read.
    pub revision: u64,
}

impl History {
    /// What comes next, as far as this master has it.
    pub fn next(&mut self, store: &Store) -> Vec<Arc<Change>> {
        // One that has begun anew has no changes from before.
        let Ok(mut changes) = store.changes(Some(self.revision)) else { return Vec::new() };
        let mut all = Vec::new();
        while let Ok(batch) = changes.try_next_batch()
            && !batch.is_empty()
        {
            all.extend(batch);
        }
        self.revision = changes.revision();
        all
    }
}

/// Follows the ordinary deployment.
#[derive(Default)]
pub struct Availability {
    wanted: Wanted,
    sets: Sets,
    /// By uid.
    pods: BTreeMap<String, Seen>,
    /// At each revision since the deployment was last written, as far as they differ.
    says: Vec<Says>,
    /// Before the decision whose sets are being read.
    before: Option<Sets>,
    pub decisions: u32,
}

impl Availability {
    pub fn take(&mut self, change: &Change) -> Result<(), String> {
        match change.key.kind {
            Kind::ReplicaSet => self.take_set(&change.key.name, both(change)),
            Kind::Pod => {
                self.judge()?;
                self.take_pod(both(change))
            }
            Kind::Deployment if change.key.name == WEB => {
                self.judge()?;
                let (_, deployment) = both::<Deployment>(change);
                self.wanted = deployment.map(Wanted::of).unwrap_or_default();
                self.says = vec![self.says_now()];
                Ok(())
            }
            _ => self.judge(),
        }
    }

    fn says_now(&self) -> Says {
        self.sets.iter().map(|(name, set)| (name.clone(), set.says)).collect()
    }

    fn take_set(
        &mut self,
        name: &str,
        (before, after): Both<'_, ReplicaSet>,
    ) -> Result<(), String> {
        let is_of = |set: &ReplicaSet| owner(&set.metadata, "Deployment") == Some(WEB);
        if !after.or(before).is_some_and(is_of) {
            return self.judge();
        }
        let now = after.map(Set::of);
        let sizing = |set: &Set| (set.size, set.sized_for.clone());
        if self.sets.get(name).map(sizing) == now.as_ref().map(sizing) {
            self.judge()?;
        } else if self.before.is_none() {
            self.before = Some(self.sets.clone());
        }
        if let Some(set) = &now
            && before.is_some_and(|before| Some(&before.status) != after.map(|set| &set.status))
        {
            self.check_word(name, set.says)?;
        }
        match now {
            Some(set) => self.sets.insert(name.to_owned(), set),
            None => self.sets.remove(name),
        };
        self.says.push(self.says_now());
        self.begin_window(name);
        Ok(())
    }

    fn check_word(&self, name: &str, says: i32) -> Result<(), String> {
        let were = self.pods.values().filter(|pod| pod.set == name && pod.once).count();
        if usize::try_from(says).is_ok_and(|says| says <= were) {
            return Ok(());
        }
        Err(format!("[10] {name} says that {says} of its pods are available, at most {were} were"))
    }

    /// The set was written.
    fn begin_window(&mut self, set: &str) {
        self.pods.retain(|_, pod| pod.set != set || !(pod.ends || pod.gone));
        for pod in self.pods.values_mut().filter(|pod| pod.set == set) {
            (pod.once, pod.always, pod.is_new) = (pod.available, pod.available, false);
        }
    }

    /// The sets' new sizes, once all of them are read: they are written in one transaction, the events
    /// that tell of it come next.
    fn judge(&mut self) -> Result<(), String> {
        let Some(before) = self.before.take() else { return Ok(()) };
        self.decisions += 1;
        let (sets, required) = (&self.sets, self.wanted.available_min());
        let wrong = |what: &str| {
            Err(format!("[10] {required} pods must stay {what}: {before:?} become {sets:?}"))
        };
        if total(sets) < required.min(total(&before)) {
            return wrong("asked for");
        }
        let replicas = self.wanted.replicas.to_string();
        let is_scaled = |set: &Set| set.size > 0 && set.sized_for.as_ref() != Some(&replicas);
        if before.values().any(is_scaled) {
            return Ok(());
        }
        let is_right =
            |says: &Says| available(sets, says) >= required.min(available(&before, says));
        if self.says.iter().any(is_right) { Ok(()) } else { wrong("available") }
    }

    fn take_pod(&mut self, (before, after): Both<'_, Pod>) -> Result<(), String> {
        let Some(pod) = after.or(before) else { return Ok(()) };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if before.is_none() {
            self.pods.insert(uid.clone(), Seen::new(&pod.metadata));
        }
        let Some(seen) = self.pods.get_mut(&uid) else { return Ok(()) };
        let was_available = seen.always;
        let told = !seen.ends && after.is_some_and(|p| p.metadata.deletion_timestamp.is_some());
        seen.ends |= told;
        seen.gone |= after.is_none_or(is_finished);
        seen.available = after.is_some_and(is_available);
        seen.once |= seen.available;
        seen.always &= seen.available;
        if told { self.check_end(&uid, was_available) } else { Ok(()) }
    }

    fn check_end(&self, uid: &str, was_available: bool) -> Result<(), String> {
        let Some(Seen { name, set, .. }) = self.pods.get(uid) else { return Ok(()) };
        let Some(size) = self.sets.get(set).map(|set| set.size) else { return Ok(()) };
        let kept = || self.pods.values().filter(|pod| pod.is_kept(set));
        if kept().count() < usize::try_from(size).unwrap_or(0) {
            return Err(format!("[10] {name} is ended, {set} must have {size} pods"));
        }
        let is_worse = |pod: &&Seen| !(pod.once || pod.is_new || pod.gone);
        match kept().find(is_worse).filter(|_| was_available) {
            None => Ok(()),
            Some(worse) => {
                let worse = &worse.name;
                Err(format!("[10] {name} is available and ended, {worse} is not and stays"))
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Set {
    size: i32,
    sized_for: Option<String>,
    /// Pods that are available, by its own word.
    says: i32,
}

impl Set {
    fn of(set: &ReplicaSet) -> Self {
        let annotations = set.metadata.annotations.as_ref();
        Self {
            size: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            sized_for: annotations.and_then(|all| all.get(DESIRED_REPLICAS)).cloned(),
            says: set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
        }
    }
}

type Sets = BTreeMap<String, Set>;
/// By set, how many pods it says are available.
type Says = BTreeMap<String, i32>;

fn total(sets: &Sets) -> i32 {
    sets.values().map(|set| set.size).sum()
}

fn available(sets: &Sets, says: &Says) -> i32 {
    sets.iter().map(|(name, set)| set.size.min(says.get(name).copied().unwrap_or(0))).sum()
}

/// A pod that its set may count.
#[derive(Default)]
struct Seen {
    name: String,
    set: String,
    available: bool,
    /// Since the set was last written: at one revision…
    once: bool,
    /// …or at all.
    always: bool,
    /// Made since then.
    is_new: bool,
    /// Was told to end.
    ends: bool,
    /// Has finished or was removed.
    gone: bool,
}

impl Seen {
    fn new(pod: &ObjectMeta) -> Self {
        Self {
            name: pod.name.clone().unwrap_or_default(),
            set: owner(pod, "ReplicaSet").unwrap_or_default().to_owned(),
            is_new: true,
            ..Self::default()
        }
    }

    fn is_kept(&self, set: &str) -> bool {
        self.set == set && !self.ends
    }
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_available(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let is_ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    is_ready && !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// An object before and after a change.
type Both<'a, T> = (Option<&'a T>, Option<&'a T>);

fn both<T: Kinded>(change: &Change) -> Both<'_, T> {
    (typed(change.before.as_ref()), typed(change.after.as_ref()))
}

fn typed<T: Kinded>(object: Option<&Object>) -> Option<&T> {
    object?.get::<T>().map(|object| &**object)
}

fn owner<'a>(meta: &'a ObjectMeta, kind: &str) -> Option<&'a str> {
    let mut owners = meta.owner_references.iter().flatten();
    owners.find(|owner| owner.kind == kind).map(|owner| owner.name.as_str())
}
