//! One agent's session on the master: registers the node, then takes in what the agent says until
//! either side ends it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use timonier_proto::names;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{AgentMessage, Hello, MasterMessage, Welcome};
use timonier_proto::{ApiError, Reason};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::registry::{Claim, OUTGOING_MESSAGES_MAX, Registry};
use super::statuses::{self, Report};
use super::{Inner, beats, follower, lease, node};
use crate::caller::Caller;
use crate::telemetry::Introduction;

/// How long a new connection may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
const AGENT_ID_BYTES_MAX: usize = 253;
/// Batches of statuses and events of one agent that wait to be stored.
const REPORTS_MAX: usize = 32;
/// The whole cluster's heartbeats are kept below this rate, by longer periods as far as the grace
/// allows.
const BEATS_PER_MS_MAX: u32 = 2;

type Down2Agent = ReceiverStream<Result<MasterMessage, Status>>;

/// Answers once the node is registered; what follows goes over the stream.
pub async fn open(
    inner: &Arc<Inner>,
    caller: &Caller,
    mut incoming: Streaming<AgentMessage>,
) -> Result<Down2Agent, Status> {
    let hello = hello(&mut incoming).await?;
    speaks_for_itself(caller, &hello)?;
    inner.leader_heard()?;
    let (outgoing, stream) = mpsc::channel(OUTGOING_MESSAGES_MAX);
    let cancel = inner.shutdown.child_token();
    let claim = inner.registry.claim(
        &inner.hub,
        Introduction { node: &hello.node_name, agent_id: &hello.agent_id, dial: hello.dial },
        caller.certificate().cloned(),
        &hello.address,
        outgoing,
        cancel,
    )?;
    // From here on the name is given back whatever happens.
    let guard = Guard { registry: inner.registry.clone(), claim: claim.clone() };
    let pod_range = node::register(inner, &claim, &hello).await?;
    // What the agent is told to run must not be older than what another master told it before.
    inner.store.linearize().await.map_err(ApiError::from)?;
    // Silence counts from here: registering may have taken its time.
    claim.link.welcome();
    let welcome = welcome(inner, &claim, pod_range);
    claim
        .send(MasterMessage { message: Some(Down::Welcome(welcome)) })
        .map_err(|_| Status::cancelled("the agent is gone"))?;
    let join = follower::Command::Join(claim.clone());
    if inner.follower.commands.send(join).await.is_err() {
        return Err(Status::unavailable("the master is shutting down"));
    }
    tracing::info!(
        node = hello.node_name,
        address = hello.address,
        version = hello.version,
        "agent connected"
    );
    tokio::spawn(read(inner.clone(), guard, incoming));
    Ok(ReceiverStream::new(stream))
}

/// Gives the node's name back when dropped.
struct Guard {
    registry: Arc<Registry>,
    claim: Arc<Claim>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.registry.release(&self.claim);
        self.claim.cancel.cancel();
    }
}

async fn hello(incoming: &mut Streaming<AgentMessage>) -> Result<Hello, Status> {
    let first = timeout(HELLO_DEADLINE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came in 10 s"))??;
    let Some(Up::Hello(hello)) = first.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message of a session must be a Hello"));
    };
    let refused = |why: &str| {
        let text = format!("cannot register node {:?}: {why}", hello.node_name);
        Err(ApiError::new(Reason::Invalid, text).into())
    };
    if let Err(why) = names::dns_subdomain(&hello.node_name) {
        return refused(&why);
    }
    // Every master keeps it.
    if hello.agent_id.len() > AGENT_ID_BYTES_MAX {
        return refused(&format!("its agent_id is longer than {AGENT_ID_BYTES_MAX} bytes"));
    }
    Ok(hello)
}

/// An agent reports for the node that its certificate names, and for no other.
fn speaks_for_itself(caller: &Caller, hello: &Hello) -> Result<(), Status> {
    if caller.node() == Some(&hello.node_name) {
        return Ok(());
    }
    let text = format!(
        "cannot register node {}: the certificate shown is that of {}; hint: a node's data folder belongs to one --node-name",
        hello.node_name, caller.name
    );
    Err(ApiError::new(Reason::Forbidden, text).into())
}

fn welcome(inner: &Inner, claim: &Claim, pod_range: String) -> Welcome {
    let settings = &inner.settings;
    let connected = u32::try_from(inner.hub.connected()).unwrap_or(u32::MAX);
    // A node is lost when three beats are missing, however many nodes there are.
    let period_max = u32::try_from(settings.silence_max.as_millis()).unwrap_or(u32::MAX) / 3;
    let period = settings.heartbeat_ms.max((connected / BEATS_PER_MS_MAX).min(period_max));
    Welcome {
        session: claim.session.clone(),
        // Never longer than the period, so that three missed ones are three periods at most.
        heartbeat_ms: period - fastrand::u32(0..=period / 20),
        pod_range,
        cluster_range: settings.cluster_range.clone(),
        service_range: settings.service_range.clone(),
        masters: inner.masters.addresses(),
        fence_after_ms: settings.fence_after_ms,
    }
}

/// Takes in what the agent says. A heartbeat, of which there are a thousand a second, costs no
/// allocation of our own, no timer and no second task.
async fn read(inner: Arc<Inner>, guard: Guard, mut incoming: Streaming<AgentMessage>) {
    let claim = guard.claim.clone();
    let mut cancelled = pin!(claim.cancel.cancelled());
    let mut reports: Option<mpsc::Sender<Report>> = None;
    let why = loop {
        let received = match select(pin!(incoming.message()), &mut cancelled).await {
            Either::Left((received, _)) => received,
            Either::Right(_) => break "closed by this master".to_owned(),
        };
        let message = match received {
            Ok(Some(AgentMessage { message: Some(message) })) => message,
            Ok(Some(_)) => continue, // of a newer agent
            Ok(None) => break "closed by the agent".to_owned(),
            Err(status) => break status.message().to_owned(),
        };
        let report = match message {
            Up::Heartbeat(beat) => {
                let (sequence, lease_wanted) = (beat.sequence, beat.lease_wanted);
                claim.link.beat(beat);
                if lease_wanted {
                    lease::answer(&inner.store, &inner.follower.told, &claim, sequence);
                }
                continue;
            }
            Up::Beats(beats) => {
                claim.link.latency(beats::own(&inner.store.snapshot(), &claim.node, beats));
                continue;
            }
            Up::Hello(_) => break "the agent said Hello twice".to_owned(),
            Up::Statuses(batch) => Report::Statuses(batch),
            Up::Events(events) => Report::Events(events),
        };
        let queue = reports.get_or_insert_with(|| start_reports(&inner, &claim));
        if queue.try_send(report).is_err() {
            break "the agent reports faster than it can be stored".to_owned();
        }
    };
    tracing::info!(node = claim.node, why, "agent disconnected");
    // Where it can still be told, the agent learns why; the drop of the last sender ends the stream.
    let _ = claim.outgoing.try_send(Err(Status::unavailable(format!("session closed: {why}"))));
    let _ = inner.follower.commands.try_send(follower::Command::Leave(claim.clone()));
    drop(guard);
}

fn start_reports(inner: &Arc<Inner>, claim: &Arc<Claim>) -> mpsc::Sender<Report> {
    let (sender, receiver) = mpsc::channel(REPORTS_MAX);
    let cancel: CancellationToken = claim.cancel.clone();
    tokio::spawn(statuses::store(inner.store.clone(), claim.clone(), receiver, cancel));
    sender
}
