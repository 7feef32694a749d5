//! What is free: service addresses, node ports, and the nodes' pod ranges.
//!
//! Pure functions of the snapshot, which is the only book of what is taken. They hold nothing: two
//! callers with the same snapshot may get the same answer, so whoever writes the answer down makes
//! the write conditional on what it read, or is the only writer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use timonier_proto::{NODE_PORTS, ObjectKey};

use crate::object::key_of;
use crate::op::Claimed;
use crate::snapshot::Snapshot;

/// Prefix length of a node's own pod range: 254 pods a node.
pub const NODE_PREFIX_BITS: u8 = 24;

/// Why nothing could be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("read the range {0:?}: not an IPv4 network like 10.96.0.0/16")]
    MalformedRange(String),
    #[error("allocate an address out of {0}: all are taken")]
    AddressesExhausted(String),
    #[error("allocate a node port out of {first}-{last}: all are taken", first = NODE_PORTS.start(), last = NODE_PORTS.end())]
    PortsExhausted,
    #[error("allocate a pod range out of {0}: all are taken")]
    RangesExhausted(String),
    #[error("address {address}: {why}")]
    AddressRefused { address: String, why: String },
    #[error("node port {port}: {why}")]
    PortRefused { port: u16, why: String },
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: u32,
    prefix_bits: u8,
}

impl Range {
    /// `10.96.0.0/16`; host bits are cleared.
    pub fn parse(text: &str) -> Result<Self, IpamError> {
        let error = || IpamError::MalformedRange(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix_bits: u8 = bits.parse().map_err(|_| error())?;
        if !(1..=30).contains(&prefix_bits) {
            return Err(error());
        }
        let mask = u32::MAX << (32 - prefix_bits);
        Ok(Self { base: u32::from(address) & mask, prefix_bits })
    }

    /// Number of addresses, network and broadcast among them.
    pub fn size(self) -> u32 {
        1 << (32 - self.prefix_bits)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(self.base) < self.size()
    }

    /// The `index`th address; the caller keeps it below [`Self::size`].
    pub fn nth(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + index)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix_bits)
    }
}

/// A free service address out of `range` (e.g. `10.96.0.0/16`). With `wanted`, that one or a
/// refusal. The search starts at a place that `seed` chooses, so that two masters or two requests
/// seldom collide and a freed address is not used again at once.
pub fn service_address(
    snapshot: &Snapshot,
    range: &str,
    wanted: Option<&str>,
    seed: u64,
) -> Result<Ipv4Addr, IpamError> {
    let range = Range::parse(range)?;
    let taken: BTreeSet<Ipv4Addr> = snapshot
        .list::<Service>(None)
        .filter_map(|s| s.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok())
        .collect();
    if let Some(text) = wanted {
        let refused =
            |why: &str| IpamError::AddressRefused { address: text.to_owned(), why: why.to_owned() };
        let address: Ipv4Addr = text.parse().map_err(|_| refused("not an IPv4 address"))?;
        if !range.contains(address) {
            return Err(refused(&format!("not in the service range {range}")));
        }
        if taken.contains(&address) {
            return Err(refused("provided IP is already allocated"));
        }
        return Ok(address);
    }
    // Neither the network's address nor the broadcast's.
    let usable = range.size() - 2;
    let start = u32::try_from(seed % u64::from(usable)).expect("below a u32");
    (0..usable)
        .map(|step| range.nth(1 + (start + step) % usable))
        .find(|address| !taken.contains(address))
        .ok_or_else(|| IpamError::AddressesExhausted(range.to_string()))
}

/// A free node port. With `wanted`, that one or a refusal. `also_taken` are ports that the same
/// request has got already. A port is taken whatever its protocol: simpler to reason about than
/// Kubernetes' rule, and there are 2,768.
pub fn node_port(
    snapshot: &Snapshot,
    wanted: Option<u16>,
    also_taken: &BTreeSet<u16>,
    seed: u64,
) -> Result<u16, IpamError> {
    let mut taken: BTreeSet<u16> = snapshot
        .list::<Service>(None)
        .filter_map(|s| s.spec.as_ref()?.ports.as_ref())
        .flatten()
        .filter_map(|p| u16::try_from(p.node_port?).ok())
        .collect();
    taken.extend(also_taken);
    let (first, last) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    if let Some(port) = wanted {
        let refused = |why: &str| IpamError::PortRefused { port, why: why.to_owned() };
        if !NODE_PORTS.contains(&port) {
            return Err(refused(&format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )));
        }
        if taken.contains(&port) {
            return Err(refused("provided port is already allocated"));
        }
        return Ok(port);
    }
    let count = last - first + 1;
    let start = u16::try_from(seed % u64::from(count)).expect("below a u16");
    (0..count)
        .map(|step| first + (start + step) % count)
        .find(|port| !taken.contains(port))
        .ok_or(IpamError::PortsExhausted)
}

/// A free /24 for a node's pods. A node keeps `preferred` (the range it already uses) when nobody
/// else has it; the first /24 stays free for the masters' own use.
pub fn node_range(
    snapshot: &Snapshot,
    cluster_range: &str,
    node: &str,
    preferred: Option<&str>,
) -> Result<String, IpamError> {
    node_range_beside(snapshot, cluster_range, node, preferred, &BTreeSet::new())
}

