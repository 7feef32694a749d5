//! What a container wrote: both its outputs in one, as `kubectl logs` shows them.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use timonier_proto::v1::LogsRequest;

use super::peer::{Ended, Peer, Replies};
use super::{Streams, container, data};
use crate::runtime::{LogOptions, Output, RuntimeError};

/// Engines give a line at a time; so many that are there already go in one frame.
const LINES_PER_FRAME_MAX: usize = 64;

pub(super) async fn serve(
    streams: &Streams,
    request: &LogsRequest,
    peer: &mut Peer,
) -> Result<i32, Ended> {
    let pod = streams.pod(&request.pod_uid, &request.namespace, &request.pod)?;
    let id = container::for_logs(&pod, &request.container, request.previous)?;
    let options = LogOptions {
        follow: request.follow,
        timestamps: request.timestamps,
        // Negative is all, as in Kubernetes.
        tail_lines: request.tail_lines.and_then(|lines| u64::try_from(lines).ok()),
        since: request.since_unix_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()),
    };
    let mut lines = streams.runtime.logs(&id, options).ready_chunks(LINES_PER_FRAME_MAX);
    let mut budget = Budget(request.limit_bytes.and_then(|bytes| u64::try_from(bytes).ok()));
    let replies = peer.replies();
    loop {
        let lines = tokio::select! {
            lines = lines.next() => lines,
            // A reader has nothing to say; but it may go.
            frame = peer.next() => {
                frame?;
                continue;
            }
        };
        let Some(lines) = lines else { return Ok(0) };
        if !send(lines, &mut budget, &replies).await? {
            return Ok(0);
        }
    }
}

/// How many bytes may still be sent; `None` is no limit.
struct Budget(Option<u64>);

impl Budget {
    /// The part of `bytes` that may be sent.
    fn take(&mut self, mut bytes: Bytes) -> Bytes {
        if let Some(left) = &mut self.0 {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        bytes
    }
}

/// False when the limit is reached.
async fn send(
    lines: Vec<Result<Output, RuntimeError>>,
    budget: &mut Budget,
    replies: &Replies,
) -> Result<bool, Ended> {
    let mut frame = BytesMut::new();
    let mut failed = None;
    for line in lines {
        match line {
            Ok(Output::Stdout(bytes) | Output::Stderr(bytes)) => frame.extend_from_slice(&bytes),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let bytes = budget.take(frame.freeze());
    if !bytes.is_empty() {
        replies.send(data(bytes)).await?;
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(budget.0 != Some(0)),
    }
}
