//! `image load`: offers an image to the nodes, sends what they lack and tells how it went on each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use timonier_proto::Kind;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::{ImageOffer, ImageWant, StreamFrame, StreamRequest, stream_request};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Streaming;

use super::archive::{Archive, Image, Piece};
use super::source;
use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::output::progress::Bar;
use crate::resolve::is_ready;

const EXAMPLES: &str = "\
Examples:
  timonctl image load timonier/web:v1            from the local Docker to all ready nodes
  timonctl image load web.tar --nodes lab-1      an archive of docker save, also a .tar.gz
  timonctl image load web:v2 --nodes lab-1,lab-2

No registry is needed. Layers that the nodes have are not sent. $DOCKER_HOST chooses another engine
to take the image from.";

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the file and the connection.
const CHUNKS_QUEUED_MAX: usize = 4;
/// How long the nodes may take to say what they lack.
const WANT_TIMEOUT: Duration = Duration::from_secs(45);
/// How long nothing may happen at all: no byte is taken and no node says anything.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Time between two lines of progress where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
const BAR_INTERVAL: Duration = Duration::from_millis(100);
const MIB: f64 = (1 << 20) as f64;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Image of the local Docker, or an archive made by docker save
    #[arg(value_name = "IMAGE|FILE")]
    pub image: String,
    /// Nodes by name or address, separated by commas; default: all that are ready
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub nodes: Vec<String>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let nodes = nodes(ctx, &args.nodes).await?;
    let path = Path::new(&args.image);
    let mut results = Results::default();
    if path.is_file() {
        let archive = scan(source::open, path.to_owned(), args.image.clone()).await?;
        for image in &archive.images {
            load(ctx, &archive, image, &nodes, &mut results).await?;
        }
    } else if path.is_dir() {
        return Err(fail(format!("load image {}: it is a folder", args.image))
            .hint("give an archive made by docker save, or the name of an image"));
    } else {
        let local = source::local(&args.image).await?;
        let offer = ImageOffer {
            references: vec![local.reference.clone()],
            image_id: local.id.clone(),
            diff_ids: local.diff_ids.clone(),
            size_bytes: local.size_bytes,
            nodes: nodes.clone(),
        };
        // Asked first: where all have it, nothing needs to be exported.
        let lacking = lacking(ctx, offer, &mut results).await?;
        if !lacking.is_empty() {
            let file = local.export(&ctx.out).await?;
            let archive = scan(Ok, file, local.reference.clone()).await?;
            for image in &archive.images {
                load(ctx, &archive, image, &lacking, &mut results).await?;
            }
        }
    }
    if results.failed { Err(crate::told(1)) } else { Ok(()) }
}

/// Opens and scans off the runtime's threads.
async fn scan<T: Send + 'static>(
    open: fn(T) -> Outcome<std::fs::File>,
    what: T,
    name: String,
) -> Outcome<Arc<Archive>> {
    let scanned = tokio::task::spawn_blocking(move || Archive::scan(open(what)?, &name));
    scanned.await.unwrap_or_else(|_| bail("read the image archive: interrupted")).map(Arc::new)
}

/// Names of the nodes to load on.
async fn nodes(ctx: &Ctx, asked: &[String]) -> Outcome<Vec<String>> {
    let all = ctx.client.list(Kind::Node, &Filter::default()).await?;
    let mut names = BTreeSet::new();
    if asked.is_empty() {
        names.extend(all.iter().filter(|node| is_ready(node)).map(|node| node.name().to_owned()));
        if names.is_empty() {
            return Err(fail("load an image: no node is ready").hint("timonctl get nodes"));
        }
    }
    for word in asked.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
        let has_address = |node: &&serde_json::Value| {
            node.list("status.addresses").iter().any(|address| address.text("address") == word)
        };
        let by_name = all.iter().filter(|node| node.name() == word);
        let found: Vec<_> = by_name.chain(all.iter().filter(has_address)).collect();
        if found.is_empty() {
            return Err(fail(format!(
                "load an image: no node is named {word} or has that address"
            ))
            .hint("timonctl get nodes lists them"));
        }
        names.extend(found.iter().map(|node| node.name().to_owned()));
    }
    Ok(names.into_iter().collect())
}

#[derive(Default)]
struct Results {
    failed: bool,
}

impl Results {
    fn failure(&mut self, ctx: &Ctx, node: &str, why: &str) {
        self.failed = true;
        ctx.out.note(format!("{node}: failed: {why}"));
    }
}

/// The image's name for people.
fn title(offer: &ImageOffer) -> String {
    match offer.references.first() {
        Some(reference) => reference.clone(),
        None => offer.image_id.chars().take("sha256:".len() + 12).collect(),
    }
}

/// Offers an image to no end but to hear who lacks it; tells of those that have it.
async fn lacking(ctx: &Ctx, offer: ImageOffer, results: &mut Results) -> Outcome<Vec<String>> {
    let name = title(&offer);
    let talk = Talk::open(ctx, offer).await?;
    talk.tell(ctx, &name, results)?;
    Ok(talk.wants.into_iter().filter(|want| !want.has_image).map(|want| want.node).collect())
}

