//! Agents: the real one on its host, but for the engine and the kernel's network below it, which are
//! in memory, and without the watchdog, which is a process of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use timonier_agent::join::Membership;
use timonier_agent::lease::Lease;
use timonier_agent::pods::{NetAnswer, PodNetwork};
use timonier_agent::session::{
    Node, NodeConfig, NodeNetwork, Ranges, Session, SessionConfig, StartNetwork,
};
use timonier_agent::telemetry::HostFacts;
use timonier_agent_core::net::DesiredNet;
use timonier_identity::Identity;
use timonier_proto::unique::FENCE_AFTER_MS_DEFAULT;
use timonier_proto::v1::{HostUsage, NodeCapacity};
use tokio::time::Instant;

use crate::engine::Engine;

/// An agent's place in the world.
pub struct AgentHost {
    pub name: String,
    /// Its disk.
    pub data_dir: PathBuf,
    pub masters: Vec<String>,
    pub identity: Identity,
    pub engine: Engine,
    /// How many times the host was started.
    pub life: u32,
}

impl AgentHost {
    pub async fn run(self) {
        let begun = Instant::now();
        let clock = move || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let node = Node::new(
            NodeConfig {
                name: self.name.clone(),
                data_dir: self.data_dir.clone(),
                host_ip: "10.0.0.1".to_owned(),
                lease: Lease::on_clock(Box::new(clock), FENCE_AFTER_MS_DEFAULT.into()),
            },
            Arc::new(self.engine),
            start_network(),
            Box::new(HostUsage::default),
        );
        node.take_over().await;
        let session = Session::new(
            SessionConfig {
                membership: Membership::new(self.identity, &self.data_dir),
                masters: self.masters,
                data_dir: self.data_dir,
                node_name: self.name.clone(),
                agent_id: format!("{}-{}", self.name, self.life),
                address: "10.0.0.1".to_owned(),
                capacity: NodeCapacity {
                    cpu_millis: 8000,
                    memory_bytes: 8 << 30,
                    ephemeral_storage_bytes: 8 << 30,
                    pods: 110,
                    ..NodeCapacity::default()
                },
                labels: [("kubernetes.io/hostname".to_owned(), self.name)].into(),
                facts: HostFacts { boot_id: self.life.to_string(), ..HostFacts::default() },
                heartbeat: None,
            },
            node,
        );
        session.run().await;
    }
}

fn start_network() -> StartNetwork {
    Box::new(|ranges: Ranges| {
        let network: Arc<dyn NodeNetwork> = Arc::new(Addresses::of(&ranges));
        Box::pin(async move { Ok(network) })
    })
}

/// The network of a host: addresses, and nothing behind them.
#[derive(Default)]
struct Addresses {
    prefix: [u8; 3],
    next: AtomicU8,
    taken: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl Addresses {
    fn of(ranges: &Ranges) -> Self {
        let address = ranges.pod_range.split('/').next().and_then(|text| text.parse().ok());
        let [a, b, c, _] = address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        Self { prefix: [a, b, c], ..Self::default() }
    }
}

impl PodNetwork for Addresses {
    fn allocate(&self, uid: &str) -> Result<Ipv4Addr, String> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let [a, b, c] = self.prefix;
        let ip = taken
            .entry(uid.to_owned())
            .or_insert_with(|| Ipv4Addr::new(a, b, c, self.next.fetch_add(1, Ordering::Relaxed)));
        Ok(*ip)
    }

    fn adopt(&self, uid: &str, ip: Ipv4Addr) -> Result<(), String> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), ip);
        Ok(())
    }

    fn release(&self, uid: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn attach<'a>(&'a self, _: &'a str, _: u32, _: Ipv4Addr) -> NetAnswer<'a> {
        Box::pin(async { Ok(()) })
    }

    fn detach<'a>(&'a self, _: &'a str) -> NetAnswer<'a> {
        Box::pin(async { Ok(()) })
    }

    fn remove_leftovers(&self, _: BTreeSet<String>) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }

    fn ensure_forwarding(&self) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }
}

impl NodeNetwork for Addresses {
    fn apply(&self, _: DesiredNet) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }
}
