//! One connected session, from the Hello to whatever ends it.
//!
//! Heartbeats, statuses, events, latencies and what the master says run beside each other in one
//! task: none of them waits for another, but for the one queue to the master.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use timonier_identity::{DialOptions, dial, explain};
use timonier_proto::MESSAGE_BYTES_MAX;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{
    AgentMessage, Events, LatencyBeats, MasterMessage, OpenStream, PodStatuses, Welcome,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Node, Ranges, Session};

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Where there are other masters to try.
const CONNECT_DEADLINE_OF_SEVERAL: Duration = Duration::from_secs(1);
/// How long the master may take to register this node.
const WELCOME_DEADLINE: Duration = Duration::from_secs(15);
/// A master that is silent is asked whether it is there…
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// …and given up after so long: the agent must be at another one before it counts as lost.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages on their way to the master.
const OUTGOING_MESSAGES_MAX: usize = 16;
/// Statuses in one batch, and batches that the master has not stored yet.
const STATUSES_PER_BATCH_MAX: usize = 256;
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Events in one message, and the time in which they are gathered.
const EVENTS_PER_MESSAGE_MAX: usize = 128;
const EVENTS_GATHER: Duration = Duration::from_millis(100);
const HEARTBEAT_MS_MIN: u32 = 50;

/// Where this node has a session with another one that may be as good.
const WELCOME_DEADLINE_ELSEWHERE: Duration = Duration::from_secs(2);
/// While the master hears no leader others are asked, at once and then with pauses up to this one.
const LOOK_ELSEWHERE_FIRST: Duration = Duration::from_millis(500);
const LOOK_ELSEWHERE_MAX: Duration = Duration::from_secs(10);

/// How a session ended.
pub struct Ended {
    pub master: String,
    /// The master had taken this node in.
    pub welcomed: bool,
    pub why: String,
    /// Another master has taken it in already, one that hears a leader.
    pub better: Option<Opened>,
}

type Outgoing = mpsc::Sender<AgentMessage>;

/// What a session begins with.
pub struct Opened {
    master: String,
    channel: Channel,
    outgoing: Outgoing,
    incoming: Streaming<MasterMessage>,
    welcome: Welcome,
}

/// Goes on with a session until it ends.
pub async fn run(session: &Session, opened: Opened) -> Ended {
    let Opened { master, channel, outgoing, incoming, welcome } = opened;
    tracing::info!(master, range = welcome.pod_range, "session opened");
    session.masters.tell(welcome.masters.clone());
    let node = &session.node;
    let period = session.config.heartbeat.unwrap_or_else(|| {
        Duration::from_millis(welcome.heartbeat_ms.max(HEARTBEAT_MS_MIN).into())
    });
    let window = Semaphore::new(BATCHES_IN_FLIGHT_MAX);
    let leader_heard = watch::Sender::new(true);
    node.lease().begin_session(welcome.fence_after_ms);
    node.begin_session();
    // Starting may take its time; heartbeats say meanwhile why the node is not ready.
    let begun = node.begin(Ranges::of(&welcome)).then(|()| std::future::pending::<String>());
    let renewing = session.config.membership.look_after(channel.clone());
    let mut better = None;
    let why = tokio::select! {
        why = begun => why,
        never = renewing => never,
        why = heartbeats(node, &outgoing, period) => why,
        why = statuses(node, &outgoing, &window) => why,
        why = events(node, &outgoing) => why,
        why = beats(node, &outgoing) => why,
        why = receive(session, incoming, channel, &window, &leader_heard) => why,
        opened = elsewhere(session, leader_heard.subscribe()) => {
            better = Some(opened);
            "it hears no leader, and another one does".to_owned()
        }
    };
    if better.is_some() {
        tracing::warn!("left master {master}: {why}");
    }
    Ended { master, welcomed: true, why, better }
}

/// Dials the next master in turn.
pub async fn open(session: &Session) -> Result<Opened, Ended> {
    open_within(session, WELCOME_DEADLINE).await
}

async fn open_within(session: &Session, deadline: Duration) -> Result<Opened, Ended> {
    let master = session.masters.next();
    let opened = dial_master(session, &master, deadline).await;
    opened.map_err(|why| Ended { master, welcomed: false, why, better: None })
}

/// A session with another master, once this one hears no leader and another does. Until then this one
/// is as good as any.
async fn elsewhere(session: &Session, mut leader_heard: watch::Receiver<bool>) -> Opened {
    let mut pause = LOOK_ELSEWHERE_FIRST;
    loop {
        if *leader_heard.borrow() {
            pause = LOOK_ELSEWHERE_FIRST;
        }
        // The sender lives as long as the session.
        let _ = leader_heard.wait_for(|heard| !*heard).await;
        // With some chance, so that the agents of this master do not all come at once.
        sleep(pause.mul_f64(fastrand::f64())).await;
        pause = (pause * 2).min(LOOK_ELSEWHERE_MAX);
        if session.masters.are_several() {
            match open_within(session, WELCOME_DEADLINE_ELSEWHERE).await {
                Ok(opened) => return opened,
                Err(ended) => tracing::debug!(master = ended.master, "{}", ended.why),
            }
        }
    }
}

