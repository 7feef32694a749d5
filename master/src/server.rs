//! A master as a whole: opens the store, starts the control loops and the agents' sessions, and
//! answers on one port until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use timonier_master_core::world::Settings;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::driver;
use crate::grpc::{self, Door, DoorParts};
use crate::guard::Guard;
use crate::incoming;
use crate::masters::Masters;
use crate::peers::{self, JoinError, Joining, Lines, Peers, RaftService};
use crate::relay::Relays;
use crate::sessions::{SessionSettings, Sessions};
use crate::store::{Start, Store, StoreConfig, StoreError};
use crate::telemetry::Hub;

/// Open requests may take so long to end when the master stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);
/// The control loops may take so long to end their plans.
const LOOPS_DEADLINE: Duration = Duration::from_secs(3);

/// Why a master does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(
        "join a cluster while listening on {0}: the other masters cannot tell which address that \
         is; hint: give theirs with --advertise HOST:PORT"
    )]
    Advertise(SocketAddr),
    #[error("open the audit log: {0}")]
    Audit(io::Error),
    #[error("listen on {address}: {source}{}", listen_hint(.source))]
    Listen { address: SocketAddr, source: io::Error },
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; hint: another program (perhaps another master) has this port; stop it, or choose another with --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; hint: this host has no such address; 0.0.0.0 stands for all it has"
        }
        io::ErrorKind::PermissionDenied => "; hint: ports below 1024 need root",
        _ => "",
    }
}

/// The way to start one.
#[derive(Debug)]
pub struct Master;

/// A master that runs in this process.
#[derive(Debug)]
pub struct RunningMaster {
    addr: SocketAddr,
    store: Store,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    loops: JoinHandle<()>,
}

impl Master {
    /// Returns once the master answers; one that is alone leads.
    pub async fn start(config: Config) -> Result<RunningMaster, StartError> {
        // The port first: of two masters started by mistake, the second leaves the store alone.
        let refuse = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(refuse)?;
        let addr = listener.local_addr().map_err(refuse)?;
        let lines = Lines::new();
        let store = Store::open(store_config(&config, addr, &lines).await?).await?;
        let raft = RaftService::new(store.clone());
        let shutdown = CancellationToken::new();
        let hub = Hub::new();
        let settings = settings(&config);
        let peers = Peers::new(store.clone(), lines);
        tokio::spawn(peers.clone().notice_removal(shutdown.clone()));
        let masters = Masters::of(peers, advertised(&config, addr));
        let sessions = Sessions::start(
            store.clone(),
            hub.clone(),
            masters.clone(),
            SessionSettings {
                cluster_range: config.cluster_range.clone(),
                service_range: config.service_range.clone(),
                heartbeat_ms: u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX),
                silence_max: config.node_grace,
                fence_after_ms: u32::try_from(config.fence_after.as_millis()).unwrap_or(u32::MAX),
            },
            shutdown.clone(),
        );
        let guard = Guard::start(store.clone(), &config.data_dir).map_err(StartError::Audit)?;
        let door = Door::new(DoorParts {
            store: store.clone(),
            hub: hub.clone(),
            streams: sessions.streams().clone(),
            guard: guard.clone(),
            settings: settings.clone(),
            masters: masters.clone(),
            shutdown: shutdown.clone(),
        });
        let relays = Relays::start(hub.clone(), masters, shutdown.clone());
        let loops = tokio::spawn(driver::run(store.clone(), hub, settings, shutdown.clone()));
        let services = (door, guard, sessions, relays, raft);
        let server = tokio::spawn(serve(listener, services, shutdown.clone()));
        info!(address = %addr, data = %config.data_dir.display(), "the master is up");
        Ok(RunningMaster { addr, store, shutdown, server, loops })
    }
}

/// Where the others reach this master.
fn advertised(config: &Config, addr: SocketAddr) -> String {
    config.advertise.clone().unwrap_or_else(|| addr.to_string())
}

/// Asks the cluster to be let in, when this is the first start of a master that joins.
async fn store_config(
    config: &Config,
    addr: SocketAddr,
    lines: &Lines,
) -> Result<StoreConfig, StartError> {
    let (name, address) = (config.name(), advertised(config, addr));
    let mut start = Start::First;
    if !config.join.is_empty() && !Store::is_made(&config.data_dir) {
        if config.advertise.is_none() && addr.ip().is_unspecified() {
            return Err(StartError::Advertise(addr));
        }
        let token = config.token.clone().unwrap_or_default();
        let joining = Joining { name: name.clone(), address: address.clone(), token };
        let reply = peers::join(&config.join, &joining).await?;
        info!(id = reply.id, cluster = reply.cluster_id, "joining as a master");
        start = Start::Joining { cluster_id: reply.cluster_id, id: reply.id };
    }
    Ok(StoreConfig {
        fsync_delay: config.log_fsync_delay.map(Duration::from_millis),
        snapshot_entries: config.snapshot_every,
        encryption: config.encryption(),
        start,
        name,
        address,
        transport: Some(lines.transport()),
        ..StoreConfig::new(&config.data_dir)
    })
}

fn settings(config: &Config) -> Settings {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    Settings {
        cluster_range: config.cluster_range.clone(),
        service_range: config.service_range.clone(),
        node_grace_ms: millis(config.node_grace),
        eviction_after_ms: millis(config.eviction_after),
        fence_after_ms: millis(config.fence_after),
    }
}

type Services = (Door, Guard, Sessions, Relays, RaftService);

async fn serve(
    listener: TcpListener,
    (door, guard, sessions, relays, raft): Services,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = incoming::incoming(listener);
    Server::builder()
        .http2_keepalive_interval(Some(grpc::KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(grpc::KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(grpc::CONCURRENT_STREAMS_PER_CONNECTION_MAX))
        .concurrency_limit_per_connection(grpc::CONCURRENT_REQUESTS_PER_CONNECTION_MAX)
        .layer(guard.layer())
        .add_service(door.service())
        .add_service(sessions.service())
        .add_service(relays.service())
        .add_service(raft.service())
        .serve_with_incoming_shutdown(incoming, async move { shutdown.cancelled().await })
        .await
}

impl RunningMaster {
    /// Where it answers; the port is the one that was free when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its store, for tests and benchmarks in the same process.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Resolves with the reason when the master cannot go on.
    pub async fn failed(&self) -> String {
        self.store.failed().await
    }

    /// Ends watches and sessions, lets open requests end, and closes the store. Containers go on.
    pub async fn shutdown(self) -> Result<(), StoreError> {
        self.shutdown.cancel();
        let mut server = self.server;
        match tokio::time::timeout(DRAIN_DEADLINE, &mut server).await {
            Ok(Ok(Err(error))) => error!(%error, "the server ended badly"),
            Ok(_) => {}
            Err(_) => {
                warn!(ms = DRAIN_DEADLINE.as_millis() as u64, "requests did not end in time");
                server.abort();
            }
        }
        let mut loops = self.loops;
        if tokio::time::timeout(LOOPS_DEADLINE, &mut loops).await.is_err() {
            loops.abort();
        }
        self.store.shutdown().await
    }
}
