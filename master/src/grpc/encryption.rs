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
        let (store, pki) = (self.store.clone(), self.pki.clone());
        let rotating = tokio::spawn(async move {
            store.rotate_key().await.map_err(|error| error.to_string())?;
            pki.rotate_key().await.map_err(|error| error.to_string())
        });
        let rotated = rotating.await.unwrap_or_else(|error| Err(error.to_string()));
        rotated.map_err(|why| {
            ApiError::new(Reason::StorageFailure, format!("rotate the encryption key: {why}"))
        })?;
        Ok(self.encryption_status())
    }
}
