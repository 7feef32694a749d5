//! The connections that a TLS listener accepts, each with its handshake done.
//!
//! Handshakes go on beside each other, each with a deadline; a client that is slow, or does not
//! speak TLS, holds up nobody else. Nor does a host that opens any number of connections: those of
//! one address that have shown no certificate are bounded. Agents behind one address have shown one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{Identity, PeerCertificate, explain};

/// Connections that are done with their handshake and not taken yet.
const ACCEPTED_MAX: usize = 64;
/// What is allowed at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// From the first byte to the end of the handshake; and for the wait for a turn before it.
    pub handshake_deadline: Duration,
    /// Handshakes that go on at the same time; who comes later waits for his turn.
    pub handshakes: usize,
    /// The same of one address.
    pub handshakes_per_address: usize,
    /// Connections that are open at the same time; who comes later waits in the listener's queue.
    pub connections: usize,
    /// Those of one address that have shown no certificate; more are closed at once.
    pub strangers_per_address: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            handshake_deadline: Duration::from_secs(10),
            handshakes: 512,
            handshakes_per_address: 64,
            connections: 16_384,
            strangers_per_address: 2_048,
        }
    }
}

/// After an error of the listener, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of a connection; each of its requests has it among its extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    pub remote: Option<SocketAddr>,
    /// Whose certificate the other side showed; none where it showed none.
    pub peer: Option<Arc<PeerCertificate>>,
}

/// A connection with its handshake done.
#[derive(Debug)]
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    connection: Connection,
    _slot: OwnedSemaphorePermit,
    /// Held for as long as its owner is not known.
    _stranger: Option<Stranger>,
}

impl Accepted {
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The connections of a listener, as long as somebody takes them; then the listener is closed.
/// Each handshake uses the identity's certificate and trust of its moment.
pub fn incoming(listener: TcpListener, identity: Identity) -> ReceiverStream<io::Result<Accepted>> {
    incoming_within(listener, identity, Bounds::default())
}

/// [`incoming`] with other bounds.
pub fn incoming_within(
    listener: TcpListener,
    identity: Identity,
    bounds: Bounds,
) -> ReceiverStream<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(accept(listener, identity, bounds, sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    identity: Identity,
    bounds: Bounds,
    accepted: mpsc::Sender<io::Result<Accepted>>,
) {
    let handshakes = Arc::new(Semaphore::new(bounds.handshakes));
    let connections = Arc::new(Semaphore::new(bounds.connections));
    let strangers = Strangers::new(bounds);
    loop {
        let Ok(slot) = connections.clone().acquire_owned().await else { return };
        let (stream, remote) = tokio::select! {
            () = accepted.closed() => return,
            next = listener.accept() => match next {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Some(config) = identity.server_config() else {
            tracing::error!("this identity has no certificate to serve with");
            return;
        };
        let Some(stranger) = strangers.admit(remote.ip()) else {
            tracing::debug!(%remote, "too many connections of this address without a certificate");
            continue;
        };
        let (accepted, handshakes) = (accepted.clone(), handshakes.clone());
        tokio::spawn(async move {
            // The address's turn first, so that those who wait for it take no other's.
            let turn = async {
                let own = stranger.handshakes.clone().acquire_owned().await.ok()?;
                Some((own, handshakes.acquire_owned().await.ok()?))
            };
            let Ok(Some(turn)) = tokio::time::timeout(bounds.handshake_deadline, turn).await else {
                tracing::debug!(%remote, "no turn for a handshake");
                return;
            };
            let work = handshake(TlsAcceptor::from(config), stream, remote, slot, stranger);
            match tokio::time::timeout(bounds.handshake_deadline, work).await {
                Ok(Ok(connection)) => {
                    // Nobody takes it any more when the server is being stopped.
                    let _ = accepted.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    let why = explain(&error).unwrap_or_else(|| error.to_string());
                    tracing::debug!(%remote, why, "a handshake failed");
                }
                Err(_) => tracing::debug!(%remote, "a handshake took too long"),
            }
            drop(turn);
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    slot: OwnedSemaphorePermit,
    stranger: Stranger,
) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let peer = match chain.and_then(|chain| chain.first()) {
        Some(leaf) => Some(PeerCertificate::from_der(leaf).map_err(io::Error::other)?),
        None => None,
    };
    let stranger = peer.is_none().then_some(stranger);
    let connection = Connection { remote: Some(remote), peer: peer.map(Arc::new) };
    Ok(Accepted { stream, connection, _slot: slot, _stranger: stranger })
}

/// The connections without a certificate, by address. The table is as bounded as they are.
#[derive(Debug, Clone)]
struct Strangers {
    bounds: Bounds,
    by_address: Arc<Mutex<HashMap<IpAddr, Address>>>,
}

#[derive(Debug)]
struct Address {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

impl Strangers {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, by_address: Arc::default() }
    }

    /// `None` where the address has too many already.
    fn admit(&self, address: IpAddr) -> Option<Stranger> {
        let address = network(address);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = by_address.entry(address).or_insert_with(|| Address {
            connections: 0,
            handshakes: Arc::new(Semaphore::new(self.bounds.handshakes_per_address)),
        });
        if entry.connections >= self.bounds.strangers_per_address {
            return None;
        }
        entry.connections += 1;
        let handshakes = entry.handshakes.clone();
        Some(Stranger { strangers: self.clone(), address, handshakes })
    }
}

/// A connection whose owner is not known, or not yet.
#[derive(Debug)]
struct Stranger {
    strangers: Strangers,
    address: IpAddr,
    /// The turns of its address.
    handshakes: Arc<Semaphore>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let by_address = &self.strangers.by_address;
        let mut by_address = by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = by_address.get_mut(&self.address) else { return };
        entry.connections -= 1;
        if entry.connections == 0 {
            by_address.remove(&self.address);
        }
    }
}

/// What counts as one address: of IPv6 the network, as each host there has 2⁶⁴ addresses.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Connected for Accepted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
