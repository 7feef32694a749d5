//! Relays between masters: what each one's agents say goes to all others, a few times a second, so
//! that any master can answer for any node and a new leader knows at once how the nodes are.
//!
//! One stream to each other master, one small frame at a time, and nothing is queued: a master that
//! is slow hears less often. A stream that breaks says nothing of the nodes behind it; it is dialled
//! again. What the frames mean is the hub's business.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use timonier_identity::MASTER_PREFIX;
use timonier_proto::v1::relay_client::RelayClient;
use timonier_proto::v1::relay_server::{Relay, RelayServer};
use timonier_proto::v1::{RelayEnd, RelayFrame};
use timonier_proto::{ApiError, MESSAGE_BYTES_MAX, Reason};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::caller::Caller;
use crate::masters::Masters;
use crate::telemetry::{Cursor, Hub};

/// Time between two frames.
const INTERVAL: Duration = Duration::from_millis(200);
/// What begins or ends a session is told at once, but not more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Frames on their way to one master; while they are not taken, no new one is made.
const FRAMES_MAX: usize = 2;
/// Pause before a broken stream is dialled again, with some chance in it.
const REDIAL_MS: std::ops::Range<u64> = 100..500;

/// The service that other masters dial. Clones are the same.
#[derive(Clone, Debug)]
pub struct Relays {
    hub: Hub,
    shutdown: CancellationToken,
}

impl Relays {
    /// Starts to tell the other masters what `hub` hears here, and answers the service that takes in
    /// what they hear.
    pub fn start(hub: Hub, masters: Masters, shutdown: CancellationToken) -> Self {
        tokio::spawn(keep(hub.clone(), masters, shutdown.clone()));
        Self { hub, shutdown }
    }

    /// To be added to the server.
    pub fn service(&self) -> RelayServer<Self> {
        RelayServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Relay for Relays {
    async fn follow(
        &self,
        request: Request<Streaming<RelayFrame>>,
    ) -> Result<Response<RelayEnd>, Status> {
        // Without the layer that finds callers out, which only tests are, everybody is a master.
        let caller = request.extensions().get::<Caller>().cloned();
        let may_tell = move |id: u64| {
            caller
                .as_ref()
                .is_none_or(|c| c.is_master() && c.name == format!("{MASTER_PREFIX}{id}"))
        };
        let mut frames = request.into_inner();
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame?,
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the master is shutting down")),
            };
            match frame {
                Some(frame) if !may_tell(frame.master) => {
                    let text = "only masters relay, and each for its own agents";
                    return Err(ApiError::new(Reason::Forbidden, text).into());
                }
                Some(frame) => self.hub.take_in(frame),
                None => return Ok(Response::new(RelayEnd {})),
            }
        }
    }
}

/// Keeps one stream to each other master, as they come and go.
async fn keep(hub: Hub, masters: Masters, shutdown: CancellationToken) {
    let mut changes = masters.changes();
    let mut running: HashMap<u64, CancellationToken> = HashMap::new();
    loop {
        let others = masters.others();
        running.retain(|id, cancel| {
            let stays = others.contains(id);
            if !stays {
                cancel.cancel();
            }
            stays
        });
        for id in others {
            running.entry(id).or_insert_with(|| {
                let cancel = shutdown.child_token();
                tokio::spawn(tell(hub.clone(), masters.clone(), id, cancel.clone()));
                cancel
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells one master, over as many streams as it takes.
async fn tell(hub: Hub, masters: Masters, id: u64, cancel: CancellationToken) {
    loop {
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = stream(&hub, &masters, id) => ended,
        };
        tracing::debug!(master = id, why = ended.message(), "the relay to a master ended");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(Duration::from_millis(fastrand::u64(REDIAL_MS))) => {}
        }
    }
}

/// One stream, until it breaks.
async fn stream(hub: &Hub, masters: &Masters, id: u64) -> Status {
    let channel = match masters.channel(id) {
        Ok(channel) => channel,
        Err(status) => return status,
    };
    let mut client = RelayClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (sender, frames) = mpsc::channel(FRAMES_MAX);
    let call = client.follow(ReceiverStream::new(frames));
    let feed = feed(hub, masters.me(), sender);
    tokio::select! {
        ended = call => match ended {
            Ok(_) => Status::unavailable("closed"),
            Err(status) => status,
        },
        () = feed => Status::unavailable("the stream takes no frames any more"),
    }
}

async fn feed(hub: &Hub, me: u64, sender: mpsc::Sender<RelayFrame>) {
    let mut cursor = Cursor::new(hub);
    let mut transitions = hub.transitions();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut more = false;
    loop {
        tokio::select! {
            () = std::future::ready(()), if more => {}
            _ = ticks.tick() => {}
            changed = transitions.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(PAUSE_MIN).await;
            }
        }
        transitions.borrow_and_update();
        match sender.try_reserve() {
            Ok(place) => {
                let outgoing = hub.outgoing(me, &mut cursor);
                cursor.sent(outgoing.told());
                more = outgoing.is_cut;
                place.send(outgoing.frame);
            }
            Err(mpsc::error::TrySendError::Full(())) => more = false,
            Err(mpsc::error::TrySendError::Closed(())) => return,
        }
    }
}