/// Loads one image on the nodes and tells how it went on each. A node that could not do with what
/// was left out gets everything.
async fn load(
    ctx: &Ctx,
    archive: &Arc<Archive>,
    image: &Image,
    nodes: &[String],
    results: &mut Results,
) -> Outcome {
    let mut offer = ImageOffer {
        references: image.references.clone(),
        image_id: image.id.clone(),
        diff_ids: image.diff_ids.clone(),
        size_bytes: 0,
        nodes: nodes.to_vec(),
    };
    let all: BTreeSet<String> = image.diff_ids.iter().cloned().collect();
    offer.size_bytes = archive.pieces(image, &all).iter().map(Piece::length).sum();
    let name = title(&offer);
    let mut talk = Talk::open(ctx, offer.clone()).await?;
    talk.tell(ctx, &name, results)?;
    let wanted = wanted(&image.diff_ids, &talk.wants);
    let left_out = all.len() - wanted.len();
    let mut ended = talk.send(ctx, archive, image, &wanted, &name).await?;
    let again: Vec<String> = ended
        .iter()
        .filter(|(_, error)| left_out > 0 && !error.is_empty())
        .map(|(node, _)| node.clone())
        .collect();
    if !again.is_empty() {
        ctx.out.note(format!(
            "{}: sending all layers, after: {}",
            again.join(", "),
            ended[&again[0]]
        ));
        let mut talk = Talk::open(ctx, ImageOffer { nodes: again, ..offer }).await?;
        ended.extend(talk.send(ctx, archive, image, &all, &name).await?);
    }
    for (node, error) in ended {
        match error.as_str() {
            "" => ctx.out.line(format!("{node}: loaded {name}"))?,
            error => results.failure(ctx, &node, error),
        }
    }
    Ok(())
}

/// The layers to send: from the lowest one that a node lacks upwards, as a layer that lies on
/// another one there is no use here.
fn wanted(diff_ids: &[String], wants: &[ImageWant]) -> BTreeSet<String> {
    let lacking = wants.iter().filter(|want| !want.has_image);
    let first = lacking
        .filter_map(|want| diff_ids.iter().position(|id| want.missing_diff_ids.contains(id)));
    first.min().map(|first| diff_ids[first..].iter().cloned().collect()).unwrap_or_default()
}

/// A conversation with the master about one offer.
struct Talk {
    outgoing: Option<mpsc::Sender<StreamFrame>>,
    incoming: Streaming<StreamFrame>,
    wants: Vec<ImageWant>,
    /// Nodes that failed before anything was sent, and why.
    refused: BTreeMap<String, String>,
}

