//! The other masters: who they are, and a channel to each.
//!
//! One connection carries everything that two masters say to each other in one direction. Who is a
//! member is the store's to say.

mod join;
mod removed;
mod service;
mod transport;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use timonier_identity::{DialOptions, Identity};
use timonier_proto::v1::JoinMasterReply;
use tokio::sync::watch;
use tonic::transport::Channel;

pub use self::join::{JoinError, Joining, join};
pub use self::service::RaftService;
pub use crate::store::Member;
use crate::store::{Store, Transport};

/// A connection that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// One that is silent is looked after so often…
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// …and given up after this time.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a master is not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("this master has no certificate yet")]
    Nameless,
    #[error("there is no master with the id {0}")]
    Unknown(u64),
    #[error("dial master at {address:?}: {why}")]
    Address { address: String, why: String },
}

/// The one place where a master opens a connection to another. It is made at the first request,
/// and again whenever it was lost.
fn dial(address: &str, identity: &Identity) -> Result<Channel, PeerError> {
    let options = DialOptions {
        connect_timeout: CONNECT_TIMEOUT,
        keep_alive_interval: KEEP_ALIVE_INTERVAL,
        keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
        keep_alive_while_idle: true,
    };
    timonier_identity::dial_lazy(address, identity, &options)
        .map_err(|error| PeerError::Address { address: address.to_owned(), why: error.to_string() })
}

/// The channels to other masters, kept. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    channels: Arc<Mutex<BTreeMap<u64, (String, Channel)>>>,
    /// What this master shows to the others, once it is known.
    identity: Arc<OnceLock<Identity>>,
}

impl Lines {
    pub fn new() -> Self {
        Self::default()
    }

    /// What this master shows to the others; none is reached before.
    pub fn show(&self, identity: Identity) {
        // The first one stays: an identity renews itself.
        let _ = self.identity.set(identity);
    }

    /// How the store reaches them.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(transport::Grpc::new(self.clone()))
    }

    /// To the master with this id, which answers there.
    fn to(&self, id: u64, address: &str) -> Result<Channel, PeerError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(&id)
            && known == address
        {
            return Ok(channel.clone());
        }
        let identity = self.identity.get().ok_or(PeerError::Nameless)?;
        let channel = dial(address, identity)?;
        channels.insert(id, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    fn keep_only(&self, members: &[Member]) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|id, _| members.iter().any(|member| member.id == *id));
    }
}

/// The other masters. Clones are the same.
#[derive(Debug, Clone)]
pub struct Peers {
    store: Store,
    lines: Lines,
}

impl Peers {
    /// `lines` are those that the store was opened with.
    pub fn new(store: Store, lines: Lines) -> Self {
        Self { store, lines }
    }

    /// This master's id.
    pub fn me(&self) -> u64 {
        self.store.id()
    }

    /// Every master, this one too, in order of their ids.
    pub fn members(&self) -> Vec<Member> {
        self.store.members()
    }

    pub fn leader(&self) -> Option<u64> {
        self.store.leader()
    }

    /// Tells when the members change, or who of them leads.
    pub fn changed(&self) -> watch::Receiver<Vec<Member>> {
        self.store.members_changed()
    }

    /// To the master with this id. Answers at once; the first request connects.
    pub fn channel(&self, id: u64) -> Result<Channel, PeerError> {
        let members = self.store.members();
        let member = members.iter().find(|member| member.id == id).ok_or(PeerError::Unknown(id))?;
        self.lines.keep_only(&members);
        self.lines.to(id, &member.address)
    }
}

fn member_of(member: &Member) -> timonier_proto::v1::RaftMember {
    timonier_proto::v1::RaftMember {
        id: member.id,
        name: member.name.clone(),
        address: member.address.clone(),
        voter: member.voter,
        leader: member.leader,
    }
}

/// What a master that wants to join is told.
fn reply(store: &Store, id: u64) -> JoinMasterReply {
    JoinMasterReply {
        id,
        cluster_id: store.cluster_id().to_owned(),
        members: store.members().iter().map(member_of).collect(),
    }
}
