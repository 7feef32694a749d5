//! `port-forward`: local ports that lead to a pod, one stream a connection.

use std::net::SocketAddr;

use serde_json::Value;
use timonier_proto::Kind;
use timonier_proto::v1::{PortForwardRequest, StreamFrame, stream_frame, stream_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve;
use crate::verbs::logs;

const EXAMPLES: &str = "\
Examples:
  timonctl port-forward web-1 8080:80            127.0.0.1:8080 leads to port 80 of the pod
  timonctl port-forward deploy/web 8080:80 9000  one of a deployment's pods, two ports
  timonctl port-forward svc/web 8080:http        a service's port, by name
  timonctl port-forward web-1 :80                any free local port";

/// Connections forwarded at the same time.
const CONNECTIONS_MAX: usize = 256;
const CHUNK_BYTES: usize = 32 << 10;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// POD, or deploy/NAME, rs/NAME, svc/NAME
    #[arg(value_name = "POD")]
    pub pod: String,
    /// LOCAL:REMOTE, PORT for both, or :REMOTE for any free local port
    #[arg(value_name = "PORTS", required = true)]
    pub ports: Vec<String>,
    /// Local address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub address: String,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let pods = resolve::pods_of(ctx, &args.pod).await?;
    let pod = pods.iter().find(|p| p.text("status.phase") == "Running").ok_or_else(|| {
        let phase = pods[0].text("status.phase");
        fail(format!(
            "unable to forward port because pod {} is not running; current status={phase}",
            pods[0].name()
        ))
    })?;
    let service = match resolve::kind_and_name(&args.pod, Kind::Pod)? {
        (Kind::Service, name) => Some(ctx.client.get(&ctx.key(Kind::Service, &name)).await?),
        _ => None,
    };
    let mut listeners = Vec::new();
    for text in &args.ports {
        let (local, remote) = parse(text)?;
        let port = remote_port(remote, pod, service.as_ref())?;
        let local = match local {
            Local::Same => number(remote).unwrap_or(port),
            Local::Any => 0,
            Local::Port(port) => port,
        };
        let listener =
            TcpListener::bind((args.address.as_str(), local)).await.map_err(|error| {
                let reason = crate::client::plain_io(&error);
                fail(format!("listen on {}:{local}: {reason}", args.address))
                    .hint("choose another local port as LOCAL:REMOTE")
            })?;
        let address = listener.local_addr().map_err(|error| fail(format!("listen: {error}")))?;
        ctx.out.line(format!("Forwarding from {address} -> {port}"))?;
        listeners.push((listener, port));
    }
    let slots = Semaphore::new(CONNECTIONS_MAX);
    let all = listeners.iter().map(|(listener, port)| serve(ctx, pod, listener, *port, &slots));
    tokio::select! {
        ended = futures::future::try_join_all(all) => ended.map(|_| ()),
        stop = crate::interrupted() => stop,
    }
}

#[derive(Debug, PartialEq)]
enum Local {
    Same,
    Any,
    Port(u16),
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn parse(text: &str) -> Outcome<(Local, &str)> {
    let wrong = || fail(format!("{text:?} is not LOCAL:REMOTE, PORT or :REMOTE"));
    let (local, remote) = match text.split_once(':') {
        None => (Local::Same, text),
        Some(("", remote)) => (Local::Any, remote),
        Some((local, remote)) => (Local::Port(number(local).ok_or_else(wrong)?), remote),
    };
    if remote.is_empty() || (number(remote).is_none() && remote.parse::<i64>().is_ok()) {
        return Err(wrong());
    }
    Ok((local, remote))
}

/// A service's port leads to its target port; names are looked up in the pod.
fn remote_port(remote: &str, pod: &Value, service: Option<&Value>) -> Outcome<u16> {
    let target = match service {
        None => Value::String(remote.to_owned()),
        Some(service) => {
            let ports = service.list("spec.ports");
            let port = ports
                .iter()
                .find(|p| p.text("name") == remote || Some(p.int("port")) == remote.parse().ok());
            let port = port.ok_or_else(|| {
                fail(format!("service {} does not have a port {remote}", service.name()))
            })?;
            match port.at("targetPort") {
                Value::Null => port.at("port").clone(),
                target => target.clone(),
            }
        }
    };
    let text = crate::jsonpath::plain(&target);
    if let Some(port) = number(&text) {
        return Ok(port);
    }
    let containers = pod.list("spec.containers").iter();
    let named = containers.flat_map(|c| c.list("ports")).find(|p| p.text("name") == text);
    named
        .and_then(|p| u16::try_from(p.int("containerPort")).ok())
        .ok_or_else(|| fail(format!("pod {} does not have a port named {text:?}", pod.name())))
}

async fn serve(
    ctx: &Ctx,
    pod: &Value,
    listener: &TcpListener,
    port: u16,
    slots: &Semaphore,
) -> Outcome {
    let mut connections = futures::stream::FuturesUnordered::new();
    loop {
        use futures::StreamExt;
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, peer) = accepted.map_err(|error| fail(format!("accept a connection: {error}")))?;
                let Ok(slot) = slots.try_acquire() else {
                    ctx.out.note(format!("error: {CONNECTIONS_MAX} connections are open, one more was refused"));
                    continue;
                };
                connections.push(async move {
                    let _slot = slot;
                    handle(ctx, pod, socket, peer, port).await
                });
            }
            Some(()) = connections.next() => {}
        }
    }
}

