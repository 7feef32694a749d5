//! The node's bridge: the link all its pods hang on, and the host's address among them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder,
};
use rustix::io::Errno;
use timonier_agent_core::net::{gateway_mac, host_link_name};

use super::netlink::{Netlink, Request, link_controller, link_name};
use super::{NetConfig, NetError};

/// Added to the bridge's index to make its route's metric, which so differs from those of other
/// agents on the machine, each with its own route to the same service range.
const SERVICE_ROUTE_METRIC_MIN: u32 = 20_000;
const HOST_LINK_NAME_PREFIX: &str = "tv";

/// How the kernel treats frames between two pods of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switching {
    /// They never pass from port to port: pods reach each other through the host's IP stack.
    Routed,
    /// `bridge-nf-call-iptables` is on: the kernel runs the IP rules on bridged frames too, and
    /// passes a translated one from port to port, back out of its own where a pod meets itself.
    Filtered,
}

impl Switching {
    /// What the kernel does at present.
    pub(super) fn current() -> Self {
        match fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables") {
            Ok(value) if value.trim() != "0" => Self::Filtered,
            _ => Self::Routed,
        }
    }

    /// The request that sets up a port of the bridge for it.
    pub(super) fn port_request(self, port: LinkMessage) -> Request {
        let filtered = self == Self::Filtered;
        let mut settings = LinkBridgePort::new(0).hairpin(filtered).isolated(!filtered).build();
        settings.header.index = port.header.index;
        settings.attributes.extend(port.attributes);
        Request::change_link(settings)
    }
}

