//! Where requests go: a URL, or a service of the cluster by its address there.

use std::net::{IpAddr, SocketAddr};

use hyper::Uri;
use hyper::http::uri::PathAndQuery;
use serde_json::Value;
use timonier_proto::Kind;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;

const HTTP_PORT: u16 = 80;

/// All that a request needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Tried in turn by successive requests, as a name may have several.
    pub addresses: Vec<SocketAddr>,
    /// The `Host` header.
    pub host: String,
    pub path: PathAndQuery,
}

/// Understands `http://…`, a bare `host:port/path`, and `svc/name[:port][/path]`.
pub async fn resolve(ctx: &Ctx, typed: &str) -> Outcome<Target> {
    for prefix in ["svc/", "service/", "services/"] {
        if let Some(rest) = typed.strip_prefix(prefix) {
            return service(ctx, rest).await;
        }
    }
    if typed.starts_with("https://") {
        return Err(fail(format!("load {typed}: only plain http is spoken"))
            .hint("measure behind what ends TLS, at the service itself: svc/NAME"));
    }
    let with_scheme =
        if typed.contains("://") { typed.to_owned() } else { format!("http://{typed}") };
    let wrong = |why: &str| {
        fail(format!("load {typed:?}: {why}"))
            .hint("for example http://10.0.0.1:30080/, or svc/web for a service")
    };
    let uri: Uri = with_scheme.parse().map_err(|error| wrong(&format!("{error}")))?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong("only http:// is spoken"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(HTTP_PORT);
    let addresses = addresses(host, port).await.map_err(|error| {
        fail(format!("load {typed}: look up {host}: {error}"))
            .hint("a service of the cluster goes by svc/NAME here")
    })?;
    Ok(Target { addresses, host: authority.to_string(), path: path_of(&uri) })
}

async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if found.is_empty() {
        return Err(std::io::Error::other("it has no address"));
    }
    Ok(found)
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// `web`, `web:8080`, `web:http/path`.
async fn service(ctx: &Ctx, rest: &str) -> Outcome<Target> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (place, path) = rest.split_at(end);
    let (name, port) = match place.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (place, None),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path: PathAndQuery = format!("{slash}{path}")
        .parse()
        .map_err(|error| fail(format!("load svc/{rest}: the path: {error}")))?;
    let object = ctx.client.get(&ctx.key(Kind::Service, name)).await?;
    let address = object.text("spec.clusterIP").parse::<IpAddr>().map_err(|_| {
        fail(format!("load svc/{name}: it has no address of its own (headless)"))
            .hint("name one of its pods' addresses: timonctl get pods -o wide")
    })?;
    let port = port_of(&object, name, port)?;
    let host = format!("{name}.{}:{port}", object.namespace());
    Ok(Target { addresses: vec![SocketAddr::new(address, port)], host, path })
}

/// The port by number or name, or the first one.
fn port_of(service: &Value, name: &str, wanted: Option<&str>) -> Outcome<u16> {
    let ports = service.list("spec.ports");
    let number = |port: &Value| u16::try_from(port.int("port")).unwrap_or(0);
    let found = match wanted {
        None => ports.first(),
        Some(wanted) => ports.iter().find(|port| {
            port.text("name") == wanted || wanted.parse().is_ok_and(|n: u16| n == number(port))
        }),
    };
    match found {
        Some(port) if port.text("protocol") == "UDP" => {
            bail(format!("load svc/{name}: port {} is UDP", number(port)))
        }
        Some(port) => Ok(number(port)),
        None => {
            let known: Vec<String> = ports.iter().map(|port| number(port).to_string()).collect();
            Err(fail(format!("load svc/{name}: it has no port {}", wanted.unwrap_or_default()))
                .hint(format!("its ports are: {}", known.join(", "))))
        }
    }
}
