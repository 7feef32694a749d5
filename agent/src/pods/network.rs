//! What pods need of the network, so that tests can do without one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::pin::Pin;

use crate::net::Network;

/// The answer to come; an error is a text for people.
pub type NetAnswer<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// The pods' network on this host; see [`Network`] for what each does.
pub trait PodNetwork: Send + Sync + 'static {
    fn allocate(&self, uid: &str) -> Result<Ipv4Addr, String>;
    fn adopt(&self, uid: &str, ip: Ipv4Addr) -> Result<(), String>;
    fn release(&self, uid: &str);
    fn attach<'a>(&'a self, uid: &'a str, pid: u32, ip: Ipv4Addr) -> NetAnswer<'a>;
    fn detach<'a>(&'a self, uid: &'a str) -> NetAnswer<'a>;
    fn remove_leftovers(&self, uids: BTreeSet<String>) -> NetAnswer<'_>;
    fn ensure_forwarding(&self) -> NetAnswer<'_>;
}

impl PodNetwork for Network {
    fn allocate(&self, uid: &str) -> Result<Ipv4Addr, String> {
        Self::allocate(self, uid).map_err(|error| error.to_string())
    }

    fn adopt(&self, uid: &str, ip: Ipv4Addr) -> Result<(), String> {
        Self::adopt(self, uid, ip).map_err(|error| error.to_string())
    }

    fn release(&self, uid: &str) {
        Self::release(self, uid);
    }

    fn attach<'a>(&'a self, uid: &'a str, pid: u32, ip: Ipv4Addr) -> NetAnswer<'a> {
        Box::pin(async move {
            Self::attach(self, uid, pid, ip).await.map_err(|error| error.to_string())
        })
    }

    fn detach<'a>(&'a self, uid: &'a str) -> NetAnswer<'a> {
        Box::pin(async move { Self::detach(self, uid).await.map_err(|error| error.to_string()) })
    }

    fn remove_leftovers(&self, uids: BTreeSet<String>) -> NetAnswer<'_> {
        Box::pin(async move {
            match Self::remove_leftovers(self, uids).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn ensure_forwarding(&self) -> NetAnswer<'_> {
        Box::pin(
            async move { Self::ensure_forwarding(self).await.map_err(|error| error.to_string()) },
        )
    }
}
