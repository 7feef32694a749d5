//! ReplicaSet → Pods: as many active pods as asked for. Where they run is the scheduler's, that
//! they run the agents'.

#[cfg(test)]
mod tests;
mod victims;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::selector::Selector;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::record::Recorder;
use super::{OPS_PER_PLAN_MAX, Reconciler};
use crate::admission::qos_class;
use crate::hash::{Random, name_suffix};
use crate::object::{
    after_seconds, available_at, controller_of, controller_reference, end_pod, is_active,
    is_ending, is_finished, is_ready, key_of, name_of, namespace_is_live, namespace_of, uid_of,
};
use crate::op::{Change, Op, Precondition};
use crate::policy;
use crate::snapshot::Snapshot;
use crate::world::{Plan, World};

/// Pod names that one event lists; further ones are counted.
const NAMES_PER_EVENT_MAX: usize = 5;
/// Operations of a plan that are not pods: the status, events.
const OPS_RESERVED: usize = 8;
/// Length of the part of a pod's name that makes it unique.
const SUFFIX_LENGTH: usize = 5;

/// The replica set loop; keys are replica sets.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReplicaSetLoop;

impl Reconciler for ReplicaSetLoop {
    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn keys(&self, change: &Change, snapshot: &Snapshot) -> Vec<ObjectKey> {
        match change.key.kind {
            Kind::ReplicaSet => vec![change.key.clone()],
            Kind::Pod => {
                let mut keys: Vec<ObjectKey> = [&change.before, &change.after]
                    .into_iter()
                    .flatten()
                    .filter_map(|o| controller_of(o.meta()))
                    .filter(|owner| owner.kind == "ReplicaSet")
                    .map(|owner| {
                        ObjectKey::new(Kind::ReplicaSet, &change.key.namespace, &owner.name)
                    })
                    .collect();
                keys.dedup();
                if let Some(pod) = change.after.as_ref().and_then(|o| o.get::<Pod>())
                    && controller_of(&pod.metadata).is_none()
                {
                    keys.extend(adopters(pod, snapshot));
                }
                keys
            }
            _ => Vec::new(),
        }
    }

    fn all_keys(&self, snapshot: &Snapshot) -> Vec<ObjectKey> {
        snapshot.list::<ReplicaSet>(None).map(|set| key_of(&**set)).collect()
    }

    fn reconcile(&self, world: &World, key: &ObjectKey) -> Plan {
        let Some(set) = world.snapshot.get::<ReplicaSet>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        if is_ending(&set.metadata) || !namespace_is_live(&world.snapshot, &key.namespace) {
            return Plan::default();
        }
        let selector = set.spec.as_ref().map(|s| Selector::from_label_selector(&s.selector));
        let Some(Ok(selector)) = selector else { return Plan::default() };
        if selector.is_empty() {
            return Plan::default();
        }
        Activation::new(world, set, selector).plan()
    }
}

/// Sets that may take a pod without a controller.
fn adopters(pod: &Pod, snapshot: &Snapshot) -> Vec<ObjectKey> {
    if !is_active(pod) || pod.metadata.labels.is_none() {
        return Vec::new();
    }
    snapshot
        .list::<ReplicaSet>(Some(namespace_of(&pod.metadata)))
        .filter(|set| {
            set.spec
                .as_ref()
                .and_then(|s| Selector::from_label_selector(&s.selector).ok())
                .is_some_and(|s| !s.is_empty() && s.matches(pod.metadata.labels.as_ref()))
        })
        .map(|set| key_of(&**set))
        .collect()
}

/// Pods that a quota kept out are tried again after so long, and told of again.
const REFUSED_AGAIN_SECONDS: i64 = 10;

struct Activation<'a> {
    world: &'a World,
    set: &'a ReplicaSet,
    selector: Selector,
    recorder: Recorder,
    ops: Vec<Op>,
    /// Pods that count, as they will be after the plan.
    pods: Vec<Arc<Pod>>,
    /// Names of those among them that the plan adopts.
    adopted: HashSet<String>,
    created: i32,
    /// The namespace's limits keep some pods out.
    refused: bool,
}

impl<'a> Activation<'a> {
    fn new(world: &'a World, set: &'a ReplicaSet, selector: Selector) -> Self {
        let recorder = Recorder { component: "replicaset-controller", now: world.now };
        Self {
            world,
            set,
            selector,
            recorder,
            ops: Vec::new(),
            pods: Vec::new(),
            adopted: HashSet::new(),
            created: 0,
            refused: false,
        }
    }

