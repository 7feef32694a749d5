//! When most masters are lost for good: one that is left becomes a cluster of its own, with all
//! that is on its disk. For a master that does not run.
//!
//! Everything in its log counts, what was never agreed on, too: it may have been acknowledged by
//! those that are lost. What only they had is lost with them.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftStateMachine};

use super::folder::{self, Folder};
use super::founding::Founding;
use super::log::OpenedLog;
use super::machine::Machine;
use super::members::Member;
use super::open::{self, Files};
use super::raft::{MasterNode, StorageError};
use super::{StoreConfig, StoreError, blocking};

/// Entries that are read and applied at once.
const ENTRIES_AT_ONCE: u64 = 256;
/// Where the new files are made, in the data folder.
const NEW: &str = "recovered";

/// A master's files, open and locked, with its whole log applied in memory.
pub struct Recovery {
    config: StoreConfig,
    folder: Folder,
    machine: std::sync::Arc<super::machine::Shared>,
    survey: Survey,
    term: u64,
}

/// What a recovery would begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// This master's.
    pub id: u64,
    pub cluster_id: String,
    pub revision: u64,
    pub objects: usize,
    /// The last entry of its log…
    pub last_index: u64,
    /// …and the last one that it knew to be agreed on.
    pub committed_index: u64,
    pub term: u64,
    /// Of the cluster as it was, this one included.
    pub members: Vec<Member>,
}

/// What it became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub cluster_id: String,
    pub revision: u64,
    /// Where the files are kept that the new ones stand for.
    pub kept: PathBuf,
}

fn failed(error: StorageError) -> StoreError {
    StoreError::Raft(format!("read the log: {error}"))
}

impl Recovery {
    /// Reads all of it; a master that runs is refused.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let folder = Folder::open_made(&config.dir)?;
        let Files { folder, log, machine } = open::read_files(&config, folder)?;
        let OpenedLog { mut log, shared, thread, .. } = log;
        let vote = log.read_vote().await.map_err(failed)?;
        let committed = log.read_committed().await.map_err(failed)?;
        let mut applying = Machine::new(machine.clone());
        let mut reader = log.get_log_reader().await;
        let mut next = machine.state().last_applied.map_or(0, |last| last.index + 1);
        let end = shared.last_index() + 1;
        while next < end {
            let to = (next + ENTRIES_AT_ONCE).min(end);
            let entries = reader.try_get_log_entries(next..to).await.map_err(failed)?;
            if entries.is_empty() {
                break;
            }
            next += entries.len() as u64;
            applying.apply(entries).await.map_err(failed)?;
        }
        drop((log, reader));
        blocking::run(move || thread.map(std::thread::JoinHandle::join))
            .await
            .map_err(|error| StoreError::Raft(format!("close the log: {error}")))?;
        let state = machine.state();
        let last = state.last_applied.map_or(0, |last| last.index);
        let term = vote.map_or(0, |vote| vote.leader_id.term);
        let id = folder.identity.node_id;
        let membership = state.membership.membership();
        let survey = Survey {
            id,
            cluster_id: folder.identity.cluster_id.clone(),
            revision: state.snapshot.revision,
            objects: state.snapshot.len(),
            last_index: last,
            committed_index: committed.map_or(0, |committed| committed.index),
            term,
            members: membership
                .nodes()
                .map(|(id, node)| Member {
                    id: *id,
                    name: node.name.clone(),
                    address: node.address.clone(),
                    voter: membership.voter_ids().any(|voter| voter == *id),
                    leader: false,
                })
                .collect(),
        };
        Ok(Self { config, folder, machine, survey, term })
    }

    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Makes this master the only one of a new cluster. The files that there were are kept beside.
    pub async fn run(self) -> Result<Recovered, StoreError> {
        let dir = self.folder.path.clone();
        let id = self.survey.id;
        let known = self.survey.members.iter().find(|member| member.id == id);
        let me = known.map_or_else(MasterNode::default, |member| MasterNode {
            address: member.address.clone(),
            name: member.name.clone(),
        });
        let founding = Founding::of(self.machine.state(), id, me, self.term);
        let founding = founding.ok_or_else(|| StoreError::Unusable {
            path: dir.clone(),
            why: "its disk holds no state: it had not caught up; hint: take another master, or a \
                  backup",
        })?;
        let new = dir.join(NEW);
        match std::fs::remove_dir_all(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &new)(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&new).map_err(StoreError::io("create folder", &new))?;
        let keyring = self.machine.keyring.clone();
        let founded = founding.write(&new, keyring, open::segment_bytes(&self.config)).await?;
        let kept = dir.join(format!("before-recover-{}", Timestamp::now().as_second()));
        exchange(&dir, &new, &kept)?;
        Ok(Recovered { cluster_id: founded.cluster_id, revision: founded.revision, kept })
    }
}

/// The new files take the old ones' places. Between the first and the last step the folder is not
/// opened by anyone.
fn exchange(dir: &Path, new: &Path, kept: &Path) -> Result<(), StoreError> {
    std::fs::create_dir(kept).map_err(StoreError::io("create folder", kept))?;
    let parts = folder::PARTS.join(", ");
    folder::begin_remaking(
        dir,
        &format!(
            "move {parts} from {} back where they are missing, remove the file named unfinished, \
             and recover again",
            kept.display()
        ),
    )?;
    for (from, to) in [(dir, kept), (new, dir)] {
        for part in folder::PARTS {
            let (from, to) = (from.join(part), to.join(part));
            std::fs::rename(&from, &to).map_err(StoreError::io("move", &from))?;
        }
        folder::sync_folder(to).map_err(StoreError::io("sync", to))?;
    }
    folder::end_remaking(dir)?;
    std::fs::remove_dir(new).map_err(StoreError::io("remove", new))
}
