//! `httpGet`: 200 to 399 is yes.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::net::TcpStream;

const AGENT: &str = concat!("timonier-probe/", env!("CARGO_PKG_VERSION"));
/// More of a body is not read: only the status counts.
const BODY_BYTES_MAX: usize = 10 * 1024;

pub(super) async fn get(host: String, port: u16, action: &HTTPGetAction) -> Result<(), String> {
    let path = match action.path.as_deref().unwrap_or("/") {
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let url = format!("http://{host}:{port}{path}");
    if action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        return Err(format!(
            "Get \"https://{host}:{port}{path}\": https probes are not supported; \
             hint: probe with scheme HTTP, tcpSocket or exec"
        ));
    }
    let status = request(&host, port, &path, action)
        .await
        .map_err(|error| format!("Get \"{url}\": {error}"))?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

async fn request(
    host: &str,
    port: u16,
    path: &str,
    action: &HTTPGetAction,
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(path).body(Empty::<Bytes>::new())?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&format!("{host}:{port}"))?);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    for header in action.http_headers.as_deref().unwrap_or_default() {
        let name = HeaderName::from_bytes(header.name.as_bytes())?;
        headers.insert(name, HeaderValue::from_str(&header.value)?);
    }
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        // Read, so that the server sees no reset; how it ends does not matter.
        let _ = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        Ok::<_, hyper::Error>(status)
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        status = &mut answer => Ok(status?),
        ended = connection => {
            ended?;
            Ok(answer.await?)
        }
    }
}
