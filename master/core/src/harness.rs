//! A cluster in a test: the state, a clock that stands still until it is told, agents that do what
//! agents do, and the control loops driven as the driver drives them, in an order that a seed
//! chooses. Every plan passes the linter before it is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, PodCondition, Service};
use timonier_proto::v1::HostUsage;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

use crate::hash::{Random, name_suffix};
use crate::object::{is_active, is_ending, is_finished, is_ready, key_of, node_of, stored_time};
use crate::op::{Op, Txn};
use crate::reconcile::{Reconciler, all};
use crate::snapshot::Snapshot;
use crate::world::{NodeSignal, Settings, Telemetry, World};

/// Activations after which a cluster that has not come to rest never will.
const STEPS_MAX: usize = 50_000;

pub(crate) struct Cluster {
    pub snapshot: Snapshot,
    pub now: Timestamp,
    pub telemetry: Telemetry,
    pub settings: Settings,
    /// `reason: message`, in order, without repetitions.
    pub events: Vec<String>,
    /// Pods of these images never become ready.
    pub broken_images: BTreeSet<String>,
    /// Looked at after every applied plan.
    pub watch: Box<dyn FnMut(&Snapshot)>,
    loops: Vec<Box<dyn Reconciler>>,
    line: Vec<(usize, ObjectKey)>,
    timers: BTreeMap<(usize, ObjectKey), Timestamp>,
    random: Random,
    uids: u64,
}

