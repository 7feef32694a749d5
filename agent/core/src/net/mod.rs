//! The pure network plan of a node: which address a pod gets, and which nftables rules make
//! services, node ports, host ports and isolated networks out of the pods' addresses.
//!
//! Everything here is data in, data out. It opens no socket, runs no program and knows no clock;
//! `timonier-agent`'s `net` module carries the plan out. It plans nothing between hosts (overlay),
//! no names (DNS) and no encryption.

mod cidr;
mod desired;
mod ipam;
mod names;
mod ruleset;
mod script;

pub use cidr::{CidrError, Ipv4Cidr};
pub use desired::{DesiredNet, Endpoint, HostPortPlan, Protocol, ServicePlan, ServicePortPlan};
pub use ipam::{Ipam, IpamError};
pub use names::{bridge_name, gateway_mac, host_link_name, pod_mac, table_name};
pub use ruleset::{NodeRanges, Ruleset};
