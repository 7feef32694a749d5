//! The broker of byte streams: a person's tool opens one at a master, the master asks the pod's
//! agent over its session to dial another, and pipes frames between the two.
//!
//! It holds no data but the frames in flight: each side is read only as fast as the other takes.
//! What the frames mean is the business of the two ends.

mod image;
mod pass;
mod pipe;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::{MasterMessage, OpenStream, StreamFrame, StreamRequest};
use timonier_proto::{ApiError, Reason};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::masters::Masters;
use crate::sessions::{Registry, SendError};
use crate::store::Store;
use crate::telemetry::{Hub, Where};

pub use pass::Origin;

/// How long a caller may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long an agent may take to dial back.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// Streams that wait for their agent at the same time.
const PENDING_MAX: usize = 1024;

/// Frames to a tool.
pub type ClientFrames = Pin<Box<dyn Stream<Item = Result<StreamFrame, Status>> + Send>>;
/// Frames to an agent.
pub type AgentFrames = Pin<Box<dyn Stream<Item = Result<StreamFrame, Status>> + Send>>;

/// The broker. Clones are the same.
#[derive(Clone)]
pub struct Streams {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    hub: Hub,
    registry: Arc<Registry>,
    masters: Masters,
    pending: Mutex<HashMap<String, Waiting>>,
}

/// Who waits for an agent to dial.
struct Waiting {
    node: String,
    dialled: oneshot::Sender<Dialled>,
}

/// The other end of a stream: an agent that has dialled back, or the master that has its session.
struct Dialled {
    /// What the agent says.
    from_agent: Streaming<StreamFrame>,
    /// Decides what the agent hears.
    to_agent: oneshot::Sender<AgentFrames>,
}

impl Streams {
    pub(crate) fn new(store: Store, hub: Hub, registry: Arc<Registry>, masters: Masters) -> Self {
        let pending = Mutex::default();
        Self { inner: Arc::new(Inner { store, hub, registry, masters, pending }) }
    }

    /// Logs, exec or port-forward, as the first frame asks: what the agent answers. `may` says
    /// whether the caller may have it.
    pub async fn open(
        &self,
        mut client: Streaming<StreamFrame>,
        origin: Origin,
        may: impl AsyncFnOnce(&StreamRequest) -> Result<(), ApiError>,
    ) -> Result<ClientFrames, Status> {
        let request = first_request(&mut client).await?;
        may(&request).await?;
        let (node, request) = self.resolve(request).await?;
        let dialled = self.dial(&node, request, &origin).await?;
        let (to_agent, to_client) = pipe::join(client, dialled.from_agent, &node);
        dialled.to_agent.send(to_agent).map_err(|_| gone(&node))?;
        Ok(to_client)
    }

    /// An image's archive to several nodes at once.
    pub async fn load_image(
        &self,
        mut client: Streaming<StreamFrame>,
        origin: Origin,
    ) -> Result<ClientFrames, Status> {
        use timonier_proto::v1::stream_request::Request;
        let request = first_request(&mut client).await?;
        let Some(Request::Image(offer)) = request.request else {
            return Err(Status::invalid_argument("load an image: the first frame must offer one"));
        };
        image::load(self, client, offer, origin).await
    }

    /// The node that has the pod, and the request with what it left open filled in.
    async fn resolve(&self, request: StreamRequest) -> Result<(String, StreamRequest), Status> {
        let found = resolve::pod_of(&self.inner.store.snapshot(), request.clone());
        match found {
            // Made at another master a moment ago, perhaps: this one's copy may be behind.
            Err(error) if error.reason == Reason::NotFound => {
                self.inner.store.linearize().await.map_err(ApiError::from)?;
                Ok(resolve::pod_of(&self.inner.store.snapshot(), request)?)
            }
            found => Ok(found?),
        }
    }

