//! The replica sets of one deployment while a plan is being made: found, adopted, numbered, and the
//! one of the current template created.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::selector::Selector;
use timonier_proto::{Kind, Kinded, ObjectKey};

use super::{DESIRED_REPLICAS, MAX_REPLICAS, POD_TEMPLATE_HASH, REVISION, REVISION_HISTORY};
use crate::hash::template_hash;
use crate::object::{
    controller_of, controller_reference, is_ending, key_of, name_of, namespace_of, uid_of,
};
use crate::op::{Op, Precondition};
use crate::reconcile::record::Recorder;
use crate::rollout::{Bounds, replicas_of};
use crate::world::{Plan, World};

/// Annotations of the deployment that are its own and not copied to its sets.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// One set: as stored (`None`: to be created), and as it should be.
pub(super) struct Set {
    pub stored: Option<Arc<ReplicaSet>>,
    pub wanted: ReplicaSet,
    pub removed: bool,
}

impl Set {
    pub fn name(&self) -> &str {
        name_of(&self.wanted.metadata)
    }

    pub fn replicas(&self) -> i32 {
        self.wanted.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    /// Pods that are surely available: the status may be older than the last scaling down, and a
    /// set never keeps an unavailable pod in place of an available one.
    pub fn available(&self) -> i32 {
        let available = self.status(|s| s.available_replicas.unwrap_or_default());
        available.min(self.replicas())
    }

    pub fn status(
        &self,
        read: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32,
    ) -> i32 {
        self.stored.as_ref().and_then(|s| s.status.as_ref()).map_or(0, read)
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.wanted.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub fn annotation_number(&self, key: &str) -> Option<i32> {
        self.annotation(key)?.parse().ok()
    }

    pub fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
    }

    fn set_annotation(&mut self, key: &str, value: String) {
        let annotations = self.wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(key.to_owned(), value);
    }
}

/// One activation of the loop: the sets, the status being made, and the events.
pub(super) struct Rollout<'a> {
    pub world: &'a World,
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub bounds: Bounds,
    /// Oldest first.
    pub sets: Vec<Set>,
    /// Index of the set of the current template.
    pub new: Option<usize>,
    pub status: DeploymentStatus,
    pub events: Vec<Op>,
    pub again_at: Option<jiff::Timestamp>,
    revision: Option<String>,
}

impl<'a> Rollout<'a> {
    /// The caller has seen that the deployment has a spec.
    pub fn gather(world: &'a World, deployment: &'a Deployment, selector: &Selector) -> Self {
        let spec = deployment.spec.as_ref().expect("checked by the caller");
        let uid = uid_of(&deployment.metadata);
        let mut sets: Vec<Set> = world
            .snapshot
            .list::<ReplicaSet>(Some(namespace_of(&deployment.metadata)))
            .filter(|set| !is_ending(&set.metadata))
            .filter_map(|set| {
                let mut wanted = ReplicaSet::clone(set);
                match controller_of(&set.metadata) {
                    Some(owner) if owner.uid == uid => {}
                    None if selector.matches(set.metadata.labels.as_ref()) => wanted
                        .metadata
                        .owner_references
                        .get_or_insert_default()
                        .push(controller_reference(deployment)),
                    _ => return None,
                }
                Some(Set { stored: Some(set.clone()), wanted, removed: false })
            })
            .collect();
        sets.sort_by(|a, b| {
            let age = |s: &Set| s.wanted.metadata.creation_timestamp.clone();
            (age(a), a.name()).cmp(&(age(b), b.name()))
        });
        Self {
            world,
            deployment,
            spec,
            bounds: Bounds::of(deployment),
            sets,
            new: None,
            status: deployment.status.clone().unwrap_or_default(),
            events: Vec::new(),
            again_at: None,
            revision: None,
        }
    }

    pub fn replicas(&self) -> i32 {
        replicas_of(self.deployment)
    }

    pub fn recorder(&self) -> Recorder {
        Recorder { component: "deployment-controller", now: self.world.now }
    }

