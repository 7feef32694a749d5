//! The master's calls about the masters themselves, and backups of what they keep.

use std::time::Duration;

use timonier_proto::v1::change_masters_request::Change;
use timonier_proto::v1::{self, BackupChunk};

use super::Client;
use super::retry::Policy;
use crate::error::Outcome;

/// A change of the masters takes a few elections at most.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

impl Client {
    pub async fn masters(&self) -> Outcome<v1::ListMastersReply> {
        let request = v1::ListMastersRequest {};
        self.read(
            request,
            |mut control, request| async move { control.list_masters(request).await },
        )
        .await
    }

    /// Asked once: done twice it could hit another master.
    pub async fn change_masters(&self, change: Change) -> Outcome {
        let request = v1::ChangeMastersRequest { change: Some(change) };
        let policy = Policy::once(CHANGE_TIMEOUT.max(self.timeout));
        self.tried(&policy, request, |mut control, request| async move {
            control.change_masters(request).await
        })
        .await
        .map(drop)
    }

    /// The bytes of a backup's file.
    pub async fn backup(&self) -> Outcome<tonic::Streaming<BackupChunk>> {
        let request = v1::BackupRequest {};
        self.open(request, |mut control, request| async move { control.backup(request).await })
            .await
    }
}