/// Some /24 of the cluster's range, perhaps taken: where to look when the first free one was given
/// away by another master.
pub fn some_node_range(cluster_range: &str, seed: u64) -> Result<String, IpamError> {
    let cluster = Range::parse(cluster_range)?;
    let step = 1_u32 << (32 - NODE_PREFIX_BITS);
    let count = (cluster.size() / step).saturating_sub(1).max(1);
    let index = 1 + u32::try_from(seed % u64::from(count)).expect("below a u32");
    let base = cluster.base + index * step;
    Ok(Range { base, prefix_bits: NODE_PREFIX_BITS }.to_string())
}

/// As [`node_range`]; `also_taken` are ranges that are being given to other nodes just now.
pub fn node_range_beside(
    snapshot: &Snapshot,
    cluster_range: &str,
    node: &str,
    preferred: Option<&str>,
    also_taken: &BTreeSet<&str>,
) -> Result<String, IpamError> {
    let cluster = Range::parse(cluster_range)?;
    if let Some(own) = snapshot
        .get::<Node>("", node)
        .and_then(|n| n.spec.as_ref()?.pod_cidr.clone())
        .filter(|range| !range.is_empty())
    {
        return Ok(own);
    }
    let taken: BTreeSet<&str> = snapshot
        .list::<Node>(None)
        .filter(|n| n.metadata.name.as_deref() != Some(node))
        .filter_map(|n| n.spec.as_ref()?.pod_cidr.as_deref())
        .chain(also_taken.iter().copied())
        .collect();
    if let Some(range) = preferred.and_then(|text| Range::parse(text).ok())
        && range.prefix_bits == NODE_PREFIX_BITS
        && cluster.contains(range.nth(0))
        && !taken.contains(range.to_string().as_str())
    {
        return Ok(range.to_string());
    }
    let step = 1_u32 << (32 - NODE_PREFIX_BITS);
    (1..cluster.size() / step)
        .map(|index| {
            Range { base: cluster.base + index * step, prefix_bits: NODE_PREFIX_BITS }.to_string()
        })
        .find(|range| !taken.contains(range.as_str()))
        .ok_or_else(|| IpamError::RangesExhausted(cluster.to_string()))
}

/// The object, other than `except`, that has it.
pub fn holder(snapshot: &Snapshot, what: &Claimed, except: &ObjectKey) -> Option<ObjectKey> {
    match what {
        Claimed::ServiceAddress(address) => service_with(snapshot, except, |spec| {
            spec.cluster_ip.as_deref() == Some(address.as_str())
        }),
        Claimed::NodePort(port) => service_with(snapshot, except, |spec| {
            let mut ports = spec.ports.iter().flatten();
            ports.any(|p| p.node_port == Some(i32::from(*port)))
        }),
        Claimed::PodRange(range) => snapshot
            .list::<Node>(None)
            .find(|node| {
                let has = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref());
                has == Some(range.as_str()) && key_of(&***node) != *except
            })
            .map(|node| key_of(&**node)),
    }
}

fn service_with(
    snapshot: &Snapshot,
    except: &ObjectKey,
    has: impl Fn(&ServiceSpec) -> bool,
) -> Option<ObjectKey> {
    snapshot
        .list::<Service>(None)
        .find(|s| s.spec.as_ref().is_some_and(&has) && key_of(&***s) != *except)
        .map(|service| key_of(&**service))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::harness::{Cluster, object};

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new(1);
        for (name, ip, port) in [("a", "10.96.0.1", 30000), ("b", "None", 30001)] {
            cluster.create(object::<Service>(json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]},
            })));
        }
        cluster.create(object::<Node>(json!({
            "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
        })));
        cluster
    }

    #[test]
    fn addresses_and_ports_are_given_once() {
        let snapshot = cluster().snapshot;
        let address = |wanted, seed| {
            service_address(&snapshot, "10.96.0.0/30", wanted, seed)
                .map_or_else(|e| e.to_string(), |a| a.to_string())
        };
        // A /30 has two usable addresses, and one is taken.
        assert_eq!((address(None, 0), address(None, 1)), ("10.96.0.2".into(), "10.96.0.2".into()));
        assert!(address(Some("10.96.0.1"), 0).ends_with("provided IP is already allocated"));
        assert!(address(Some("10.97.0.1"), 0).ends_with("not in the service range 10.96.0.0/30"));
        assert!(address(Some("x"), 0).ends_with("not an IPv4 address"));
        let none = BTreeSet::new();
        assert_eq!(node_port(&snapshot, None, &none, 0), Ok(30002));
        assert_eq!(node_port(&snapshot, None, &BTreeSet::from([30002]), 0), Ok(30003));
        assert!(node_port(&snapshot, Some(30001), &none, 0).is_err());
        assert!(node_port(&snapshot, Some(80), &none, 0).is_err());
        assert_eq!(node_port(&snapshot, Some(30500), &none, 0), Ok(30500));
    }

    #[test]
    fn a_node_keeps_its_range() {
        let snapshot = cluster().snapshot;
        let range = |node, preferred| {
            node_range(&snapshot, "10.244.0.0/16", node, preferred)
                .expect("the cluster's range has room")
        };
        assert_eq!(range("n1", None), "10.244.1.0/24");
        assert_eq!(range("n2", None), "10.244.2.0/24");
        assert_eq!(range("n2", Some("10.244.9.0/24")), "10.244.9.0/24");
        assert_eq!(range("n2", Some("10.244.1.0/24")), "10.244.2.0/24");
        assert_eq!(range("n2", Some("192.168.0.0/24")), "10.244.2.0/24");
        assert!(node_range(&snapshot, "10.244.0.0/23", "n2", None).is_err());
        assert!(Range::parse("10.0.0.0").is_err() && Range::parse("10.0.0.0/33").is_err());
    }
}
