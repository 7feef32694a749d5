//! An image's archive taken in: said first which of its layers are missing here, so that only
//! those need to come.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::{ImageOffer, ImageProgress, ImageWant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::Streams;
use super::peer::{Ended, Peer, Replies};
use crate::runtime::Runtime;

/// Frames that wait for the engine to take them.
const FRAMES_AHEAD_MAX: usize = 4;
/// How long the archive may pause.
const PAUSE_MAX: Duration = Duration::from_secs(180);
/// Bytes between two words of progress.
const PROGRESS_BYTES: u64 = 4 << 20;

type Archive = mpsc::Sender<io::Result<Bytes>>;

pub(super) async fn serve(
    streams: &Streams,
    offer: ImageOffer,
    peer: &mut Peer,
) -> Result<i32, Ended> {
    let runtime = &*streams.runtime;
    let replies = peer.replies();
    if offer.image_id.is_empty() {
        return Err(Ended::Failed("load an image: the offer does not say which".to_owned()));
    }
    let has_image = runtime.image(&offer.image_id).await?.is_some();
    let missing_diff_ids =
        if has_image { Vec::new() } else { missing(&offer.diff_ids, &runtime.layers().await?) };
    if has_image {
        name(runtime, &offer).await?;
    }
    let node = streams.node.clone();
    replies.send(Frame::ImageWant(ImageWant { node, has_image, missing_diff_ids })).await?;
    if !has_image {
        load(streams, peer, &replies).await?;
        name(runtime, &offer).await?;
    }
    Ok(0)
}

/// What to send. An engine keeps a layer together with all below it, so what is here counts only
/// from the lowest up, image by image.
fn missing(offered: &[String], here: &[Vec<String>]) -> Vec<String> {
    let shared = |layers: &Vec<String>| {
        layers.iter().zip(offered).take_while(|(here, offered)| here == offered).count()
    };
    let shared = here.iter().map(shared).max().unwrap_or(0);
    offered[shared..].to_vec()
}

/// Hands the archive to the engine.
async fn load(streams: &Streams, peer: &mut Peer, replies: &Replies) -> Result<(), Ended> {
    let received = AtomicU64::new(0);
    let progress = |text: &str| {
        replies.offer(Frame::ImageProgress(ImageProgress {
            node: streams.node.clone(),
            text: text.to_owned(),
            received_bytes: received.load(Ordering::Relaxed),
        }));
    };
    let (archive, frames) = mpsc::channel(FRAMES_AHEAD_MAX);
    let loaded = streams.runtime.load_image(Box::pin(ReceiverStream::new(frames)), &progress);
    let mut loaded = pin!(loaded);
    let fed = tokio::select! {
        loaded = &mut loaded => {
            loaded?;
            return Ok(());
        }
        fed = feed(peer, archive, &received, &progress) => fed,
        ended = replies.gone() => Err(ended),
    };
    fed?;
    // The engine has it all, and unpacks; nothing but the peer's going matters meanwhile.
    loop {
        tokio::select! {
            loaded = &mut loaded => {
                loaded?;
                return Ok(());
            }
            frame = peer.next() => { frame?; }
        }
    }
}

/// Returns at the archive's end, or when the engine takes no more: why, it says itself.
async fn feed(
    peer: &mut Peer,
    archive: Archive,
    received: &AtomicU64,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Ended> {
    loop {
        let frame = timeout(PAUSE_MAX, peer.next()).await.map_err(|_| {
            let text = format!("no more of the archive came for {} s", PAUSE_MAX.as_secs());
            Ended::Failed(text)
        });
        let frame = match frame.and_then(|frame| frame) {
            Ok(frame) => frame,
            Err(ended) => {
                // Not to be taken for the archive's end.
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the archive was cut off");
                let _ = archive.try_send(Err(cut));
                return Err(ended);
            }
        };
        match frame {
            Frame::Data(bytes) => {
                let count = bytes.len() as u64;
                if archive.send(Ok(bytes)).await.is_err() {
                    return Ok(());
                }
                let before = received.fetch_add(count, Ordering::Relaxed);
                if before / PROGRESS_BYTES != (before + count) / PROGRESS_BYTES {
                    progress("receiving");
                }
            }
            Frame::HalfClose(true) => return Ok(()),
            _ => {}
        }
    }
}

/// Gives the image those of the offered names that it lacks: archives may come without, and an
/// image that is here may have others.
async fn name(runtime: &dyn Runtime, offer: &ImageOffer) -> Result<(), Ended> {
    for reference in &offer.references {
        let named = runtime.image(reference).await?;
        if named.is_some_and(|image| image.id == offer.image_id) {
            continue;
        }
        if runtime.image(&offer.image_id).await?.is_none() {
            let text = format!(
                "the archive was loaded, but image {} was not in it; \
                 hint: it must be as docker save writes it",
                offer.image_id
            );
            return Err(Ended::Failed(text));
        }
        runtime.tag(&offer.image_id, reference).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::missing;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn layers_are_here_only_on_top_of_the_same() {
        let here = [list("a b c"), list("x"), list("a d"), list("")];
        for (offered, wanted) in [
            ("a b c", ""),
            ("a b c d", "d"),
            ("a b e c", "e c"),
            ("a d e", "e"),
            ("b c", "b c"),
            ("x x", "x"),
            ("", ""),
        ] {
            assert_eq!(missing(&list(offered), &here), list(wanted), "{offered}");
        }
        assert_eq!(missing(&list("a"), &[]), list("a"));
    }
}
