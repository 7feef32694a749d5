//! One pod's link: a veth pair between the node's bridge and `eth0` in the pod's namespace.
//!
//! The pod's address has no neighbours (/32) and everything goes to the gateway, so pods reach
//! each other through the host's IP stack, where services and isolation are decided. The default
//! route comes last, when the bridge passes frames: a container's init waits for it before it
//! starts the pod's program.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use timonier_agent_core::net::{host_link_name, pod_mac};
use tracing::warn;

use super::bridge::{self, Switching};
use super::netlink::{Netlink, Request, link_is_up, link_peer};

const POD_LINK: &str = "eth0";
const LOOPBACK_INDEX: u32 = 1;
/// How long the bridge may take to pass the pod's frames; it is a few milliseconds.
const PASSING_TIMEOUT: Duration = Duration::from_secs(1);
const PASSING_POLL: Duration = Duration::from_millis(1);

/// What to wire.
pub(super) struct PodLink {
    pub(super) uid: String,
    pub(super) pid: u32,
    pub(super) ip: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) bridge_index: u32,
    pub(super) switching: Switching,
}

/// What was being done when it failed, and the kernel's answer.
pub(super) type StepError = (&'static str, io::Error);

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> StepError {
    move |error| (step, error.into())
}

impl PodLink {
    /// Wires the pod, or finds it wired. Moves the calling thread into the pod's namespace for
    /// good: run it on a thread of its own.
    pub(super) fn attach(&self) -> Result<(), StepError> {
        let namespace = self.open_namespace()?;
        let mut host = Netlink::open().map_err(at("opening a netlink socket"))?;
        let created = self.create_pair(&mut host, &namespace)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(at("entering the pod's network namespace"))?;
        let mut pod = Netlink::open().map_err(at("opening a netlink socket in the pod"))?;
        let mut eth0 = pod.link(POD_LINK).map_err(at("finding eth0"))?;
        if !created && !self.is_pair(&mut host, eth0.as_ref())? {
            if eth0.is_some() {
                return Err(at("finding eth0")(io::Error::other("it is not the agent's")));
            }
            // The other end is in a namespace that is gone or going: the pod was started anew.
            detach_with(&mut host, &self.uid).map_err(at("removing the old link"))?;
            if !self.create_pair(&mut host, &namespace)? {
                return Err(at("creating the link")(Errno::EXIST));
            }
            eth0 = pod.link(POD_LINK).map_err(at("finding eth0"))?;
        }
        let eth0 = eth0.ok_or_else(|| at("finding eth0")(Errno::NODEV))?;
        self.configure(&mut pod, eth0.header.index)?;
        self.wait_until_passing(&mut host)?;
        let default = self.route(eth0.header.index).gateway(self.gateway).build();
        pod.apply_one(Request::put_route(default)).map_err(at("adding the default route"))
    }

    fn open_namespace(&self) -> Result<File, StepError> {
        let step = "opening the pod's network namespace";
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid)).map_err(at(step))?;
        let own = File::open("/proc/thread-self/ns/net").map_err(at(step))?;
        let inode = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        if inode(&namespace).map_err(at(step))? == inode(&own).map_err(at(step))? {
            let error = io::Error::other("the process is in the host's own network namespace");
            return Err((step, error));
        }
        Ok(namespace)
    }

    /// Makes the pair, the far end in the pod's namespace from the first; false if a link of that
    /// name is there.
    fn create_pair(&self, host: &mut Netlink, namespace: &File) -> Result<bool, StepError> {
        let name = host_link_name(&self.uid);
        let peer = LinkUnspec::new_with_name(POD_LINK)
            .address(pod_mac(self.ip).to_vec())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name.clone())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge_index)
            .up()
            .build();
        let port = self.switching.port_request(LinkUnspec::new_with_name(&name).build());
        let [created, port] =
            host.apply([Request::create_link(pair), port]).map_err(at("creating the link"))?;
        match created {
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(at("creating the link")(error)),
            Ok(()) => port.map(|()| true).map_err(at("setting up the bridge's port")),
        }
    }

    /// Whether `eth0` is the other end of this pod's link on the host.
    fn is_pair(&self, host: &mut Netlink, eth0: Option<&LinkMessage>) -> Result<bool, StepError> {
        let link = host.link(&host_link_name(&self.uid)).map_err(at("finding the link"))?;
        Ok(match (link, eth0) {
            (Some(link), Some(eth0)) => {
                link_peer(&link) == Some(eth0.header.index)
                    && link_peer(eth0) == Some(link.header.index)
            }
            _ => false,
        })
    }

    fn configure(&self, pod: &mut Netlink, eth0: u32) -> Result<(), StepError> {
        let up = |index| Request::change_link(LinkUnspec::new_with_index(index).up().build());
        let [loopback, link, address, gateway] = pod
            .apply([
                up(LOOPBACK_INDEX),
                up(eth0),
                Request::put_address(bridge::address(eth0, self.ip, 32)),
                Request::put_route(
                    self.route(eth0)
                        .scope(RouteScope::Link)
                        .destination_prefix(self.gateway, 32)
                        .build(),
                ),
            ])
            .map_err(at("configuring eth0"))?;
        loopback.map_err(at("bringing up lo"))?;
        link.map_err(at("bringing up eth0"))?;
        address.map_err(at("adding the address"))?;
        gateway.map_err(at("adding the route to the gateway"))
    }

    /// The kernel learns in the background that a link is up; only then does the bridge pass its
    /// frames, and only then is the bridge itself up where this is its first pod. What is sent
    /// before is lost without a sign, and a question for a hardware address is asked again after a
    /// whole second: so nobody is to send before.
    #[allow(clippy::disallowed_methods)] // On a thread of its own.
    fn wait_until_passing(&self, host: &mut Netlink) -> Result<(), StepError> {
        let link = LinkUnspec::new_with_name(&host_link_name(&self.uid)).build();
        let bridge = LinkUnspec::new_with_index(self.bridge_index).build();
        let start = Instant::now();
        for awaited in [link, bridge] {
            let mut is_up = || {
                let found = host.look_up(awaited.clone());
                let found = found.map_err(at("waiting for the bridge to pass frames"))?;
                Ok(found.is_some_and(|link| link_is_up(&link)))
            };
            while !is_up()? {
                if start.elapsed() > PASSING_TIMEOUT {
                    warn!(uid = self.uid, "the bridge does not pass the pod's first frames yet");
                    return Ok(());
                }
                thread::sleep(PASSING_POLL);
            }
        }
        Ok(())
    }

    fn route(&self, eth0: u32) -> RouteMessageBuilder<Ipv4Addr> {
        RouteMessageBuilder::<Ipv4Addr>::new().output_interface(eth0).pref_source(self.ip)
    }
}

/// Removes the pod's link from the host; its other end goes with it. No error if it is gone.
pub(super) fn detach(uid: &str) -> io::Result<()> {
    detach_with(&mut Netlink::open()?, uid)
}

fn detach_with(host: &mut Netlink, uid: &str) -> io::Result<()> {
    let link = LinkUnspec::new_with_name(&host_link_name(uid)).build();
    match host.apply_one(Request::delete_link(link)) {
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        other => other,
    }
}
