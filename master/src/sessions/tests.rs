//! Sessions over real gRPC on loopback, with a real store and agents that follow a script.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use prost::Message;
use serde_json::json;
use timonier_master_core::op::{Op, Txn};
use timonier_proto::compiled::CompiledPod;
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::agent_server::AgentServer;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{
    AgentMessage, AssignedService, Assignments, BeatsRequest, Heartbeat, Hello, HostUsage,
    LatencyBeat, LatencyBeats, MasterMessage, MonitorRequest, NodeCapacity, PodStatusUpdate,
    PodStatuses, PodUsage, Welcome,
};
use timonier_proto::{Kind, Kinded, Object, ObjectKey};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status, Streaming};

use super::{SessionSettings, Sessions};
use crate::caller::played_node;
use crate::driver::Signals;
use crate::masters::Masters;
use crate::peers::{Lines, Peers};
use crate::stamp::stamp;
use crate::store::{Store, StoreConfig};
use crate::telemetry::Hub;

const DEADLINE: Duration = Duration::from_secs(10);

struct Master {
    store: Store,
    hub: Hub,
    address: String,
    _dir: tempfile::TempDir,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Master {
    async fn start(silence_max: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path())).await.unwrap();
        let hub = Hub::new();
        let shutdown = CancellationToken::new();
        let settings = SessionSettings { silence_max, ..Default::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peers = Peers::new(store.clone(), Lines::new());
        let masters = Masters::of(peers, address.clone());
        let sessions =
            Sessions::start(store.clone(), hub.clone(), masters, settings, shutdown.clone());
        let service: AgentServer<Sessions> = sessions.service();
        let server = Server::builder()
            .layer(InterceptorLayer::new(played_node))
            .add_service(service)
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                shutdown.clone().cancelled_owned(),
            );
        tokio::spawn(server);
        Self { store, hub, address, _dir: dir, _shutdown: shutdown.drop_guard() }
    }

    async fn create(&self, kind: Kind, value: serde_json::Value) -> Object {
        let object = Object::from_json(kind, value.to_string().as_bytes()).unwrap();
        let op = stamp(Op::Create(object), jiff::Timestamp::now());
        let committed = self.store.commit(Txn::of(vec![op])).await.unwrap();
        committed.objects.into_iter().next().flatten().unwrap()
    }

    async fn pod(&self, name: &str, node: &str) -> Object {
        self.create(
            Kind::Pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
            }),
        )
        .await
    }

    /// One that a replica set of that name controls.
    async fn pod_of(&self, set: &str, name: &str, node: &str) -> Object {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set,
            "uid": "r", "controller": true}]);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "ownerReferences": owner},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        self.create(Kind::Pod, pod).await
    }

    async fn dial(&self, hello: Hello) -> Result<ScriptedAgent, Status> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        let mut client = AgentClient::new(channel.connect().await.unwrap());
        let (up, receiver) = mpsc::channel(16);
        let name = hello.node_name.parse().unwrap();
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("played-node", name);
        let down = client.session(request).await?.into_inner();
        Ok(ScriptedAgent { up, down })
    }
}

struct ScriptedAgent {
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<MasterMessage>,
}

