//! Connections made from within a pod's network namespace.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Connects to a port of the loopback that the process `pid` sees. A thread of its own enters the
/// namespace and ends; the socket stays in it.
pub(super) async fn connect(pid: u32, port: u16, deadline: Duration) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("pod-connect".to_owned()).spawn(move || {
        // Who asked may be gone.
        let _ = sender.send(connect_here(pid, port, deadline));
    })?;
    let stream = receiver.await.map_err(|_| io::Error::other("the thread is gone"))??;
    TcpStream::from_std(stream)
}

/// Leaves the calling thread in the other namespace.
fn connect_here(pid: u32, port: u16, deadline: Duration) -> io::Result<std::net::TcpStream> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = std::net::TcpStream::connect_timeout(&address, deadline)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
