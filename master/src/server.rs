//! A master as a whole: opens the store, starts the control loops and the agents' sessions, and
//! answers on one port until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use timonier_identity::{
    Accepted, DialOptions, Identity, JoinRole, JoinToken, Lifetimes, Subject, Trust, dial, unix_now,
};
use timonier_master_core::world::Settings;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tracing::{error, info, warn};

use crate::caller::CallerLayer;
use crate::config::Config;
use crate::driver;
use crate::grpc::{self, Door, DoorParts};
use crate::guard::Guard;
use crate::incoming::{self, Gathering};
use crate::masters::Masters;
use crate::peers::{self, JoinError, Joining, Lines, Peers, RaftService};
use crate::pki::{self, Pki, PkiConfig, PkiError, Safe, TrustDoor};
use crate::relay::Relays;
use crate::sessions::{SessionSettings, Sessions};
use crate::store::{Start, Store, StoreConfig, StoreError};
use crate::telemetry::Hub;
use crate::tokens::StoreTokens;

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
    #[error(
        "join a cluster as a master without a token for masters; hint: start once with --token TEXT or --token @FILE; the first master's data folder has one in master-token, and `timonctl token create --role master` makes others"
    )]
    NoToken,
    #[error("open the audit log: {0}")]
    Audit(io::Error),
    #[error(transparent)]
    Pki(#[from] PkiError),
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
    pki: Pki,
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
        let address = advertised(&config, addr);
        let token = join_token(&config)?;
        let pki = open_pki(&config, &address, token.as_ref()).await?;
        let lines = Lines::new();
        let store = store_config(&config, addr, &lines, pki.identity(), token.as_ref()).await?;
        let store = Store::open(store).await?;
        // Masters know each other by their ids, which this one has only now.
        pki.name(store.id())?;
        lines.show(pki.identity().clone());
        pki.settle(&store).await?;
        let raft = RaftService::new(store.clone());
        let shutdown = CancellationToken::new();
        tokio::spawn(pki.clone().run(store.clone(), shutdown.clone()));
        let hub = Hub::new();
        let settings = settings(&config);
        let peers = Peers::new(store.clone(), lines);
        tokio::spawn(peers.clone().notice_removal(shutdown.clone()));
        let masters = Masters::of(peers, address);
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
            pki: pki.clone(),
            shutdown: shutdown.clone(),
        });
        let relays = Relays::start(hub.clone(), masters, shutdown.clone());
        let loops = tokio::spawn(driver::run(store.clone(), hub, settings, shutdown.clone()));
        let trust = pki.door(store.clone(), guard.audit().clone(), shutdown.clone());
        let doors = Doors { door, guard, sessions, relays, raft, trust, store: store.clone() };
        let seen = pki.clone();
        let incoming = incoming::incoming(listener, pki.identity().clone(), move |peer| {
            seen.remember(peer.clone());
        });
        let server = tokio::spawn(serve(incoming, doors, shutdown.clone()));
        info!(address = %addr, data = %config.data_dir.display(), "the master is up");
        Ok(RunningMaster { addr, store, pki, shutdown, server, loops })
    }
}

/// Where the others reach this master.
fn advertised(config: &Config, addr: SocketAddr) -> String {
    config.advertise.clone().unwrap_or_else(|| addr.to_string())
}

/// What a master that joins for the first time shows; `None` for any other.
fn join_token(config: &Config) -> Result<Option<JoinToken>, StartError> {
    if config.join.is_empty() || Store::is_made(&config.data_dir) {
        return Ok(None);
    }
    let given = config.token.as_deref().ok_or(StartError::NoToken)?;
    let token = JoinToken::read(given).map_err(PkiError::Token)?;
    if token.role != JoinRole::Master {
        return Err(StartError::NoToken);
    }
    Ok(Some(token))
}

/// This master's part in the trust, with the CA that it has, that of the cluster which it joins, or
/// a new one.
async fn open_pki(
    config: &Config,
    address: &str,
    token: Option<&JoinToken>,
) -> Result<Pki, StartError> {
    let safe = Safe::open(&config.data_dir, &config.encryption())?;
    if let Some(token) = token {
        pki::obtain(&safe, &config.join, token).await?;
    }
    let own = PkiConfig {
        data_dir: config.data_dir.clone(),
        addresses: vec![address.to_owned()],
        lifetimes: config.lifetimes(),
    };
    Ok(Pki::open(own, safe)?)
}

/// Asks the cluster to be let in, when this is the first start of a master that joins.
async fn store_config(
    config: &Config,
    addr: SocketAddr,
    lines: &Lines,
    identity: &Identity,
    token: Option<&JoinToken>,
) -> Result<StoreConfig, StartError> {
    let (name, address) = (config.name(), advertised(config, addr));
    let mut start = Start::First;
    if let Some(token) = token {
        if config.advertise.is_none() && addr.ip().is_unspecified() {
            return Err(StartError::Advertise(addr));
        }
        let token = token.to_string();
        let joining = Joining { name: name.clone(), address: address.clone(), token };
        let reply = peers::join(&config.join, &joining, identity).await?;
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

/// All that answers.
struct Doors {
    door: Door,
    guard: Guard,
    sessions: Sessions,
    relays: Relays,
    raft: RaftService,
    trust: TrustDoor,
    store: Store,
}

/// A server with the bounds that a master's has.
pub fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(grpc::KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(grpc::KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(grpc::CONCURRENT_STREAMS_PER_CONNECTION_MAX))
        .concurrency_limit_per_connection(grpc::CONCURRENT_REQUESTS_PER_CONNECTION_MAX)
}

async fn serve(
    incoming: impl Stream<Item = io::Result<Gathering<Accepted>>>,
    doors: Doors,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tokens = Arc::new(StoreTokens(doors.store.clone()));
    let callers = CallerLayer::new(tokens).telling(doors.guard.clone());
    builder()
        .layer(callers.clone())
        .layer(doors.guard.layer(&callers))
        .add_service(doors.door.service())
        .add_service(doors.sessions.service())
        .add_service(doors.relays.service())
        .add_service(doors.raft.service())
        .add_service(doors.trust.join_service())
        .add_service(doors.trust.trust_service())
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

    /// A channel to it for somebody: for tests and benchmarks in the same process.
    pub async fn dial_as(&self, subject: &Subject) -> anyhow::Result<Channel> {
        let authority = self.pki.authority();
        let credentials = authority.issue(subject, unix_now(), Lifetimes::default().machine)?;
        let identity = Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem()))?;
        Ok(dial(&self.addr.to_string(), &identity, &DialOptions::default()).await?)
    }

    /// Its part in the cluster's trust, for tests and benchmarks in the same process.
    pub fn pki(&self) -> &Pki {
        &self.pki
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