async fn dial_master(
    session: &Session,
    master: &str,
    welcome_deadline: Duration,
) -> Result<Opened, String> {
    let several = session.masters.are_several();
    let deadline = if several { CONNECT_DEADLINE_OF_SEVERAL } else { CONNECT_DEADLINE };
    let options = DialOptions {
        connect_timeout: deadline,
        keep_alive_interval: KEEP_ALIVE_INTERVAL,
        keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
        keep_alive_while_idle: false,
    };
    let dialled = dial(master, session.config.membership.identity(), &options).await;
    let channel = dialled.map_err(|error| format!("cannot connect: {error}"))?;
    let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES_MAX);
    let hello = AgentMessage { message: Some(Up::Hello(session.hello().await)) };
    outgoing.try_send(hello).map_err(|_| "the queue to the master is full".to_owned())?;
    let mut client = AgentClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let welcomed = async {
        let refused = |status: tonic::Status| {
            let why = explain(&status).unwrap_or_else(|| status.message().to_owned());
            format!("refused: {why}")
        };
        let answer = client.session(ReceiverStream::new(messages)).await.map_err(refused)?;
        let mut incoming = answer.into_inner();
        match incoming.message().await.map_err(refused)?.and_then(|m| m.message) {
            Some(Down::Welcome(welcome)) => Ok((incoming, welcome)),
            _ => Err("did not begin with a welcome".to_owned()),
        }
    };
    let (incoming, welcome) = timeout(welcome_deadline, welcomed)
        .await
        .map_err(|_| format!("no welcome in {} s", welcome_deadline.as_secs()))??;
    Ok(Opened { master: master.to_owned(), channel, outgoing, incoming, welcome })
}

/// One each period, and one at once when the node gets ready or not ready.
async fn heartbeats(node: &Node, outgoing: &Outgoing, period: Duration) -> String {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.readiness_changed() => {}
            () = node.lease().needed() => {}
        }
        sequence += 1;
        node.lease().beat(sequence);
        if let Err(why) = say(outgoing, Up::Heartbeat(node.heartbeat(sequence))).await {
            return why;
        }
    }
}

async fn statuses(node: &Node, outgoing: &Outgoing, window: &Semaphore) -> String {
    let running = node.started().await;
    loop {
        running.board.dirty().await;
        let Ok(slot) = window.acquire().await else { return "closed".to_owned() };
        let (batch, updates) = running.board.take(STATUSES_PER_BATCH_MAX);
        if updates.is_empty() {
            continue;
        }
        // Given back when the master has stored the batch.
        slot.forget();
        if let Err(why) = say(outgoing, Up::Statuses(PodStatuses { batch, updates })).await {
            return why;
        }
    }
}

async fn events(node: &Node, outgoing: &Outgoing) -> String {
    let running = node.started().await;
    let mut events = running.events.lock().await;
    loop {
        let mut gathered = Vec::new();
        if events.recv_many(&mut gathered, EVENTS_PER_MESSAGE_MAX).await == 0 {
            return "the agent stops".to_owned();
        }
        sleep(EVENTS_GATHER).await;
        while gathered.len() < EVENTS_PER_MESSAGE_MAX
            && let Ok(event) = events.try_recv()
        {
            gathered.push(event);
        }
        if let Err(why) = say(outgoing, Up::Events(Events { events: gathered })).await {
            return why;
        }
    }
}

async fn beats(node: &Node, outgoing: &Outgoing) -> String {
    let running = node.started().await;
    let mut beats = running.beats.lock().await;
    while let Some(beats) = beats.recv().await {
        if let Err(why) = say(outgoing, Up::Beats(LatencyBeats { beats })).await {
            return why;
        }
    }
    std::future::pending().await
}

async fn say(outgoing: &Outgoing, message: Up) -> Result<(), String> {
    let message = AgentMessage { message: Some(message) };
    outgoing.send(message).await.map_err(|_| "the connection broke".to_owned())
}

async fn receive(
    session: &Session,
    mut incoming: Streaming<MasterMessage>,
    channel: Channel,
    window: &Semaphore,
    leader_heard: &watch::Sender<bool>,
) -> String {
    let node = &session.node;
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => return "the session was closed".to_owned(),
            Err(status) => return format!("the session broke: {}", status.message()),
        };
        match message {
            Some(Down::Assignments(assignments)) => {
                let running = node.started().await;
                if let Err(error) = node.apply(&running, assignments).await {
                    return error.to_string();
                }
            }
            Some(Down::Stored(stored)) => {
                if let Some(running) = node.running() {
                    running.board.stored(stored.batch);
                }
                if window.available_permits() < BATCHES_IN_FLIGHT_MAX {
                    window.add_permits(1);
                }
            }
            Some(Down::Lease(lease)) => node.lease().granted(lease.sequence),
            Some(Down::Open(open)) => serve(session, open, channel.clone()),
            Some(Down::TellStatuses(_)) => node.tell_statuses(),
            Some(Down::Masters(masters)) => session.masters.tell(masters.addresses),
            Some(Down::LeaderHeard(told)) => {
                leader_heard.send_replace(told.heard);
            }
            Some(Down::Welcome(_)) | None => {}
        }
    }
}

fn serve(session: &Session, open: OpenStream, channel: Channel) {
    let Ok(slot) = Arc::clone(&session.stream_slots).try_acquire_owned() else {
        tracing::warn!(stream = open.stream_id, "too many streams are open, this one is refused");
        return;
    };
    let streams = session.streams.clone();
    tokio::spawn(async move {
        streams.serve(open, channel).await;
        drop(slot);
    });
}
