//! The pods' network on this host: the bridge, each pod's link and address, services, node ports,
//! host ports and isolation.
//!
//! What the rules should be is decided in `timonier_agent_core::net`; this module carries it out
//! through netlink and nft. It does nothing between hosts, resolves no names and encrypts nothing.
//! Several agents can share a machine: each has its own bridge, pod range and nftables table, and
//! touches nothing else.

mod bridge;
mod error;
mod forwarding;
mod init;
mod netlink;
mod pod_files;
mod pod_link;
mod program;
mod rules;
mod sandbox;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use timonier_agent_core::net::{DesiredNet, Ipam, Ipv4Cidr, NodeRanges, table_name};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use error::NetError;
pub use init::{INIT_PATH_IN_CONTAINER, init_bytes, install_init};
pub use pod_files::{PodFiles, Resolver, write_pod_files};
pub use sandbox::{sandbox_image, sandbox_image_tar};

use bridge::Switching;
use pod_link::PodLink;
use rules::{Progress, Wanted};

/// Pods wired at the same time; the kernel does them one after the other anyway.
const CONCURRENT_ATTACHES_MAX: usize = 16;
const KERNEL_DEADLINE: Duration = Duration::from_secs(15);
/// How long a caller waits for its wish to be in the table.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

/// What an agent's network is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The node's name; it names the nftables table and tags firewall rules.
    pub node: String,
    /// The bridge, at most 15 bytes; see `timonier_agent_core::net::bridge_name`.
    pub bridge: String,
    /// This node's pods. The first address is the bridge's own.
    pub pod_cidr: Ipv4Cidr,
    /// All pods of the cluster; holds `pod_cidr`.
    pub cluster_cidr: Ipv4Cidr,
    /// The services' addresses.
    pub service_cidr: Ipv4Cidr,
}

/// The pods' network of one agent. Clones are the same network. Dropping it leaves everything in
/// place, for the next start to take over; [`Network::teardown`] removes it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetConfig,
    table: String,
    bridge_index: u32,
    switching: Mutex<Switching>,
    ipam: Mutex<Ipam>,
    attaches: Semaphore,
    wanted: watch::Sender<Wanted>,
    progress: watch::Receiver<Progress>,
    follower: AbortHandle,
    closed: AtomicBool,
}

