//! What the network of a node should be, as the agent compiles it from its assignments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// All that is to be programmed on one node. One value is the whole: what is not in it goes away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredNet {
    /// The cluster's services. Every node has all of them, with the endpoints of all nodes.
    pub services: Vec<ServicePlan>,
    /// Ports of the host that lead to pods of this node.
    pub host_ports: Vec<HostPortPlan>,
    /// By the name of an isolated network, the addresses of its pods on all nodes. They accept
    /// new connections from each other, from the host and through node and host ports only.
    pub isolated: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

/// A pod's address and port.
pub type Endpoint = (Ipv4Addr, u16);

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The service's name.
    pub name: String,
    /// Its namespace.
    pub ns: String,
    /// Its address in the service range; none for a headless service.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Its ports.
    pub ports: Vec<ServicePortPlan>,
    /// `sessionAffinity: ClientIP`: connections from one client's address go to one endpoint. A
    /// client keeps its endpoint as long as that is there and moves only when it goes (or, for
    /// one in n clients, when an n-th endpoint comes); there is no timeout.
    pub client_ip_affinity: bool,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePortPlan {
    /// The port at the cluster address.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on every address of the host, 127.0.0.1 included.
    pub node_port: Option<u16>,
    /// The ready endpoints. None: connections are refused, at once.
    pub endpoints: Vec<Endpoint>,
}

/// One port of the host that leads to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPortPlan {
    /// The host's address; none (or 0.0.0.0) for all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// The host's port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The pod's address and port.
    pub target: Endpoint,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    /// Reads `TCP`, `UDP` or `SCTP` in any case; the empty text is TCP, as in a manifest.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("unknown protocol `{text}`; hint: it is one of TCP, UDP, SCTP")),
        }
    }
}
