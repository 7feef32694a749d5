//! Watch: the objects as they are, then every change, from the store's ring of changes.
//!
//! Each watch is a task that reads the ring at its own pace and a queue of few events to its
//! client. One that is too slow is told so (`Expired`) and lists again; it never holds up others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use timonier_master_core::op::Change;
use timonier_proto::v1::{WatchEvent, WatchRequest, watch_event::Type};
use timonier_proto::{ApiError, Object, Reason};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::read::encode;
use super::select::Selection;
use super::{Inner, limits};
use crate::store::{Changes, ChangesError};

/// A watch's events, to its end.
pub type Events = ReceiverStream<Result<WatchEvent, Status>>;

type Queue = mpsc::Sender<Result<WatchEvent, Status>>;

impl Inner {
    pub(super) async fn watch(&self, request: WatchRequest) -> Result<Events, ApiError> {
        let selection = Selection::parse(
            &self.store.snapshot(),
            &request.kind,
            request.namespace,
            &request.label_selector,
            &request.field_selector,
        )?;
        let permit = self.watches.clone().try_acquire_owned().map_err(|_| {
            let why =
                format!("watch {}: {} watches are open already", request.kind, limits::WATCHES_MAX);
            ApiError::new(Reason::TooManyRequests, why)
        })?;
        let mut snapshot = self.store.snapshot();
        let from = request.from_revision.unwrap_or(snapshot.revision);
        if from > snapshot.revision {
            // Another master told of it, and this one's copy is behind.
            snapshot = self.read(true).await?;
        }
        let expired = |why: String| ApiError::new(Reason::Expired, why);
        if from > snapshot.revision {
            let why = format!(
                "revision {from} is in the future of this cluster, which is at {}; hint: list again and watch from the list's revision",
                snapshot.revision
            );
            return Err(expired(why));
        }
        let changes =
            self.store.changes(Some(from)).map_err(|compacted| expired(compacted.to_string()))?;
        let initial: Vec<Object> = match request.from_revision {
            Some(_) => Vec::new(),
            None => snapshot
                .objects_of(selection.kind, selection.namespace.as_deref())
                .filter(|object| selection.matches(object))
                .cloned()
                .collect(),
        };
        let (queue, events) = mpsc::channel(limits::WATCH_QUEUE_EVENTS_MAX);
        let shutdown = self.shutdown.clone();
        let listed = request.from_revision.is_none();
        tokio::spawn(async move {
            let _permit = permit;
            let ended = tokio::select! {
                () = shutdown.cancelled() => {
                    Some(ApiError::new(Reason::Unavailable, "watch ended: the master is shutting down"))
                }
                () = queue.closed() => None,
                ended = follow(&queue, selection, initial, listed, changes) => ended,
            };
            if let Some(error) = ended {
                // The client may be gone, which is as well.
                let _ = tokio::time::timeout(Duration::from_secs(1), queue.send(Err(error.into())))
                    .await;
            }
        });
        Ok(ReceiverStream::new(events))
    }
}

/// Sends until the client goes (`None`) or the watch cannot go on.
async fn follow(
    queue: &Queue,
    selection: Selection,
    initial: Vec<Object>,
    listed: bool,
    mut changes: Changes,
) -> Option<ApiError> {
    for object in initial {
        let sent = send(queue, Type::Added, Some(&object), object.resource_version()).await;
        if let Err(error) = sent {
            return error;
        }
    }
    // Says where the listing ended, even if it was empty.
    if listed && let Err(error) = send(queue, Type::Bookmark, None, changes.revision()).await {
        return error;
    }
    let mut bookmarks =
        interval_at(Instant::now() + limits::BOOKMARK_INTERVAL, limits::BOOKMARK_INTERVAL);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let batch = tokio::select! {
            batch = changes.next_batch() => batch,
            _ = bookmarks.tick() => {
                if let Err(error) = send(queue, Type::Bookmark, None, changes.revision()).await {
                    return error;
                }
                continue;
            }
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(ChangesError::Compacted(compacted)) => {
                return Some(ApiError::new(Reason::Expired, compacted.to_string()));
            }
            Err(closed @ ChangesError::Closed) => {
                return Some(ApiError::new(Reason::Unavailable, closed.to_string()));
            }
        };
        for change in batch {
            if let Err(error) = tell(queue, &selection, &change).await {
                return error;
            }
        }
    }
}

/// The change as the selection sees it: an object that comes into it is ADDED, one that leaves it
/// is DELETED.
async fn tell(
    queue: &Queue,
    selection: &Selection,
    change: &Arc<Change>,
) -> Result<(), Option<ApiError>> {
    if !selection.covers(&change.key) {
        return Ok(());
    }
    let before = change.before.as_ref().filter(|object| selection.matches(object));
    let after = change.after.as_ref().filter(|object| selection.matches(object));
    let (type_, object) = match (before, after) {
        (None, None) => return Ok(()),
        (None, Some(after)) => (Type::Added, after),
        (Some(_), Some(after)) => (Type::Modified, after),
        (Some(before), None) => (Type::Deleted, change.after.as_ref().unwrap_or(before)),
    };
    send(queue, type_, Some(object), change.revision).await
}

/// `Err(None)`: the client is gone.
async fn send(
    queue: &Queue,
    type_: Type,
    object: Option<&Object>,
    revision: u64,
) -> Result<(), Option<ApiError>> {
    let json = match object {
        Some(object) => encode(object).map_err(Some)?.into(),
        None => Bytes::new(),
    };
    let event = WatchEvent { r#type: type_.into(), json, revision };
    queue.send(Ok(event)).await.map_err(|_| None)
}