/// The number of a wish given to [`Network::sync`], to wait for with [`Network::synced`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Network {
    /// Makes the bridge, the table and the firewall's openings, or takes over those of an agent
    /// that ran before: running pods keep their links, and services stay as they were until the
    /// first [`Network::sync`], which therefore should come only when all is known.
    pub async fn start(config: NetConfig) -> Result<Self, NetError> {
        check(&config)?;
        let table = table_name(&config.node);
        let ranges = config.ranges();
        let on_thread = config.clone();
        let bridge_index =
            blocking(&config.node, "setting up the bridge", move || bridge::set_up(&on_thread))
                .await??;
        let rules_failed = |reason| NetError::Rules { table: table.clone(), reason };
        rules::ensure_table(&ranges, &table).await.map_err(rules_failed)?;
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (report, progress) = watch::channel(Progress::default());
        let follower = tokio::spawn(rules::follow(ranges, table.clone(), wishes, report));
        let network = Self {
            inner: Arc::new(Inner {
                ipam: Mutex::new(Ipam::new(config.pod_cidr)),
                attaches: Semaphore::new(CONCURRENT_ATTACHES_MAX),
                switching: Mutex::new(Switching::current()),
                follower: follower.abort_handle(),
                closed: AtomicBool::new(false),
                table,
                config,
                bridge_index,
                wanted,
                progress,
            }),
        };
        network.ensure_forwarding().await?;
        Ok(network)
    }

    /// What it was started with.
    pub fn config(&self) -> &NetConfig {
        &self.inner.config
    }

    /// The address of the host on the pods' network.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner.config.pod_cidr.gateway()
    }

    /// The address of pod `uid`: the one it has, else a free one.
    pub fn allocate(&self, uid: &str) -> Result<Ipv4Addr, NetError> {
        Ok(lock(&self.inner.ipam).allocate(uid)?)
    }

    /// Notes that pod `uid`, found running, has `ip`.
    pub fn adopt(&self, uid: &str, ip: Ipv4Addr) -> Result<(), NetError> {
        Ok(lock(&self.inner.ipam).adopt(uid, ip)?)
    }

    /// Takes the pod's address back, when nothing of the pod runs any more.
    pub fn release(&self, uid: &str) -> Option<Ipv4Addr> {
        lock(&self.inner.ipam).release(uid)
    }

    /// Wires the network namespace of process `pid` as pod `uid` with address `ip`: `eth0`, `lo`
    /// and, last, the default route. A pod that is wired already stays as it is; one whose
    /// process is new (a container started again) is wired anew.
    pub async fn attach(&self, uid: &str, pid: u32, ip: Ipv4Addr) -> Result<(), NetError> {
        let _slot = self.inner.attaches.acquire().await.map_err(|_| self.closed_error())?;
        self.check_open()?;
        let link = PodLink {
            uid: uid.to_owned(),
            pid,
            ip,
            gateway: self.gateway(),
            bridge_index: self.inner.bridge_index,
            switching: *lock(&self.inner.switching),
        };
        let what = format!("attaching pod {uid} to the network");
        let done = blocking(&self.inner.config.node, &what, move || link.attach()).await?;
        done.map_err(|(step, source)| NetError::Attach { uid: uid.to_owned(), pid, step, source })
    }

    /// Removes the pod's link; no error if it is gone with its namespace already. The address
    /// stays the pod's until it is released.
    pub async fn detach(&self, uid: &str) -> Result<(), NetError> {
        let what = format!("detaching pod {uid} from the network");
        let on_thread = uid.to_owned();
        blocking(&self.inner.config.node, &what, move || pod_link::detach(&on_thread))
            .await?
            .map_err(|source| NetError::Detach { uid: uid.to_owned(), source })
    }

    /// Removes the links on this bridge of pods that are none of `uids`; the names of the links
    /// removed. For the start, when it is known which pods are still there.
    pub async fn remove_leftovers(&self, uids: BTreeSet<String>) -> Result<Vec<String>, NetError> {
        let (config, index) = (self.inner.config.clone(), self.inner.bridge_index);
        blocking(&self.inner.config.node, "removing leftover links", move || {
            bridge::remove_leftovers(&config, index, uids.iter().map(String::as_str))
        })
        .await?
    }

    /// Wants the rules to be `desired`. Returns at once; the first change is made at once, those
    /// that come while one is made are merged, and only the latest counts.
    pub fn sync(&self, desired: DesiredNet) -> Generation {
        let desired = Arc::new(desired);
        let mut generation = 0;
        self.inner.wanted.send_modify(|wanted| {
            wanted.generation += 1;
            wanted.desired = Some(desired);
            generation = wanted.generation;
        });
        Generation(generation)
    }

    /// Waits until the rules are at least as new as `generation`; how an agent knows that a pod
    /// has left all services before it stops it.
    pub async fn synced(&self, generation: Generation) -> Result<(), NetError> {
        let mut progress = self.inner.progress.clone();
        let reached = progress.wait_for(|progress| progress.generation >= generation.0);
        match timeout(SYNC_DEADLINE, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.closed_error()),
            Err(_) => {
                let reason = self.inner.progress.borrow().failure.clone();
                let reason = reason
                    .unwrap_or_else(|| format!("not done after {} s", SYNC_DEADLINE.as_secs()));
                Err(NetError::Rules { table: self.inner.table.clone(), reason })
            }
        }
    }

    /// Makes good what others may have undone: the openings in the host's FORWARD chain, the
    /// table, the kernel's settings. To be called after Docker (re)starts and every minute or so.
    pub async fn ensure_forwarding(&self) -> Result<(), NetError> {
        self.check_open()?;
        let NetConfig { node, bridge, .. } = &self.inner.config;
        bridge::settings(&self.inner.config)?;
        forwarding::ensure(bridge, node)
            .await
            .map_err(|reason| NetError::Forwarding { bridge: bridge.clone(), reason })?;
        let table = &self.inner.table;
        let exists = rules::table_exists(table)
            .await
            .map_err(|reason| NetError::Rules { table: table.clone(), reason })?;
        if !exists {
            tracing::warn!(table, "the nftables table is gone, writing it again");
            self.inner.wanted.send_modify(|wanted| wanted.resets += 1);
        }
        let switching = Switching::current();
        if std::mem::replace(&mut *lock(&self.inner.switching), switching) != switching {
            let (config, index) = (self.inner.config.clone(), self.inner.bridge_index);
            blocking(node, "setting up the bridge's ports", move || {
                bridge::set_switching(&config, index, switching)
            })
            .await??;
        }
        Ok(())
    }

    /// Removes all that was made on the host: links, bridge, routes, table, firewall openings.
    /// Settings that others may count on by now (`ip_forward`) stay. Twice is once.
    pub async fn teardown(&self) -> Result<(), NetError> {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.follower.abort();
        remove(&self.inner.config.node, &self.inner.config.bridge).await
    }

    fn check_open(&self) -> Result<(), NetError> {
        let closed = self.inner.closed.load(Ordering::Acquire);
        if closed { Err(self.closed_error()) } else { Ok(()) }
    }

    fn closed_error(&self) -> NetError {
        NetError::Closed { node: self.inner.config.node.clone() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl NetConfig {
    fn ranges(&self) -> NodeRanges {
        NodeRanges {
            bridge: self.bridge.clone(),
            pods: self.pod_cidr,
            cluster: self.cluster_cidr,
            services: self.service_cidr,
        }
    }
}

/// Removes from the host what the network of `node` made, its bridge being `bridge`, without
/// starting it: for cleaning up after an agent that is gone.
pub async fn remove(node: &str, bridge: &str) -> Result<(), NetError> {
    let table = table_name(node);
    rules::remove_table(&table)
        .await
        .map_err(|reason| NetError::Rules { table: table.clone(), reason })?;
    forwarding::remove(bridge, node)
        .await
        .map_err(|reason| NetError::Forwarding { bridge: bridge.to_owned(), reason })?;
    let on_thread = bridge.to_owned();
    blocking(node, "removing the bridge", move || bridge::remove(&on_thread)).await?
}

fn check(config: &NetConfig) -> Result<(), NetError> {
    let NetConfig { bridge, pod_cidr, cluster_cidr, service_cidr, .. } = config;
    let bad_name = bridge.is_empty()
        || bridge.len() > 15
        || !bridge.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let reason = if bad_name {
        format!("`{bridge}` cannot name a bridge; hint: 1 to 15 letters, digits and dashes")
    } else if pod_cidr.prefix() > 30 {
        format!("pod range {pod_cidr} has no room for pods; hint: give it a /24")
    } else if !(cluster_cidr.contains(pod_cidr.network()) && cluster_cidr.contains(pod_cidr.last()))
    {
        format!("pod range {pod_cidr} is not within the cluster's {cluster_cidr}")
    } else if cluster_cidr.contains(service_cidr.network())
        || service_cidr.contains(cluster_cidr.network())
    {
        format!("service range {service_cidr} and pod range {cluster_cidr} overlap")
    } else {
        return Ok(());
    };
    Err(NetError::Config { node: config.node.clone(), reason })
}

/// Runs `work` on a thread of its own, which it may move into another namespace.
async fn blocking<T: Send + 'static>(
    node: &str,
    operation: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetError> {
    let (done, result) = oneshot::channel();
    let spawned = thread::Builder::new().name("net".to_owned()).spawn(move || {
        // Nobody waits any more once the deadline is over.
        let _ = done.send(work());
    });
    let closed = || NetError::Closed { node: node.to_owned() };
    if let Err(error) = spawned {
        tracing::error!(%error, operation, "cannot start a thread");
        return Err(closed());
    }
    match timeout(KERNEL_DEADLINE, result).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(closed()),
        Err(_) => Err(NetError::Deadline {
            operation: operation.to_owned(),
            seconds: KERNEL_DEADLINE.as_secs(),
        }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is never left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