    fn plan(mut self) -> Plan {
        self.claim();
        let wanted = self.set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let wanted = if self.is_unique() { wanted.min(1) } else { wanted };
        if self.pods.len() < wanted {
            if !self.is_unique() || !self.another_may_run() {
                self.create(wanted - self.pods.len());
            }
        } else if self.pods.len() > wanted {
            self.delete(self.pods.len() - wanted);
        }
        let mut again_at = self.sync_status();
        if self.refused {
            let later = after_seconds(self.world.now, REFUSED_AGAIN_SECONDS);
            again_at = Some(again_at.map_or(later, |at| at.min(later)));
        }
        let preconditions = if self.ops.is_empty() {
            Vec::new()
        } else {
            let revision = self.set.metadata.resource_version.as_deref();
            let revision = revision.and_then(|r| r.parse().ok()).unwrap_or(0);
            vec![Precondition::Revision(key_of(self.set), revision)]
        };
        Plan { ops: self.ops, preconditions, again_at }
    }

    /// Gathers the set's active pods; takes in those that match and belong to nobody, and lets go
    /// of those whose labels were changed.
    fn claim(&mut self) {
        let mut budget = OPS_PER_PLAN_MAX / 2;
        for pod in self.world.snapshot.owned_by::<Pod>(uid_of(&self.set.metadata)) {
            if self.selector.matches(pod.metadata.labels.as_ref()) {
                if is_active(pod) {
                    self.pods.push(pod.clone());
                }
            } else if budget > 0 {
                budget -= 1;
                let mut freed = Pod::clone(pod);
                let uid = uid_of(&self.set.metadata).to_owned();
                freed.metadata.owner_references.get_or_insert_default().retain(|o| o.uid != uid);
                self.ops.push(Op::Replace(freed.into_object()));
            }
        }
        let namespace = namespace_of(&self.set.metadata);
        for pod in self.world.snapshot.list::<Pod>(Some(namespace)) {
            if budget > 0 && self.is_stray(pod) {
                budget -= 1;
                let mut adopted = Pod::clone(pod);
                let owners = adopted.metadata.owner_references.get_or_insert_default();
                owners.push(controller_reference(self.set));
                self.pods.push(pod.clone());
                self.adopted.insert(name_of(&pod.metadata).to_owned());
                self.ops.push(Op::Replace(adopted.into_object()));
            }
        }
    }

    /// Whether the set's pods must never run beside each other.
    fn is_unique(&self) -> bool {
        let template = self.set.spec.as_ref().and_then(|s| s.template.as_ref());
        template.and_then(|t| t.metadata.as_ref()).is_some_and(timonier_proto::unique::is_unique)
    }

    /// A pod that is ending runs until its agent, or the time it takes to be fenced, says otherwise;
    /// this set is looked at again when it is gone.
    fn another_may_run(&self) -> bool {
        let mut owned = self.world.snapshot.owned_by::<Pod>(uid_of(&self.set.metadata));
        owned.any(|pod| !is_finished(pod))
    }

    fn is_stray(&self, pod: &Pod) -> bool {
        controller_of(&pod.metadata).is_none()
            && is_active(pod)
            && self.selector.matches(pod.metadata.labels.as_ref())
    }

    fn create(&mut self, count: usize) {
        let count = count.min(OPS_PER_PLAN_MAX.saturating_sub(self.ops.len() + OPS_RESERVED));
        let mut random = Random::new(self.world.seed);
        let mut names: HashSet<String> = HashSet::with_capacity(count);
        let namespace = namespace_of(&self.set.metadata);
        let prefix = format!("{}-", name_of(&self.set.metadata));
        let mut template = self.pod_from_template(&prefix);
        let count = self.room(&mut template, count);
        let mut listed = Vec::new();
        while names.len() < count {
            let name = format!("{prefix}{}", name_suffix(random.next_u64(), SUFFIX_LENGTH));
            if self.world.snapshot.get::<Pod>(namespace, &name).is_some()
                || !names.insert(name.clone())
            {
                continue;
            }
            listed.push(name.clone());
            let mut pod = template.clone();
            pod.metadata.name = Some(name);
            self.ops.push(Op::Create(pod.into_object()));
        }
        self.created = i32::try_from(count).unwrap_or(i32::MAX);
        if count > 0 {
            let message = format!("Created {}", named(&listed));
            self.ops.push(self.recorder.normal(self.set, "SuccessfulCreate", message));
        }
    }

