//! Writes snapshots when they are due, beside the writes that go on, so that the log stays short.
//!
//! Openraft is told only once the file is there: a disk that is full delays the snapshot and stops
//! nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::blocking;
use super::machine::Shared;
use super::raft::Raft;

const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Runs until `closing`.
pub async fn run(shared: Arc<Shared>, raft: Raft, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = shared.due.notified() => {}
        }
        if let Some(amount) = shared.take_due() {
            tracing::debug!(entries = amount.entries, bytes = amount.bytes, "a snapshot is due");
            let written = write(&shared, &closing).await;
            if !written || raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }
}

/// Until it worked, or `closing`. What has begun is waited for: the folder may be opened again right
/// after.
async fn write(shared: &Arc<Shared>, closing: &CancellationToken) -> bool {
    let mut retry = RETRY_MIN;
    loop {
        let begun = Instant::now();
        let writing = shared.clone();
        let written = blocking::run(move || writing.write_snapshot()).await;
        match written {
            Ok(Ok(current)) => {
                let index = current.meta.last_log_id.map_or(0, |id| id.index);
                tracing::info!(
                    index, took_ms = begun.elapsed().as_millis(), file = %current.path.display(),
                    "wrote a snapshot"
                );
                return true;
            }
            Ok(Err(error)) => tracing::warn!(
                %error, dir = %shared.dir.display(), retry_ms = retry.as_millis(),
                "the snapshot could not be written; the log stays as it is until it can"
            ),
            Err(error) => tracing::error!(%error, "writing the snapshot ended early"),
        }
        tokio::select! {
            () = closing.cancelled() => return false,
            () = tokio::time::sleep(retry) => {}
        }
        retry = (retry * 2).min(RETRY_MAX);
    }
}
