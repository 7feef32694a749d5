//! The connection to a master: the first one that answers, a deadline on every call, and another
//! try, at the next master, where a second one does no harm.
//!
//! Only what is asked of the network lives here; what an answer means is the verbs' business.

pub mod access;
pub mod calls;
mod masters;
mod retry;
mod watch;

pub use watch::{Seen, Watch};

use std::future::Future;
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use timonier_identity::{DialOptions, Identity};
use timonier_proto::v1::StreamFrame;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::join_client::JoinClient;
use timonier_proto::v1::trust_client::TrustClient;
use timonier_proto::{MASTERS_HEADER, MESSAGE_BYTES_MAX};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use self::retry::{Policy, is_broken};
use crate::error::{Failure, Outcome, fail};
use crate::login::{Bearer, Login};

/// A connection, with the bearer token where there is one.
pub type Way = InterceptedService<Channel, Bearer>;
pub type Control = ControlClient<Way>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Where there are other masters to try.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);
/// Deadline of a call unless `--request-timeout` says otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a stream to a node may be refused: its agent may be on its way to another master.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Masters that are remembered of those that a master tells of.
const MASTERS_MAX: usize = 16;

/// Clones share the connection.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    login: Arc<Outcome<Login>>,
    timeout: Duration,
}

struct Shared {
    servers: Lock<Servers>,
    current: Mutex<Option<Connected>>,
}

/// The masters that are known.
#[derive(Debug, Default)]
struct Servers {
    /// As they were given, then those that were learned of.
    addresses: Vec<String>,
    /// All of them, as the last answer had them; empty while nothing was told.
    told: Vec<String>,
    /// Where to begin at the next connect.
    next: usize,
    /// Counts connections; 0 before the first.
    links: u64,
}

struct Connected {
    link: u64,
    way: Way,
}

impl Client {
    /// Connects at the first call; without a login that call fails.
    pub fn new(servers: Vec<String>, login: Outcome<Login>, timeout: Option<Duration>) -> Self {
        let servers = Lock::new(Servers { addresses: servers, ..Default::default() });
        Self {
            login: Arc::new(login),
            shared: Arc::new(Shared { servers, current: Mutex::new(None) }),
            timeout: timeout.unwrap_or(CALL_TIMEOUT),
        }
    }

    /// The addresses of all masters, as one of them told; empty where nothing was told.
    pub fn told_masters(&self) -> Vec<String> {
        self.servers().told.clone()
    }

    /// The connection, made to the first master that accepts where there is none; with its number.
    async fn connected(&self) -> Outcome<(u64, Control)> {
        let (link, way) = self.way().await?;
        let control = ControlClient::new(way)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok((link, control))
    }

    /// The service that looks after certificates.
    pub async fn trust(&self) -> Outcome<TrustClient<Way>> {
        Ok(TrustClient::new(self.way().await?.1))
    }

    /// The service that renews them.
    pub async fn join(&self) -> Outcome<JoinClient<Way>> {
        Ok(JoinClient::new(self.way().await?.1))
    }

    /// What is shown to the masters.
    pub fn identity(&self) -> Outcome<&Identity> {
        self.login.as_ref().as_ref().map(|login| &login.identity).map_err(Clone::clone)
    }

    async fn way(&self) -> Outcome<(u64, Way)> {
        let login = self.login.as_ref().as_ref().map_err(Clone::clone)?;
        let mut current = self.shared.current.lock().await;
        if let Some(connected) = &*current {
            return Ok((connected.link, connected.way.clone()));
        }
        let (addresses, first) = {
            let servers = self.servers();
            (servers.addresses.clone(), servers.next)
        };
        let patience =
            if addresses.len() > 1 { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let mut reasons = Vec::new();
        for index in 0..addresses.len() {
            let index = (first + index) % addresses.len();
            let server = &addresses[index];
            match connect(server, login, patience).await {
                Ok(way) => {
                    let link = {
                        let mut servers = self.servers();
                        servers.next = index;
                        servers.links += 1;
                        servers.links
                    };
                    *current = Some(Connected { link, way: way.clone() });
                    return Ok((link, way));
                }
                Err(reason) => reasons.push(format!("connect to master {server}: {reason}")),
            }
        }
        Err(unreachable(&reasons, &addresses))
    }

    /// Gives this connection up, if it still is the one; the next master is tried first then.
    async fn leave(&self, link: u64) {
        let mut current = self.shared.current.lock().await;
        if current.as_ref().is_some_and(|connected| connected.link == link) {
            *current = None;
            let mut servers = self.servers();
            servers.next = (servers.next + 1) % servers.addresses.len().max(1);
        }
    }

    fn was_connected(&self) -> bool {
        self.servers().links > 0
    }

    fn knows_others(&self) -> bool {
        self.servers().addresses.len() > 1
    }

    /// Takes in what an answer says of the masters.
    fn learn(&self, metadata: &MetadataMap) {
        let Some(text) = metadata.get(MASTERS_HEADER).and_then(|value| value.to_str().ok()) else {
            return;
        };
        let told = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let told: Vec<String> = told.take(MASTERS_MAX).map(str::to_owned).collect();
        let mut servers = self.servers();
        if servers.told == told {
            return;
        }
        for address in &told {
            if !servers.addresses.contains(address) {
                servers.addresses.push(address.clone());
            }
        }
        servers.told = told;
    }

    fn servers(&self) -> MutexGuard<'_, Servers> {
        // Every change under the lock is complete in itself.
        self.shared.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self) -> String {
        self.servers().addresses.join(", ")
    }

