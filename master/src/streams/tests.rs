//! The broker over real gRPC: a door as tools see it, and an agent that follows a script.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use timonier_identity::Subject;
use timonier_master_core::op::{Op, Txn};
use timonier_proto::v1::agent_client::AgentClient;
use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::master_message::Message as Down;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request as Asked;
use timonier_proto::v1::{
    AgentMessage, ExecRequest, Hello, ImageOffer, ImageWant, MasterMessage, OpenStream,
    StreamAccept, StreamEnd, StreamFrame, StreamRequest,
};
use timonier_proto::{Kind, Object};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::config::Config;
use crate::server::{Master, RunningMaster};
use crate::stamp::stamp;
use timonier_proto::v1::control_client::ControlClient;

const DEADLINE: Duration = Duration::from_secs(20);

struct Lab {
    master: RunningMaster,
    channel: Channel,
    _dir: tempfile::TempDir,
}

/// One end of a stream, the agent's or the tool's.
struct End {
    say: mpsc::Sender<StreamFrame>,
    hear: Streaming<StreamFrame>,
}

impl End {
    async fn say(&self, frame: Frame) {
        self.say.send(StreamFrame { frame: Some(frame) }).await.unwrap();
    }

    /// As an agent ends: no more to say, then waits until the other side has ended too.
    async fn finish(mut self) {
        drop(std::mem::replace(&mut self.say, mpsc::channel(1).0));
        while let Ok(Some(_)) = self.hear().await {}
    }

    async fn hear(&mut self) -> Result<Option<Frame>, Status> {
        let frame = timeout(DEADLINE, self.hear.message()).await.unwrap()?;
        Ok(frame.map(|frame| frame.frame.unwrap()))
    }
}

struct ScriptedAgent {
    client: AgentClient<Channel>,
    down: Streaming<MasterMessage>,
    _up: mpsc::Sender<AgentMessage>,
}

impl ScriptedAgent {
    async fn asked(&mut self) -> OpenStream {
        loop {
            let message = timeout(DEADLINE, self.down.message()).await.unwrap().unwrap().unwrap();
            if let Some(Down::Open(open)) = message.message {
                return open;
            }
        }
    }

    async fn dial(&mut self, open: &OpenStream) -> End {
        let (say, receiver) = mpsc::channel(8);
        let accept = StreamAccept { stream_id: open.stream_id.clone() };
        say.send(StreamFrame { frame: Some(Frame::Accept(accept)) }).await.unwrap();
        let hear = self.client.stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        End { say, hear }
    }
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let master = Master::start(Config::new(dir.path())).await.unwrap();
        let channel = master.dial_as(&Subject::admin()).await.unwrap();
        Self { master, channel, _dir: dir }
    }

    async fn agent(&self, node: &str) -> ScriptedAgent {
        let mut client = AgentClient::new(self.master.dial_as(&Subject::node(node)).await.unwrap());
        let (up, receiver) = mpsc::channel(8);
        let hello = Hello {
            node_name: node.into(),
            agent_id: node.into(),
            address: "10.0.0.1".into(),
            ..Default::default()
        };
        up.send(AgentMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = client.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        ScriptedAgent { client, down, _up: up }
    }

    async fn pod(&self, name: &str, node: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        let object = Object::from_json(Kind::Pod, pod.to_string().as_bytes()).unwrap();
        let op = stamp(Op::Create(object), jiff::Timestamp::now());
        self.master.store().commit(Txn::of(vec![op])).await.unwrap();
    }

    async fn open(&self, request: Asked) -> Result<End, Status> {
        let (say, receiver) = mpsc::channel(8);
        let request = StreamRequest { request: Some(request) };
        say.send(StreamFrame { frame: Some(Frame::Request(request.clone())) }).await.unwrap();
        let mut client = ControlClient::new(self.channel.clone());
        let frames = ReceiverStream::new(receiver);
        let hear = match request.request {
            Some(Asked::Image(_)) => client.load_image(frames).await?,
            _ => client.open(frames).await?,
        };
        Ok(End { say, hear: hear.into_inner() })
    }
}

fn exec(pod: &str) -> Asked {
    Asked::Exec(ExecRequest {
        pod: pod.into(),
        command: vec!["sh".into()],
        stdin: true,
        ..Default::default()
    })
}

