//! What this master's files are encrypted with, and the order to change the key.

use timonier_proto::v1::{EncryptionKey, EncryptionReply};
use timonier_proto::{ApiError, Reason};

use super::Inner;

impl Inner {
    pub(super) fn encryption_status(&self) -> EncryptionReply {
        let status = self.store.encryption_status();
        let count = |files: usize| u32::try_from(files).unwrap_or(u32::MAX);
        let keys = status.keys.into_iter().map(|(key, files)| EncryptionKey {
            id: key.id.into(),
            made: key.made,
            active: key.active,
            files: count(files),
        });
        EncryptionReply {
            master: self.store.status().id,
            protection: status.protection.to_owned(),
            keys: keys.collect(),
            plain_files: count(status.plain_files),
        }
    }

    pub(super) async fn rotate_encryption(&self) -> Result<EncryptionReply, ApiError> {
        // On its own: a caller that goes away does not leave it half done.
        let store = self.store.clone();
        let rotated = tokio::spawn(async move { store.rotate_key().await }).await;
        let refuse = |why: String| ApiError::new(Reason::StorageFailure, why);
        rotated
            .map_err(|error| refuse(format!("rotate the encryption key: {error}")))?
            .map_err(|error| refuse(format!("rotate the encryption key: {error}")))?;
        Ok(self.encryption_status())
    }
}
