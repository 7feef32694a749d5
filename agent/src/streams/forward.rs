//! A connection to a port of a pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use timonier_proto::v1::PortForwardRequest;
use timonier_proto::v1::stream_frame::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::peer::{Ended, Peer, Replies};
use super::{Streams, data, inside};
use crate::pods::PodView;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const READ_BYTES_MAX: usize = 32 << 10;

pub(super) async fn serve(
    streams: &Streams,
    request: &PortForwardRequest,
    peer: &mut Peer,
) -> Result<i32, Ended> {
    let pod = streams.pod(&request.pod_uid, &request.namespace, &request.pod)?;
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Ended::Failed(format!("{} is no port", request.port)))?;
    let stream = connect(streams, &pod, port).await.map_err(|error| {
        let text = format!("connect to port {port} of pod {}/{}: {error}", pod.namespace, pod.name);
        Ended::Failed(text)
    })?;
    // What it costs to wait for more is worse than small packets.
    let _ = stream.set_nodelay(true);
    let (from_pod, to_pod) = stream.into_split();
    let replies = peer.replies();
    let both = async { tokio::try_join!(down(from_pod, &replies), up(peer, to_pod)) };
    tokio::select! {
        done = both => done.map(|_| 0),
        ended = replies.gone() => Err(ended),
    }
}

/// By the pod's address; where nobody listens there, by its loopback, which is all that some
/// programs listen on.
async fn connect(streams: &Streams, pod: &PodView, port: u16) -> io::Result<TcpStream> {
    let ip = pod.ip.unwrap_or(Ipv4Addr::LOCALHOST);
    let address = SocketAddr::new(IpAddr::V4(ip), port);
    let refused = match timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => error,
        Ok(connected) => return connected,
    };
    if pod.ip.is_none() {
        return Err(refused);
    }
    let mut ids = pod.containers.iter().filter(|c| c.running).filter_map(|c| c.id.as_deref());
    let Some(id) = ids.next() else { return Err(refused) };
    match streams.runtime.inspect(id).await {
        Ok(Some(found)) if found.pid != 0 => {
            inside::connect(found.pid, port, CONNECT_DEADLINE).await.map_err(|_| refused)
        }
        _ => Err(refused),
    }
}

async fn down(mut from_pod: OwnedReadHalf, replies: &Replies) -> Result<(), Ended> {
    let mut buffer = vec![0; READ_BYTES_MAX];
    loop {
        let count = from_pod
            .read(&mut buffer)
            .await
            .map_err(|error| Ended::Failed(format!("read from the pod: {error}")))?;
        if count == 0 {
            return replies.send(Frame::HalfClose(true)).await;
        }
        replies.send(data(buffer[..count].to_vec())).await?;
    }
}

async fn up(peer: &mut Peer, mut to_pod: OwnedWriteHalf) -> Result<(), Ended> {
    loop {
        let written = match peer.next().await? {
            Frame::Data(bytes) => to_pod.write_all(&bytes).await,
            Frame::HalfClose(true) => {
                // The pod may be gone by then, and have said all there was.
                let _ = to_pod.shutdown().await;
                return Ok(());
            }
            _ => Ok(()),
        };
        // The pod takes no more, but may still have something to say.
        if written.is_err() {
            return Ok(());
        }
    }
}
