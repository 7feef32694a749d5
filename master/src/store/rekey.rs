//! Sealing the store's files anew while it runs: with a new key, or because they were not sealed.
//!
//! What is written next goes into a new log file, a snapshot stands for all before, and so the old
//! log files go and with them the need for their key. Writes go on meanwhile.

use std::time::Duration;

use super::keyring::{KeyId, KeyInfo, PLAIN};
use super::{Store, StoreError, blocking};

/// The old log files are gone within this time, or later with the next snapshot.
const PURGE_TIMEOUT: Duration = Duration::from_secs(10);
const PURGE_LOOK: Duration = Duration::from_millis(20);

/// For `timonctl encryption status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// What keeps the keys: `file`, `key file`, `passphrase`; or `off`.
    pub protection: &'static str,
    /// Each key with the number of files that need it.
    pub keys: Vec<(KeyInfo, usize)>,
    /// Files that are not sealed: written before there were keys.
    pub plain_files: usize,
}

impl Store {
    /// Of this master's files; reads memory only.
    pub fn encryption_status(&self) -> EncryptionStatus {
        let machine = &self.shared.machine;
        let needed = machine.keys_needed();
        let files = |id: KeyId| needed.get(&id).copied().unwrap_or_default();
        EncryptionStatus {
            protection: machine.keyring.protection(),
            keys: machine
                .keyring
                .info()
                .into_iter()
                .map(|key| (key.clone(), files(key.id)))
                .collect(),
            plain_files: files(PLAIN),
        }
    }

    /// Makes a key, seals with it from now on, and drops the old ones once no file needs them.
    pub async fn rotate_key(&self) -> Result<KeyId, StoreError> {
        let keyring = self.shared.machine.keyring.clone();
        let made = blocking::run(move || keyring.rotate()).await;
        let id = made.map_err(|error| StoreError::Raft(format!("rotate the key: {error}")))??;
        tracing::info!(key = id, "the store is sealed with a new key from now on");
        self.seal_anew().await?;
        Ok(id)
    }

    /// Writes what is sealed otherwise, or not at all, once more with the active key.
    async fn seal_anew(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _alone = shared.rekeying.lock().await;
        if shared.closing.is_cancelled() {
            return Err(StoreError::Raft("the store is closing".to_owned()));
        }
        let log = shared.machine.dir.clone();
        shared.new_file.begin().await.map_err(StoreError::io("begin a log file beside", &log))?;
        let machine = shared.machine.clone();
        let written = blocking::run(move || machine.write_snapshot()).await;
        let current = written
            .map_err(|error| StoreError::Raft(format!("write a snapshot: {error}")))?
            .map_err(StoreError::io("write a snapshot to", &log))?;
        let fatal = |error| StoreError::Raft(format!("purge the log: {error}"));
        shared.raft.trigger().snapshot().await.map_err(fatal)?;
        if let Some(last) = current.meta.last_log_id {
            self.purge(last.index).await?;
        }
        self.drop_unused_keys().await
    }

    /// Openraft purges up to a snapshot that it has heard of, so it is asked until it has.
    async fn purge(&self, index: u64) -> Result<(), StoreError> {
        let shared = &self.shared;
        let active = shared.machine.keyring.active_id();
        let purged = async {
            while !shared.closing.is_cancelled()
                && shared.machine.keys_needed().keys().any(|key| *key != active)
            {
                let asked = shared.raft.trigger().purge_log(index).await;
                asked.map_err(|error| StoreError::Raft(format!("purge the log: {error}")))?;
                tokio::time::sleep(PURGE_LOOK).await;
            }
            Ok(())
        };
        // Late is no failure: the old key stays until the files that need it are gone.
        tokio::time::timeout(PURGE_TIMEOUT, purged).await.unwrap_or(Ok(()))
    }

    /// Forgets the keys that no file needs.
    async fn drop_unused_keys(&self) -> Result<(), StoreError> {
        let machine = self.shared.machine.clone();
        let dropped = blocking::run(move || machine.drop_unused_keys());
        let dropped = dropped
            .await
            .map_err(|error| StoreError::Raft(format!("drop old keys: {error}")))??;
        if !dropped.is_empty() {
            tracing::info!(keys = ?dropped, "dropped the keys that no file needs any more");
        }
        Ok(())
    }

    /// At a start: seals what an older build left as it is, and finishes a rotation that was cut
    /// off. Nothing is written when all is in order.
    pub(super) fn seal_in_background(&self) {
        let machine = &self.shared.machine;
        let active = machine.keyring.active_id();
        let others = machine.keys_needed().into_keys().any(|key| key != active);
        let unused = machine.keyring.info().len() > 1;
        if active == PLAIN || !(others || unused) {
            return;
        }
        let store = self.clone();
        tokio::spawn(async move {
            let done =
                if others { store.seal_anew().await } else { store.drop_unused_keys().await };
            match done {
                Ok(()) => tracing::info!("the store's files are sealed with the active key"),
                Err(error) => {
                    tracing::warn!(%error, "sealing the store's files; the next start tries again");
                }
            }
        });
    }
}
