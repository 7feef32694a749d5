//! Which agents have a session with this master, by node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timonier_identity::PeerCertificate;
use timonier_proto::v1::MasterMessage;
use timonier_proto::{ApiError, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::telemetry::{Hub, Introduction, Link};

/// Messages on their way to one agent; one that reads no faster is cut off and starts anew.
pub const OUTGOING_MESSAGES_MAX: usize = 128;

pub type Outgoing = mpsc::Sender<Result<MasterMessage, Status>>;

#[derive(Debug, Default)]
pub struct Registry {
    by_node: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    claim: Arc<Claim>,
    agent_id: String,
}

/// One session's hold on its node's name.
#[derive(Debug)]
pub struct Claim {
    pub session: String,
    pub node: String,
    /// What the agent showed when it opened the session.
    pub certificate: Option<Arc<PeerCertificate>>,
    pub link: Link,
    pub outgoing: Outgoing,
    /// Ends the session.
    pub cancel: CancellationToken,
    /// Its complete set has been sent.
    pub joined: watch::Sender<bool>,
    /// One lease at a time.
    pub leasing: Turn,
}

/// Lets one in at a time; the others go away.
#[derive(Debug, Clone)]
pub struct Turn(Arc<Semaphore>);

impl Default for Turn {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Turn {
    pub fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_owned().ok()
    }
}

/// Why a message did not go to a node's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    NotConnected,
    /// The agent does not read; it is cut off.
    Overflow,
}

impl Registry {
    /// Takes the node's name for a new session. Another agent that is alive keeps it; an older
    /// session of the same agent is closed.
    pub fn claim(
        &self,
        hub: &Hub,
        who: Introduction<'_>,
        certificate: Option<Arc<PeerCertificate>>,
        address: &str,
        outgoing: Outgoing,
        cancel: CancellationToken,
    ) -> Result<Arc<Claim>, ApiError> {
        let Introduction { node, agent_id, .. } = who;
        let refuse = |place: &str| {
            let text = format!(
                "cannot register node {node} from {address}: another agent with this name is connected{place}; hint: give each agent its own --node-name, or wait a few seconds if this one replaces it"
            );
            ApiError::new(Reason::AlreadyExists, text)
        };
        let mut by_node = self.lock();
        if let Some(old) = by_node.get(node) {
            let gone = old.claim.outgoing.is_closed() || old.claim.cancel.is_cancelled();
            if old.agent_id != agent_id && !gone {
                return Err(refuse(""));
            }
            old.claim.cancel.cancel();
        }
        if let Some(master) = hub.taken(who) {
            return Err(refuse(&format!(" to master {master}")));
        }
        let claim = Arc::new(Claim {
            session: uuid::Uuid::new_v4().to_string(),
            node: node.to_owned(),
            certificate,
            link: hub.connect(who, cancel.clone()),
            outgoing,
            cancel,
            joined: watch::Sender::new(false),
            leasing: Turn::default(),
        });
        let entry = Entry { claim: claim.clone(), agent_id: agent_id.to_owned() };
        by_node.insert(node.to_owned(), entry);
        Ok(claim)
    }

    /// Gives the name back, unless a newer session has it.
    pub fn release(&self, claim: &Claim) {
        let mut by_node = self.lock();
        if by_node.get(&claim.node).is_some_and(|e| e.claim.session == claim.session) {
            by_node.remove(&claim.node);
        }
    }

    /// Sends a message to the agent of `node`, never waiting.
    pub fn send(&self, node: &str, message: MasterMessage) -> Result<(), SendError> {
        let claim = self.lock().get(node).map(|entry| entry.claim.clone());
        claim.ok_or(SendError::NotConnected)?.send(message)
    }

    /// Sends a message to all agents, never waiting.
    pub fn send_to_all(&self, message: &MasterMessage) {
        let claims: Vec<_> = self.lock().values().map(|entry| entry.claim.clone()).collect();
        for claim in claims {
            // One that does not take it is cut off.
            let _ = claim.send(message.clone());
        }
    }

    pub fn is_connected(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    /// Closes the sessions that have been silent for so long; their nodes.
    pub fn cut_off_silent(&self, silence_max: Duration) -> Vec<String> {
        let by_node = self.lock();
        let silent = by_node.values().filter(|entry| {
            entry.claim.link.silence() > silence_max && !entry.claim.cancel.is_cancelled()
        });
        silent
            .map(|entry| {
                entry.claim.cancel.cancel();
                entry.claim.node.clone()
            })
            .collect()
    }

    /// Closes the sessions that were opened with a certificate that was revoked; their nodes.
    pub fn cut_off_revoked(&self, is_revoked: impl Fn(&PeerCertificate) -> bool) -> Vec<String> {
        let by_node = self.lock();
        let revoked = by_node.values().map(|entry| &entry.claim).filter(|claim| {
            !claim.cancel.is_cancelled() && claim.certificate.as_deref().is_some_and(&is_revoked)
        });
        revoked
            .map(|claim| {
                claim.cancel.cancel();
                claim.node.clone()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Sends a message to the agent, never waiting: one that cannot take it is cut off.
    pub fn send(&self, message: MasterMessage) -> Result<(), SendError> {
        use mpsc::error::TrySendError;
        match self.outgoing.try_send(Ok(message)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(SendError::NotConnected),
            Err(TrySendError::Full(_)) => {
                tracing::warn!(
                    node = self.node,
                    "the agent reads too slowly, its session is closed"
                );
                self.cancel.cancel();
                Err(SendError::Overflow)
            }
        }
    }
}
