//! Byte streams that a person opened at a master and that end here: logs, commands in containers,
//! forwarded ports, image archives.
//!
//! The master asks over the session; the agent dials a stream of its own for each, so that no
//! stream holds up another, and gRPC's flow control sets the pace from end to end. A stream may be
//! idle for ever, and ends when either end does.

mod container;
mod exec;
mod forward;
mod image;
mod inside;
mod logs;
mod peer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request;
use timonier_proto::v1::{OpenStream, StreamEnd};
use tonic::transport::Channel;

use crate::pods::PodView;
use crate::runtime::Runtime;
use peer::{Ended, Peer};

/// Finds a pod of this node by its uid.
pub type FindPod = Arc<dyn Fn(&str) -> Option<PodView> + Send + Sync>;

/// What serves streams. Clones are the same.
#[derive(Clone)]
pub struct Streams {
    node: String,
    runtime: Arc<dyn Runtime>,
    find: FindPod,
}

impl Streams {
    pub fn new(node: String, runtime: Arc<dyn Runtime>, find: FindPod) -> Self {
        Self { node, runtime, find }
    }

    /// Dials the master that `channel` leads to and serves the stream to its end; what goes wrong
    /// is told to the other end, or logged when there is none. Dropping the future ends it. How
    /// many are served at a time is the caller's to bound.
    pub async fn serve(&self, open: OpenStream, channel: Channel) {
        let mut peer = match Peer::dial(channel, &open.stream_id).await {
            Ok(peer) => peer,
            Err(error) => {
                let reason = error.message();
                tracing::info!(reason, stream = open.stream_id, "cannot dial a stream back");
                return;
            }
        };
        let request = open.request.and_then(|request| request.request);
        let (exit_code, error) = match self.answer(request, &mut peer).await {
            Ok(exit_code) => (exit_code, String::new()),
            Err(Ended::Failed(error)) => (1, error),
            Err(Ended::Gone) => {
                tracing::debug!(stream = open.stream_id, "the other end is gone");
                return;
            }
        };
        peer.end(StreamEnd { exit_code, error, node: self.node.clone() }).await;
    }

    /// The exit code, which is 0 but for a command's.
    async fn answer(&self, request: Option<Request>, peer: &mut Peer) -> Result<i32, Ended> {
        match request {
            Some(Request::Logs(request)) => logs::serve(self, &request, peer).await,
            Some(Request::Exec(request)) => exec::serve(self, request, peer).await,
            Some(Request::PortForward(request)) => forward::serve(self, &request, peer).await,
            Some(Request::Image(offer)) => image::serve(self, offer, peer).await,
            None => {
                let text = "the stream asks for what this agent does not know; \
                            hint: is the agent older than the master?";
                Err(Ended::Failed(text.to_owned()))
            }
        }
    }

    fn pod(&self, uid: &str, namespace: &str, name: &str) -> Result<PodView, Ended> {
        (self.find)(uid).ok_or_else(|| {
            let text = format!("pod {namespace}/{name} is not on node {} any more", self.node);
            Ended::Failed(text)
        })
    }
}

/// Bytes of a command's or container's standard output.
fn data(bytes: impl Into<Bytes>) -> Frame {
    Frame::Data(bytes.into())
}
