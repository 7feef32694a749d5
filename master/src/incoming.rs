//! The connections that the master accepts, with their writes gathered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Stream, StreamExt};
use timonier_identity::{Accepted, Identity, PeerCertificate};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

pub use timonier_identity::Connection;

/// The connections of a listener, with TLS. `seen` is told whose certificate each shows.
///
/// The gathering is around TLS, so that what goes out together is also sealed together.
pub fn incoming(
    listener: TcpListener,
    identity: Identity,
    seen: impl Fn(&PeerCertificate),
) -> impl Stream<Item = io::Result<Gathering<Accepted>>> {
    let accepted = timonier_identity::incoming(listener, identity);
    accepted.map(move |accepted| {
        let accepted = accepted?;
        if let Some(peer) = &accepted.connection().peer {
            seen(peer);
        }
        Ok(Gathering::new(accepted))
    })
}

/// Before it writes, it lets the other tasks that are ready go first, once.
///
/// One log entry answers many callers at the same moment. Each answer wakes its connection, which
/// would write it at once; like this all of them go out in one system call.
#[derive(Debug)]
pub struct Gathering<S> {
    stream: S,
    waited: bool,
}

impl<S> Gathering<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, waited: false }
    }

    fn poll_turn(&mut self, context: &Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.waited, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself goes to the end of the line.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.waited = false;
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        self.waited = false;
        Poll::Ready(written)
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

impl<S: Connected> Connected for Gathering<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