impl ScriptedAgent {
    async fn say(&self, message: Up) {
        self.up.send(AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn hear(&mut self) -> Down {
        let message = timeout(DEADLINE, self.down.message()).await.unwrap().unwrap().unwrap();
        message.message.unwrap()
    }

    async fn welcome(&mut self) -> Welcome {
        match self.hear().await {
            Down::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    async fn assignments(&mut self) -> Assignments {
        match self.hear().await {
            Down::Assignments(assignments) => assignments,
            other => panic!("{other:?}"),
        }
    }

    /// The next assignments that say anything that `wanted` looks for, with the chain checked.
    async fn until(&mut self, at: &mut u64, wanted: impl Fn(&Assignments) -> bool) -> Assignments {
        loop {
            let assignments = self.assignments().await;
            assert!(!assignments.complete);
            assert_eq!(assignments.applies_to, *at, "the chain has a gap");
            *at = assignments.results_in;
            if wanted(&assignments) {
                return assignments;
            }
        }
    }
}

fn hello(node: &str, agent: &str) -> Hello {
    Hello {
        node_name: node.into(),
        agent_id: agent.into(),
        boot_id: "b".into(),
        version: "0.1.0".into(),
        address: "10.1.2.3".into(),
        capacity: Some(NodeCapacity {
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            pods: 110,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn uid(object: &Object) -> String {
    object.uid().to_owned()
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !check() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_hello_makes_a_node_with_a_range_of_its_own() {
    let master = Master::start(DEADLINE).await;
    let mut one = master.dial(hello("n1", "a1")).await.unwrap();
    let mut two = master.dial(hello("n2", "a2")).await.unwrap();
    let (first, second) = (one.welcome().await, two.welcome().await);
    assert_ne!(first.pod_range, second.pod_range);
    assert!((900..=1000).contains(&first.heartbeat_ms), "{first:?}");
    let snapshot = master.store.snapshot();
    let node = snapshot.get::<Node>("", "n1").unwrap();
    assert_eq!(node.spec.as_ref().unwrap().pod_cidr.as_ref(), Some(&first.pod_range));
    assert_eq!(master.hub.connected(), 2);
    // The same agent dials again, as after a broken connection: it is the same node, at once.
    let mut again = master.dial(hello("n1", "a1")).await.unwrap();
    assert_eq!(again.welcome().await.pod_range, first.pod_range);
    // A node whose object is deleted registers anew.
    let key = ObjectKey::cluster(Kind::Node, "n1");
    master.store.commit(Txn::of(vec![Op::Remove { key, uid: None }])).await.unwrap();
    while let Ok(Some(_)) = timeout(DEADLINE, again.down.message()).await.unwrap() {}
}

#[tokio::test]
async fn a_second_agent_of_the_same_name_is_refused_until_the_first_is_lost() {
    let master = Master::start(Duration::from_millis(300)).await;
    let mut first = master.dial(hello("n1", "a1")).await.unwrap();
    first.welcome().await;
    let refusal = master.dial(hello("n1", "a2")).await.err().unwrap();
    assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal}");
    assert!(refusal.message().contains("--node-name"), "{refusal}");
    // The first says nothing more: its session is closed, and the name is free.
    let start = std::time::Instant::now();
    loop {
        match master.dial(hello("n1", "a2")).await {
            Ok(mut agent) => {
                agent.welcome().await;
                break;
            }
            Err(_) => assert!(start.elapsed() < DEADLINE, "the name is not given back"),
        }
    }
    let refusal = master.dial(hello("Not A Name", "a3")).await.err().unwrap();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
}

#[tokio::test]
async fn assignments_are_complete_once_then_increments_in_a_chain() {
    let master = Master::start(DEADLINE).await;
    let old = master.pod("old", "n1").await;
    master.pod("elsewhere", "n2").await;
    let hello = Hello { pod_range: "10.244.1.0/24".into(), ..hello("n1", "a1") };
    let mut agent = master.dial(hello).await.unwrap();
    agent.welcome().await;
    let complete = agent.assignments().await;
    assert!(complete.complete);
    assert_eq!(complete.pods.iter().map(|p| &p.uid).collect::<Vec<_>>(), [&uid(&old)]);
    let mut at = complete.results_in;

    let new = master.pod("new", "n1").await;
    let told = agent.until(&mut at, |a| !a.pods.is_empty()).await;
    let compiled: CompiledPod = serde_json::from_slice(&told.pods[0].compiled_json).unwrap();
    assert_eq!(compiled.pod.metadata.uid.as_deref(), Some(new.uid()));

    master
        .create(
            Kind::Service,
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]},
            }),
        )
        .await;
    let told = agent.until(&mut at, |a| !a.services.is_empty()).await;
    let service = AssignedService::decode(told.services[0].clone()).unwrap();
    assert!(service.ports[0].endpoints.is_empty());

    // A pod gets ready: its service is told, the pod itself is not told again.
    let status = json!({
        "phase": "Running", "podIP": "10.244.1.9",
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    agent.say(Up::Statuses(statuses(7, &new, &status, false))).await;
    let mut stored = false;
    loop {
        match agent.hear().await {
            Down::Stored(batch) => stored = batch.batch == 7,
            Down::Assignments(told) => {
                assert_eq!(told.applies_to, at);
                at = told.results_in;
                assert!(told.pods.is_empty(), "{told:?}");
                let service = AssignedService::decode(told.services[0].clone()).unwrap();
                assert_eq!(service.ports[0].endpoints[0].address, "10.244.1.9");
            }
            other => panic!("{other:?}"),
        }
        if stored && at > told.results_in {
            break;
        }
    }
    let snapshot = master.store.snapshot();
    let pod = snapshot.get::<Pod>("default", "new").unwrap();
    assert_eq!(pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.244.1.9"));

    // Deleted: told with its deletion time, and out of its service, in one message.
    let key = new.key();
    let mark = Op::MarkDeleted {
        key: key.clone(),
        uid: None,
        at: jiff::Timestamp::now(),
        grace_seconds: 3,
    };
    master.store.commit(Txn::of(vec![mark])).await.unwrap();
    let told = agent.until(&mut at, |a| !a.pods.is_empty()).await;
    let compiled: CompiledPod = serde_json::from_slice(&told.pods[0].compiled_json).unwrap();
    assert!(compiled.pod.metadata.deletion_timestamp.is_some());
    assert_eq!(told.services.len(), 1);

    agent.say(Up::Statuses(statuses(8, &new, &status, true))).await;
    let gone = || master.store.snapshot().object(&key).is_none();
    eventually("the pod object to go", gone).await;
}

/// Cut off from the leader, this master kept its session: the pods that were called not ready
/// meanwhile would stay so.
#[tokio::test]
async fn an_agent_whose_node_was_lost_meanwhile_tells_its_pods_again() {
    let master = Master::start(DEADLINE).await;
    let mut agent = master.dial(hello("n1", "a1")).await.unwrap();
    agent.welcome().await;
    assert!(agent.assignments().await.complete);
    for status in ["True", "Unknown", "True"] {
        let mut node = Node::clone(master.store.snapshot().get::<Node>("", "n1").unwrap());
        node.metadata.resource_version = None;
        node.status.get_or_insert_default().conditions = Some(vec![NodeCondition {
            type_: "Ready".into(),
            status: status.into(),
            ..NodeCondition::default()
        }]);
        let op = Op::ReplaceStatus(node.into_object());
        master.store.commit(Txn::of(vec![op])).await.unwrap();
    }
    assert!(matches!(agent.hear().await, Down::TellStatuses(_)));
}

fn statuses(batch: u64, pod: &Object, status: &serde_json::Value, terminated: bool) -> PodStatuses {
    let meta = pod.meta();
    PodStatuses {
        batch,
        updates: vec![PodStatusUpdate {
            namespace: meta.namespace.clone().unwrap(),
            name: meta.name.clone().unwrap(),
            uid: pod.uid().to_owned(),
            status_json: status.to_string().into(),
            terminated,
        }],
    }
}

#[tokio::test]
async fn telemetry_reaches_those_who_watch_and_a_lost_agent_is_noticed() {
    let master = Master::start(DEADLINE).await;
    let mut agent = master.dial(hello("n1", "a1")).await.unwrap();
    agent.welcome().await;
    let pod = master.pod("web", "n1").await;
    let usage = PodUsage {
        uid: uuid::Uuid::parse_str(pod.uid()).unwrap().as_bytes().to_vec().into(),
        cpu_millis: 250,
        memory_bytes: 7 << 20,
    };
    let beat = Heartbeat {
        sequence: 1,
        host: Some(HostUsage { cpu_percent: 12.5, memory_percent: 40.0, ..Default::default() }),
        pods: vec![usage.clone()],
        ..Default::default()
    };
    agent.say(Up::Heartbeat(beat)).await;
    let seen = || {
        master
            .hub
            .signals(jiff::Timestamp::now())
            .nodes
            .get("n1")
            .is_some_and(|n| n.host.cpu_percent == 12.5)
    };
    eventually("the heartbeat", seen).await;
    let request = MonitorRequest {
        nodes: vec!["10.1.2.3".into(), "nowhere".into()],
        interval_ms: 50,
        with_pods: true,
    };
    let mut frames = master.hub.monitor(master.store.clone(), request);
    for _ in 0..2 {
        let frame = timeout(DEADLINE, frames.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.unknown_nodes, ["nowhere"]);
        assert_eq!(frame.nodes[0].usage.unwrap().cpu_percent, 12.5);
        assert_eq!(frame.nodes[0].pods[0].usage.as_ref(), Some(&usage));
    }

    master.pod_of("shop", "web-1", "n1").await;
    let request = BeatsRequest { namespace: "default".into(), name: "web".into() };
    let mut beats = master.hub.beats(master.store.clone(), request);
    master
        .create(
            Kind::LatencyAutoscaler,
            json!({
                "apiVersion": "autoscaling.timonier.io/v1", "kind": "LatencyAutoscaler",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {
                    "scaleTargetRef": {"kind": "ReplicaSet", "name": "shop"},
                    "latencyMilliseconds": 5,
                },
            }),
        )
        .await;
    let beat = |policy: &str, latency_us| LatencyBeat {
        namespace: "default".into(),
        policy: policy.into(),
        pod: "web-1".into(),
        latency_us,
        ..Default::default()
    };
    let batch =
        LatencyBeats { beats: vec![beat("web", 4000), beat("other", 1), beat("web", 9000)] };
    agent.say(Up::Beats(batch)).await;
    let told = timeout(DEADLINE, beats.next()).await.unwrap().unwrap().unwrap();
    let weak: Vec<_> = told.beats.iter().map(|b| (b.weak, b.target.as_str())).collect();
    assert_eq!(weak, [(false, "shop"), (true, "shop")]);

    drop(agent);
    eventually("the loss of the agent", || master.hub.connected() == 0).await;
    assert!(!master.hub.signals(jiff::Timestamp::now()).nodes["n1"].connected);
}

#[tokio::test]
async fn a_revoked_certificate_ends_the_session_that_was_opened_with_it() {
    let master = Master::start(DEADLINE).await;
    let mut stolen = master.dial(hello("n1", "a1")).await.unwrap();
    let mut other = master.dial(hello("n2", "a2")).await.unwrap();
    stolen.welcome().await;
    other.welcome().await;
    let mut at = other.assignments().await.results_in;
    // Those who play agents here show certificates of 1970.
    crate::pki::revoke(&master.store, "system:node:n1", 1_000, i64::MAX).await.unwrap();
    while let Ok(Some(_)) = timeout(DEADLINE, stolen.down.message()).await.unwrap() {}
    eventually("the other session to be the only one", || master.hub.connected() == 1).await;
    master.pod("new", "n2").await;
    other.until(&mut at, |told| !told.pods.is_empty()).await;
}