/// Makes the bridge or takes over the one there is; its index.
pub(super) fn set_up(config: &NetConfig) -> Result<u32, NetError> {
    let failed = |step| {
        move |source: io::Error| NetError::Bridge { step, bridge: config.bridge.clone(), source }
    };
    let mut netlink = Netlink::open().map_err(failed("opening a netlink socket for"))?;
    let taken = range_taken(&mut netlink, config).map_err(failed("looking for others beside"))?;
    if let Some((link, address)) = taken {
        let (node, range) = (config.node.clone(), config.pod_cidr);
        return Err(NetError::RangeTaken { node, range, link, address });
    }
    let gateway = config.pod_cidr.gateway();
    let link = LinkBridge::new(&config.bridge)
        .address(gateway_mac(gateway).to_vec())
        .mcast_snooping(false)
        .up()
        .build();
    match netlink.apply_one(Request::create_link(link)) {
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {}
        other => other.map_err(failed("creating"))?,
    }
    let link = netlink
        .link(&config.bridge)
        .and_then(|link| link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
        .map_err(failed("finding"))?;
    let index = link.header.index;
    settings(config)?;
    remove_other_addresses(&mut netlink, index, gateway).map_err(failed("readdressing"))?;
    let link =
        LinkUnspec::new_with_index(index).address(gateway_mac(gateway).to_vec()).up().build();
    let [up, address, route] = netlink
        .apply([
            Request::change_link(link),
            Request::put_address(address(index, gateway, config.pod_cidr.prefix())),
            Request::put_route(service_route(config, index)),
        ])
        .map_err(failed("configuring"))?;
    up.map_err(|errno| failed("bringing up")(errno.into()))?;
    address.map_err(|errno| failed("addressing")(errno.into()))?;
    route.map_err(|errno| failed("routing the service range to")(errno.into()))?;
    Ok(index)
}

/// Removes the bridge and the links of its pods; nothing to do where there is none.
pub(super) fn remove(name: &str) -> Result<(), NetError> {
    let failed = |source| NetError::Bridge { step: "removing", bridge: name.to_owned(), source };
    let mut netlink = Netlink::open().map_err(failed)?;
    let Some(bridge) = netlink.link(name).map_err(failed)? else { return Ok(()) };
    for (index, _) in ports(&mut netlink, bridge.header.index).map_err(failed)? {
        delete(&mut netlink, index).map_err(failed)?;
    }
    delete(&mut netlink, bridge.header.index).map_err(failed)
}

/// Removes the links of pods that are none of `uids`; the names of those removed.
pub(super) fn remove_leftovers<'a>(
    config: &NetConfig,
    index: u32,
    uids: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, NetError> {
    let failed = |source| NetError::Leftovers { bridge: config.bridge.clone(), source };
    let known: Vec<String> = uids.map(host_link_name).collect();
    let mut netlink = Netlink::open().map_err(failed)?;
    let mut removed = Vec::new();
    for (port, name) in ports(&mut netlink, index).map_err(failed)? {
        if !known.contains(&name) {
            delete(&mut netlink, port).map_err(failed)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Sets all ports of the bridge up for `switching`.
pub(super) fn set_switching(
    config: &NetConfig,
    index: u32,
    switching: Switching,
) -> Result<(), NetError> {
    let failed = |source| NetError::Bridge {
        step: "setting up the ports of",
        bridge: config.bridge.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(failed)?;
    for (port, _) in ports(&mut netlink, index).map_err(failed)? {
        let port = LinkUnspec::new_with_index(port).build();
        match netlink.apply_one(switching.port_request(port)) {
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

/// Removes one link; one that is gone already is no error.
pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let link = LinkUnspec::new_with_index(index).build();
    match netlink.apply_one(Request::delete_link(link)) {
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// An IPv4 address on a link.
pub(super) fn address(index: u32, ip: Ipv4Addr, prefix: u8) -> AddressMessage {
    AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(ip, prefix).build()
}

/// The index and name of each pod's link on the bridge.
fn ports(netlink: &mut Netlink, bridge: u32) -> io::Result<Vec<(u32, String)>> {
    let links = netlink.links()?;
    Ok(links
        .iter()
        .filter(|link| link_controller(link) == Some(bridge))
        .filter_map(|link| Some((link.header.index, link_name(link)?.to_owned())))
        .filter(|(_, name)| name.starts_with(HOST_LINK_NAME_PREFIX))
        .collect())
}

/// The link that has an address of the node's pods and is not its bridge. One that only routes a
/// larger range, as a host's way to its own network may, does no harm.
fn range_taken(
    netlink: &mut Netlink,
    config: &NetConfig,
) -> io::Result<Option<(String, Ipv4Addr)>> {
    for message in netlink.addresses()? {
        for attribute in &message.attributes {
            let AddressAttribute::Local(IpAddr::V4(address)) = attribute else { continue };
            if !config.pod_cidr.contains(*address) {
                continue;
            }
            let link = netlink.look_up(LinkUnspec::new_with_index(message.header.index).build())?;
            let name = link.as_ref().and_then(link_name).filter(|name| *name != config.bridge);
            if let Some(name) = name {
                return Ok(Some((name.to_owned(), *address)));
            }
        }
    }
    Ok(None)
}

fn remove_other_addresses(netlink: &mut Netlink, index: u32, keep: Ipv4Addr) -> io::Result<()> {
    for old in netlink.addresses()? {
        let ours = old.header.index == index && old.header.family == AddressFamily::Inet;
        let kept = old.attributes.contains(&AddressAttribute::Local(IpAddr::V4(keep)));
        if ours && !kept {
            netlink.apply_one(Request::delete_address(old))?;
        }
    }
    Ok(())
}

/// The host itself reaches services: a packet needs a route before its destination is
/// translated, and its source becomes the bridge's address.
fn service_route(config: &NetConfig, index: u32) -> RouteMessage {
    let range = config.service_cidr;
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range.network(), range.prefix())
        .output_interface(index)
        .pref_source(config.pod_cidr.gateway())
        .scope(RouteScope::Link)
        .priority(SERVICE_ROUTE_METRIC_MIN.saturating_add(index))
        .build()
}

/// Makes the kernel's settings what pods need, where they are not.
pub(super) fn settings(config: &NetConfig) -> Result<(), NetError> {
    let bridge = &config.bridge;
    let v4 = "/proc/sys/net/ipv4";
    // Node ports on 127.0.0.1: answers from pods become answers to that address on the bridge.
    set(&format!("{v4}/conf/{bridge}/route_localnet"), "1")?;
    set(&format!("{v4}/conf/{bridge}/rp_filter"), "2")?;
    // Pods reach each other through the host: to tell them of a shorter way would be wrong, and
    // would use up the rate at which they are told that a port is closed. The switch for all
    // overrides the bridge's; the other interfaces have their own, on by default.
    set(&format!("{v4}/conf/{bridge}/send_redirects"), "0")?;
    set(&format!("{v4}/conf/all/send_redirects"), "0")?;
    set(&format!("{v4}/ip_forward"), "1")
}

fn set(path: &str, value: &'static str) -> Result<(), NetError> {
    if fs::read_to_string(path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| NetError::Setting {
        path: path.to_owned(),
        value,
        source,
    })
}
