//! The replicated store: every object of the cluster, changed by transactions that are on disk
//! before they are acknowledged.
//!
//! Holds no rules about what objects mean: admission comes before [`Store::commit`], and the
//! decisions are the reconcilers'.

mod backup;
mod batcher;
#[doc(hidden)]
pub mod blocking;
mod caretaker;
mod changes;
mod election;
mod error;
mod folder;
mod forward;
mod founding;
mod inbox;
mod keyring;
mod level;
mod log;
mod machine;
mod members;
mod network;
mod open;
mod quorum;
mod raft;
#[doc(hidden)]
pub mod reading;
mod recovery;
mod rekey;
mod sealed;
mod snapshot_file;
mod snapshotter;
mod transport;
mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, RaftError};
use serde::{Deserialize, Serialize};
use timonier_master_core::level::Level;
use timonier_master_core::op::{Rejection, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Object;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::batcher::Request;
use self::folder::Folder;

pub use backup::{Restored, Saving, restore};
pub use changes::{Changes, ChangesError, Compacted};
pub use error::{CommitError, StoreError};
pub use inbox::{Inbox, InboxError};
pub(crate) use keyring::Keyring;
pub use keyring::{Encryption, KeyId, KeyInfo};
pub use members::{ChangeError, Member, MemberStatus};
pub use recovery::{Recovered, Recovery, Survey};
pub use rekey::EncryptionStatus;
pub use transport::{NoTransport, Sending, Target, Transport, TransportError};
pub use wire::{VERSION as WIRE_VERSION, VERSIONS as WIRE_VERSIONS};

/// Encoded transactions that wait to be written, in KiB; a caller past this waits.
const QUEUE_KIB_MAX: usize = 64 << 10;

/// How a store begins whose folder is empty; one that was made before goes on as what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It makes a cluster of its own.
    First,
    /// Its cluster has given it this id, and sends it everything.
    Joining { cluster_id: String, id: u64 },
}

/// How and where a store is kept.
#[derive(Clone)]
pub struct StoreConfig {
    /// Made when it does not exist.
    pub dir: PathBuf,
    /// Slows each fsync of the log down, to test and measure what a slow disk does.
    pub fsync_delay: Option<Duration>,
    /// A snapshot is written after so many log entries…
    pub snapshot_entries: u64,
    /// …or so many bytes of log, whichever comes first.
    pub snapshot_log_bytes: u64,
    /// Size of one file of the log, reserved on the disk before it is written.
    pub segment_bytes: u64,
    /// What keeps the files from who reads the disk.
    pub encryption: Encryption,
    /// A commit that takes longer is answered with [`CommitError::Timeout`].
    pub commit_timeout: Duration,
    /// Between several masters only: a single one sends none.
    pub heartbeat: Duration,
    /// A master that has not heard of the leader for so long, and up to a quarter more, stands for
    /// election; a leader that a majority has not answered for so long serves as one no longer.
    pub election_timeout: Duration,
    pub start: Start,
    /// The highest level that it knows; one below the newest tests what upgrades do.
    pub level_max: Level,
    /// Of this master, for people.
    pub name: String,
    /// `HOST:PORT` where the other masters reach this one.
    pub address: String,
    /// The way to the others; without one, this master stays alone.
    pub transport: Option<Arc<dyn Transport>>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl StoreConfig {
    /// The defaults, in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            fsync_delay: None,
            snapshot_entries: 20_000,
            snapshot_log_bytes: 32 << 20,
            segment_bytes: 32 << 20,
            encryption: Encryption::default(),
            commit_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            start: Start::First,
            level_max: Level::NEWEST,
            name: String::new(),
            address: String::new(),
            transport: None,
        }
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// The state's revision after it.
    pub revision: u64,
    /// For each operation, the object as it is stored after the transaction; `None` once removed.
    pub objects: Vec<Option<Object>>,
    /// Its id was applied before; nothing was done this time, and `objects` are as they are now.
    pub repeated: bool,
}