#[tokio::test]
async fn frames_go_both_ways_until_the_command_ends() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("n1").await;
    lab.pod("web", "n1").await;
    let (tool, agent_end) = tokio::join!(lab.open(exec("web")), async {
        let open = agent.asked().await;
        let Some(Asked::Exec(exec)) = open.request.clone().unwrap().request else { panic!() };
        assert_eq!((exec.container.as_str(), exec.pod_uid.len()), ("c", 36));
        agent.dial(&open).await
    });
    let (mut tool, mut agent_end) = (tool.unwrap(), agent_end);
    tool.say(Frame::Data("input".into())).await;
    assert_eq!(agent_end.hear().await.unwrap(), Some(Frame::Data("input".into())));
    // The tool has no more to say, but still listens.
    tool.say = mpsc::channel(1).0;
    assert_eq!(agent_end.hear().await.unwrap(), Some(Frame::HalfClose(true)));
    agent_end.say(Frame::Data("output".into())).await;
    agent_end.say(Frame::End(StreamEnd { exit_code: 3, ..Default::default() })).await;
    let finished = tokio::spawn(agent_end.finish());
    assert_eq!(tool.hear().await.unwrap(), Some(Frame::Data("output".into())));
    let Some(Frame::End(end)) = tool.hear().await.unwrap() else { panic!() };
    assert_eq!(end.exit_code, 3);
    assert_eq!(tool.hear().await.unwrap(), None);
    timeout(DEADLINE, finished).await.unwrap().unwrap();
}

#[tokio::test]
async fn each_end_learns_when_the_other_is_gone() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("n1").await;
    let lost = lab.agent("n9").await;
    lab.pod("web", "n1").await;
    lab.pod("lost", "n9").await;
    drop(lost);
    let (tool, agent_end) = tokio::join!(lab.open(exec("web")), async {
        let open = agent.asked().await;
        agent.dial(&open).await
    });
    let mut agent_end = agent_end;
    drop(tool.unwrap());
    assert!(!matches!(agent_end.hear().await, Ok(Some(Frame::Data(_)))));
    let (tool, agent_end) = tokio::join!(lab.open(exec("web")), async {
        let open = agent.asked().await;
        agent.dial(&open).await
    });
    drop(agent_end);
    let error = tool.unwrap().hear().await.unwrap_err();
    assert!(error.message().contains("node n1"), "{error}");
    // Until the loss is noticed, the answer is that the agent does not answer.
    let refusal = loop {
        let refusal = lab.open(exec("lost")).await.err().unwrap();
        if refusal.code() != Code::DeadlineExceeded {
            break refusal;
        }
    };
    assert!(refusal.message().contains("its agent is not connected"), "{refusal}");
    assert_eq!(refusal.code(), Code::Unavailable);
    let refusal = lab.open(exec("nothing")).await.err().unwrap();
    assert_eq!(refusal.code(), Code::NotFound, "{refusal}");
}

#[tokio::test]
async fn an_archive_goes_once_to_each_node_that_wants_it() {
    let lab = Lab::start().await;
    let mut agents = [lab.agent("n1").await, lab.agent("n2").await, lab.agent("n3").await];
    let offer = ImageOffer { image_id: "sha256:1".into(), ..Default::default() };
    let mut tool = lab.open(Asked::Image(offer)).await.unwrap();
    let mut ends = Vec::new();
    for (index, agent) in agents.iter_mut().enumerate() {
        let open = agent.asked().await;
        let end = agent.dial(&open).await;
        // The third has it already.
        let want = ImageWant { has_image: index == 2, ..Default::default() };
        end.say(Frame::ImageWant(want)).await;
        ends.push(end);
    }
    let mut wants = Vec::new();
    for _ in 0..3 {
        let Some(Frame::ImageWant(want)) = tool.hear().await.unwrap() else { panic!() };
        wants.push((want.node, want.has_image));
    }
    wants.sort();
    assert_eq!(wants, [("n1".into(), false), ("n2".into(), false), ("n3".into(), true)]);
    let third = ends.pop().unwrap();
    third.say(Frame::End(StreamEnd::default())).await;
    let mut finished = vec![tokio::spawn(third.finish())];
    for part in ["a", "b", "c"] {
        tool.say(Frame::Data(part.into())).await;
    }
    tool.say(Frame::HalfClose(true)).await;
    for (mut end, error) in ends.into_iter().zip(["", "no space left"]) {
        for part in ["a", "b", "c"] {
            assert_eq!(end.hear().await.unwrap(), Some(Frame::Data(part.into())));
        }
        assert_eq!(end.hear().await.unwrap(), Some(Frame::HalfClose(true)));
        end.say(Frame::End(StreamEnd { error: error.into(), ..Default::default() })).await;
        finished.push(tokio::spawn(end.finish()));
    }
    let mut results = Vec::new();
    while let Some(Ok(frame)) = timeout(DEADLINE, tool.hear.next()).await.unwrap() {
        let Some(Frame::End(end)) = frame.frame else { panic!() };
        results.push((end.node, end.error));
    }
    results.sort();
    let expected = [("n1", ""), ("n2", "no space left"), ("n3", "")];
    assert_eq!(results, expected.map(|(node, error)| (node.to_owned(), error.to_owned())));
    for finished in finished {
        timeout(DEADLINE, finished).await.unwrap().unwrap();
    }
}
