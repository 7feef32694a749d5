//! The agent's session against a master that follows a script, over real gRPC on loopback; with an
//! engine that does not answer and a network that only notes what it is told.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use timonier_agent_core::net::DesiredNet;
use timonier_identity::Subject;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::agent_server::{Agent, AgentServer};
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::{
    AgentMessage, AssignedService, Assignments, Hello, MasterMessage, Masters, NodeCapacity,
    StreamFrame, Welcome,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::{Node, NodeConfig, NodeNetwork, Session, SessionConfig, StartNetwork};
use crate::join::Membership;
use crate::pods::{NetAnswer, PodNetwork};
use crate::runtime::docker::Docker;
use crate::telemetry::{HostFacts, HostSampler};

const DEADLINE: Duration = Duration::from_secs(20);

/// One session as the scripted master has it.
struct Heard {
    up: Streaming<AgentMessage>,
    down: mpsc::Sender<Result<MasterMessage, Status>>,
}

impl Heard {
    async fn next(&mut self) -> Up {
        let message = timeout(DEADLINE, self.up.message()).await.unwrap().unwrap().unwrap();
        message.message.unwrap()
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await {
            Up::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&self, message: Down) {
        self.down.send(Ok(MasterMessage { message: Some(message) })).await.unwrap();
    }

    async fn welcome(&mut self) -> Hello {
        let hello = self.hello().await;
        self.say(Down::Welcome(Welcome {
            heartbeat_ms: 50,
            pod_range: "10.244.7.0/24".into(),
            cluster_range: "10.244.0.0/16".into(),
            service_range: "10.96.0.0/16".into(),
            masters: vec!["127.0.0.1:2".into()],
            ..Default::default()
        }))
        .await;
        hello
    }
}

struct ScriptedMaster {
    sessions: mpsc::Sender<Heard>,
}

#[tonic::async_trait]
impl Agent for ScriptedMaster {
    type SessionStream = ReceiverStream<Result<MasterMessage, Status>>;
    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, receiver) = mpsc::channel(16);
        let heard = Heard { up: request.into_inner(), down };
        self.sessions.send(heard).await.map_err(|_| Status::unavailable("the script is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
    type StreamStream = ReceiverStream<Result<StreamFrame, Status>>;
    async fn stream(
        &self,
        _: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[derive(Default)]
struct NotedNetwork {
    applied: Mutex<Vec<DesiredNet>>,
}

impl PodNetwork for NotedNetwork {
    fn allocate(&self, _: &str) -> Result<Ipv4Addr, String> {
        Ok(Ipv4Addr::new(10, 244, 7, 2))
    }
    fn adopt(&self, _: &str, _: Ipv4Addr) -> Result<(), String> {
        Ok(())
    }
    fn release(&self, _: &str) {}
    fn attach<'a>(&'a self, _: &'a str, _: u32, _: Ipv4Addr) -> NetAnswer<'a> {
        Box::pin(async { Ok(()) })
    }
    fn detach<'a>(&'a self, _: &'a str) -> NetAnswer<'a> {
        Box::pin(async { Ok(()) })
    }
    fn remove_leftovers(&self, _: BTreeSet<String>) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }
    fn ensure_forwarding(&self) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }
}

impl NodeNetwork for NotedNetwork {
    fn apply(&self, desired: DesiredNet) -> NetAnswer<'_> {
        self.applied.lock().unwrap().push(desired);
        Box::pin(async { Ok(()) })
    }
}

struct Lab {
    sessions: mpsc::Receiver<Heard>,
    network: Arc<NotedNetwork>,
    agent: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        let (sender, sessions) = mpsc::channel(4);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (master, agent) = timonier_identity::throwaway(&Subject::node("n1"));
        let server = Server::builder()
            .add_service(AgentServer::new(ScriptedMaster { sessions: sender }))
            .serve_with_incoming(timonier_identity::incoming(listener, master));
        tokio::spawn(server);
        let dir = tempfile::tempdir().unwrap();
        let network = Arc::new(NotedNetwork::default());
        let noted = network.clone();
        let start: StartNetwork = Box::new(move |_| {
            let noted: Arc<dyn NodeNetwork> = noted.clone();
            Box::pin(async move { Ok(noted) })
        });
        let mut sampler = HostSampler::new(dir.path());
        let node = Node::new(
            NodeConfig {
                name: "n1".into(),
                data_dir: dir.path().to_owned(),
                host_ip: "10.0.0.1".into(),
                lease: crate::lease::Lease::always(),
            },
            Arc::new(Docker::new(dir.path().join("no.sock"))),
            start,
            Box::new(move || sampler.sample()),
        );
        let config = SessionConfig {
            membership: Membership::new(agent, dir.path()),
            // The first is not there: masters are tried in turn.
            masters: vec!["127.0.0.1:1".into(), address],
            data_dir: dir.path().to_owned(),
            node_name: "n1".into(),
            agent_id: "a1".into(),
            address: "10.0.0.1".into(),
            capacity: NodeCapacity { pods: 7, ..Default::default() },
            labels: [("disk".to_owned(), "fast".to_owned())].into(),
            facts: HostFacts::read(),
            heartbeat: None,
        };
        let agent = tokio::spawn(async move { Session::new(config, node).run().await });
        Self { sessions, network, agent, dir }
    }

    async fn session(&mut self) -> Heard {
        timeout(DEADLINE, self.sessions.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !check() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_says_who_it_is_and_how_it_is() {
    let mut lab = Lab::start().await;
    let mut session = lab.session().await;
    let hello = session.welcome().await;
    assert_eq!((hello.node_name.as_str(), hello.capacity.unwrap().pods), ("n1", 7));
    assert_eq!(hello.labels["disk"], "fast");
    let mut sequence = 0;
    loop {
        let Up::Heartbeat(beat) = session.next().await else { continue };
        assert_eq!(beat.sequence, sequence + 1);
        sequence = beat.sequence;
        assert!(beat.host.unwrap().memory_total_bytes > 0);
        // It has no engine, and says so.
        if beat.not_ready_reason == "ContainerRuntimeDown" {
            assert!(beat.not_ready_message.contains("no.sock"), "{}", beat.not_ready_message);
            break;
        }
    }
    // Its ranges are kept for a start without a master.
    let state = std::fs::read_to_string(lab.dir.path().join("node.json")).unwrap();
    assert!(state.contains("10.244.7.0/24"), "{state}");
    // The master tells of another one, which is kept.
    session.say(Down::Masters(Masters { addresses: vec!["127.0.0.1:3".into()] })).await;
    let path = lab.dir.path().join("masters.json");
    let told = || std::fs::read_to_string(&path).unwrap_or_default();
    eventually("the list of masters", || told() == r#"["127.0.0.1:3"]"#).await;
    // The master goes: the agent dials again and says what range it has.
    drop(session);
    let again = lab.session().await.welcome().await;
    assert_eq!(again.pod_range, "10.244.7.0/24");
    assert!(again.dial > hello.dial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_programmed_and_a_gap_ends_the_session() {
    let mut lab = Lab::start().await;
    let mut session = lab.session().await;
    session.welcome().await;
    let service = AssignedService {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ip: "10.96.0.7".into(),
        ..Default::default()
    };
    session
        .say(Down::Assignments(Assignments {
            complete: true,
            results_in: 3,
            services: vec![service.encode_to_vec().into()],
            ..Default::default()
        }))
        .await;
    let network = lab.network.clone();
    let services =
        move || network.applied.lock().unwrap().last().map(|desired| desired.services.len());
    eventually("the service", || services() == Some(1)).await;
    let increment = |applies_to, results_in| {
        Down::Assignments(Assignments {
            applies_to,
            results_in,
            removed_services: vec!["default/web".into()],
            ..Default::default()
        })
    };
    session.say(increment(3, 4)).await;
    eventually("the service's end", || services() == Some(0)).await;
    session.say(increment(9, 10)).await;
    let mut again = lab.session().await;
    assert_eq!(again.welcome().await.node_name, "n1");
}
