//! One look at a container: HTTP, TCP, a command or gRPC, with its deadline.
//!
//! When to look and what the answers mean is the lifecycle's
//! (`timonier_agent_core::pod`); hooks use the same looks. HTTPS is refused: nothing here checks
//! certificates, and answering yes without a check would lie.

mod command;
mod grpc;
mod http;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::runtime::Runtime;

/// Kubernetes' default `timeoutSeconds`.
const TIMEOUT_DEFAULT_S: u64 = 1;

/// Where to look.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub runtime: &'a dyn Runtime,
    /// The container that commands run in.
    pub container_id: &'a str,
    /// For ports that are named.
    pub container: &'a Container,
    /// The pod's address; none while it has none.
    pub ip: Option<IpAddr>,
}

/// What is to be done there.
enum Look<'a> {
    Http(&'a HTTPGetAction),
    Tcp(&'a TCPSocketAction),
    Exec(&'a ExecAction),
    Grpc { port: i32, service: &'a str },
    Sleep(u64),
}

/// Ok, or what to put after `Liveness probe failed: `.
pub async fn probe(target: Target<'_>, probe: &Probe) -> Result<(), String> {
    let seconds = probe.timeout_seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let deadline = Duration::from_secs(seconds.unwrap_or(TIMEOUT_DEFAULT_S));
    let look = if let Some(http) = &probe.http_get {
        Look::Http(http)
    } else if let Some(tcp) = &probe.tcp_socket {
        Look::Tcp(tcp)
    } else if let Some(exec) = &probe.exec {
        Look::Exec(exec)
    } else if let Some(grpc) = &probe.grpc {
        Look::Grpc { port: grpc.port, service: grpc.service.as_deref().unwrap_or_default() }
    } else {
        return Err("the probe says nothing to do".to_owned());
    };
    within(deadline, run(target, look)).await
}

/// Runs a lifecycle hook, for at most `deadline`.
pub async fn hook(
    target: Target<'_>,
    handler: &LifecycleHandler,
    deadline: Duration,
) -> Result<(), String> {
    let look = if let Some(exec) = &handler.exec {
        Look::Exec(exec)
    } else if let Some(http) = &handler.http_get {
        Look::Http(http)
    } else if let Some(tcp) = &handler.tcp_socket {
        Look::Tcp(tcp)
    } else if let Some(sleep) = &handler.sleep {
        Look::Sleep(u64::try_from(sleep.seconds).unwrap_or(0))
    } else {
        return Err("the hook says nothing to do".to_owned());
    };
    within(deadline, run(target, look)).await
}

async fn within(
    deadline: Duration,
    look: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    match timeout(deadline, look).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", deadline.as_secs())),
    }
}

async fn run(target: Target<'_>, look: Look<'_>) -> Result<(), String> {
    match look {
        Look::Http(action) => {
            let port = port(target.container, &action.port)?;
            http::get(host(target, action.host.as_deref())?, port, action).await
        }
        Look::Tcp(action) => {
            let port = port(target.container, &action.port)?;
            let host = host(target, action.host.as_deref())?;
            let connected = TcpStream::connect((host.as_str(), port)).await;
            connected.map(drop).map_err(|error| format!("dial tcp {host}:{port}: {error}"))
        }
        Look::Exec(action) => {
            let command = action.command.clone().unwrap_or_default();
            command::run(target.runtime, target.container_id, command).await
        }
        Look::Grpc { port, service } => {
            let port = port_number(port)?;
            grpc::check(&host(target, None)?, port, service).await
        }
        Look::Sleep(seconds) => {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        }
    }
}

fn host(target: Target<'_>, given: Option<&str>) -> Result<String, String> {
    match given.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => {
            target.ip.map(|ip| ip.to_string()).ok_or_else(|| "the pod has no address".to_owned())
        }
    }
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let name = match port {
        IntOrString::Int(number) => return port_number(*number),
        IntOrString::String(name) => name,
    };
    let ports = container.ports.as_deref().unwrap_or_default();
    match ports.iter().find(|port| port.name.as_deref() == Some(name)) {
        Some(port) => port_number(port.container_port),
        None => name
            .parse()
            .map_err(|_| format!("container {} has no port named \"{name}\"", container.name)),
    }
}

fn port_number(number: i32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} is not a port"))
}

#[cfg(test)]
mod tests;
