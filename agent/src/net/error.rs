//! What can go wrong with the network, one variant an operation.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use timonier_agent_core::net::{IpamError, Ipv4Cidr};

/// A failed operation on the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A setting that cannot work.
    #[error("cannot set up the network of node {node}: {reason}")]
    Config {
        /// The node.
        node: String,
        /// What is wrong, with a hint.
        reason: String,
    },
    /// Another link of the host has the pods' addresses: packets for pods would go there.
    #[error(
        "cannot set up the network of node {node}: link {link} of this host has {address}, in the \
         range of the node's pods, {range}; hint: if another cluster runs here, start the masters of \
         one of them with another --cluster-range; if nothing uses the link any more, remove it \
         (`ip link del {link}`)"
    )]
    RangeTaken {
        /// The node.
        node: String,
        /// Of its pods.
        range: Ipv4Cidr,
        /// The other link.
        link: String,
        /// What it has there.
        address: Ipv4Addr,
    },
    /// Making, changing or removing the bridge.
    #[error("{step} bridge {bridge}: {source}{}", hint(.source))]
    Bridge {
        /// What was done to it, such as `creating`.
        step: &'static str,
        /// The bridge.
        bridge: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Changing a kernel setting.
    #[error("setting {path} to {value}: {source}{}", hint(.source))]
    Setting {
        /// The file under /proc/sys.
        path: String,
        /// The value.
        value: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An address could not be given or adopted.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// Wiring a pod to the bridge.
    #[error("attaching pod {uid} (process {pid}) to the network: {step}: {source}")]
    Attach {
        /// The pod.
        uid: String,
        /// The process whose network namespace is the pod's.
        pid: u32,
        /// What was being done, such as `adding the default route`.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Removing a pod's link.
    #[error("detaching pod {uid} from the network: {source}")]
    Detach {
        /// The pod.
        uid: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Finding or removing links of pods that are gone.
    #[error("removing leftover links of bridge {bridge}: {source}")]
    Leftovers {
        /// The bridge.
        bridge: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Programming the node's nftables table.
    #[error("programming nftables table {table}: {reason}")]
    Rules {
        /// The table.
        table: String,
        /// What nft said, with a hint where there is one.
        reason: String,
    },
    /// Opening the host's FORWARD chain for the bridge.
    #[error("letting bridge {bridge} pass the host's FORWARD chain: {reason}")]
    Forwarding {
        /// The bridge.
        bridge: String,
        /// What iptables said.
        reason: String,
    },
    /// Writing a file for pods.
    #[error("writing {}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// An operation that took too long.
    #[error("{operation} took more than {seconds} s")]
    Deadline {
        /// The operation.
        operation: String,
        /// Its deadline.
        seconds: u64,
    },
    /// The network was torn down, or its runtime is shutting down.
    #[error("the network of node {node} is torn down")]
    Closed {
        /// The node.
        node: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; hint: the agent needs root",
        io::ErrorKind::ReadOnlyFilesystem => "; hint: /proc/sys must be writable for the agent",
        _ => "",
    }
}
