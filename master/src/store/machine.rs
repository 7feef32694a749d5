//! The state machine: applies what is committed, publishes the state and its changes, and answers
//! those who wait for verdicts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use openraft::storage::{RaftStateMachine, Snapshot as RaftSnapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder};
use openraft::{StorageIOError, StoredMembership};
use timonier_master_core::snapshot::Snapshot;
use tokio::sync::Notify;

use super::blocking::AsyncFile;
use super::changes::Ring;
use super::keyring::{KeyId, Keyring};
use super::raft::{
    Batch, Entry, LogId, MasterNode, Membership, NodeId, SnapshotMeta, StorageError, Types,
    Verdict, storage_error,
};
use super::snapshot_file::{self, Current};
use super::{Committed, StoreError, blocking, log};

/// The state with its place in the log.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub snapshot: Snapshot,
    pub last_applied: Option<LogId>,
    pub membership: Membership,
}

/// What was applied since the last snapshot, or how much of it makes a new one due.
#[derive(Debug, Clone, Copy, Default)]
pub struct Amount {
    pub entries: u64,
    pub bytes: u64,
}

/// What readers, the snapshotter and openraft's handles share.
pub struct Shared {
    state: RwLock<State>,
    pub ring: Ring,
    pub dir: PathBuf,
    pub cluster_id: String,
    log: Arc<log::Shared>,
    pub keyring: Arc<Keyring>,
    current: Mutex<Option<Current>>,
    /// Held by whoever writes a snapshot file: two could take each other's place.
    writing: Mutex<()>,
    since: Mutex<Amount>,
    limit: Amount,
    /// A snapshot may be due.
    pub due: Notify,
    pub snapshots: AtomicU64,
}