    /// A call that only reads.
    async fn read<Q, A, F, R>(&self, message: Q, call: F) -> Outcome<A>
    where
        Q: Clone,
        F: Fn(Control, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.tried(&Policy::read(self.timeout), message, call).await
    }

    /// A call that writes: done once, however often it has to be sent.
    async fn write<Q, A, F, R>(&self, message: Q, call: F) -> Outcome<A>
    where
        Q: Clone,
        F: Fn(Control, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.tried(&Policy::write(self.timeout), message, call).await
    }

    /// Opens a stream of answers; only the opening has the deadline.
    pub async fn open<Q, A, F, R>(&self, message: Q, call: F) -> Outcome<A>
    where
        Q: Clone,
        F: Fn(Control, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        self.tried(&Policy::read(self.timeout), message, call).await
    }

    /// Opens a stream in both directions, with its first frame sent; at most `queued_max` frames
    /// wait to be sent.
    pub async fn converse<F, R>(
        &self,
        first: StreamFrame,
        queued_max: usize,
        timeout: Duration,
        call: F,
    ) -> Outcome<(mpsc::Sender<StreamFrame>, Streaming<StreamFrame>)>
    where
        F: Fn(Control, ReceiverStream<StreamFrame>) -> R,
        R: Future<Output = Result<Response<Streaming<StreamFrame>>, Status>>,
    {
        let policy = Policy::stream(timeout, STREAM_PATIENCE);
        self.tried(&policy, first, |control, request| {
            let (sender, frames) = mpsc::channel(queued_max.max(1));
            let queued = sender.try_send(request.into_inner());
            let opened = call(control, ReceiverStream::new(frames));
            async move {
                queued.map_err(|_| Status::internal("the queue is full"))?;
                Ok(opened.await?.map(|frames| (sender, frames)))
            }
        })
        .await
    }

    /// A status as a failure; a broken transport says which master was lost and why.
    pub fn explained(&self, status: Status) -> Failure {
        if is_broken(&status) || is_away(&status) {
            let reason = root_cause(&status).unwrap_or_else(|| status.message().to_owned());
            return fail(format!("talk to master {}: {reason}", self.named()))
                .hint("the master may have stopped; timonctl lab status tells for the lab");
        }
        if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && status.details().is_empty()
        {
            return self.too_late();
        }
        Failure::from(status)
    }

    fn too_late(&self) -> Failure {
        fail(format!("master {} did not answer within {} s", self.named(), self.timeout.as_secs()))
            .hint("--request-timeout sets how long to wait")
    }
}

fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.details().is_empty()
}

async fn connect(server: &str, login: &Login, patience: Duration) -> Result<Way, String> {
    let options = DialOptions {
        connect_timeout: patience,
        keep_alive_interval: KEEPALIVE_INTERVAL,
        keep_alive_timeout: KEEPALIVE_TIMEOUT,
        keep_alive_while_idle: false,
    };
    let dialled = timonier_identity::dial(server, &login.identity, &options).await;
    let channel = dialled.map_err(|error| error.to_string())?;
    Ok(InterceptedService::new(channel, login.bearer.clone()))
}

/// The innermost cause, in plain words where it is the operating system's.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(why) = timonier_identity::explain(error) {
        return Some(why);
    }
    let mut cause = error.source()?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if let Some(io) = cause.downcast_ref::<std::io::Error>() {
        return Some(plain_io(io));
    }
    Some(cause.to_string())
}

/// `connection refused` rather than `Connection refused (os error 111)`.
pub fn plain_io(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::ConnectionReset => "connection reset".into(),
        ErrorKind::TimedOut => "timed out".into(),
        ErrorKind::NotFound => "no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

fn unreachable(reasons: &[String], servers: &[String]) -> Failure {
    let local = servers.iter().any(|s| s.starts_with("127.") || s.starts_with("localhost"));
    let hint = if local {
        "is the lab up? timonctl lab up"
    } else {
        "is the master running, and is that its address? --server or timonctl config set-server choose another"
    };
    fail(reasons.join("; ")).hint(hint)
}
