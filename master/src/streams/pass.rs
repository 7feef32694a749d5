//! Streams to nodes whose session another master has: opened there, and piped through.
//!
//! A request is passed on once: the master that gets it has the session, or says that it has not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use timonier_proto::v1::StreamFrame;
use timonier_proto::v1::StreamRequest;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request as Wanted;
use timonier_proto::{ApiError, MESSAGE_BYTES_MAX, PASSED_ON_HEADER, Reason};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use super::{AgentFrames, DIAL_DEADLINE, Dialled};
use crate::caller::{Caller, ON_BEHALF_OF};
use crate::guard::Acting;
use crate::masters::Masters;

/// Who asks for a stream, and whether another master has passed it on.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Who asks, as a master says it when it passes a request on.
    on_behalf_of: String,
    passed_on_by: Option<String>,
}

impl Origin {
    pub fn of<T>(request: &Request<T>) -> Self {
        let by = request.metadata().get(PASSED_ON_HEADER).and_then(|value| value.to_str().ok());
        let acting = request.extensions().get::<Acting>();
        let caller = acting.map_or_else(Caller::anonymous, |acting| {
            Caller::of_token(&acting.user.name, acting.user.groups.clone())
        });
        let on_behalf_of = caller.on_behalf();
        Self { on_behalf_of, passed_on_by: by.map(str::to_owned) }
    }

    pub fn is_passed_on(&self) -> bool {
        self.passed_on_by.is_some()
    }
}

/// Opens the stream at the master that has the node's session.
pub(super) async fn dial(
    masters: Masters,
    master: u64,
    node: String,
    request: StreamRequest,
    origin: Origin,
) -> Result<Dialled, Status> {
    let channel = match masters.channel(master) {
        Ok(channel) => channel,
        Err(status) => return Err(away(&node, master, status.message())),
    };
    let (to_agent, frames) = oneshot::channel::<AgentFrames>();
    let is_image = matches!(request.request, Some(Wanted::Image(_)));
    let mut call = Request::new(Outgoing::new(request, frames));
    mark(call.metadata_mut(), masters.me(), &origin);
    let mut client = ControlClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let opened = async move {
        if is_image { client.load_image(call).await } else { client.open(call).await }
    };
    // The other master gives its agent as long to dial.
    match timeout(DIAL_DEADLINE * 2, opened).await {
        Ok(Ok(answer)) => Ok(Dialled { from_agent: answer.into_inner(), to_agent }),
        Ok(Err(status)) if status.details().is_empty() && status.code() == Code::Unavailable => {
            Err(away(&node, master, status.message()))
        }
        Ok(Err(status)) => Err(status),
        Err(_) => Err(away(&node, master, "no answer")),
    }
}

fn away(node: &str, master: u64, why: &str) -> Status {
    let text = format!(
        "open a stream to node {node}: master {master}, which has its session, is away ({why}); hint: try again in a moment, its agent is looking for another master"
    );
    ApiError::new(Reason::Unavailable, text).into()
}

/// The request, then what is known once the other master has answered.
struct Outgoing {
    first: Option<StreamFrame>,
    waiting: Option<oneshot::Receiver<AgentFrames>>,
    rest: Option<AgentFrames>,
}

impl Outgoing {
    fn new(request: StreamRequest, frames: oneshot::Receiver<AgentFrames>) -> Self {
        let first = StreamFrame { frame: Some(Frame::Request(request)) };
        Self { first: Some(first), waiting: Some(frames), rest: None }
    }
}

impl Stream for Outgoing {
    type Item = StreamFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StreamFrame>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if let Some(waiting) = &mut self.waiting {
            let Ok(rest) = ready!(Pin::new(waiting).poll(context)) else {
                return Poll::Ready(None);
            };
            (self.waiting, self.rest) = (None, Some(rest));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        // An error of the tool's side ends the stream, as its going does.
        match ready!(rest.as_mut().poll_next(context)) {
            Some(Ok(frame)) => Poll::Ready(Some(frame)),
            Some(Err(_)) | None => {
                self.rest = None;
                Poll::Ready(None)
            }
        }
    }
}

fn mark(metadata: &mut MetadataMap, me: u64, origin: &Origin) {
    metadata.insert(PASSED_ON_HEADER, MetadataValue::from(me));
    if let Ok(caller) = MetadataValue::try_from(&origin.on_behalf_of) {
        metadata.insert(ON_BEHALF_OF, caller);
    }
}