impl Shared {
    pub fn new(
        state: State,
        current: Option<Current>,
        dir: PathBuf,
        cluster_id: String,
        log: Arc<log::Shared>,
        keyring: Arc<Keyring>,
        limit: Amount,
    ) -> Self {
        if let Some(reached) = current.as_ref().and_then(Current::reached) {
            log.reached(reached);
        }
        Self {
            ring: Ring::new(state.snapshot.revision),
            state: RwLock::new(state),
            dir,
            cluster_id,
            log,
            keyring,
            current: Mutex::new(current),
            writing: Mutex::default(),
            since: Mutex::default(),
            limit,
            due: Notify::new(),
            snapshots: AtomicU64::new(0),
        }
    }

    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.state.read().unwrap_or_else(PoisonError::into_inner).snapshot.clone()
    }

    fn publish(&self, state: State) {
        let before = std::mem::replace(
            &mut *self.state.write().unwrap_or_else(PoisonError::into_inner),
            state,
        );
        // Freed outside the lock: it may be the last owner of many objects.
        drop(before);
    }

    /// What the files are sealed with, and in how many each key is needed.
    pub fn keys_needed(&self) -> BTreeMap<KeyId, usize> {
        let mut keys = self.log.keys();
        if let Some(current) = &*self.current() {
            *keys.entry(current.key).or_default() += 1;
        }
        keys
    }

    /// Of the last snapshot's file; 0 when there is none.
    pub fn snapshot_bytes(&self) -> u64 {
        self.current().as_ref().map_or(0, |current| current.bytes)
    }

    /// Forgets the keys that no file needs; answers which. Blocks.
    pub fn drop_unused_keys(&self) -> Result<Vec<KeyId>, StoreError> {
        // A snapshot that is being written may need the one before.
        let _alone = self.writing();
        self.keyring.retain(&self.keys_needed().into_keys().collect())
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self) -> MutexGuard<'_, Amount> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A large state is written less often: not before the log has grown by as much.
    fn is_due(&self, since: Amount) -> bool {
        let state_bytes = self.current().as_ref().map_or(0, |current| current.bytes);
        since.entries >= self.limit.entries || since.bytes >= self.limit.bytes.max(state_bytes)
    }

    fn count(&self, entries: u64, bytes: u64) {
        let since = {
            let mut since = self.since();
            since.entries += entries;
            since.bytes += bytes;
            *since
        };
        if self.is_due(since) {
            self.due.notify_one();
        }
    }

    /// Begins to count anew, if a snapshot is due; answers what was counted.
    pub fn take_due(&self) -> Option<Amount> {
        let mut since = self.since();
        self.is_due(*since).then(|| std::mem::take(&mut *since))
    }

    /// Writes the state as it is now to a file, which replaces the one before. Blocks.
    pub fn write_snapshot(&self) -> io::Result<Current> {
        let _alone = self.writing();
        let current =
            snapshot_file::write(&self.dir, &self.cluster_id, &self.state(), &self.keyring)?;
        self.install(current.clone());
        Ok(current)
    }

    fn install(&self, newer: Current) {
        let path = newer.path.clone();
        if let Some(reached) = newer.reached() {
            self.log.reached(reached);
        }
        *self.current() = Some(newer);
        snapshot_file::remove_older(&self.dir, &path);
        self.snapshots.fetch_add(1, Ordering::Relaxed);
    }

    /// For openraft's books, which look at what it is only: with the file as it is on the disk.
    async fn name_current(&self) -> Result<Option<RaftSnapshot<Types>>, StorageError> {
        self.read_current(|path, _| File::open(path)).await
    }

    /// For another master.
    async fn open_current(&self) -> Result<Option<RaftSnapshot<Types>>, StorageError> {
        self.read_current(snapshot_file::plain_copy).await
    }

    /// Where a newer snapshot takes the place of this one meanwhile, the file and its key may be gone
    /// before they are read: then the newer is read in its stead.
    async fn read_current(
        &self,
        read: fn(&Path, &Keyring) -> io::Result<File>,
    ) -> Result<Option<RaftSnapshot<Types>>, StorageError> {
        let Some(mut current) = self.current().clone() else { return Ok(None) };
        loop {
            let (path, keyring) = (current.path.clone(), self.keyring.clone());
            let reading = blocking::run(move || read(&path, &keyring));
            let error = match reading.await.map_err(|error| storage_error(&error))? {
                Ok(file) => {
                    let snapshot = Box::new(AsyncFile::of(file));
                    return Ok(Some(RaftSnapshot { meta: current.meta, snapshot }));
                }
                Err(error) => error,
            };
            let newest = self.current().clone();
            match newest.filter(|newest| !newest.is_same_file(&current)) {
                Some(newer) => current = newer,
                None => {
                    let signature = Some(current.meta.signature());
                    return Err(
                        StorageIOError::read_snapshot(signature, AnyError::new(&error)).into()
                    );
                }
            }
        }
    }
}

/// The one writer of the state.
pub struct Machine {
    shared: Arc<Shared>,
    state: State,
}

impl Machine {
    pub fn new(shared: Arc<Shared>) -> Self {
        let state = shared.state();
        Self { shared, state }
    }