async fn handle(ctx: &Ctx, pod: &Value, socket: TcpStream, peer: SocketAddr, port: u16) {
    let local = socket.local_addr().map_or(port, |a| a.port());
    let _ = ctx.out.line(format!("Handling connection for {local}"));
    if let Err(failure) = forward(ctx, pod, socket, port).await {
        ctx.out.note(format!(
            "error: forward {peer} to port {port} of pod {}: {}",
            pod.name(),
            first_line(&failure)
        ));
    }
}

fn first_line(failure: &crate::error::Failure) -> String {
    let text = failure.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

async fn forward(ctx: &Ctx, pod: &Value, socket: TcpStream, port: u16) -> Outcome {
    let request = PortForwardRequest {
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        port: port.into(),
        pod_uid: pod.uid().to_owned(),
    };
    let (sender, mut frames) =
        logs::open(ctx, stream_request::Request::PortForward(request)).await?;
    let (mut from_peer, mut to_peer) = socket.into_split();
    let up = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from_peer.read(&mut buffer).await.unwrap_or(0);
            let frame = match count {
                0 => stream_frame::Frame::HalfClose(true),
                _ => stream_frame::Frame::Data(buffer[..count].to_vec().into()),
            };
            if sender.send(StreamFrame { frame: Some(frame) }).await.is_err() || count == 0 {
                // The other direction decides when the connection is over.
                std::future::pending::<()>().await;
            }
        }
    };
    let down = async {
        loop {
            match frames.message().await {
                Ok(Some(StreamFrame { frame: Some(frame) })) => match frame {
                    stream_frame::Frame::Data(bytes) => match to_peer.write_all(&bytes).await {
                        Ok(()) => {}
                        Err(_) => return Ok(()),
                    },
                    stream_frame::Frame::HalfClose(_) => {
                        let _ = to_peer.shutdown().await;
                    }
                    stream_frame::Frame::End(end) if !end.error.is_empty() => {
                        return bail(end.error);
                    }
                    stream_frame::Frame::End(_) => return Ok(()),
                    _ => {}
                },
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(ctx.client.explained(status)),
            }
        }
    };
    tokio::select! {
        () = up => Ok(()),
        result = down => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_parsed_and_resolved() {
        assert_eq!(parse("80").unwrap(), (Local::Same, "80"));
        assert_eq!(parse("8080:http").unwrap(), (Local::Port(8080), "http"));
        assert_eq!(parse(":80").unwrap(), (Local::Any, "80"));
        for text in ["", "x:80", "80:", "0", "70000", "1:70000"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80, "targetPort": "http"}]}});
        assert_eq!(remote_port("http", &pod, None).unwrap(), 8080);
        assert_eq!(remote_port("80", &pod, Some(&service)).unwrap(), 8080);
        assert_eq!(remote_port("web", &pod, Some(&service)).unwrap(), 8080);
        assert!(remote_port("81", &pod, Some(&service)).is_err());
    }
}
