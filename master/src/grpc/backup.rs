//! A backup of the store, sent as it is made. How the file looks is the store's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use timonier_proto::v1::BackupChunk;
use timonier_proto::{ApiError, Reason};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::{Inner, limits};
use crate::store::Saving;

/// The file, piece by piece.
pub struct Chunks {
    saving: Saving,
    _permit: OwnedSemaphorePermit,
}

impl Inner {
    pub(super) async fn backup(&self) -> Result<Chunks, ApiError> {
        let permit = Arc::clone(&self.backups).try_acquire_owned().map_err(|_| {
            let text = format!(
                "save a backup: {} are being saved from this master already; hint: wait for them, \
                 or take another master",
                limits::BACKUPS_MAX
            );
            ApiError::new(Reason::TooManyRequests, text)
        })?;
        let saving = self.store.backup().await.map_err(ApiError::from)?;
        Ok(Chunks { saving, _permit: permit })
    }
}

impl Stream for Chunks {
    type Item = Result<BackupChunk, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let expected_bytes = self.saving.expected_bytes;
        let piece = ready!(self.saving.pieces.poll_recv(context));
        Poll::Ready(piece.map(|piece| match piece {
            Ok(data) => Ok(BackupChunk { data, expected_bytes }),
            Err(error) => {
                let text = format!("save a backup: {error}");
                Err(ApiError::new(Reason::StorageFailure, text).into())
            }
        }))
    }
}
