//! Why a store does not open, and why a commit was not done.

use std::path::PathBuf;

use timonier_master_core::op::Rejection;
use timonier_proto::backup::BackupError;
use timonier_proto::{ApiError, Reason};

/// Why the store could not be opened, or closed. A master that meets one should not start.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "open store {}: another process has it open; hint: stop the other master, or give this \
         one its own data folder", .0.display()
    )]
    Locked(PathBuf),
    /// What is on the disk is not what was written.
    #[error("{what} in {} at byte {offset}{}: {why}; hint: {hint}", path.display(), index_text(*.index))]
    Corrupt {
        what: &'static str,
        path: PathBuf,
        offset: u64,
        /// Log index of the record, where it is known.
        index: Option<u64>,
        why: String,
        hint: String,
    },
    /// The keys that the store is sealed with are not there, or are others.
    #[error("open the store's keys, {}: {why}; hint: {hint}", path.display())]
    Keys { path: PathBuf, why: String, hint: String },
    #[error("start the consensus: {0}")]
    Raft(String),
    #[error("use the backup {}: {source}", path.display())]
    Backup { path: PathBuf, source: BackupError },
    #[error(
        "restore into {}: there is something in it; hint: name a folder that does not exist, or is \
         empty", .0.display()
    )]
    NotEmpty(PathBuf),
    #[error("open store {}: there is none; hint: give a master's --data-dir", .0.display())]
    NoStore(PathBuf),
    /// A restore or a recovery was cut off.
    #[error("open store {}: it was being remade, and that was cut off; hint: {hint}", path.display())]
    Unfinished { path: PathBuf, hint: String },
    /// There is nothing to make a cluster of.
    #[error("recover from {}: {why}", path.display())]
    Unusable { path: PathBuf, why: &'static str },
    #[error("open store {}: no space left for the log; hint: free at least {bytes} bytes there", path.display())]
    NoSpace { path: PathBuf, bytes: u64 },
}

fn index_text(index: Option<u64>) -> String {
    index.map(|index| format!(" (log index {index})")).unwrap_or_default()
}

impl StoreError {
    pub(super) fn io(
        attempt: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { attempt, path, source }
    }
}

/// Why a transaction was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Refused by the state; nothing of it was applied.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The disk is full or failing. Nothing acknowledged is lost; what to do is in the text.
    #[error("{0}")]
    StorageFailure(String),
    #[error("this master is not the leader{}", leader_text(*.leader))]
    NotLeader { leader: Option<u64> },
    /// Whether it was applied is not known; the same transaction with the same id may be sent again.
    #[error("the transaction was not answered in {0} ms; hint: try again with the same id")]
    Timeout(u64),
    /// Whether it was applied is not known; the same transaction with the same id may be sent again.
    #[error(
        "no leader was reached for {0} ms: a majority of the masters must be there; hint: see \
         `timonctl master list`, or ask another master"
    )]
    NoLeader(u64),
    #[error("the master is shutting down")]
    ShuttingDown,
}

fn leader_text(leader: Option<u64>) -> String {
    leader.map_or_else(|| "; no leader is elected yet".into(), |id| format!("; master {id} is"))
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        let text = error.to_string();
        match error {
            CommitError::Rejected(rejection) => match rejection {
                Rejection::NotFound(key) => ApiError::not_found(&key),
                Rejection::AlreadyExists(key) => ApiError::already_exists(&key),
                Rejection::Conflict { .. }
                | Rejection::OtherUid(_)
                | Rejection::Taken { .. }
                | Rejection::AlreadyBound { .. } => ApiError::new(Reason::Conflict, text),
                Rejection::OverQuota { .. } => ApiError::new(Reason::Forbidden, text),
                Rejection::Invalid { key, why } => {
                    ApiError::invalid(&key, vec![("metadata".into(), why)])
                }
            },
            CommitError::StorageFailure(_) => ApiError::new(Reason::StorageFailure, text),
            CommitError::NotLeader { .. }
            | CommitError::NoLeader(_)
            | CommitError::ShuttingDown => ApiError::new(Reason::Unavailable, text),
            CommitError::Timeout(_) => ApiError::new(Reason::Timeout, text),
        }
    }
}
