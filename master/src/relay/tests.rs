//! Several masters in this process, each with its own doors on loopback, and agents that follow a
//! script. Each has a store of its own: what is replicated is put into all of them.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use timonier_identity::Lifetimes;
use timonier_master_core::access::{SUPERUSERS, UserInfo};
use timonier_master_core::op::{Op, Txn};
use timonier_master_core::world::Settings;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request as Asked;
use timonier_proto::v1::{
    AgentMessage, ExecRequest, Heartbeat, Hello, HostUsage, ImageOffer, ImageWant, MasterMessage,
    MonitorRequest, StreamAccept, StreamEnd, StreamFrame, StreamRequest,
};
use timonier_proto::{Kind, Object};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status, Streaming};

use super::Relays;
use crate::caller::played_node;
use crate::driver::Signals;
use crate::grpc::{Door, DoorParts};
use crate::guard::{Acting, Guard};
use crate::masters::Masters;
use crate::pki::{Pki, PkiConfig, Safe};
use crate::sessions::{SessionSettings, Sessions};
use crate::stamp::stamp;
use crate::store::{Encryption, Member, Store, StoreConfig};
use crate::telemetry::{Hub, Where};

const DEADLINE: Duration = Duration::from_secs(20);

struct Master {
    store: Store,
    hub: Hub,
    channel: Channel,
    _dir: tempfile::TempDir,
    _shutdown: DropGuard,
}

/// Masters 1, 2, …, and who they are.
async fn masters(count: u64) -> (Vec<Master>, watch::Sender<Vec<Member>>) {
    let mut listeners = Vec::new();
    let mut members = Vec::new();
    for id in 1..=count {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        members.push(Member {
            id,
            name: format!("m{id}"),
            address: listener.local_addr().unwrap().to_string(),
            voter: true,
            leader: id == 1,
        });
        listeners.push(listener);
    }
    let (sender, receiver) = watch::channel(members.clone());
    let mut all = Vec::new();
    for (listener, member) in listeners.into_iter().zip(members) {
        let addresses = receiver.clone();
        let dial = move |id| {
            let address = addresses.borrow().iter().find(|m| m.id == id).unwrap().address.clone();
            let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
            Ok(endpoint.connect_lazy())
        };
        let masters = Masters::new(member.id, String::new(), receiver.clone(), dial);
        all.push(start(listener, member, masters).await);
    }
    (all, sender)
}

async fn start(listener: TcpListener, member: Member, masters: Masters) -> Master {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::new(dir.path())).await.unwrap();
    let hub = Hub::new();
    let shutdown = CancellationToken::new();
    let session = SessionSettings::default();
    let settings = Settings {
        cluster_range: session.cluster_range.clone(),
        service_range: session.service_range.clone(),
        node_grace_ms: 3000,
        eviction_after_ms: 2000,
        fence_after_ms: 15_000,
    };
    let sessions =
        Sessions::start(store.clone(), hub.clone(), masters.clone(), session, shutdown.clone());
    let door = Door::new(DoorParts {
        store: store.clone(),
        hub: hub.clone(),
        streams: sessions.streams().clone(),
        guard: Guard::start(store.clone(), dir.path()).unwrap(),
        settings,
        masters: masters.clone(),
        pki: pki(dir.path()),
        shutdown: shutdown.clone(),
    });
    let relays = Relays::start(hub.clone(), masters, shutdown.clone());
    let server = Server::builder()
        .add_service(InterceptedService::new(door.service(), as_admin))
        .add_service(InterceptedService::new(sessions.service(), played_node))
        .add_service(relays.service())
        .serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    tokio::spawn(server);
    let channel = Channel::from_shared(format!("http://{}", member.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    Master { store, hub, channel, _dir: dir, _shutdown: shutdown.drop_guard() }
}

/// Nobody is certified in these tests.
fn pki(dir: &Path) -> Pki {
    let lifetimes = Lifetimes::default();
    let config = PkiConfig { data_dir: dir.to_owned(), addresses: Vec::new(), lifetimes };
    Pki::open(config, Safe::open(dir, &Encryption::Off).unwrap()).unwrap()
}

/// In place of the layers that find out who calls.
fn as_admin(mut request: Request<()>) -> Result<Request<()>, Status> {
    let user = UserInfo::authenticated("admin", vec![SUPERUSERS.to_owned()]);
    request.extensions_mut().insert(Acting { user, by: None });
    Ok(request)
}

struct Agent {
    client: AgentClient<Channel>,
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<MasterMessage>,
}

impl Agent {
    async fn dial(master: &Master, agent_id: &str, dial: u64) -> Result<Self, Status> {
        let mut client = AgentClient::new(master.channel.clone());
        let (up, receiver) = mpsc::channel(16);
        let hello = Hello {
            node_name: "n1".into(),
            agent_id: agent_id.into(),
            address: "10.1.2.3".into(),
            dial,
            ..Default::default()
        };
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { client, up, down })
    }

    async fn beat(&self, sequence: u64, cpu_percent: f32) {
        let host = Some(HostUsage { cpu_percent, ..Default::default() });
        let beat = Heartbeat { sequence, host, ..Default::default() };
        self.up.send(AgentMessage { message: Some(Up::Heartbeat(beat)) }).await.unwrap();
    }

    async fn heard(&mut self, wanted: impl Fn(&Down) -> bool) -> Down {
        loop {
            let message = timeout(DEADLINE, self.down.message()).await.unwrap().unwrap().unwrap();
            let message = message.message.unwrap();
            if wanted(&message) {
                return message;
            }
        }
    }

    /// Dials the stream that the master asks for next.
    async fn stream(&mut self) -> (StreamRequest, Conversation) {
        let Down::Open(open) = self.heard(|m| matches!(m, Down::Open(_))).await else {
            unreachable!("that was looked for")
        };
        let (say, receiver) = mpsc::channel(8);
        let accept = StreamAccept { stream_id: open.stream_id };
        say.send(StreamFrame { frame: Some(Frame::Accept(accept)) }).await.unwrap();
        let hear = self.client.stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        (open.request.unwrap(), Conversation { say, hear })
    }
}

