//! Opening the store: the folder, the log and the last snapshot; then the consensus, which applies
//! the rest of the log; then the tasks around it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::batcher::{self, Batcher, QUEUE_MAX};
use super::election::{self, Elections, Majority};
use super::folder::Folder;
use super::keyring::Keyring;
use super::log::{self, Log, OpenedLog, Space};
use super::machine::{self, Amount, Machine, State};
use super::network::{Links, Network};
use super::raft::{LogId, MasterNode, NodeId, Raft};
use super::transport::NoTransport;
use super::{
    Open, QUEUE_KIB_MAX, Shared, Start, Store, StoreConfig, StoreError, blocking, caretaker, level,
    members, snapshot_file, snapshotter,
};

/// A single master leads within this time, or does not start.
const LEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Part of the entries between two snapshots that is kept for masters that are a little behind…
const KEPT_PART: u64 = 10;
/// …within these bounds.
const ENTRIES_KEPT: std::ops::RangeInclusive<u64> = 100..=2_000;
/// Entries that travel to another master at once.
const APPEND_ENTRIES_MAX: u64 = 64;
/// Bytes of a snapshot that travel at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Smallest size of a log file: a few entries must fit.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Largest: places in it are counted in 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// What was read from the disk.
pub(super) struct Files {
    pub folder: Folder,
    pub log: OpenedLog,
    pub machine: Arc<machine::Shared>,
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
    let transport = config.transport.clone().unwrap_or_else(|| Arc::new(NoTransport));
    let links = Arc::new(Links::new(id, machine.cluster_id.clone(), transport));
    let raft_config = Arc::new(raft_config);
    let raft = Raft::new(id, raft_config, Network(links.clone()), log.log, state_machine)
        .await
        .map_err(raft_error)?;
    if config.start == Start::First || raft.is_initialized().await.map_err(raft_error)? {
        let me = MasterNode { address: config.address.clone(), name: config.name.clone() };
        lead_if_alone(id, me, &raft).await?;
    }
    let resumed = raft
        .with_raft_state(move |state| {
            let vote = state.vote_ref();
            let led = vote.is_committed() && vote.leader_id().voted_for() == Some(id);
            led && state.membership_state.effective().voter_ids().count() > 1
        })
        .await
        .map_err(raft_error)?;

    let closing = CancellationToken::new();
    let space = Space::new(log.shared.clone());
    let failure = watch::Sender::new(None);
    let leader = watch::Sender::new(raft.metrics().borrow().state == ServerState::Leader);
    let leader_id = watch::Sender::new(raft.metrics().borrow().current_leader);
    let members = watch::Sender::new({
        let now = raft.server_metrics();
        let now = now.borrow();
        members::of(&now, now.current_leader)
    });
    let (requests, queue) = mpsc::channel(QUEUE_MAX);
    let txn_bytes_max = batcher::txn_bytes_max(segment_bytes(&config));
    let paused = watch::Sender::new(false);
    let batcher = Batcher {
        raft: raft.clone(),
        space: space.clone(),
        requests: queue,
        closing: closing.clone(),
        failure: failure.clone(),
        bytes_max: txn_bytes_max,
        paused: paused.subscribe(),
        machine: machine.clone(),
    };
    let tasks = vec![
        tokio::spawn(batcher.run()),
        tokio::spawn(snapshotter::run(machine.clone(), raft.clone(), closing.clone())),
        tokio::spawn(observe(
            raft.clone(),
            Seen { leader: leader.clone(), leader_id: leader_id.clone(), members: members.clone() },
            Majority::new(raft.clone(), links.clone(), config.election_timeout),
            failure.clone(),
            closing.clone(),
        )),
    ];
    let shared = Shared {
        id,
        machine,
        log: log.shared,
        space,
        new_file: log.new_file,
        rekeying: tokio::sync::Mutex::default(),
        raft,
        links,
        requests,
        room: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
        txn_bytes_max,
        level_max: config.level_max,
        commit_timeout: config.commit_timeout,
        election_timeout: config.election_timeout,
        opened: Instant::now(),
        leader,
        urged: Arc::new(Notify::new()),
        leader_id,
        members,
        paused,
        resumed: AtomicBool::new(resumed),
        taking: tokio::sync::Mutex::default(),
        changing: tokio::sync::Mutex::default(),
        failure,
        closing,
        open: Mutex::new(Some(Open { tasks, log_thread: log.thread, folder })),
    };
    let store = Store { shared: Arc::new(shared) };
    store.seal_in_background();
    let me = MasterNode { address: config.address, name: config.name };
    let looking = caretaker::look_after(members::weak(&store), me, store.shared.closing.clone());
    store.add_task(tokio::spawn(looking));
    let raising = level::raise(members::weak(&store), store.shared.closing.clone());
    store.add_task(tokio::spawn(raising));
    let elections = Elections {
        raft: store.shared.raft.clone(),
        shared: members::weak(&store),
        election_timeout: config.election_timeout,
        urged: store.shared.urged.clone(),
        closing: store.shared.closing.clone(),
    };
    store.add_task(tokio::spawn(elections.run()));
    Ok(store)
}