    /// The node's agent has dialled: hands it to who waits for it.
    pub async fn accept(
        &self,
        node: &str,
        mut agent: Streaming<StreamFrame>,
    ) -> Result<AgentFrames, Status> {
        let first = timeout(REQUEST_DEADLINE, agent.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no StreamAccept came in 10 s"))??;
        let Some(Frame::Accept(accept)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("the first frame must be a StreamAccept"));
        };
        let nobody = || Status::not_found("nobody waits for this stream any more");
        let waiting = {
            let mut pending = self.pending();
            // A stream is another node's for nobody but that node.
            if pending.get(&accept.stream_id).is_none_or(|waiting| waiting.node != node) {
                return Err(nobody());
            }
            pending.remove(&accept.stream_id)
        };
        let (to_agent, frames) = oneshot::channel();
        waiting
            .ok_or_else(nobody)?
            .dialled
            .send(Dialled { from_agent: agent, to_agent })
            .map_err(|_| nobody())?;
        timeout(DIAL_DEADLINE, frames).await.map_err(|_| nobody())?.map_err(|_| nobody())
    }

    /// Opens a stream to the node's agent: it is asked to dial, or the master that has its session
    /// is asked to do so.
    async fn dial(
        &self,
        node: &str,
        request: StreamRequest,
        origin: &Origin,
    ) -> Result<Dialled, Status> {
        if self.inner.registry.is_connected(node) {
            return self.dial_agent(node, request).await;
        }
        match self.inner.hub.find(node) {
            Some(Where::There(master)) if !origin.is_passed_on() => {
                let masters = self.inner.masters.clone();
                pass::dial(masters, master, node.to_owned(), request, origin.clone()).await
            }
            _ => Err(not_sent(node, SendError::NotConnected)),
        }
    }

    /// Asks the node's agent, which has a session here, to dial, and waits until it has.
    async fn dial_agent(&self, node: &str, request: StreamRequest) -> Result<Dialled, Status> {
        let stream_id = uuid::Uuid::new_v4().to_string();
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.pending();
            pending.retain(|_, waiting| !waiting.dialled.is_closed());
            if pending.len() >= PENDING_MAX {
                let text =
                    format!("open a stream to node {node}: too many streams are being opened");
                return Err(ApiError::new(Reason::TooManyRequests, text).into());
            }
            let waiting = Waiting { node: node.to_owned(), dialled: sender };
            pending.insert(stream_id.clone(), waiting);
        }
        let open = OpenStream { stream_id: stream_id.clone(), request: Some(request) };
        let message = MasterMessage { message: Some(Down::Open(open)) };
        let sent = self.inner.registry.send(node, message).map_err(|error| not_sent(node, error));
        let answer = match sent {
            Ok(()) => timeout(DIAL_DEADLINE, receiver).await,
            Err(status) => {
                self.pending().remove(&stream_id);
                return Err(status);
            }
        };
        self.pending().remove(&stream_id);
        match answer {
            Ok(Ok(dialled)) => Ok(dialled),
            _ => {
                let text = format!(
                    "open a stream to node {node}: its agent did not answer in {} s",
                    DIAL_DEADLINE.as_secs()
                );
                Err(ApiError::new(Reason::Timeout, text).into())
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn first_request(client: &mut Streaming<StreamFrame>) -> Result<StreamRequest, Status> {
    let first = timeout(REQUEST_DEADLINE, client.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no request came in 10 s"))??;
    match first.and_then(|frame| frame.frame) {
        Some(Frame::Request(request)) => Ok(request),
        _ => Err(Status::invalid_argument("the first frame of a stream must be a request")),
    }
}

fn not_sent(node: &str, error: SendError) -> Status {
    let why = match error {
        SendError::NotConnected => "its agent is not connected",
        SendError::Overflow => "its agent does not keep up",
    };
    let hint = format!("hint: see `timonctl describe node {node}`");
    let text = format!("open a stream to node {node}: {why}; {hint}");
    ApiError::new(Reason::Unavailable, text).into()
}

fn gone(node: &str) -> Status {
    let text = format!("open a stream to node {node}: its agent is gone again");
    ApiError::new(Reason::Unavailable, text).into()
}