/// For `cluster-info`, metrics and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// This master's.
    pub id: u64,
    /// Made when the cluster was first started.
    pub cluster_id: String,
    /// This master is the leader, and a majority has answered it lately.
    pub leader: bool,
    pub leader_id: Option<u64>,
    pub term: u64,
    /// Of the log.
    pub last_index: u64,
    pub applied_index: u64,
    /// Of the state.
    pub revision: u64,
    /// Bytes of records in the log's files.
    pub log_bytes: u64,
    /// fsyncs of the log and of its votes since the store was opened.
    pub fsyncs: u64,
    /// Snapshots written since the store was opened.
    pub snapshots: u64,
    /// Why writes are refused at the moment.
    pub refusing: Option<String>,
}

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    machine: Arc<machine::Shared>,
    log: Arc<log::Shared>,
    space: log::Space,
    new_file: log::NewFile,
    /// Held by whoever seals the files anew.
    rekeying: tokio::sync::Mutex<()>,
    raft: raft::Raft,
    links: Arc<network::Links>,
    requests: mpsc::Sender<Request>,
    /// Room in the queue, in KiB.
    room: Arc<Semaphore>,
    txn_bytes_max: u64,
    level_max: Level,
    commit_timeout: Duration,
    election_timeout: Duration,
    opened: Instant,
    leader: watch::Sender<bool>,
    /// To stand for election: a candidate cannot win, but this master can.
    urged: Arc<Notify>,
    leader_id: watch::Sender<Option<u64>>,
    members: watch::Sender<Vec<Member>>,
    /// The leadership is being handed over.
    paused: watch::Sender<bool>,
    /// It was the leader when it stopped, and openraft goes on with that: what was committed last
    /// is not known until something new is.
    resumed: AtomicBool,
    /// Held by whoever looks for room for other masters' entries.
    taking: tokio::sync::Mutex<()>,
    /// Held by whoever changes who is a member: one at a time.
    changing: tokio::sync::Mutex<()>,
    failure: watch::Sender<Option<String>>,
    closing: CancellationToken,
    open: Mutex<Option<Open>>,
}

/// What is closed at the end.
struct Open {
    tasks: Vec<JoinHandle<()>>,
    log_thread: Option<std::thread::JoinHandle<()>>,
    folder: Folder,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("status", &self.status()).finish()
    }
}

