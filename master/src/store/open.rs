//! Opening the store: the folder, the log and the last snapshot; then the consensus, which applies
//! the rest of the log; then the tasks around it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::{BasicNode, Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::batcher::{self, Batcher, QUEUE_MAX};
use super::folder::Folder;
use super::keyring::Keyring;
use super::log::{self, Log, OpenedLog, Space};
use super::machine::{self, Amount, Machine, State};
use super::raft::{LogId, Network, NodeId, Raft};
use super::{
    Open, QUEUE_KIB_MAX, Shared, Store, StoreConfig, StoreError, blocking, snapshot_file,
    snapshotter,
};

/// A single master leads within this time, or does not start.
const LEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries before a snapshot that are kept for masters that are a little behind.
const ENTRIES_KEPT: u64 = 100;
/// Smallest size of a log file: a few entries must fit.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Largest: places in it are counted in 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// What was read from the disk.
struct Files {
    folder: Folder,
    log: OpenedLog,
    machine: Arc<machine::Shared>,
}

pub async fn open(config: StoreConfig) -> Result<Store, StoreError> {
    let reading = config.clone();
    let files = blocking::run(move || read(&reading))
        .await
        .map_err(|error| StoreError::Raft(format!("read the store: {error}")))??;
    let Files { folder, log, machine } = files;
    let id = folder.identity.node_id;
    let raft_config = raft_config(&config).validate().map_err(raft_error)?;
    let state_machine = Machine::new(machine.clone());
    let raft = Raft::new(id, Arc::new(raft_config), Network, log.log, state_machine)
        .await
        .map_err(raft_error)?;
    lead_if_alone(id, &raft).await?;

    let closing = CancellationToken::new();
    let space = Space::new(log.shared.clone());
    let failure = watch::Sender::new(None);
    let leader = watch::Sender::new(raft.metrics().borrow().state == ServerState::Leader);
    let (requests, queue) = mpsc::channel(QUEUE_MAX);
    let txn_bytes_max = batcher::txn_bytes_max(segment_bytes(&config));
    let batcher = Batcher {
        raft: raft.clone(),
        space: space.clone(),
        requests: queue,
        closing: closing.clone(),
        failure: failure.clone(),
        bytes_max: txn_bytes_max,
    };
    let tasks = vec![
        tokio::spawn(batcher.run()),
        tokio::spawn(snapshotter::run(machine.clone(), raft.clone(), closing.clone())),
        tokio::spawn(observe(raft.clone(), leader.clone(), failure.clone(), closing.clone())),
    ];
    let shared = Shared {
        id,
        machine,
        log: log.shared,
        space,
        new_file: log.new_file,
        rekeying: tokio::sync::Mutex::default(),
        raft,
        requests,
        room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
        txn_bytes_max,
        commit_timeout: config.commit_timeout,
        leader,
        failure,
        closing,
        open: Mutex::new(Some(Open { tasks, log_thread: log.thread, folder })),
    };
    let store = Store { shared: Arc::new(shared) };
    store.seal_in_background();
    Ok(store)
}

fn segment_bytes(config: &StoreConfig) -> u64 {
    config.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

fn raft_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Raft(error.to_string())
}

/// Blocks.
fn read(config: &StoreConfig) -> Result<Files, StoreError> {
    let folder = Folder::open(&config.dir)?;
    let cluster_id = folder.identity.cluster_id.clone();
    let snapshots = folder.snapshots();
    let sealed = log::any_sealed(&folder.log())
        || snapshot_file::any_sealed(&snapshots).map_err(StoreError::io("read", &snapshots))?;
    let keyring = Arc::new(Keyring::open(&folder.keys(), &config.encryption, sealed)?);
    let segment_bytes = segment_bytes(config);
    let log = Log::open(folder.log(), segment_bytes, config.fsync_delay, keyring.clone())?;
    let newest = snapshot_file::load_newest(&snapshots, &cluster_id, &keyring)?;
    let (current, state) = newest.map_or((None, State::default()), |(c, s)| (Some(c), s));
    check_reach(&folder, log.shared.purged(), state.last_applied)?;
    let limit = Amount { entries: config.snapshot_entries, bytes: config.snapshot_log_bytes };
    let machine = machine::Shared::new(
        state,
        current,
        folder.snapshots(),
        cluster_id,
        log.shared.clone(),
        keyring,
        limit,
    );
    Ok(Files { folder, log, machine: Arc::new(machine) })
}

