//! One request as any client makes it, on a connection of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const AGENT: &str = concat!("timonier-latency/", env!("CARGO_PKG_VERSION"));
/// More of an answer is not waited for.
const BODY_BYTES_MAX: usize = 8 << 20;

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Ok when the server takes a connection.
pub(super) async fn connect(address: SocketAddr) -> Result<(), Error> {
    dial(address).await.map(drop)
}

/// Ok when the whole of an answer with status 200 to 399 has come.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<(), Error> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = Request::get(path).body(Empty::<Bytes>::new())?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&address.to_string())?);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));

    let stream = TokioIo::new(dial(address).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut received = 0;
        while received < BODY_BYTES_MAX
            && let Some(frame) = body.frame().await
        {
            received += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok::<_, hyper::Error>(status)
    };
    let mut answer = std::pin::pin!(answer);
    let status = tokio::select! {
        status = &mut answer => status?,
        ended = connection => {
            ended?;
            answer.await?
        }
    };
    let good = StatusCode::OK..StatusCode::BAD_REQUEST;
    if good.contains(&status) { Ok(()) } else { Err(format!("status {status}").into()) }
}

/// Ten connections a second and pod would leave thousands of closed ones behind, here and in the
/// connection tracking: they are reset instead once all is said.
async fn dial(address: SocketAddr) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.set_zero_linger()?;
    Ok(stream)
}