impl Store {
    /// Opens the store, or makes it when the folder holds none. A single master leads when this
    /// returns, and its state is that of the last acknowledged write.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        open::open(config).await
    }

    /// Whether a store was made in this folder before.
    pub fn is_made(dir: &std::path::Path) -> bool {
        Folder::is_made(dir)
    }

    /// The state as of the last applied write. Cheap; never waits for writers.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.machine.snapshot()
    }

    /// Applies the transaction and answers once it is on the disks of a majority. What this answers is in
    /// [`Self::snapshot`] already. When the caller goes away, the transaction may still be applied.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.in_time(self.commit_in_time(txn)).await
    }

    /// As [`Self::commit`], by this master as the leader or not at all: what a leader has decided is
    /// not passed on to the one that came after it.
    pub async fn commit_leading(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.in_time(async {
            let encoded = self.encode(&txn)?;
            self.commit_here(txn, encoded).await
        })
        .await
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, CommitError>>,
    ) -> Result<T, CommitError> {
        let timeout = self.shared.commit_timeout;
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            Err(CommitError::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
        })
    }

    /// The transaction as it is stored; refused when it is too large.
    fn encode(&self, txn: &Txn) -> Result<Bytes, CommitError> {
        let encoded = serde_json::to_vec(txn)
            .map_err(|error| invalid(txn, format!("it cannot be encoded: {error}")))?;
        self.check_size(txn, encoded.len())?;
        #[cfg(debug_assertions)]
        check_same(txn, &encoded);
        Ok(encoded.into())
    }

    fn check_size(&self, txn: &Txn, bytes: usize) -> Result<(), CommitError> {
        let bytes_max = self.shared.txn_bytes_max;
        if bytes as u64 <= bytes_max {
            return Ok(());
        }
        let why = format!("the transaction has {bytes} bytes, at most {bytes_max} are allowed");
        Err(invalid(txn, why))
    }

    /// Through this master's own log.
    async fn commit_here(&self, txn: Txn, encoded: Bytes) -> Result<Committed, CommitError> {
        let shared = &self.shared;
        let kib = (encoded.len() >> 10) + 1;
        let kib = u32::try_from(kib.min(QUEUE_KIB_MAX)).unwrap_or(u32::MAX);
        let room = shared
            .room
            .clone()
            .acquire_many_owned(kib)
            .await
            .map_err(|_| CommitError::ShuttingDown)?;
        let (answer, answered) = oneshot::channel();
        let request = Request { txn, encoded, answer, _room: room };
        shared.requests.send(request).await.map_err(|_| CommitError::ShuttingDown)?;
        answered.await.map_err(|_| CommitError::ShuttingDown)?
    }

    /// Every change after revision `from`, or from now on. When a change is handed out,
    /// [`Self::snapshot`] has it.
    pub fn changes(&self, from: Option<u64>) -> Result<Changes, Compacted> {
        let ring = &self.shared.machine.ring;
        ring.subscribe(from.unwrap_or_else(|| ring.last()))
    }

    /// Returns when [`Self::snapshot`] has every write that was acknowledged by any master before
    /// the call.
    pub async fn linearize(&self) -> Result<(), CommitError> {
        let timeout = self.shared.commit_timeout;
        tokio::time::timeout(timeout, self.linearize_in_time()).await.unwrap_or_else(|_| {
            Err(CommitError::Timeout(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
        })
    }

    /// Asks the other masters whether this one still leads.
    async fn linearize_here(&self) -> Result<(), CommitError> {
        if *self.shared.paused.borrow() {
            return Err(CommitError::NotLeader { leader: None });
        }
        if self.shared.resumed.load(Ordering::Acquire) {
            match self.shared.raft.client_write(raft::Batch::default()).await {
                Ok(_) | Err(RaftError::APIError(_)) => {
                    self.shared.resumed.store(false, Ordering::Release);
                }
                Err(RaftError::Fatal(_)) => {}
            }
        }
        match self.shared.raft.ensure_linearizable().await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(CommitError::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(_)) => Err(CommitError::NotLeader { leader: None }),
            Err(RaftError::Fatal(fatal)) => match &*self.shared.failure.borrow() {
                Some(why) => Err(CommitError::StorageFailure(why.clone())),
                None if self.shared.closing.is_cancelled() => Err(CommitError::ShuttingDown),
                None => Err(CommitError::StorageFailure(batcher::failure_text(&fatal))),
            },
        }
    }

    pub fn status(&self) -> StoreStatus {
        let shared = &self.shared;
        let metrics = shared.raft.metrics().borrow().clone();
        let state = shared.machine.state();
        let leader = metrics.state == ServerState::Leader && *shared.leader.borrow();
        StoreStatus {
            id: shared.id,
            cluster_id: shared.machine.cluster_id.clone(),
            leader,
            leader_id: metrics.current_leader.filter(|id| leader || *id != shared.id),
            term: metrics.current_term,
            last_index: shared.log.last_index(),
            applied_index: state.last_applied.map_or(0, |last| last.index),
            revision: state.snapshot.revision,
            log_bytes: shared.log.bytes(),
            fsyncs: shared.log.fsyncs(),
            snapshots: shared.machine.snapshots.load(Ordering::Relaxed),
            refusing: shared.failure.borrow().clone().or_else(|| shared.space.refusing()),
        }
    }

    /// Made when the cluster was first started; the same on every master.
    pub fn cluster_id(&self) -> &str {
        &self.shared.machine.cluster_id
    }

    /// Whether this master is the leader, and when that changes.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.shared.leader.subscribe()
    }

    /// Resolves when the store has failed for good (its disk is broken, not merely full), or this
    /// master was removed: the process should end with this text.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        let text = failure.wait_for(Option::is_some).await.map(|text| text.clone());
        match text {
            Ok(text) => text.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// This master cannot go on, for a reason that its store does not know.
    pub fn fail(&self, why: &str) {
        self.shared.failure.send_replace(Some(why.to_owned()));
    }

    fn add_task(&self, task: JoinHandle<()>) {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *open {
            open.tasks.push(task);
        }
    }

    /// Stops taking writes, waits for those under way, and closes the files. Watches end.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.shared.closing.cancel();
        let open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { tasks, log_thread, folder }) = open else { return Ok(()) };
        // Files that are being sealed anew are waited for.
        drop(self.shared.rekeying.lock().await);
        for task in tasks {
            // A task that panicked has said so.
            let _ = task.await;
        }
        let ended = self.shared.raft.shutdown().await;
        let joined = blocking::run(move || log_thread.map_or(Ok(()), |thread| thread.join())).await;
        self.shared.machine.ring.close();
        drop(folder);
        match (ended, joined) {
            (Ok(()), Ok(Ok(()))) => Ok(()),
            (Err(error), _) | (_, Err(error)) => Err(StoreError::Raft(error.to_string())),
            (_, Ok(Err(_))) => Err(StoreError::Raft("the log's thread panicked".to_owned())),
        }
    }
}

/// What the leader applies out of its memory is what the others read out of the log.
#[cfg(debug_assertions)]
fn check_same(txn: &Txn, encoded: &[u8]) {
    if serde_json::from_slice::<Txn>(encoded).ok().as_ref() != Some(txn) {
        tracing::error!("a transaction breaks a rule: it differs from what is stored: {txn:?}");
    }
}

fn invalid(txn: &Txn, why: String) -> CommitError {
    match txn.ops.first() {
        Some(op) => CommitError::Rejected(Rejection::Invalid { key: op.key(), why }),
        None => CommitError::StorageFailure(why),
    }
}
