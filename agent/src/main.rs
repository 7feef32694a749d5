//! `timonier-agent`: reads the command line, runs the agent, and leaves the pods running when it
//! is asked to stop.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use timonier_agent::config::{HostConfig, Invocation, RunConfig};
use timonier_agent::join::{JoinError, Membership, PKI_FOLDER};
use timonier_agent::lease::{LEASE_FILE, Lease, WATCHDOG_LOCK_FILE, Watchdog};
use timonier_agent::runtime::docker::Docker;
use timonier_agent::session::{
    MASTERS_FILE, Node, NodeConfig, STATE_FILE, Session, SessionConfig, start_network,
};
use timonier_agent::shutdown::{Stop, Stops};
use timonier_agent::telemetry::{HostFacts, HostSampler, capacity};
use timonier_agent::{lease, net, pods};
use timonier_identity::JoinToken;
use tracing_subscriber::EnvFilter;

/// An agent waits most of the time: two threads are enough, and small.
const WORKER_THREADS: usize = 2;
const BLOCKING_THREADS_MAX: usize = 8;
const BLOCKING_THREADS_IDLE: Duration = Duration::from_secs(1);
/// How long stopping may take.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Removing a node's containers may take so long.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(120);
const LOCK_FILE: &str = "lock";
/// What pods and network keep in the data folder.
const OWN_FOLDERS: [&str; 3] = ["pods", "bin", PKI_FOLDER];

fn main() -> ExitCode {
    timonier_identity::install_provider();
    let invocation = match Invocation::try_parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    match start(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(invocation: Invocation) -> Result<()> {
    let filter = EnvFilter::try_new(invocation.log());
    tracing_subscriber::fmt()
        .with_env_filter(filter.as_ref().map_or_else(|_| EnvFilter::new("info"), Clone::clone))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    filter.with_context(|| format!("read the log filter {:?}", invocation.log()))?;
    if let Invocation::Watchdog(config) = &invocation {
        return watchdog(&config.host);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREADS_IDLE)
        .enable_all()
        .build()
        .context("start the runtime")?;
    match invocation {
        Invocation::Run(config) => runtime.block_on(run_agent(config)),
        Invocation::Cleanup(config) => runtime.block_on(cleanup(&config.host)),
        Invocation::Watchdog(_) => Ok(()),
    }
}

/// Kills unique pods whose lease has run out while the agent is dead or frozen.
fn watchdog(host: &HostConfig) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let docker = Docker::new(&host.docker_socket);
    let boot_id = HostFacts::read().boot_id;
    let watch = lease::run_watchdog(&docker, &host.node_name, &host.data_dir, &boot_id);
    runtime.block_on(watch).context("watch over the unique pods")
}

async fn run_agent(config: RunConfig) -> Result<()> {
    let mut stops = Stops::listen().context("listen for signals")?;
    let _lock = lock(&config.host.data_dir)?;
    let facts = HostFacts::read();
    let address = config.address.or(facts.address);
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    let docker = Arc::new(Docker::new(&config.host.docker_socket));
    let mut sampler = HostSampler::new(&config.host.data_dir);
    let node = Node::new(
        NodeConfig {
            name: config.host.node_name.clone(),
            data_dir: config.host.data_dir.clone(),
            host_ip: address.clone(),
            lease: lease(&config.host, &facts),
        },
        docker,
        start_network(config.host.node_name.clone(), config.host.bridge()),
        Box::new(move || sampler.sample()),
    );
    node.take_over().await;
    let joining = membership(&config);
    let membership = tokio::select! {
        membership = joining => membership?,
        _ = stops.next() => return Ok(()),
    };
    let session = Session::new(
        SessionConfig {
            membership,
            masters: config.masters(),
            data_dir: config.host.data_dir.clone(),
            node_name: config.host.node_name.clone(),
            agent_id: uuid::Uuid::new_v4().to_string(),
            address,
            capacity: capacity(&config.capacity(), &config.host.data_dir),
            labels: config.labels(),
            facts,
            heartbeat: config.heartbeat.map(|ms| Duration::from_millis(ms.into())),
        },
        node.clone(),
    );
    tracing::info!(node = config.host.node_name, masters = ?config.masters(), "the agent is up");
    let drain = config.drain_on_shutdown.map(Duration::from_secs);
    let stopped = async {
        if stops.next().await == Stop::Host
            && let Some(time_max) = drain
        {
            tracing::info!(seconds = time_max.as_secs(), "the host goes down: pods are moved away");
            node.leave(time_max).await;
        }
    };
    tokio::select! {
        () = session.run() => {}
        () = stopped => {}
    }
    tracing::info!("stopping; pods go on running");
    if tokio::time::timeout(SHUTDOWN_DEADLINE, node.shutdown()).await.is_err() {
        tracing::warn!("work under way is left, and taken up again at the next start");
    }
    Ok(())
}

fn lease(host: &HostConfig, facts: &HostFacts) -> Lease {
    let watchdog = Watchdog::new(&host.node_name, &host.data_dir, &host.docker_socket);
    Lease::open(&host.data_dir, &facts.boot_id, watchdog)
}

/// This node's certificate: the one it has, or a first one by its join token.
async fn membership(config: &RunConfig) -> Result<Membership> {
    let HostConfig { node_name, data_dir, .. } = &config.host;
    let masters = config.masters();
    match Membership::open(node_name, data_dir, &masters, None).await {
        Err(JoinError::NoToken(_)) if config.token.is_some() => {}
        answer => return Ok(answer?),
    }
    // Only now: at later starts the file of the token may be gone.
    let text = config.token.as_deref().unwrap_or_default();
    let token = JoinToken::read(text).map_err(anyhow::Error::msg)?;
    Ok(Membership::open(node_name, data_dir, &masters, Some(&token)).await?)
}

/// One agent a folder: the lock is held until the process ends.
fn lock(data_dir: &Path) -> Result<File> {
    use rustix::fs::{FlockOperation, flock};
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("make the data folder {}", data_dir.display()))?;
    let path = data_dir.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "lock {}: another agent runs with this data folder; hint: stop it, or give this one its own --data-dir",
            data_dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Removes the agent's own files, and the folder when nothing else is in it.
fn remove_files(data_dir: &Path) -> Result<()> {
    let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    for name in OWN_FOLDERS {
        let path = data_dir.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if !missing(&error) => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    for name in [STATE_FILE, LEASE_FILE, WATCHDOG_LOCK_FILE, MASTERS_FILE, LOCK_FILE] {
        let path = data_dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if !missing(&error) => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    // Logs or other files of people's may be there; then it stays.
    let _ = std::fs::remove_dir(data_dir);
    Ok(())
}

/// Removes what the node's agent made on this host. As much as can be is removed; what could not
/// be is in the error.
async fn cleanup(host: &HostConfig) -> Result<()> {
    let _lock = lock(&host.data_dir)?;
    let docker = Docker::new(&host.docker_socket);
    let work = pods::cleanup(&docker, &host.node_name, &host.data_dir);
    let containers = match tokio::time::timeout(CLEANUP_DEADLINE, work).await {
        Ok(removed) => removed.map_err(anyhow::Error::from),
        Err(_) => Err(anyhow::anyhow!("not done in {} s", CLEANUP_DEADLINE.as_secs())),
    };
    let network = net::remove(&host.node_name, &host.bridge()).await;
    let count =
        containers.with_context(|| format!("remove the containers of {}", host.node_name))?;
    network.with_context(|| format!("remove the network of {}", host.node_name))?;
    remove_files(&host.data_dir)?;
    tracing::info!(node = host.node_name, containers = count, "cleaned up");
    Ok(())
}