pub(super) fn segment_bytes(config: &StoreConfig) -> u64 {
    config.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

fn raft_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Raft(error.to_string())
}

/// Blocks.
fn read(config: &StoreConfig) -> Result<Files, StoreError> {
    let joining = match &config.start {
        Start::First => None,
        Start::Joining { cluster_id, id, .. } => Some((cluster_id.as_str(), *id)),
    };
    read_files(config, Folder::open(&config.dir, joining)?)
}

/// Blocks.
pub(super) fn read_files(config: &StoreConfig, folder: Folder) -> Result<Files, StoreError> {
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
    let mut raft = Config {
        cluster_name: "timonier".to_owned(),
        heartbeat_interval: u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX),
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_max_chunk_size: CHUNK_BYTES,
        install_snapshot_timeout: 10_000,
        // Ours: openraft counts entries only, and stops when a snapshot cannot be written.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: (config.snapshot_entries / KEPT_PART)
            .clamp(*ENTRIES_KEPT.start(), *ENTRIES_KEPT.end()),
        ..Config::default()
    };
    election::configure(&mut raft, config.election_timeout);
    raft
}

/// Makes the cluster at the first start. The only voter leads at once, without waiting for an
/// election timeout, and has applied its whole log when this returns.
async fn lead_if_alone(id: NodeId, me: MasterNode, raft: &Raft) -> Result<(), StoreError> {
    if !raft.is_initialized().await.map_err(raft_error)? {
        let members = BTreeMap::from([(id, me)]);
        raft.initialize(members).await.map_err(raft_error)?;
    }
    let alone = raft
        .with_raft_state(move |state| {
            // One that joins may have heard of a leader, and of no members yet.
            state.membership_state.effective().voter_ids().eq([id])
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

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// What is told of the consensus.
struct Seen {
    leader: watch::Sender<bool>,
    leader_id: watch::Sender<Option<NodeId>>,
    members: watch::Sender<Vec<members::Member>>,
}

/// Tells who asks when this master becomes or ceases to be the leader, who leads, who is a member,
/// and when the consensus has stopped for good.
async fn observe(
    raft: Raft,
    seen: Seen,
    mut majority: Majority,
    failure: watch::Sender<Option<String>>,
    closing: CancellationToken,
) {
    let mut server = raft.server_metrics();
    loop {
        let now = server.borrow_and_update().clone();
        let leads = majority.leads(now.state);
        let id = now.current_leader.filter(|id| leads || *id != majority.links.id);
        seen.leader_id.send_if_modified(|before| std::mem::replace(before, id) != id);
        seen.leader.send_if_modified(|before| {
            let changed = *before != leads;
            if changed && !leads && now.state == ServerState::Leader {
                tracing::warn!("a majority of the masters does not answer: not leading any more");
            }
            *before = leads;
            changed
        });
        let members = members::of(&now, id);
        seen.members.send_if_modified(|before| {
            let changed = *before != members;
            *before = members;
            changed
        });
        let changed = tokio::select! {
            () = closing.cancelled() => return,
            changed = server.changed() => changed,
            () = sleep(majority.look_interval()) => Ok(()),
        };
        let stopped = raft.metrics().borrow().running_state.clone().err();
        if let Some(fatal) = stopped.or(changed.is_err().then_some(openraft::error::Fatal::Stopped))
        {
            if !closing.is_cancelled() {
                let text = batcher::failure_text(&fatal);
                tracing::error!("{text}");
                failure.send_replace(Some(text));
            }
            seen.leader.send_replace(false);
            return;
        }
    }
}
