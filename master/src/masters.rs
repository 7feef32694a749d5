//! The masters as the doors and the relays know them: who they are, where they answer, and a way to
//! reach each. Who belongs to the cluster is the store's to say; nothing is decided here.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::peers::Peers;
use crate::store::Member;

/// How one is reached; the channel is shared and dials by itself.
type Dial = Box<dyn Fn(u64) -> Result<Channel, Status> + Send + Sync>;

/// All masters. Clones are the same.
#[derive(Clone)]
pub struct Masters {
    inner: Arc<Inner>,
}

struct Inner {
    me: u64,
    /// Where this master answers, should the store not know.
    address: String,
    members: watch::Receiver<Vec<Member>>,
    dial: Dial,
}

impl std::fmt::Debug for Masters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masters")
            .field("me", &self.inner.me)
            .field("members", &*self.inner.members.borrow())
            .finish()
    }
}

impl Masters {
    /// `address` is where this master answers, should the store not know.
    pub fn of(peers: Peers, address: String) -> Self {
        let (me, members) = (peers.me(), peers.changed());
        Self::new(me, address, members, move |id| {
            peers.channel(id).map_err(|error| Status::unavailable(error.to_string()))
        })
    }

    pub fn new(
        me: u64,
        address: String,
        members: watch::Receiver<Vec<Member>>,
        dial: impl Fn(u64) -> Result<Channel, Status> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { me, address, members, dial: Box::new(dial) }) }
    }

    /// This master's id.
    pub fn me(&self) -> u64 {
        self.inner.me
    }

    /// All of them, this one included, in order of their ids.
    pub fn members(&self) -> Vec<Member> {
        let mut members = self.inner.members.borrow().clone();
        for member in &mut members {
            if member.id == self.inner.me && member.address.is_empty() {
                member.address.clone_from(&self.inner.address);
            }
        }
        members
    }

    /// The ids of all others.
    pub fn others(&self) -> Vec<u64> {
        let members = self.inner.members.borrow();
        members.iter().map(|member| member.id).filter(|id| *id != self.inner.me).collect()
    }

    /// Where all answer.
    pub fn addresses(&self) -> Vec<String> {
        self.members().into_iter().map(|member| member.address).collect()
    }

    /// Tells of changes, of who leads too.
    pub fn changes(&self) -> watch::Receiver<Vec<Member>> {
        self.inner.members.clone()
    }

    /// A way to that master.
    pub fn channel(&self, id: u64) -> Result<Channel, Status> {
        (self.inner.dial)(id)
    }
}
