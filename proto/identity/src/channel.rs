//! [`dial`]: the one way to a master.

use std::cell::RefCell;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::{Identity, MASTER_NAME};

/// A server's first words are its settings, a few dozen bytes.
const FIRST_BYTES_MAX: usize = 256;

/// How patient a connection is.
#[derive(Debug, Clone)]
pub struct DialOptions {
    /// For the connection and the TLS handshake together.
    pub connect_timeout: Duration,
    /// An idle connection is looked after so often.
    pub keep_alive_interval: Duration,
    /// A connection that does not answer for so long is given up.
    pub keep_alive_timeout: Duration,
    /// Also while no request is open.
    pub keep_alive_while_idle: bool,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(10),
            keep_alive_while_idle: false,
        }
    }
}

/// Why there is no connection to a master.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("{address:?} is not an address: {why}; hint: it is HOST:PORT")]
    Address { address: String, why: String },
    /// The cause in plain words.
    #[error("{why}")]
    Connect { address: String, why: String },
    #[error("timed out")]
    TimedOut { address: String },
}

/// Connects to the master at `HOST:PORT`, and again whenever the connection is lost and a request
/// is made. Each time the identity's certificate and trust of that moment are used.
pub async fn dial(
    address: &str,
    identity: &Identity,
    options: &DialOptions,
) -> Result<Channel, DialError> {
    let (endpoint, connector) = prepare(address, identity, options)?;
    let connecting = endpoint.connect_with_connector(connector);
    // The endpoint's own timeout does not cover the HTTP/2 preface.
    match tokio::time::timeout(options.connect_timeout * 2, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => {
            let why = explain(&error).unwrap_or_else(|| innermost(&error));
            Err(DialError::Connect { address: address.to_owned(), why })
        }
        Err(_) => Err(DialError::TimedOut { address: address.to_owned() }),
    }
}

/// As [`dial`], but connects at the first request.
pub fn dial_lazy(
    address: &str,
    identity: &Identity,
    options: &DialOptions,
) -> Result<Channel, DialError> {
    let (endpoint, connector) = prepare(address, identity, options)?;
    Ok(endpoint.connect_with_connector_lazy(connector))
}

fn prepare(
    address: &str,
    identity: &Identity,
    options: &DialOptions,
) -> Result<(Endpoint, Connector), DialError> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|error| DialError::Address {
            address: address.to_owned(),
            why: innermost(&error),
        })?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keep_alive_interval)
        .keep_alive_timeout(options.keep_alive_timeout)
        .keep_alive_while_idle(options.keep_alive_while_idle);
    Ok((endpoint, Connector { address: address.to_owned(), identity: identity.clone() }))
}

/// What carries a connection's bytes.
pub trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Line for S {}

/// A connection to be made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Line>>> + Send>>;

/// A simulation's network: connects to an address.
type Connect = Rc<dyn Fn(&str) -> Connecting>;

thread_local! {
    static SIMULATED: RefCell<Option<Connect>> = const { RefCell::new(None) };
}

/// From now on, what is dialled on this thread is connected by `connect`, which gets the address:
/// a simulation's network, without TLS.
pub fn simulate_network(connect: impl Fn(&str) -> Connecting + 'static) {
    SIMULATED.set(Some(Rc::new(connect)));
}

struct Connector {
    address: String,
    identity: Identity,
}

impl Connector {
    fn connect(&self) -> Connecting {
        let simulated = SIMULATED.with_borrow(Clone::clone);
        if let Some(connect) = simulated {
            return connect(&self.address);
        }
        let address = self.address.clone();
        let tls = TlsConnector::from(self.identity.client_config());
        Box::pin(async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(MASTER_NAME).expect("the name is a DNS name");
            Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Line>)
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Heard>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Heard>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.connect();
        Box::pin(async move { Ok(TokioIo::new(Heard::from(connecting.await?).await?)) })
    }
}

/// A connection on which the master has said something: it has taken the certificate shown to it.
///
/// Our side of the handshake is done before the master has looked at our certificate. An HTTP/2
/// server speaks first, so waiting for its first bytes tells a refusal from a connection.
struct Heard {
    stream: Box<dyn Line>,
    first: Vec<u8>,
    taken: usize,
}

impl Heard {
    async fn from(mut stream: Box<dyn Line>) -> io::Result<Self> {
        let mut first = vec![0; FIRST_BYTES_MAX];
        let count = stream.read(&mut first).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        first.truncate(count);
        Ok(Self { stream, first, taken: 0 })
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken < self.first.len() {
            let count = buffer.remaining().min(self.first.len() - self.taken);
            buffer.put_slice(&self.first[self.taken..self.taken + count]);
            self.taken += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Heard {
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

/// What TLS or the network found wrong, in plain words; `None` where it was neither.
///
/// A server refuses a client's certificate only after the client's side of the handshake is done,
/// so it may show at the first request only.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut current = Some(error);
    let mut network = None;
    while let Some(error) = current {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(explain_tls(tls));
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // Its source is the source of what is in it.
            if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                return Some(explain_tls(tls));
            }
            network = Some(explain_io(io));
        }
        current = error.source();
    }
    network
}

fn explain_tls(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not of the cluster whose CA is trusted here; hint: is it the right address, and the right configuration or token?".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired; hint: look at the clocks of both hosts, and at the master's log".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; hint: look at the clocks of both hosts".into()
            }
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. } => {
                "what answers there is not a master: its certificate is somebody else's".into()
            }
            other => format!("its certificate is refused: {other}"),
        },
        Tls::AlertReceived(AlertDescription::CertificateExpired) => {
            "it refuses the certificate shown to it: expired; hint: timonctl certificate status tells until when one is valid, and a new one takes an administrator or a join token".into()
        }
        Tls::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => "it refuses the certificate shown to it: not of its cluster".into(),
        Tls::InvalidMessage(_) => "what answers there does not speak TLS".into(),
        other => other.to_string(),
    }
}

fn explain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut => "timed out".into(),
        io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
