//! The connections that a TLS listener accepts, each with its handshake done.
//!
//! Handshakes go on beside each other, each with a deadline; a client that is slow, or does not
//! speak TLS, holds up nobody else.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
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

/// From the first byte to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes that go on at the same time; who comes later waits in the listener's queue.
const HANDSHAKES_MAX: usize = 512;
/// Connections that are open at the same time.
const CONNECTIONS_MAX: usize = 16_384;
/// Connections that are done with their handshake and not taken yet.
const ACCEPTED_MAX: usize = 64;
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
}

impl Accepted {
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The connections of a listener, as long as somebody takes them; then the listener is closed.
/// Each handshake uses the identity's certificate and trust of its moment.
pub fn incoming(listener: TcpListener, identity: Identity) -> ReceiverStream<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(accept(listener, identity, sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    identity: Identity,
    accepted: mpsc::Sender<io::Result<Accepted>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = connections.clone().acquire_owned().await else { return };
        let Ok(turn) = handshakes.clone().acquire_owned().await else { return };
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
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let work = handshake(TlsAcceptor::from(config), stream, remote, slot);
            match tokio::time::timeout(HANDSHAKE_DEADLINE, work).await {
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
) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let peer = match chain.and_then(|chain| chain.first()) {
        Some(leaf) => Some(PeerCertificate::from_der(leaf).map_err(io::Error::other)?),
        None => None,
    };
    let connection = Connection { remote: Some(remote), peer: peer.map(Arc::new) };
    Ok(Accepted { stream, connection, _slot: slot })
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
