//! Connections between the hosts, as TCP makes them: what is written arrives in order, late, or not
//! at all while the network is cut. Who loses power says nothing to anybody; its peers learn of it
//! when they write to whoever is there then.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use timonier_master::incoming::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::network::Network;
use crate::os::{self, HostId};

/// What was lost is sent again after so long.
const RESEND: Duration = Duration::from_millis(200);
/// Bytes that are on their way in one direction; a writer waits for room.
const WINDOW_BYTES: usize = 256 << 10;

/// One direction of a connection; the other one has the number with the last bit flipped.
pub type PipeId = u64;

/// Where connections to a host come out.
pub type Listener = tokio::sync::mpsc::Sender<Line>;

/// All connections.
#[derive(Default)]
pub struct Lines {
    pipes: BTreeMap<PipeId, Pipe>,
    next: PipeId,
    pub listeners: BTreeMap<HostId, Listener>,
}

struct Pipe {
    from: HostId,
    to: HostId,
    /// With the time of its arrival; `None` is the end.
    under_way: VecDeque<(Duration, Option<Bytes>)>,
    bytes_under_way: usize,
    /// Arrived, not read yet.
    here: VecDeque<Bytes>,
    /// What comes after that.
    end: Option<End>,
    /// Nobody reads it any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

impl Pipe {
    fn new(from: HostId, to: HostId) -> Self {
        Self {
            from,
            to,
            under_way: VecDeque::new(),
            bytes_under_way: 0,
            here: VecDeque::new(),
            end: None,
            deaf: false,
            reader: None,
            writer: None,
        }
    }

    fn ends(&mut self, end: End) {
        self.end.get_or_insert(end);
        wake(&mut self.reader);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Lines {
    /// A new connection: what `from` writes goes through the pipe that is answered.
    pub fn connect(&mut self, from: HostId, to: HostId) -> PipeId {
        let id = self.next;
        self.next += 2;
        self.pipes.insert(id, Pipe::new(from, to));
        self.pipes.insert(id ^ 1, Pipe::new(to, from));
        id
    }

    /// The host has lost power.
    pub fn forget(&mut self, host: HostId) {
        self.listeners.remove(&host);
        self.pipes.values_mut().filter(|pipe| pipe.to == host).for_each(|pipe| pipe.deaf = true);
    }

    fn write(&mut self, id: PipeId, arrives: Duration, piece: Option<Bytes>) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let last = pipe.under_way.back().map_or(arrives, |(at, _)| arrives.max(*at));
        pipe.bytes_under_way += piece.as_ref().map_or(0, Bytes::len);
        pipe.under_way.push_back((last, piece));
    }

    /// The end on this side is gone: `incoming` is not read any more.
    fn close(&mut self, incoming: PipeId) {
        if self.pipes.get(&(incoming ^ 1)).is_some_and(|outgoing| outgoing.deaf) {
            self.pipes.remove(&incoming);
            self.pipes.remove(&(incoming ^ 1));
        } else if let Some(pipe) = self.pipes.get_mut(&incoming) {
            pipe.deaf = true;
        }
    }

    /// Hands out what has arrived. `passes` tells whether anything gets from one host to another.
    pub fn deliver(&mut self, now: Duration, passes: impl Fn(HostId, HostId) -> bool) {
        let ids: Vec<PipeId> = self.pipes.keys().copied().collect();
        for id in ids {
            let Some(pipe) = self.pipes.get_mut(&id) else { continue };
            while let Some((at, _)) = pipe.under_way.front_mut().filter(|(at, _)| *at <= now) {
                let both = passes(pipe.from, pipe.to) && (!pipe.deaf || passes(pipe.to, pipe.from));
                if !both {
                    *at = now + RESEND;
                    break;
                }
                let piece = pipe.under_way.pop_front().and_then(|(_, piece)| piece);
                pipe.bytes_under_way -= piece.as_ref().map_or(0, Bytes::len);
                wake(&mut pipe.writer);
                match piece {
                    _ if pipe.deaf => {
                        if let Some(back) = self.pipes.get_mut(&(id ^ 1)) {
                            back.ends(End::Reset);
                        }
                        break;
                    }
                    Some(bytes) => {
                        pipe.here.push_back(bytes);
                        wake(&mut pipe.reader);
                    }
                    None => pipe.ends(End::Closed),
                }
            }
        }
    }
}

/// One host's end of a connection.
pub struct Line {
    network: Network,
    host: HostId,
    incoming: PipeId,
    closed: bool,
    shows: Connection,
}

impl Line {
    pub fn new(network: Network, host: HostId, incoming: PipeId) -> Self {
        Self {
            network,
            host,
            incoming,
            closed: false,
            shows: Connection { remote: None, peer: None },
        }
    }

    /// The host at the other end.
    pub fn peer(&self) -> Option<HostId> {
        self.network.lines(|lines| lines.pipes.get(&self.incoming).map(|pipe| pipe.from))
    }

    /// As whom the other end is known.
    pub fn showing(mut self, peer: timonier_identity::PeerCertificate) -> Self {
        self.shows = Connection { remote: None, peer: Some(Arc::new(peer)) };
        self
    }

    fn send(&self, piece: Option<Bytes>) {
        let outgoing = self.incoming ^ 1;
        let ends = self.network.lines(|l| l.pipes.get(&outgoing).map(|p| (p.from, p.to)));
        let Some((from, to)) = ends else { return };
        let arrives = self.network.arrival(from, to, RESEND);
        self.network.lines(|lines| lines.write(outgoing, arrives, piece));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if os::is_dead(self.host) {
            return;
        }
        if !self.closed {
            self.send(None);
        }
        self.network.lines(|lines| lines.close(self.incoming));
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.network.lines(|lines| {
            let Some(pipe) = lines.pipes.get_mut(&self.incoming) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            if let Some(bytes) = pipe.here.front_mut() {
                let count = bytes.len().min(into.remaining());
                into.put_slice(&bytes.split_to(count));
                if !bytes.has_remaining() {
                    pipe.here.pop_front();
                }
                return Poll::Ready(Ok(()));
            }
            match pipe.end {
                Some(End::Closed) => Poll::Ready(Ok(())),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    pipe.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = self.network.lines(|lines| {
            let reset = lines.pipes.get(&self.incoming).is_none_or(|p| p.end == Some(End::Reset));
            let pipe = lines.pipes.get_mut(&(self.incoming ^ 1)).filter(|_| !reset)?;
            let room = WINDOW_BYTES.saturating_sub(pipe.bytes_under_way);
            if room == 0 {
                pipe.writer = Some(context.waker().clone());
            }
            Some(room)
        });
        match room {
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(0) => Poll::Pending,
            Some(room) => {
                let count = room.min(bytes.len());
                self.send(Some(Bytes::copy_from_slice(&bytes[..count])));
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.closed, true) {
            self.send(None);
        }
        Poll::Ready(Ok(()))
    }
}

impl Connected for Line {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.shows.clone()
    }
}
