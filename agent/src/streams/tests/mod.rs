//! Streams from end to end: a made-up master, a real connection, containers of the real Docker.
//!
//! Wants a running Docker and the images `timonier/web:v1` and `timonier/debian:bookworm`
//! (`deploy/setup.sh`).

mod commands;
mod images;
mod logs;
mod ports;

use std::pin::Pin;
use std::process::Command;
use std::time::Duration;

use futures::Stream;
use timonier_proto::v1::agent_server::{Agent, AgentServer};
use timonier_proto::v1::{AgentMessage, MasterMessage, StreamFrame, StreamRequest};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Response, Status, Streaming};

use super::*;
use crate::pods::ContainerView;
use crate::runtime::docker::{DOCKER_SOCKET_DEFAULT, Docker};

const PATIENCE: Duration = Duration::from_secs(60);
const WEB: &str = "timonier/web:v1";
const DEBIAN: &str = "timonier/debian:bookworm";
const NODE: &str = "n1";
const STREAM: &str = "stream-1";

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output();
    let output = output.expect("this test needs Docker and its command line");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "docker {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A container, removed when dropped.
struct Container(String);

impl Container {
    fn run(options: &[&str]) -> Self {
        Self(docker(&[&["run", "--detach"], options].concat()))
    }

    fn view(&self) -> ContainerView {
        ContainerView {
            name: "c".into(),
            id: Some(self.0.clone()),
            running: true,
            ..ContainerView::default()
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.0]).output();
    }
}

fn pod(containers: Vec<ContainerView>) -> PodView {
    PodView { uid: "u".into(), namespace: "shop".into(), name: "web".into(), ip: None, containers }
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type ToAgent = mpsc::Sender<Result<StreamFrame, Status>>;

/// The master's side of what an agent dials.
struct Dialled {
    stream_id: String,
    from_agent: Streaming<StreamFrame>,
    to_agent: ToAgent,
}

struct Service(mpsc::Sender<Dialled>);

#[tonic::async_trait]
impl Agent for Service {
    type SessionStream = Reply<MasterMessage>;
    type StreamStream = Reply<StreamFrame>;

    async fn session(
        &self,
        _: tonic::Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("only streams here"))
    }

    async fn stream(
        &self,
        request: tonic::Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut from_agent = request.into_inner();
        let Some(Frame::Accept(accept)) = from_agent.message().await?.and_then(|f| f.frame) else {
            return Err(Status::invalid_argument("the first frame must be a StreamAccept"));
        };
        let (to_agent, frames) = mpsc::channel(4);
        let dialled = Dialled { stream_id: accept.stream_id, from_agent, to_agent };
        self.0.send(dialled).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// What a person's tool sees of a stream.
struct Tool {
    from_agent: Streaming<StreamFrame>,
    to_agent: Option<ToAgent>,
    serving: JoinHandle<()>,
    _server: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Said {
    out: String,
    error: String,
    end: StreamEnd,
}

impl Tool {
    /// Asks the agent, whose only pod is `pod`.
    async fn ask(pod: PodView, request: Request) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut dialled) = mpsc::channel(1);
        let server = Server::builder()
            .add_service(AgentServer::new(Service(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();

        let find = move |uid: &str| (uid == pod.uid).then(|| pod.clone());
        let runtime = Arc::new(Docker::new(DOCKER_SOCKET_DEFAULT));
        let streams = Streams::new(NODE.into(), runtime, Arc::new(find));
        let request = StreamRequest { request: Some(request) };
        let open = OpenStream { stream_id: STREAM.into(), request: Some(request) };
        let serving = tokio::spawn(async move { streams.serve(open, channel).await });
        let Dialled { stream_id, from_agent, to_agent } =
            soon("the agent to dial", dialled.recv()).await.unwrap();
        assert_eq!(stream_id, STREAM);
        let server = AbortOnDropHandle::new(server);
        Self { from_agent, to_agent: Some(to_agent), serving, _server: server }
    }

    async fn say(&self, frame: Frame) {
        let to_agent = self.to_agent.as_ref().expect("the stream is open");
        to_agent.send(Ok(StreamFrame { frame: Some(frame) })).await.unwrap();
    }

    async fn hear(&mut self) -> Frame {
        let frame = soon("a frame", self.from_agent.message()).await.unwrap();
        frame.expect("the stream goes on").frame.unwrap()
    }

    /// Standard output, until it holds `text`.
    async fn hear_until(&mut self, text: &str) -> String {
        let mut out = String::new();
        while !out.contains(text) {
            match self.hear().await {
                Frame::Data(bytes) => out += std::str::from_utf8(&bytes).unwrap(),
                other => panic!("{other:?} after {out:?}"),
            }
        }
        out
    }

    /// Everything to the end, and that the agent is then done.
    async fn hear_all(mut self) -> Said {
        let mut said = Said::default();
        loop {
            match self.hear().await {
                Frame::Data(bytes) => said.out += std::str::from_utf8(&bytes).unwrap(),
                Frame::Stderr(bytes) => said.error += std::str::from_utf8(&bytes).unwrap(),
                Frame::End(end) => {
                    said.end = end;
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(said.end.node, NODE);
        let after = soon("the stream's end", self.from_agent.message()).await.unwrap();
        assert_eq!(after, None);
        self.to_agent = None;
        soon("the agent to be done", self.serving).await.unwrap();
        said
    }

    /// Goes away, after which the agent must be done soon.
    async fn leave(self) {
        drop((self.from_agent, self.to_agent));
        soon("the agent to notice", self.serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_pod_that_is_not_here_and_an_unknown_request_are_told() {
    let logs = timonier_proto::v1::LogsRequest {
        namespace: "shop".into(),
        pod: "other".into(),
        pod_uid: "x".into(),
        ..Default::default()
    };
    let said = Tool::ask(pod(Vec::new()), Request::Logs(logs)).await.hear_all().await;
    assert_eq!(said.end.error, "pod shop/other is not on node n1 any more");
    assert_eq!(said.end.exit_code, 1);
}
