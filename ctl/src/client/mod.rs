//! The connection to a master: the first server that answers, a deadline on every call, and
//! another try where a second one does no harm.
//!
//! Only what is asked of the network lives here; what an answer means is the verbs' business.

pub mod access;
pub mod calls;
mod watch;

pub use watch::{Seen, Watch};

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use timonier_proto::MESSAGE_BYTES_MAX;
use timonier_proto::v1::control_client::ControlClient;
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::error::{Failure, Outcome, fail};

pub type Control = ControlClient<Channel>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Deadline of a call unless `--request-timeout` says otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a call that failed for want of a master is sent again.
const TRIES_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Clones share the connection.
#[derive(Clone)]
pub struct Client {
    servers: Arc<Vec<String>>,
    current: Arc<Mutex<Option<Control>>>,
    timeout: Duration,
}

impl Client {
    /// Connects at the first call.
    pub fn new(servers: Vec<String>, timeout: Option<Duration>) -> Self {
        Self {
            servers: Arc::new(servers),
            current: Arc::new(Mutex::new(None)),
            timeout: timeout.unwrap_or(CALL_TIMEOUT),
        }
    }

    /// A connected client, from the first server that accepts.
    pub async fn control(&self) -> Outcome<Control> {
        let mut current = self.current.lock().await;
        if let Some(control) = &*current {
            return Ok(control.clone());
        }
        let mut reasons = Vec::new();
        for server in self.servers.iter() {
            match connect(server).await {
                Ok(control) => {
                    *current = Some(control.clone());
                    return Ok(control);
                }
                Err(reason) => reasons.push(format!("connect to master {server}: {reason}")),
            }
        }
        Err(unreachable(&reasons, &self.servers))
    }

    async fn forget(&self) {
        *self.current.lock().await = None;
    }

    /// A call that only reads: tried again, on the next server, while no master answers.
    pub async fn read<T, F, R>(&self, call: F) -> Outcome<T>
    where
        F: Fn(Control) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.tried(call, |_| true).await
    }

    /// A call that writes: tried again only where the master said that it did nothing.
    pub async fn write<T, F, R>(&self, call: F) -> Outcome<T>
    where
        F: Fn(Control) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.tried(call, |status| !status.details().is_empty()).await
    }

    async fn tried<T, F, R>(&self, call: F, safe: impl Fn(&Status) -> bool) -> Outcome<T>
    where
        F: Fn(Control) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let mut pause = BACKOFF_FIRST;
        for attempt in 1.. {
            let control = self.control().await?;
            let status = match tokio::time::timeout(self.timeout, call(control)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(self.too_late()),
            };
            let again = status.code() == Code::Unavailable && attempt < TRIES_MAX && safe(&status);
            if status.code() == Code::Unavailable && status.details().is_empty() {
                self.forget().await;
            }
            if !again {
                return Err(self.explained(status));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }

    /// Opens a stream; only the opening has the deadline.
    pub async fn open<T, F, R>(&self, call: F) -> Outcome<T>
    where
        F: Fn(Control) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.tried(call, |_| true).await
    }

    /// A status as a failure; a broken transport says which master was lost and why.
    pub fn explained(&self, status: Status) -> Failure {
        if status.code() == Code::Unavailable && status.details().is_empty() {
            let reason = root_cause(&status).unwrap_or_else(|| status.message().to_owned());
            let servers = self.servers.join(", ");
            return fail(format!("talk to master {servers}: {reason}"))
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
        fail(format!(
            "master {} did not answer within {} s",
            self.servers.join(", "),
            self.timeout.as_secs()
        ))
        .hint("--request-timeout sets how long to wait")
    }
}

async fn connect(server: &str) -> Result<Control, String> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .map_err(|error| format!("not an address: {error}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect());
    match connecting.await {
        Ok(Ok(channel)) => Ok(ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)),
        Ok(Err(error)) => Err(root_cause(&error).unwrap_or_else(|| error.to_string())),
        Err(_) => Err("timed out".into()),
    }
}

/// The innermost cause, in plain words where it is the operating system's.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
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