/// What the log no longer has, the snapshot must.
fn check_reach(
    folder: &Folder,
    purged: Option<LogId>,
    reached: Option<LogId>,
) -> Result<(), StoreError> {
    let Some(purged) = purged.filter(|purged| reached.is_none_or(|reached| reached < *purged))
    else {
        return Ok(());
    };
    let reached = reached.map_or_else(|| "no entry".to_owned(), |id| format!("entry {}", id.index));
    Err(StoreError::Corrupt {
        what: "snapshot",
        path: folder.snapshots(),
        offset: 0,
        index: Some(purged.index),
        why: format!("the log begins after entry {}, the snapshot reaches {reached}", purged.index),
        hint: "restore the data folder from a backup".to_owned(),
    })
}

fn raft_config(config: &StoreConfig) -> Config {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let election = millis(config.election_timeout).max(2);
    Config {
        cluster_name: "timonier".to_owned(),
        heartbeat_interval: millis(config.heartbeat).clamp(1, election - 1),
        election_timeout_min: election,
        election_timeout_max: election.saturating_mul(2),
        install_snapshot_timeout: 10_000,
        // Ours: openraft counts entries only, and stops when a snapshot cannot be written.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        ..Config::default()
    }
}

/// Makes the cluster at the first start. The only voter leads at once, without waiting for an
/// election timeout, and has applied its whole log when this returns.
async fn lead_if_alone(id: NodeId, raft: &Raft) -> Result<(), StoreError> {
    if !raft.is_initialized().await.map_err(raft_error)? {
        let members = BTreeMap::from([(id, BasicNode::default())]);
        raft.initialize(members).await.map_err(raft_error)?;
    }
    let alone = raft
        .with_raft_state(move |state| {
            let members = state.membership_state.effective();
            members.voter_ids().all(|voter| voter == id)
        })
        .await
        .map_err(raft_error)?;
    if !alone {
        return Ok(());
    }
    if raft.metrics().borrow().state != ServerState::Leader {
        raft.trigger().elect().await.map_err(raft_error)?;
    }
    let leads = raft.wait(Some(LEAD_TIMEOUT));
    leads.state(ServerState::Leader, "a single master leads").await.map_err(raft_error)?;
    let applied = tokio::time::timeout(LEAD_TIMEOUT, raft.ensure_linearizable()).await;
    applied.map_err(raft_error)?.map_err(raft_error)?;
    Ok(())
}

/// Tells who asks when this master becomes or ceases to be the leader, and when the consensus has
/// stopped for good.
async fn observe(
    raft: Raft,
    leader: watch::Sender<bool>,
    failure: watch::Sender<Option<String>>,
    closing: CancellationToken,
) {
    let mut server = raft.server_metrics();
    loop {
        let leads = server.borrow_and_update().state == ServerState::Leader;
        leader.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        let changed = tokio::select! {
            () = closing.cancelled() => return,
            changed = server.changed() => changed,
        };
        let stopped = raft.metrics().borrow().running_state.clone().err();
        if let Some(fatal) = stopped.or(changed.is_err().then_some(openraft::error::Fatal::Stopped))
        {
            if !closing.is_cancelled() {
                let text = batcher::failure_text(&fatal);
                tracing::error!("{text}");
                failure.send_replace(Some(text));
            }
            leader.send_replace(false);
            return;
        }
    }
}
