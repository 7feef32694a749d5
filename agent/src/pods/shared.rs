//! What all pods' tasks of one agent share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use timonier_agent_core::pod::{PodEvent, PodPlan, Slot};
use timonier_proto::v1::AgentEvent;
use tokio::sync::{OnceCell, Semaphore, mpsc, watch};

use super::clock::Clock;
use super::env::NodeFacts;
use super::images::Images;
use super::{NotReady, PodNetwork, PodView, PodsConfig, RunningPod, StatusBoard};
use crate::runtime::Runtime;

/// Commands for probes and hooks that run in containers at a time.
const CONCURRENT_PROBES_MAX: usize = 16;

pub(super) struct Shared {
    pub(super) config: PodsConfig,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) network: Arc<dyn PodNetwork>,
    pub(super) board: Arc<StatusBoard>,
    pub(super) images: Images,
    pub(super) clock: Clock,
    /// The init's program on this host.
    pub(super) init: PathBuf,
    /// Of this host, without a pod's address.
    pub(super) facts: NodeFacts,
    /// Bounds creates and starts.
    pub(super) starts: Semaphore,
    pub(super) probes: Semaphore,
    /// The sandbox image's name, once it is known to be there.
    pub(super) sandbox: OnceCell<String>,
    pub(super) not_ready: watch::Sender<Option<NotReady>>,
    events: mpsc::Sender<AgentEvent>,
    published: RwLock<BTreeMap<String, Published>>,
    changes: watch::Sender<u64>,
}

/// What one pod's task tells the rest of the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Published {
    pub(super) view: PodView,
    pub(super) running: Option<RunningPod>,
}

/// What is needed to start.
pub(super) struct Setup {
    pub(super) config: PodsConfig,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) network: Arc<dyn PodNetwork>,
    pub(super) init: PathBuf,
    pub(super) facts: NodeFacts,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Sender<AgentEvent>,
}

impl Shared {
    pub(super) fn new(setup: Setup) -> Self {
        let Setup { config, runtime, network, init, facts, clock, events } = setup;
        Self {
            images: Images::new(runtime.clone()),
            starts: Semaphore::new(config.concurrent_starts.max(1)),
            probes: Semaphore::new(CONCURRENT_PROBES_MAX),
            board: Arc::new(StatusBoard::default()),
            sandbox: OnceCell::new(),
            not_ready: watch::Sender::new(None),
            published: RwLock::default(),
            changes: watch::Sender::new(0),
            config,
            runtime,
            network,
            init,
            facts,
            clock,
            events,
        }
    }

    /// The folder of everything that a pod has on disk.
    pub(super) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    pub(super) fn pods_dir(&self) -> PathBuf {
        self.config.data_dir.join("pods")
    }

    /// Events are for people to read: when nobody takes them, they are dropped.
    pub(super) fn tell(&self, plan: &PodPlan, event: PodEvent) {
        let field = |list: &'static str, name: &str| format!("{list}{{{name}}}");
        let field_path = match event.slot {
            Some(Slot::Init(i)) => plan.init.get(i).map(|c| field("spec.initContainers", &c.name)),
            Some(Slot::Main(i)) => plan.main.get(i).map(|c| field("spec.containers", &c.name)),
            None => None,
        };
        let event = AgentEvent {
            namespace: plan.namespace.clone(),
            name: plan.name.clone(),
            uid: plan.uid.clone(),
            r#type: if event.warning { "Warning" } else { "Normal" }.to_owned(),
            reason: event.reason,
            message: event.message,
            field_path: field_path.unwrap_or_default(),
            kind: String::new(),
        };
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, pod = plan.name, "an event is dropped");
        }
    }

    pub(super) fn publish(&self, uid: &str, published: Option<Published>) {
        let mut all = self.published.write().unwrap_or_else(PoisonError::into_inner);
        match published {
            Some(published) => all.insert(uid.to_owned(), published),
            None => all.remove(uid),
        };
        drop(all);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&BTreeMap<String, Published>) -> T) -> T {
        read(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
