//! The other end of a stream: a person's tool, behind the master.

use std::time::Duration;

use timonier_proto::MESSAGE_BYTES_MAX;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::{StreamAccept, StreamEnd, StreamFrame};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::runtime::RuntimeError;

/// The master answers when it has joined the two ends.
const DIAL_DEADLINE: Duration = Duration::from_secs(15);
/// How long the master may take to hear the end.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Frames on their way out; who has more waits.
const FRAMES_AHEAD_MAX: usize = 8;

/// Why a stream is over before all was said.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody listens any more.
    Gone,
    /// To be told, as a text for people.
    Failed(String),
}

impl From<RuntimeError> for Ended {
    fn from(error: RuntimeError) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) struct Peer {
    frames: Streaming<StreamFrame>,
    replies: Replies,
}

/// Where frames to the peer go.
#[derive(Clone)]
pub(super) struct Replies(mpsc::Sender<StreamFrame>);

impl Peer {
    pub(super) async fn dial(channel: Channel, stream_id: &str) -> Result<Self, Status> {
        let (sender, replies) = mpsc::channel(FRAMES_AHEAD_MAX);
        let accept = Frame::Accept(StreamAccept { stream_id: stream_id.to_owned() });
        sender
            .try_send(StreamFrame { frame: Some(accept) })
            .expect("a new channel has room for one");
        let mut client = AgentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = timeout(DIAL_DEADLINE, client.stream(ReceiverStream::new(replies)))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer from the master"))??;
        Ok(Self { frames: answer.into_inner(), replies: Replies(sender) })
    }

    pub(super) fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// The next frame. May be dropped while it waits, without losing one.
    pub(super) async fn next(&mut self) -> Result<Frame, Ended> {
        loop {
            match self.frames.message().await {
                Ok(Some(StreamFrame { frame: Some(frame) })) => return Ok(frame),
                Ok(Some(_)) => {} // of a newer master
                Ok(None) | Err(_) => return Err(Ended::Gone),
            }
        }
    }

    /// Says how it ended, and waits until that was heard: a stream dropped at once would take
    /// along what is still on its way.
    pub(super) async fn end(mut self, end: StreamEnd) {
        if self.replies.send(Frame::End(end)).await.is_err() {
            return;
        }
        let Self { replies, frames } = &mut self;
        // With the last sender the stream ends.
        *replies = Replies(mpsc::channel(1).0);
        let heard = async { while let Ok(Some(_)) = frames.message().await {} };
        if timeout(END_DEADLINE, heard).await.is_err() {
            tracing::debug!("the master keeps a stream open that has ended");
        }
    }
}

impl Replies {
    pub(super) async fn send(&self, frame: Frame) -> Result<(), Ended> {
        self.0.send(StreamFrame { frame: Some(frame) }).await.map_err(|_| Ended::Gone)
    }

    /// Dropped when the peer does not keep up.
    pub(super) fn offer(&self, frame: Frame) {
        let _ = self.0.try_send(StreamFrame { frame: Some(frame) });
    }

    /// Waits until nobody listens any more.
    pub(super) async fn gone(&self) -> Ended {
        self.0.closed().await;
        Ended::Gone
    }
}