pub(crate) fn object<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
    serde_json::from_value(json).expect("the test's object is well formed")
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let mut cluster = Self {
            snapshot: Snapshot::default(),
            now,
            telemetry: Telemetry { since: now, ..Telemetry::default() },
            settings: Settings {
                cluster_range: "10.244.0.0/16".into(),
                service_range: "10.96.0.0/16".into(),
                node_grace_ms: 3_000,
                eviction_after_ms: 2_000,
                fence_after_ms: 10_000,
            },
            events: Vec::new(),
            broken_images: BTreeSet::new(),
            watch: Box::new(|_| {}),
            loops: all(),
            line: Vec::new(),
            timers: BTreeMap::new(),
            random: Random::new(seed),
            uids: 0,
        };
        cluster.create(object::<Namespace>(serde_json::json!({"metadata": {"name": "default"}})));
        cluster.resync();
        cluster
    }

    pub fn with_nodes(seed: u64, nodes: usize) -> Self {
        let mut cluster = Self::new(seed);
        for index in 1..=nodes {
            cluster.add_node(&format!("n{index}"));
        }
        cluster.settle();
        cluster
    }

    pub fn add_node(&mut self, name: &str) {
        self.create(object::<Node>(serde_json::json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {"allocatable": {"cpu": "100", "memory": "100Gi", "pods": "500"}},
        })));
        self.beat(name);
    }

    pub fn beat(&mut self, node: &str) {
        let signal = NodeSignal {
            last_beat: self.now,
            connected: true,
            host: HostUsage::default(),
            not_ready: None,
            master_away_since: None,
            greeted_at: None,
        };
        self.telemetry.nodes.insert(node.to_owned(), signal);
        self.signalled();
    }

    /// What the driver does when the hub says that an agent's state changed.
    pub fn signalled(&mut self) {
        for of in 0..self.loops.len() {
            if self.loops[of].follows_signals() {
                for key in self.loops[of].all_keys(&self.snapshot) {
                    self.push(of, key);
                }
            }
        }
    }

    pub fn world(&mut self) -> World {
        World {
            snapshot: self.snapshot.clone(),
            now: self.now,
            telemetry: Arc::new(self.telemetry.clone()),
            settings: self.settings.clone(),
            seed: self.random.next_u64(),
        }
    }

    pub fn create<T: Kinded>(&mut self, object: T) {
        self.commit(Txn::of(vec![Op::Create(object.into_object())])).unwrap();
    }

    pub fn deployment(&mut self, name: &str, replicas: i32, strategy: serde_json::Value) {
        self.create(object::<Deployment>(serde_json::json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": replicas,
                "strategy": strategy,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": "web:1"}]},
                },
            },
        })));
    }

    pub fn service(&mut self, name: &str) {
        self.create(object::<Service>(serde_json::json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        })));
    }

    /// A person's edit.
    pub fn edit<T: Kinded + Clone>(&mut self, name: &str, change: impl FnOnce(&mut T)) {
        let mut object =
            T::clone(self.get(name).unwrap_or_else(|| panic!("{} {name} exists", T::KIND)));
        change(&mut object);
        self.commit(Txn::of(vec![Op::Replace(object.into_object())])).unwrap();
    }

    pub fn set_image(&mut self, deployment: &str, image: &str) {
        self.edit::<Deployment>(deployment, |d| {
            d.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image =
                Some(image.to_owned());
        });
    }

    pub fn scale(&mut self, deployment: &str, replicas: i32) {
        self.edit::<Deployment>(deployment, |d| d.spec.as_mut().unwrap().replicas = Some(replicas));
    }

    pub fn remove(&mut self, kind: Kind, name: &str) {
        let namespace = if kind.info().namespaced { "default" } else { "" };
        let key = ObjectKey::new(kind, namespace, name);
        self.commit(Txn::of(vec![Op::Remove { key, uid: None }])).unwrap();
    }

    pub fn get<T: Kinded>(&self, name: &str) -> Option<&Arc<T>> {
        let namespace = if T::KIND.info().namespaced { "default" } else { "" };
        self.snapshot.get::<T>(namespace, name)
    }

    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.snapshot.list::<Pod>(None).cloned().collect()
    }

    pub fn sets(&self) -> Vec<Arc<ReplicaSet>> {
        self.snapshot.list::<ReplicaSet>(None).cloned().collect()
    }

    pub fn active(&self) -> usize {
        self.pods().iter().filter(|pod| is_active(pod)).count()
    }

    pub fn ready(&self) -> usize {
        self.pods().iter().filter(|pod| is_active(pod) && is_ready(pod)).count()
    }

    /// Pods on each node, by node.
    pub fn spread(&self) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for pod in self.pods().iter().filter(|pod| is_active(pod)) {
            *spread.entry(node_of(pod).unwrap_or("-").to_owned()).or_default() += 1;
        }
        spread
    }

    pub fn commit(&mut self, txn: Txn) -> Result<(), crate::op::Rejection> {
        let ops = txn.ops.into_iter().map(|op| self.stamp(op)).collect();
        let applied = self.snapshot.apply(&Txn { ops, ..txn })?;
        for change in &applied.changes {
            if let Some(Object::Event(event)) = &change.after {
                self.note(event);
            }
            for of in 0..self.loops.len() {
                for key in self.loops[of].keys(change, &self.snapshot) {
                    self.push(of, key);
                }
            }
        }
        (self.watch)(&self.snapshot);
        Ok(())
    }

    fn note(&mut self, event: &Event) {
        let line = format!(
            "{}: {}",
            event.reason.as_deref().unwrap_or_default(),
            event.message.as_deref().unwrap_or_default()
        );
        if !self.events.contains(&line) {
            self.events.push(line);
        }
    }

    fn stamp(&mut self, mut op: Op) -> Op {
        if let Op::Create(object) | Op::RecordEvent(object) = &mut op {
            self.uids += 1;
            let meta = object.meta_mut();
            meta.uid.get_or_insert_with(|| format!("uid-{}", self.uids));
            meta.creation_timestamp = Some(stored_time(self.now));
            if meta.name.is_none() {
                let suffix = name_suffix(self.random.next_u64(), 5);
                meta.name = meta.generate_name.as_ref().map(|prefix| format!("{prefix}{suffix}"));
            }
        }
        op
    }

    fn push(&mut self, of: usize, key: ObjectKey) {
        let item = (of, key);
        if !self.line.contains(&item) {
            self.line.push(item);
        }
    }

    pub fn resync(&mut self) {
        for of in 0..self.loops.len() {
            for key in self.loops[of].all_keys(&self.snapshot) {
                self.push(of, key);
            }
        }
    }

    /// One activation of a key in line, any of them; `false` when none is.
    pub fn step(&mut self) -> bool {
        if self.line.is_empty() {
            return false;
        }
        let choice = self.random.next_u64() as usize % self.line.len();
        let (of, key) = self.line.swap_remove(choice);
        let world = self.world();
        let plan = self.loops[of].reconcile(&world, &key);
        match plan.again_at {
            Some(at) => self.timers.insert((of, key.clone()), at.max(self.now)),
            None => self.timers.remove(&(of, key.clone())),
        };
        if plan.ops.is_empty() {
            return true;
        }
        let name = self.loops[of].name();
        if let Err(violation) = crate::invariants::check(&world, &plan) {
            panic!("the {name} loop's plan for {key} breaks a rule: {violation}\n{plan:#?}");
        }
        let txn = Txn { preconditions: plan.preconditions, ..Txn::of(plan.ops) };
        if let Err(rejection) = self.commit(txn) {
            panic!("the {name} loop's plan for {key} was refused: {rejection}");
        }
        self.push(of, key);
        true
    }

    /// Until there is nothing to do at this moment.
    pub fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.step() {
                return;
            }
        }
        panic!("the cluster does not come to rest; in line: {:?}", self.line);
    }

    /// As [`Self::settle`]; and then nothing more is found by looking at everything, which would
    /// mean that a loop is not woken by a change that concerns it.
    pub fn settle_wholly(&mut self) {
        self.settle();
        let revision = self.snapshot.revision;
        self.resync();
        self.settle();
        assert_eq!(self.snapshot.revision, revision, "a resync found something to do");
    }

    /// Time passes: what is due is looked at. The nodes in `alive` go on beating.
    pub fn pass(&mut self, millis: i64) {
        self.now += SignedDuration::from_millis(millis);
        for signal in self.telemetry.nodes.values_mut().filter(|s| s.connected) {
            signal.last_beat = self.now;
        }
        self.wake();
    }

    fn wake(&mut self) {
        let due: Vec<_> =
            self.timers.iter().filter(|(_, at)| **at <= self.now).map(|(i, _)| i.clone()).collect();
        for (of, key) in due {
            self.timers.remove(&(of, key.clone()));
            self.push(of, key);
        }
    }

    /// The agents act: what is to end has ended, what is bound runs and is ready.
    pub fn agents(&mut self) {
        for pod in self.pods() {
            self.agent(&pod);
        }
    }

    /// What its agent does with one pod; whether it did anything.
    pub fn agent(&mut self, pod: &Pod) -> bool {
        let Some(node) = node_of(pod) else { return false };
        if !self.telemetry.nodes.get(node).is_some_and(|s| s.connected) {
            return false;
        }
        let key = key_of(pod);
        if is_ending(&pod.metadata) {
            return self.commit(Txn::of(vec![Op::Remove { key, uid: None }])).is_ok();
        }
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default();
        if is_finished(pod) || is_ready(pod) || self.broken_images.contains(&image) {
            return false;
        }
        let mut pod = pod.clone();
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Running".to_owned());
        self.uids += 1;
        status.pod_ip = Some(format!("10.244.1.{}", self.uids));
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != "Ready");
        conditions.push(PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(stored_time(self.now)),
            ..PodCondition::default()
        });
        self.commit(Txn::of(vec![Op::ReplaceStatus(pod.into_object())])).is_ok()
    }

    /// Seconds pass, the agents work, and everything settles, `rounds` times.
    pub fn live(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.pass(1_000);
            self.settle();
            self.agents();
            self.settle();
        }
    }

    /// `Available=True MinimumReplicasAvailable`-like lines of a deployment.
    pub fn conditions(&self, deployment: &str) -> Vec<String> {
        let deployment = self.get::<Deployment>(deployment).expect("the deployment exists");
        let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut lines: Vec<String> = conditions
            .map(|c| {
                let (reason, message) = (c.reason.as_deref(), c.message.as_deref());
                let (reason, message) = (reason.unwrap_or_default(), message.unwrap_or_default());
                format!("{}={} {reason}: {message}", c.type_, c.status)
            })
            .collect();
        lines.sort();
        lines
    }
}
