//! One image archive to several nodes: each says what it lacks, then the bytes are read once from
//! the tool and handed to every node that wants them, at the pace of the slowest.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Node;
use timonier_master_core::object::name_of;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::stream_request::Request;
use timonier_proto::v1::{
    ImageOffer, ImageProgress, ImageWant, StreamEnd, StreamFrame, StreamRequest,
};
use timonier_proto::{ApiError, Kind, ObjectKey, Reason};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use super::{ClientFrames, Dialled, Origin, Streams};
use crate::telemetry::address_of;

/// Frames of the archive that wait for one node.
const FRAMES_AHEAD_MAX: usize = 4;
/// Frames that wait for the tool.
const ANSWERS_MAX: usize = 64;
/// How long a node may take to say what it lacks.
const WANT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a node may take no byte.
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long a node's engine may say nothing: a large image takes its time to unpack.
const LOAD_DEADLINE: Duration = Duration::from_secs(600);
/// How long the tool may pause within the archive.
const CLIENT_DEADLINE: Duration = Duration::from_secs(120);

type ToClient = mpsc::Sender<Result<StreamFrame, Status>>;

/// Starts the load; what the tool hears: a want of each node, progress, and an end of each node.
pub async fn load(
    streams: &Streams,
    client: Streaming<StreamFrame>,
    offer: ImageOffer,
    origin: Origin,
) -> Result<ClientFrames, Status> {
    let nodes = targets(streams, &offer)?;
    let (to_client, answers) = mpsc::channel(ANSWERS_MAX);
    let load = Load { streams: streams.clone(), offer, origin };
    tokio::spawn(run(load, client, nodes, to_client));
    Ok(Box::pin(ReceiverStream::new(answers)))
}

/// Names of the nodes asked for (by name or address), or of all that are connected.
fn targets(streams: &Streams, offer: &ImageOffer) -> Result<Vec<String>, ApiError> {
    let snapshot = streams.inner.store.snapshot();
    let connected = |name: &str| streams.inner.hub.find(name).is_some();
    let all =
        || snapshot.list::<Node>(None).map(|node| (name_of(&node.metadata), address_of(node)));
    if offer.nodes.is_empty() {
        let nodes: Vec<String> =
            all().filter(|(name, _)| connected(name)).map(|(name, _)| name.to_owned()).collect();
        if nodes.is_empty() {
            let text = "load an image: no node is connected; hint: see `timonctl get nodes`";
            return Err(ApiError::new(Reason::Unavailable, text));
        }
        return Ok(nodes);
    }
    let mut nodes = Vec::new();
    for word in &offer.nodes {
        let found = all().find(|(name, address)| name == word || address == word);
        let (name, _) = found
            .ok_or_else(|| ApiError::not_found(&ObjectKey::cluster(Kind::Node, word.as_str())))?;
        if !nodes.iter().any(|node| node == name) {
            nodes.push(name.to_owned());
        }
    }
    Ok(nodes)
}

/// What is to be loaded, and for whom.
struct Load {
    streams: Streams,
    offer: ImageOffer,
    origin: Origin,
}

async fn run(load: Load, client: Streaming<StreamFrame>, nodes: Vec<String>, to_client: ToClient) {
    let asked = nodes.into_iter().map(|node| async {
        let answer = ask(&load, &node).await;
        (node, answer)
    });
    let mut feeds = BTreeMap::new();
    let tails = FuturesUnordered::new();
    for (node, answer) in join_all(asked).await {
        match answer {
            Ok((want, feed, from_agent)) => {
                let ended = CancellationToken::new();
                if !want.has_image {
                    feeds.insert(node.clone(), Feed { frames: feed, ended: ended.clone() });
                }
                let frame = Frame::ImageWant(ImageWant { node: node.clone(), ..want });
                if say(&to_client, frame).await.is_err() {
                    return;
                }
                tails.push(tail(node, from_agent, to_client.clone(), ended.drop_guard()));
            }
            Err(error) => {
                if say(&to_client, end(&node, error)).await.is_err() {
                    return;
                }
            }
        }
    }
    let tails = tails.collect::<Vec<()>>();
    futures::join!(feed_all(client, feeds, &to_client), tails);
}

type Frames = mpsc::Sender<Result<StreamFrame, Status>>;

/// The archive's way to one node.
struct Feed {
    frames: Frames,
    /// The node has said how it ended.
    ended: CancellationToken,
}

