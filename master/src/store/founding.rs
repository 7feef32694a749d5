//! A new cluster of one master, out of a state that there is: a backup's, or that of a master whose
//! others are lost.
//!
//! It has another id than the cluster that the state comes from, so that masters of that one are
//! refused should they come back, and its revisions begin far behind those that anybody has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftLogStorage;

use super::keyring::Keyring;
use super::log::{Log, OpenedLog};
use super::machine::State;
use super::raft::{LogId, MasterNode, Membership, NodeId, Vote};
use super::{StoreError, blocking, folder, snapshot_file};

/// So many revisions are left out: those that were given after the state was saved must not be
/// given again to something else.
const REVISIONS_LEFT_OUT: u64 = 1_000_000;

/// What the cluster begins with.
pub struct Founding {
    state: State,
    last: LogId,
    node_id: NodeId,
    term: u64,
}

/// A cluster that is on the disk.
pub struct Founded {
    pub cluster_id: String,
    pub revision: u64,
}

impl Founding {
    /// Its only master is `me`. `term` is the highest that it has voted in. `None` when the state
    /// is empty.
    pub fn of(mut state: State, node_id: NodeId, me: MasterNode, term: u64) -> Option<Self> {
        let last = state.last_applied?;
        let members = openraft::Membership::new(
            vec![BTreeSet::from([node_id])],
            BTreeMap::from([(node_id, me)]),
        );
        state.membership = Membership::new(Some(last), members);
        state.snapshot.revision += REVISIONS_LEFT_OUT;
        Some(Self { state, last, node_id, term: term.max(last.leader_id.term) })
    }

    /// Into a folder that has no store. What makes it one comes last.
    pub async fn write(
        self,
        dir: &Path,
        keyring: Arc<Keyring>,
        segment_bytes: u64,
    ) -> Result<Founded, StoreError> {
        let cluster_id = uuid::Uuid::new_v4().to_string();
        let (log_dir, snapshots) = (dir.join("log"), dir.join("snapshots"));
        for dir in [&log_dir, &snapshots] {
            std::fs::create_dir_all(dir).map_err(StoreError::io("create folder", dir))?;
        }
        snapshot_file::write(&snapshots, &cluster_id, &self.state, &keyring)
            .map_err(StoreError::io("write a snapshot to", &snapshots))?;
        let opened = Log::open(log_dir.clone(), segment_bytes, None, keyring)?;
        let OpenedLog { mut log, shared, thread, .. } = opened;
        shared.reached(self.last.index);
        let failed = |error: super::raft::StorageError| {
            StoreError::Raft(format!("begin the log in {}: {error}", log_dir.display()))
        };
        // The log begins after the state, and in a term after all that were.
        log.save_vote(&Vote::new(self.term, self.node_id)).await.map_err(failed)?;
        log.purge(self.last).await.map_err(failed)?;
        drop(log);
        let ended = blocking::run(move || thread.is_none_or(|thread| thread.join().is_ok())).await;
        if !matches!(ended, Ok(true)) {
            return Err(StoreError::Raft("the log's thread panicked".to_owned()));
        }
        folder::write_identity(dir, cluster_id.clone(), self.node_id)?;
        Ok(Founded { cluster_id, revision: self.state.snapshot.revision })
    }
}
