//! One request and its answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::target::Target;
use crate::client::plain_io;

/// How much of an answer is looked at for the server's name.
const FIRST_LINE_BYTES_MAX: usize = 512;
/// Longest name of a server that is believed.
const SERVER_BYTES_MAX: usize = 253;
/// Connections that are kept for later.
const IDLE_MAX: usize = 1024;

type Connection = SendRequest<Empty<Bytes>>;

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A whole answer below 400, and who gave it where it says so.
    Good { server: Option<String> },
    /// A whole answer that is an error, and why.
    Refused { why: String },
    /// No whole answer, and why.
    None { why: String },
}

pub struct Sender {
    target: Target,
    method: Method,
    host: HeaderValue,
    keepalive: bool,
    timeout: Duration,
    next_address: AtomicUsize,
    idle: Mutex<Vec<Connection>>,
}

impl Sender {
    pub fn new(target: Target, method: Method, keepalive: bool, timeout: Duration) -> Self {
        let host = HeaderValue::from_str(&target.host);
        Self {
            host: host.unwrap_or_else(|_| HeaderValue::from_static("timonier")),
            target,
            method,
            keepalive,
            timeout,
            next_address: AtomicUsize::new(0),
            idle: Mutex::default(),
        }
    }

    pub async fn send(&self) -> Answer {
        match tokio::time::timeout(self.timeout, self.exchange()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Answer::None { why },
            Err(_) => Answer::None { why: "timed out".into() },
        }
    }

    async fn exchange(&self) -> Result<Answer, String> {
        let kept = self.idle.lock().expect("no holder panics").pop();
        if let Some(mut connection) = kept {
            // The server may have closed it meanwhile; as every client does, a request that got no
            // answer at all is then sent again on a fresh connection.
            if connection.ready().await.is_ok()
                && let Ok(response) = connection.send_request(self.request()).await
            {
                return self.take(response, connection).await;
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.send_request(self.request()).await.map_err(cause)?;
        self.take(response, connection).await
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.path.clone().into();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static("timonctl-load"));
        if !self.keepalive {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        request
    }

    async fn connect(&self) -> Result<Connection, String> {
        let count = self.target.addresses.len();
        let index = self.next_address.fetch_add(1, Ordering::Relaxed) % count;
        let stream = TcpStream::connect(self.target.addresses[index])
            .await
            .map_err(|error| plain_io(&error))?;
        // Small requests should not wait for each other; without it they are merely slower.
        let _ = stream.set_nodelay(true);
        let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(cause)?;
        // Ends with the connection; its error is the request's too.
        tokio::spawn(async move {
            let _ = driver.await;
        });
        Ok(connection)
    }

    async fn take(
        &self,
        response: Response<Incoming>,
        connection: Connection,
    ) -> Result<Answer, String> {
        let status = response.status();
        let stays = response.headers().get(CONNECTION).is_none_or(|value| value != "close");
        let mut body = response.into_body();
        let mut first = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(cause)?;
            if let Some(data) = frame.data_ref() {
                let room = FIRST_LINE_BYTES_MAX - first.len();
                first.extend_from_slice(&data[..room.min(data.len())]);
            }
        }
        if self.keepalive && stays {
            let mut idle = self.idle.lock().expect("no holder panics");
            if idle.len() < IDLE_MAX {
                idle.push(connection);
            }
        }
        if status.is_client_error() || status.is_server_error() {
            return Ok(Answer::Refused { why: format!("status {}", status.as_u16()) });
        }
        Ok(Answer::Good { server: server_of(&first) })
    }
}

/// The name after `pod` in the first line.
fn server_of(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mut words = text.lines().next()?.split_whitespace();
    words.find(|word| *word == "pod")?;
    words.next().filter(|name| name.len() <= SERVER_BYTES_MAX).map(str::to_owned)
}

/// The same words for the same cause, so that failures can be counted by it.
fn cause(error: hyper::Error) -> String {
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return plain_io(io);
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "closed before the whole answer".into()
    } else if error.is_parse() {
        "not an HTTP answer".into()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_name_themselves_in_the_first_line() {
        let named = |text: &str| server_of(text.as_bytes());
        assert_eq!(named("web v1 pod web-5d-x request 7\n"), Some("web-5d-x".into()));
        assert_eq!(named("hello\npod web-1"), None);
        assert_eq!(named("pod"), None);
        assert_eq!(named(""), None);
    }
}