struct Conversation {
    say: mpsc::Sender<StreamFrame>,
    hear: Streaming<StreamFrame>,
}

impl Conversation {
    async fn say(&self, frame: Frame) {
        self.say.send(StreamFrame { frame: Some(frame) }).await.unwrap();
    }

    async fn hear(&mut self) -> Frame {
        let frame = timeout(DEADLINE, self.hear.message()).await.unwrap().unwrap().unwrap();
        frame.frame.unwrap()
    }
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !check() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn cpu(master: &Master) -> Option<f32> {
    master.hub.signals(jiff::Timestamp::now()).nodes.get("n1").map(|node| node.host.cpu_percent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_master_knows_every_node_and_one_session_counts() {
    let (all, members) = masters(3).await;
    let mut agent = Agent::dial(&all[0], "a", 1).await.unwrap();
    agent.beat(1, 12.5).await;
    for master in &all[1..] {
        eventually("the heartbeat elsewhere", || cpu(master) == Some(12.5)).await;
        assert_eq!((master.hub.connected(), master.hub.find("n1")), (1, Some(Where::There(1))));
    }
    // Another agent of that name is refused at each of them, while this one lives.
    for master in &all {
        let refused = Agent::dial(master, "b", 1).await.err().unwrap();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    }
    // A change of the masters reaches the agent.
    members.send_modify(|members| members[2].address = "127.0.0.1:1".into());
    let told = agent.heard(|message| matches!(message, Down::Masters(_))).await;
    let Down::Masters(told) = told else { unreachable!("that was looked for") };
    assert_eq!(told.addresses.len(), 3);
    assert_eq!(told.addresses[2], "127.0.0.1:1");
    // The same agent has dialled another master: the first lets go of it.
    let again = Agent::dial(&all[1], "a", 2).await.unwrap();
    again.beat(1, 99.0).await;
    while let Ok(Some(_)) = timeout(DEADLINE, agent.down.message()).await.unwrap() {}
    eventually("the new session at the first", || {
        cpu(&all[0]) == Some(99.0) && all[0].hub.find("n1") == Some(Where::There(2))
    })
    .await;
    // A frame of usage is the same wherever it is asked for.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    put(&all[2], Kind::Node, node).await;
    let frame = all[2].hub.frame(&all[2].store.snapshot(), &MonitorRequest::default());
    assert_eq!(frame.nodes[0].usage.unwrap().cpu_percent, 99.0);
    drop(again);
    eventually("the end of it everywhere", || all.iter().all(|m| m.hub.connected() == 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_gone_takes_no_node_with_it() {
    let (mut all, _members) = masters(2).await;
    let agent = Agent::dial(&all[0], "a", 1).await.unwrap();
    agent.beat(1, 1.0).await;
    eventually("the heartbeat elsewhere", || cpu(&all[1]) == Some(1.0)).await;
    assert_eq!(all[1].hub.signals(jiff::Timestamp::now()).nodes["n1"].master_away_since, None);
    drop(all.remove(0));
    eventually("the silence of the master", || {
        all[0].hub.signals(jiff::Timestamp::now()).nodes["n1"].master_away_since.is_some()
    })
    .await;
    assert_eq!(all[0].hub.connected(), 0);
    let again = Agent::dial(&all[0], "a", 2).await.unwrap();
    again.beat(1, 2.0).await;
    eventually("the agent at the other master", || cpu(&all[0]) == Some(2.0)).await;
    assert_eq!(all[0].hub.signals(jiff::Timestamp::now()).nodes["n1"].master_away_since, None);
}

async fn put(master: &Master, kind: Kind, value: serde_json::Value) {
    let object = Object::from_json(kind, value.to_string().as_bytes()).unwrap();
    let op = stamp(Op::Create(object), jiff::Timestamp::now());
    master.store.commit(Txn::of(vec![op])).await.unwrap();
}

async fn converse(master: &Master, asked: Asked) -> Result<Conversation, Status> {
    let mut client = ControlClient::new(master.channel.clone());
    let (say, frames) = mpsc::channel(8);
    let is_image = matches!(asked, Asked::Image(_));
    let first = StreamRequest { request: Some(asked) };
    say.send(StreamFrame { frame: Some(Frame::Request(first)) }).await.unwrap();
    let frames = ReceiverStream::new(frames);
    let opened = if is_image { client.load_image(frames).await } else { client.open(frames).await };
    Ok(Conversation { say, hear: opened?.into_inner() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reach_a_node_through_any_master() {
    let (all, _members) = masters(2).await;
    let mut agent = Agent::dial(&all[0], "a", 1).await.unwrap();
    agent.beat(1, 1.0).await;
    eventually("the session elsewhere", || all[1].hub.find("n1").is_some()).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    });
    for master in &all {
        put(master, Kind::Pod, pod.clone()).await;
    }
    let exec = ExecRequest { pod: "web".into(), command: vec!["sh".into()], ..Default::default() };
    let (tool, asked) = tokio::join!(converse(&all[1], Asked::Exec(exec)), agent.stream());
    let (mut tool, (request, mut node)) = (tool.unwrap(), asked);
    let Some(Asked::Exec(request)) = request.request else { panic!("{request:?}") };
    assert_eq!((request.pod_uid.as_str(), request.container.as_str()), ("u1", "c"));
    tool.say(Frame::Data("in".into())).await;
    assert_eq!(node.hear().await, Frame::Data("in".into()));
    node.say(Frame::Data("out".into())).await;
    assert_eq!(tool.hear().await, Frame::Data("out".into()));
    tool.say(Frame::HalfClose(true)).await;
    assert_eq!(node.hear().await, Frame::HalfClose(true));
    node.say(Frame::End(StreamEnd { exit_code: 7, ..Default::default() })).await;
    let Frame::End(end) = tool.hear().await else { panic!("no end") };
    assert_eq!(end.exit_code, 7);
    drop((tool, node));

    // The tool goes: the agent hears of it through both masters.
    let exec = ExecRequest { pod: "web".into(), command: vec!["sh".into()], ..Default::default() };
    let (tool, (_, mut node)) = tokio::join!(converse(&all[1], Asked::Exec(exec)), agent.stream());
    drop(tool);
    while let Ok(Some(_)) = timeout(DEADLINE, node.hear.message()).await.unwrap() {}

    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    put(&all[1], Kind::Node, node).await;
    let offer = ImageOffer { image_id: "sha256:1".into(), ..Default::default() };
    let (tool, (_, mut node)) =
        tokio::join!(converse(&all[1], Asked::Image(offer)), agent.stream());
    let mut tool = tool.unwrap();
    node.say(Frame::ImageWant(ImageWant { node: "n1".into(), ..Default::default() })).await;
    let Frame::ImageWant(want) = tool.hear().await else { panic!("no want") };
    assert_eq!(want.node, "n1");
    tool.say(Frame::Data("layer".into())).await;
    tool.say(Frame::HalfClose(true)).await;
    assert_eq!(node.hear().await, Frame::Data("layer".into()));
    node.say(Frame::End(StreamEnd { node: "n1".into(), ..Default::default() })).await;
    let Frame::End(end) = tool.hear().await else { panic!("no end") };
    assert_eq!((end.node.as_str(), end.error.as_str()), ("n1", ""));
}