impl Feed {
    /// False when the node has ended, is gone, or takes nothing for too long.
    async fn send(&self, frame: StreamFrame) -> bool {
        tokio::select! {
            sent = timeout(STALL_DEADLINE, self.frames.send(Ok(frame))) => matches!(sent, Ok(Ok(()))),
            () = self.ended.cancelled() => false,
        }
    }
}

/// Opens a stream to the node and hears what it lacks.
async fn ask(
    load: &Load,
    node: &str,
) -> Result<(ImageWant, Frames, Streaming<StreamFrame>), String> {
    // A master that it is passed on to offers it to this node alone.
    let offer = ImageOffer { nodes: vec![node.to_owned()], ..load.offer.clone() };
    let request = StreamRequest { request: Some(Request::Image(offer)) };
    let Dialled { mut from_agent, to_agent } = load
        .streams
        .dial(node, request, &load.origin)
        .await
        .map_err(|status| status.message().to_owned())?;
    let (feed, frames) = mpsc::channel(FRAMES_AHEAD_MAX);
    to_agent
        .send(Box::pin(ReceiverStream::new(frames)))
        .map_err(|_| format!("load an image on node {node}: its agent is gone again"))?;
    loop {
        let frame = timeout(WANT_DEADLINE, from_agent.message())
            .await
            .map_err(|_| format!("load an image on node {node}: no answer in 30 s"))?
            .map_err(|status| status.message().to_owned())?;
        match frame.and_then(|frame| frame.frame) {
            Some(Frame::ImageWant(want)) => return Ok((want, feed, from_agent)),
            Some(Frame::End(end)) => return Err(end.error),
            Some(_) => {}
            None => return Err(format!("load an image on node {node}: the stream ended early")),
        }
    }
}

/// Hands the archive on. A node that takes nothing for too long is left out; when all are, or the
/// tool is done, it ends.
async fn feed_all(
    mut client: Streaming<StreamFrame>,
    mut feeds: BTreeMap<String, Feed>,
    to_client: &ToClient,
) {
    while !feeds.is_empty() {
        let received = tokio::select! {
            received = timeout(CLIENT_DEADLINE, client.message()) => received,
            () = to_client.closed() => return,
        };
        let frame = match received {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => break, // the tool needs to send no more
            // Dropping the feeds tells the nodes that the archive is not whole.
            Ok(Err(_)) | Err(_) => return,
        };
        let last = matches!(frame.frame, Some(Frame::HalfClose(true)));
        let sends = feeds.iter().map(|(node, feed)| {
            let frame = frame.clone();
            async move { (!feed.send(frame).await).then(|| node.clone()) }
        });
        let over: Vec<String> = join_all(sends).await.into_iter().flatten().collect();
        for node in over {
            feeds.remove(&node);
        }
        if last {
            break;
        }
    }
    // The agents may still be loading: their streams stay open until they have said how it ended.
    let ends = feeds.values().map(|feed| feed.ended.cancelled());
    let _ = timeout(LOAD_DEADLINE, join_all(ends)).await;
}

/// Hands on what one node says, until its end.
async fn tail(
    node: String,
    mut from_agent: Streaming<StreamFrame>,
    to_client: ToClient,
    _ended: DropGuard,
) {
    let error = loop {
        match timeout(LOAD_DEADLINE, from_agent.message()).await {
            Ok(Ok(Some(StreamFrame { frame: Some(frame) }))) => {
                let frame = match frame {
                    Frame::End(ended) => {
                        let frame = Frame::End(StreamEnd { node: node.clone(), ..ended });
                        let _ = say(&to_client, frame).await;
                        return;
                    }
                    Frame::ImageProgress(progress) => {
                        Frame::ImageProgress(ImageProgress { node: node.clone(), ..progress })
                    }
                    _ => continue,
                };
                if say(&to_client, frame).await.is_err() {
                    return;
                }
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => break "the stream ended too early".to_owned(),
            Ok(Err(status)) => break status.message().to_owned(),
            Err(_) => break "its engine says nothing any more".to_owned(),
        }
    };
    let _ = say(&to_client, end(&node, format!("load an image on node {node}: {error}"))).await;
}

async fn say(to_client: &ToClient, frame: Frame) -> Result<(), ()> {
    to_client.send(Ok(StreamFrame { frame: Some(frame) })).await.map_err(drop)
}

fn end(node: &str, error: String) -> Frame {
    Frame::End(StreamEnd { node: node.to_owned(), error, exit_code: 1 })
}