impl Talk {
    /// Offers, and hears all nodes.
    async fn open(ctx: &Ctx, offer: ImageOffer) -> Outcome<Self> {
        let mut silent: BTreeSet<String> = offer.nodes.iter().cloned().collect();
        let request = StreamRequest { request: Some(stream_request::Request::Image(offer)) };
        let first = StreamFrame { frame: Some(Frame::Request(request)) };
        let (outgoing, incoming) = ctx
            .client
            .converse(first, CHUNKS_QUEUED_MAX, WANT_TIMEOUT, |mut control, frames| async move {
                control.load_image(frames).await
            })
            .await?;
        let mut talk = Self {
            outgoing: Some(outgoing),
            incoming,
            wants: Vec::new(),
            refused: BTreeMap::new(),
        };
        let heard = timeout(WANT_TIMEOUT, async {
            while !silent.is_empty() {
                match talk.incoming.message().await {
                    Ok(Some(StreamFrame { frame: Some(Frame::ImageWant(want)) })) => {
                        silent.remove(&want.node);
                        talk.wants.push(want);
                    }
                    Ok(Some(StreamFrame { frame: Some(Frame::End(end)) })) => {
                        let done = talk.wants.iter().any(|want| want.node == end.node);
                        if !done && silent.remove(&end.node) {
                            talk.refused.insert(end.node, or_unknown(end.error));
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(status) => return Err(ctx.client.explained(status)),
                }
            }
            Ok(())
        });
        heard.await.unwrap_or(Ok(()))?;
        let why = "it did not say what it lacks";
        talk.refused.extend(silent.into_iter().map(|node| (node, why.to_owned())));
        Ok(talk)
    }

    /// Tells of the nodes that need nothing and of those that cannot.
    fn tell(&self, ctx: &Ctx, name: &str, results: &mut Results) -> Outcome {
        for want in self.wants.iter().filter(|want| want.has_image) {
            ctx.out.line(format!("{}: already has {name}", want.node))?;
        }
        for (node, why) in &self.refused {
            results.failure(ctx, node, why);
        }
        Ok(())
    }

    /// Sends the archive and hears how it ended: an error, or an empty text, for each node that
    /// lacked the image.
    async fn send(
        &mut self,
        ctx: &Ctx,
        archive: &Arc<Archive>,
        image: &Image,
        wanted: &BTreeSet<String>,
        name: &str,
    ) -> Outcome<BTreeMap<String, String>> {
        let lacking = self.wants.iter().filter(|want| !want.has_image);
        let mut waiting: BTreeSet<String> = lacking.map(|want| want.node.clone()).collect();
        let mut ended = BTreeMap::new();
        let Some(outgoing) = self.outgoing.take().filter(|_| !waiting.is_empty()) else {
            return Ok(ended);
        };
        let pieces = archive.pieces(image, wanted);
        let total: u64 = pieces.iter().map(Piece::length).sum();
        ctx.out.note(format!(
            "sending {name} to {}: {:.1} MiB, {} of {} layers",
            waiting.iter().cloned().collect::<Vec<_>>().join(", "),
            total as f64 / MIB,
            wanted.len(),
            image.diff_ids.len()
        ));
        let bar = Bar::start(&ctx.out, name, total, true);
        let (counter, mut sent) = tokio::sync::watch::channel(0_u64);
        let sending = pump(archive.clone(), pieces, outgoing, counter);
        let mut sending = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(sending));
        let mut is_sent = false;
        let mut ticks = interval(if ctx.out.lively { BAR_INTERVAL } else { PROGRESS_INTERVAL });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut last_news = tokio::time::Instant::now();
        while !waiting.is_empty() {
            tokio::select! {
                frame = self.incoming.message() => {
                    last_news = tokio::time::Instant::now();
                    let frame = frame.map_err(|status| ctx.client.explained(status))?;
                    take(frame, name, &mut waiting, &mut ended)?;
                }
                done = &mut sending, if !is_sent => {
                    is_sent = true;
                    done.unwrap_or_else(|_| bail("read the image archive: interrupted"))?;
                }
                changed = sent.changed(), if !is_sent => {
                    if changed.is_ok() {
                        last_news = tokio::time::Instant::now();
                    }
                }
                _ = ticks.tick() => {
                    let done = *sent.borrow();
                    bar.set(done);
                    if !ctx.out.lively {
                        ctx.out.note(progress(done, total, is_sent));
                    }
                    if last_news.elapsed() > STALL_TIMEOUT {
                        let why = format!("nothing happened for {} s", STALL_TIMEOUT.as_secs());
                        ended.extend(std::mem::take(&mut waiting).into_iter().map(|n| (n, why.clone())));
                    }
                }
            }
        }
        Ok(ended)
    }
}

/// What the master says while it takes the archive.
fn take(
    frame: Option<StreamFrame>,
    name: &str,
    waiting: &mut BTreeSet<String>,
    ended: &mut BTreeMap<String, String>,
) -> Outcome {
    match frame {
        Some(StreamFrame { frame: Some(Frame::End(end)) }) if end.node.is_empty() => {
            return bail(format!("load image {name}: {}", or_unknown(end.error)));
        }
        Some(StreamFrame { frame: Some(Frame::End(end)) }) => {
            if waiting.remove(&end.node) {
                ended.insert(end.node, end.error);
            }
        }
        Some(_) => {}
        None => {
            let why = "the master ended the stream before its result came";
            ended.extend(std::mem::take(waiting).into_iter().map(|node| (node, why.to_owned())));
        }
    }
    Ok(())
}

fn progress(done: u64, total: u64, is_sent: bool) -> String {
    if is_sent {
        return "all sent; the nodes' engines are unpacking".into();
    }
    format!("{:.1} of {:.1} MiB sent", done as f64 / MIB, total as f64 / MIB)
}

fn or_unknown(error: String) -> String {
    if error.is_empty() { "no reason was given".into() } else { error }
}

/// Reads the pieces and sends them in chunks, then says that this was all.
async fn pump(
    archive: Arc<Archive>,
    pieces: Vec<Piece>,
    outgoing: mpsc::Sender<StreamFrame>,
    sent: tokio::sync::watch::Sender<u64>,
) -> Outcome {
    for piece in pieces {
        let length = piece.length();
        let mut offset = 0;
        while offset < length {
            let count =
                usize::try_from(length - offset).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
            let data = match &piece {
                Piece::Bytes(bytes) => {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX);
                    Bytes::copy_from_slice(&bytes[from..from + count])
                }
                Piece::Range { start, .. } => chunk(&archive, start + offset, count).await?,
            };
            if outgoing.send(StreamFrame { frame: Some(Frame::Data(data)) }).await.is_err() {
                // The master needs no more; what it says of the nodes tells why.
                return Ok(());
            }
            offset += count as u64;
            sent.send_modify(|sent| *sent += count as u64);
        }
    }
    let last = StreamFrame { frame: Some(Frame::HalfClose(true)) };
    let _ = outgoing.send(last).await;
    Ok(())
}

async fn chunk(archive: &Arc<Archive>, offset: u64, count: usize) -> Outcome<Bytes> {
    let archive = archive.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; count];
        archive.read_at(offset, &mut bytes).map(|()| Bytes::from(bytes))
    });
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => bail(format!("read the image archive: {error}")),
        Err(_) => bail("read the image archive: interrupted"),
    }
}

#[cfg(test)]
mod tests;