    /// Indexes of all sets but the new one, oldest first.
    pub fn old(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|i| Some(*i) != self.new && !self.sets[*i].removed).collect()
    }

    pub fn total_replicas(&self) -> i32 {
        self.sets.iter().map(Set::replicas).sum()
    }

    /// Finds the set of the current template and brings its revision up to date.
    pub fn find_new_set(&mut self) {
        self.new = self.sets.iter().position(|set| {
            let template = set.wanted.spec.as_ref().and_then(|s| s.template.as_ref());
            template.is_some_and(|t| equal_but_hash(t, &self.spec.template))
        });
        let Some(index) = self.new else { return };
        let newest_old = self.old().iter().map(|i| self.sets[*i].revision()).max().unwrap_or(0);
        let min_ready_seconds = self.spec.min_ready_seconds;
        let copied = self.copied_annotations();
        let set = &mut self.sets[index];
        let current = set.revision();
        if current < newest_old + 1 {
            if current > 0 {
                let history = match set.annotation(REVISION_HISTORY) {
                    Some(earlier) if !earlier.is_empty() => format!("{earlier},{current}"),
                    _ => current.to_string(),
                };
                set.set_annotation(REVISION_HISTORY, history);
            }
            set.set_annotation(REVISION, (newest_old + 1).to_string());
        }
        for (key, value) in copied {
            set.set_annotation(&key, value);
        }
        if let Some(spec) = &mut set.wanted.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready_seconds.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready_seconds;
        }
        self.revision = Some(set.revision().to_string());
        let name = set.name().to_owned();
        self.note_found(&name);
    }

    /// Finds the set of the current template or creates it with as many replicas as fit now.
    pub fn ensure_new_set(&mut self) {
        self.find_new_set();
        if self.new.is_some() {
            return;
        }
        let collisions = self.status.collision_count.unwrap_or(0);
        let hash = template_hash(&self.spec.template, collisions);
        let name = format!("{}-{hash}", name_of(&self.deployment.metadata));
        let namespace = namespace_of(&self.deployment.metadata);
        if self.world.snapshot.object(&ObjectKey::new(Kind::ReplicaSet, namespace, &name)).is_some()
        {
            // Somebody else's set has the name (or one of ours that is ending): take another.
            self.status.collision_count = Some(collisions + 1);
            return;
        }
        let newest = self.sets.iter().map(Set::revision).max().unwrap_or(0);
        let mut set = self.new_set(&name, &hash);
        set.set_annotation(REVISION, (newest + 1).to_string());
        for (key, value) in self.copied_annotations() {
            set.set_annotation(&key, value);
        }
        self.revision = Some((newest + 1).to_string());
        self.sets.push(set);
        let index = self.sets.len() - 1;
        self.new = Some(index);
        self.note_created(&name);
        let replicas = self.new_set_replicas();
        self.scale(index, replicas);
    }

    fn new_set(&self, name: &str, hash: &str) -> Set {
        let with_hash = |labels: Option<&BTreeMap<String, String>>| {
            let mut labels = labels.cloned().unwrap_or_default();
            labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.to_owned());
            Some(labels)
        };
        let mut template = self.spec.template.clone();
        let template_meta = template.metadata.get_or_insert_default();
        template_meta.labels = with_hash(template_meta.labels.as_ref());
        let labels = template_meta.labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels = with_hash(selector.match_labels.as_ref());
        let wanted = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels,
                owner_references: Some(vec![controller_reference(self.deployment)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        Set { stored: None, wanted, removed: false }
    }

    fn copied_annotations(&self) -> Vec<(String, String)> {
        let annotations = self.deployment.metadata.annotations.iter().flatten();
        annotations
            .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Sets the replicas of a set, notes for what size of the deployment, and says so.
    pub fn scale(&mut self, index: usize, replicas: i32) {
        let (desired, max) = (self.replicas(), self.replicas() + self.bounds.max_surge);
        let set = &mut self.sets[index];
        let before = set.replicas();
        set.set_annotation(DESIRED_REPLICAS, desired.to_string());
        set.set_annotation(MAX_REPLICAS, max.to_string());
        if before == replicas {
            return;
        }
        if let Some(spec) = &mut set.wanted.spec {
            spec.replicas = Some(replicas);
        }
        let direction = if replicas > before { "up" } else { "down" };
        let message =
            format!("Scaled {direction} replica set {} from {before} to {replicas}", set.name());
        self.events.push(self.recorder().normal(self.deployment, "ScalingReplicaSet", message));
    }

    /// What changed, as operations; conditional on the deployment being as it was read.
    pub fn into_plan(self) -> Plan {
        let mut ops = Vec::new();
        for set in self.sets {
            match set.stored {
                None => ops.push(Op::Create(set.wanted.into_object())),
                Some(stored) if set.removed => {
                    ops.push(Op::Remove {
                        key: key_of(&*stored),
                        uid: stored.metadata.uid.clone(),
                    });
                }
                Some(stored) if *stored != set.wanted => {
                    let mut wanted = set.wanted;
                    // The set's own loop writes its status all the time, which is not ours to
                    // conflict with; the uid still must be the same.
                    wanted.metadata.resource_version = None;
                    ops.push(Op::Replace(wanted.into_object()));
                }
                Some(_) => {}
            }
        }
        let mut deployment = self.deployment.clone();
        if let Some(revision) = self.revision {
            let annotations = deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision);
            if annotations.get(REVISION)
                != self.deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION))
            {
                ops.push(Op::Replace(deployment.clone().into_object()));
            }
        }
        if self.deployment.status.as_ref() != Some(&self.status) {
            deployment.status = Some(self.status);
            ops.push(Op::ReplaceStatus(deployment.into_object()));
        }
        ops.extend(self.events);
        let preconditions = if ops.is_empty() {
            Vec::new()
        } else {
            let revision = self.deployment.clone().into_object().resource_version();
            vec![Precondition::Revision(key_of(self.deployment), revision)]
        };
        Plan { ops, preconditions, again_at: self.again_at }
    }
}

/// Whether two templates are the same but for the hash that a set's template carries.
fn equal_but_hash(of_set: &PodTemplateSpec, of_deployment: &PodTemplateSpec) -> bool {
    if of_set.spec != of_deployment.spec {
        return false;
    }
    let plain = |template: &PodTemplateSpec| {
        let mut meta = template.metadata.clone().unwrap_or_default();
        meta.creation_timestamp = None;
        if let Some(labels) = &mut meta.labels {
            labels.remove(POD_TEMPLATE_HASH);
        }
        meta.labels = meta.labels.filter(|l| !l.is_empty());
        meta.annotations = meta.annotations.filter(|a| !a.is_empty());
        meta
    };
    plain(of_set) == plain(of_deployment)
}
