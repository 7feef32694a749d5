//! Joins a tool's stream and an agent's: each becomes what the other hears. There is no task and no
//! queue in between, so the slower side sets the pace.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use timonier_proto::v1::StreamFrame;
use timonier_proto::v1::stream_frame::Frame;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Status, Streaming};

use super::{AgentFrames, ClientFrames};

/// What the agent hears, and what the tool hears.
pub fn join(
    client: Streaming<StreamFrame>,
    agent: Streaming<StreamFrame>,
    node: &str,
) -> (AgentFrames, ClientFrames) {
    let client_gone = CancellationToken::new();
    let to_agent = ToAgent {
        client,
        half_closed: false,
        client_gone: Box::pin(client_gone.clone().cancelled_owned()),
    };
    let to_client =
        ToClient { agent, node: node.to_owned(), ended: false, _guard: client_gone.drop_guard() };
    (Box::pin(to_agent), Box::pin(to_client))
}

struct ToAgent {
    client: Streaming<StreamFrame>,
    /// The tool has no more to say, but still listens.
    half_closed: bool,
    client_gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for ToAgent {
    type Item = Result<StreamFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.client_gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if self.half_closed {
            return Poll::Pending;
        }
        match Pin::new(&mut self.client).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(_))) => Poll::Ready(None),
            Poll::Ready(None) => {
                self.half_closed = true;
                Poll::Ready(Some(Ok(StreamFrame { frame: Some(Frame::HalfClose(true)) })))
            }
        }
    }
}

struct ToClient {
    agent: Streaming<StreamFrame>,
    node: String,
    /// The agent has said how it ended.
    ended: bool,
    /// Dropped with this stream, when the tool is gone or has heard it all.
    _guard: DropGuard,
}

impl Stream for ToClient {
    type Item = Result<StreamFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match Pin::new(&mut self.agent).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.ended |= matches!(frame.frame, Some(Frame::End(_)));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(_) if self.ended => Poll::Ready(None),
            Poll::Ready(Some(Err(status))) => {
                self.ended = true;
                let text = format!("the stream to node {} broke: {}", self.node, status.message());
                Poll::Ready(Some(Err(Status::unavailable(text))))
            }
            Poll::Ready(None) => {
                self.ended = true;
                let text = format!("the stream to node {} ended too early", self.node);
                Poll::Ready(Some(Err(Status::unavailable(text))))
            }
        }
    }
}
