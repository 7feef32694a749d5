//! The agents' sessions: who is connected, what each node is told to run, and what it answers.
//!
//! Any master can hold a session: what a node gets is compiled from the replicated state alone. No
//! decision is made here; an agent's statuses and events are written as they come, and its
//! telemetry goes to the hub.

mod beats;
mod compile;
mod events;
mod follower;
mod lease;
mod node;
mod registry;
mod secrets;
mod session;
mod statuses;
#[cfg(test)]
mod tests;
mod tokens;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use timonier_proto::v1::agent_server::{Agent, AgentServer};
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{AgentMessage, MasterMessage, StreamFrame};
use timonier_proto::{MESSAGE_BYTES_MAX, v1};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::caller::Caller;
use crate::masters::Masters;
use crate::pki::is_revoked;
use crate::store::Store;
use crate::streams::{AgentFrames, Streams};
use crate::telemetry::Hub;

pub use lease::may_have as may_have_lease;
pub(crate) use registry::{Registry, SendError};
pub use statuses::plan as plan_statuses;

/// How often silent agents are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// What sessions need to know; fixed when a master starts.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// e.g. `10.244.0.0/16`; every node gets a /24 of it.
    pub cluster_range: String,
    /// e.g. `10.96.0.0/16`.
    pub service_range: String,
    /// Time between two heartbeats; 1,000 unless the cluster is very large.
    pub heartbeat_ms: u32,
    /// An agent silent for so long is cut off; it dials again when it can.
    pub silence_max: Duration,
    /// An agent that has had no lease for so long stops its unique pods.
    pub fence_after_ms: u32,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            cluster_range: timonier_proto::DEFAULT_CLUSTER_RANGE.to_owned(),
            service_range: timonier_proto::DEFAULT_SERVICE_RANGE.to_owned(),
            heartbeat_ms: 1000,
            silence_max: Duration::from_secs(3),
            fence_after_ms: timonier_proto::unique::FENCE_AFTER_MS_DEFAULT,
        }
    }
}

/// The gRPC service that agents dial. Clones are the same.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    hub: Hub,
    masters: Masters,
    settings: SessionSettings,
    registry: Arc<Registry>,
    streams: Streams,
    follower: follower::Handle,
    promises: node::Promises,
    /// Whether this master hears a leader.
    leader_heard: watch::Receiver<bool>,
    shutdown: CancellationToken,
}

impl Inner {
    /// Without a leader no agent can be registered: one that waited for it here might have found it
    /// through another master.
    fn leader_heard(&self) -> Result<(), Status> {
        match *self.leader_heard.borrow() {
            true => Ok(()),
            false => Err(Status::unavailable("this master hears no leader")),
        }
    }
}

impl Sessions {
    /// Starts to follow the store. Ends all sessions when `shutdown` is cancelled.
    pub fn start(
        store: Store,
        hub: Hub,
        masters: Masters,
        settings: SessionSettings,
        shutdown: CancellationToken,
    ) -> Self {
        let registry = Arc::new(Registry::default());
        hub.set_silence_max(settings.silence_max);
        let streams = Streams::new(store.clone(), hub.clone(), registry.clone(), masters.clone());
        let follower = follower::start(store.clone(), hub.clone(), shutdown.clone());
        let silence_max = settings.silence_max;
        tokio::spawn(sweep(store.clone(), registry.clone(), silence_max, shutdown.clone()));
        let (heard, leader_heard) = watch::channel(true);
        tokio::spawn(tell_of_leader(store.clone(), registry.clone(), heard, shutdown.clone()));
        tokio::spawn(tell_of_masters(registry.clone(), masters.clone(), shutdown.clone()));
        Self {
            inner: Arc::new(Inner {
                store,
                hub,
                masters,
                settings,
                registry,
                streams,
                follower,
                promises: node::Promises::default(),
                leader_heard,
                shutdown,
            }),
        }
    }

    /// To be added to the server.
    pub fn service(&self) -> AgentServer<Self> {
        AgentServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The broker of logs, exec, port-forward and image streams.
    pub fn streams(&self) -> &Streams {
        &self.inner.streams
    }
}

#[tonic::async_trait]
impl Agent for Sessions {
    type SessionStream = ReceiverStream<Result<MasterMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(&request);
        session::open(&self.inner, &caller, request.into_inner()).await.map(Response::new)
    }

    type StreamStream = AgentFrames;

    async fn stream(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = Caller::of(&request);
        let node = caller.node().ok_or_else(|| {
            Status::permission_denied("only an agent, by its node's certificate, dials a stream")
        })?;
        self.inner.streams.accept(node, request.into_inner()).await.map(Response::new)
    }
}

/// Tells the agents when the masters are others than before.
async fn tell_of_masters(registry: Arc<Registry>, masters: Masters, shutdown: CancellationToken) {
    let mut changes = masters.changes();
    let mut told = masters.addresses();
    while let Some(Ok(())) = or_shutdown(changes.changed(), &shutdown).await {
        let addresses = masters.addresses();
        if addresses != told {
            told.clone_from(&addresses);
            let message = Down::Masters(v1::Masters { addresses });
            registry.send_to_all(&MasterMessage { message: Some(message) });
        }
    }
}

/// Cuts off agents that have been silent too long, as their host or the network may be gone without
/// a word, and those whose certificate was revoked.
async fn sweep(
    store: Store,
    registry: Arc<Registry>,
    silence_max: Duration,
    shutdown: CancellationToken,
) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while or_shutdown(ticks.tick(), &shutdown).await.is_some() {
        for node in registry.cut_off_silent(silence_max) {
            tracing::warn!(
                node,
                silence_ms = silence_max.as_millis() as u64,
                "the agent is silent, its session is closed"
            );
        }
        let snapshot = store.snapshot();
        for node in registry.cut_off_revoked(|shown| is_revoked(&snapshot, shown)) {
            tracing::warn!(node, "the agent's certificate was revoked, its session is closed");
        }
    }
}

/// Tells the agents when this master hears no leader any more, and when it does again.
async fn tell_of_leader(
    store: Store,
    registry: Arc<Registry>,
    leader_heard: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while or_shutdown(ticks.tick(), &shutdown).await.is_some() {
        let Some(heard) = or_shutdown(store.hears_a_leader(), &shutdown).await else { return };
        if leader_heard.send_if_modified(|was| std::mem::replace(was, heard) != heard) {
            let told = Down::LeaderHeard(v1::LeaderHeard { heard });
            registry.send_to_all(&MasterMessage { message: Some(told) });
        }
    }
}

/// The answer, or `None` on shutdown.
async fn or_shutdown<T>(work: impl Future<Output = T>, shutdown: &CancellationToken) -> Option<T> {
    tokio::select! {
        answer = work => Some(answer),
        () = shutdown.cancelled() => None,
    }
}