    fn apply_batch(&mut self, batch: &Batch) -> Vec<Verdict> {
        let bytes = batch.encoded.len() / batch.txns.len().max(1);
        let wanted = batch.waiting.is_some();
        let mut verdicts = Vec::with_capacity(if wanted { batch.txns.len() } else { 0 });
        let snapshot = &mut self.state.snapshot;
        for txn in batch.txns.iter() {
            let applied = snapshot.apply(txn);
            if wanted {
                verdicts.push(match &applied {
                    Ok(applied) => Ok(Committed {
                        revision: applied.revision,
                        objects: (txn.ops.iter())
                            .map(|op| snapshot.object(&op.key()).cloned())
                            .collect(),
                        repeated: applied.repeated,
                    }),
                    Err(rejection) => Err(rejection.clone().into()),
                });
            }
            if let Ok(applied) = applied
                && !applied.changes.is_empty()
            {
                self.shared.ring.add(applied.changes, bytes);
            }
        }
        verdicts
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<NodeId, MasterNode>), StorageError> {
        Ok((self.state.last_applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        let mut bytes = 0;
        let mut results = Vec::new();
        for entry in entries {
            self.state.last_applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) => {
                    bytes += batch.encoded.len() as u64;
                    let verdicts = self.apply_batch(&batch);
                    answers.extend(batch.waiting.map(|waiting| (waiting, verdicts)));
                }
                EntryPayload::Membership(members) => {
                    self.state.membership = Membership::new(Some(entry.log_id), members);
                }
            }
            results.push(());
        }
        self.shared.publish(self.state.clone());
        self.shared.ring.publish();
        for (waiting, verdicts) in answers {
            waiting.answer(verdicts);
        }
        if let Some(last) = self.state.last_applied {
            self.shared.log.applied(last.index);
        }
        self.shared.count(results.len() as u64, bytes);
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.shared.clone())
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<AsyncFile>, StorageError> {
        // Not on the disk: it comes as it is before it is sealed.
        let file = snapshot_file::memory_file().map_err(|error| storage_error(&error))?;
        Ok(Box::new(AsyncFile::of(file)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<AsyncFile>,
    ) -> Result<(), StorageError> {
        let mut received = snapshot.into_std().await;
        let (shared, meta) = (self.shared.clone(), meta.clone());
        let installing = blocking::run(move || -> Result<_, StoreError> {
            let Shared { dir, cluster_id, keyring, .. } = &*shared;
            let name = dir.join("the one received");
            received.rewind().map_err(StoreError::io("read", &name))?;
            let (own, snapshot) = snapshot_file::load(&name, received, cluster_id, keyring)?;
            let state =
                State { snapshot, last_applied: own.last_log_id, membership: own.last_membership };
            let _alone = shared.writing();
            let mut current = snapshot_file::write(dir, cluster_id, &state, keyring)
                .map_err(StoreError::io("write a snapshot to", dir))?;
            current.meta = meta;
            shared.install(current);
            Ok(state)
        });
        let installed = match installing.await {
            Ok(installed) => installed.map_err(|error| storage_error(&error)),
            Err(error) => Err(storage_error(&error)),
        };
        self.state = installed.inspect_err(|_| self.shared.log.not_reached())?;
        self.shared.publish(self.state.clone());
        self.shared.ring.restart(self.state.snapshot.revision);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot<Types>>, StorageError> {
        self.shared.open_current().await
    }
}

/// Hands openraft the snapshot that the snapshotter has written: writing one here could fail, and
/// openraft would stop for that.
pub struct Builder(Arc<Shared>);

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<RaftSnapshot<Types>, StorageError> {
        if let Some(current) = self.0.name_current().await? {
            return Ok(current);
        }
        let shared = self.0.clone();
        let written = blocking::run(move || shared.write_snapshot());
        written
            .await
            .map_err(|error| storage_error(&error))?
            .map_err(|error| storage_error(&error))?;
        let missing = || storage_error(&io::Error::other("the snapshot was not installed"));
        self.0.name_current().await?.ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use openraft::CommittedLeaderId;

    use super::super::folder::Folder;
    use super::super::{StoreConfig, open};
    use super::*;

    /// Written and sealed anew so often that most readers find a file or a key gone under their hands.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_is_read_while_newer_ones_take_its_place() {
        const SNAPSHOTS: u64 = 300;
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), None).unwrap();
        let shared = open::read_files(&StoreConfig::new(dir.path()), folder).unwrap().machine;
        shared.write_snapshot().unwrap();
        let writing = shared.clone();
        let writer = tokio::task::spawn_blocking(move || {
            for index in 1..=SNAPSHOTS {
                let last_applied = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
                writing.publish(State { last_applied, ..State::default() });
                writing.keyring.rotate().unwrap();
                writing.write_snapshot().unwrap();
                writing.drop_unused_keys().unwrap();
            }
        });
        let mut reached = None;
        while !writer.is_finished() {
            let named = shared.name_current().await.unwrap().unwrap();
            assert!(named.meta.last_log_id >= reached);
            let copied = shared.open_current().await.unwrap().unwrap();
            assert!(copied.meta.last_log_id >= named.meta.last_log_id);
            let mut text = String::new();
            copied.snapshot.into_std().await.read_to_string(&mut text).unwrap();
            assert!(text.contains("crc32"), "{text}");
            reached = copied.meta.last_log_id;
        }
        writer.await.unwrap();
        assert_eq!(
            shared.name_current().await.unwrap().unwrap().meta.last_log_id.unwrap().index,
            SNAPSHOTS
        );
    }
}