    /// How many such pods the namespace's limits let in; what keeps out the rest is told.
    fn room(&mut self, template: &mut Pod, count: usize) -> usize {
        let snapshot = &self.world.snapshot;
        let (room, why) = match policy::fit(snapshot, template) {
            Ok(()) => policy::room(snapshot, template, count),
            Err(why) => (0, Some(policy::Exceeded(why))),
        };
        if let Some(why) = why {
            let prefix = template.metadata.generate_name.as_deref().unwrap_or_default();
            let message = format!("Error creating: pods {prefix:?} is forbidden: {}", why.0);
            let quiet = REFUSED_AGAIN_SECONDS;
            self.ops.extend(self.recorder.warning_once(
                snapshot,
                self.set,
                "FailedCreate",
                message,
                quiet,
            ));
            self.refused = true;
        }
        room
    }

    fn pod_from_template(&self, prefix: &str) -> Pod {
        let template = self.set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let from = template.metadata.unwrap_or_default();
        Pod {
            metadata: ObjectMeta {
                generate_name: Some(prefix.to_owned()),
                namespace: self.set.metadata.namespace.clone(),
                labels: from.labels,
                annotations: from.annotations,
                finalizers: from.finalizers,
                owner_references: Some(vec![controller_reference(self.set)]),
                ..Default::default()
            },
            status: Some(PodStatus {
                phase: Some("Pending".to_owned()),
                qos_class: Some(qos_class(template.spec.as_ref()).to_owned()),
                ..Default::default()
            }),
            spec: template.spec,
        }
    }

    fn delete(&mut self, count: usize) {
        let count = count.min(OPS_PER_PLAN_MAX.saturating_sub(self.ops.len() + OPS_RESERVED));
        let chosen = victims::choose(&self.pods, count);
        let mut listed = Vec::new();
        for index in &chosen {
            let pod = &self.pods[*index];
            // A pod that this plan adopts is not ended in the same plan: one operation a key.
            if self.adopted.contains(name_of(&pod.metadata)) {
                continue;
            }
            if let Some(op) = end_pod(pod, self.world.now) {
                listed.push(name_of(&pod.metadata).to_owned());
                self.ops.push(op);
            }
        }
        let gone: HashSet<&String> = listed.iter().collect();
        self.pods.retain(|p| p.metadata.name.as_ref().is_none_or(|n| !gone.contains(n)));
        if !listed.is_empty() {
            let message = format!("Deleted {}", named(&listed));
            self.ops.push(self.recorder.normal(self.set, "SuccessfulDelete", message));
        }
    }

    /// The status as it is once the plan is applied; when to look again for pods that become
    /// available by waiting.
    fn sync_status(&mut self) -> Option<jiff::Timestamp> {
        let spec = self.set.spec.as_ref();
        let min_ready_seconds = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let template_labels = spec
            .and_then(|s| s.template.as_ref())
            .and_then(|t| t.metadata.as_ref())
            .and_then(|m| m.labels.as_ref());
        let (mut fully_labeled, mut ready, mut available) = (self.created, 0, 0);
        let mut again_at = None;
        for pod in &self.pods {
            let has = |key: &String, value: &String| {
                pod.metadata.labels.as_ref().and_then(|l| l.get(key)) == Some(value)
            };
            fully_labeled +=
                i32::from(template_labels.iter().flat_map(|l| l.iter()).all(|(k, v)| has(k, v)));
            ready += i32::from(is_ready(pod));
            match available_at(pod, min_ready_seconds) {
                Some(at) if at <= self.world.now => available += 1,
                Some(at) => again_at = Some(again_at.map_or(at, |b: jiff::Timestamp| b.min(at))),
                None => {}
            }
        }
        let replicas = i32::try_from(self.pods.len()).unwrap_or(i32::MAX) + self.created;
        let status = ReplicaSetStatus {
            replicas,
            fully_labeled_replicas: Some(fully_labeled),
            ready_replicas: Some(ready),
            available_replicas: Some(available),
            observed_generation: self.set.metadata.generation,
            conditions: self.set.status.as_ref().and_then(|s| s.conditions.clone()),
            ..Default::default()
        };
        if self.set.status.as_ref() != Some(&status) {
            let mut set = self.set.clone();
            set.status = Some(status);
            self.ops.push(Op::ReplaceStatus(set.into_object()));
        }
        again_at
    }
}

/// `pod: a` as Kubernetes says it, or `pods: a, b, c and 197 more`.
fn named(names: &[String]) -> String {
    match names {
        [one] => format!("pod: {one}"),
        few if few.len() <= NAMES_PER_EVENT_MAX => format!("pods: {}", few.join(", ")),
        many => format!(
            "pods: {} and {} more",
            many[..NAMES_PER_EVENT_MAX].join(", "),
            many.len() - NAMES_PER_EVENT_MAX
        ),
    }
}
