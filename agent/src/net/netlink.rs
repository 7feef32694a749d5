//! A blocking conversation with the kernel's routing tables.
//!
//! The kernel answers route netlink within the call that asks, so waiting on an event loop would
//! only add latency: requests go out several to one system call, and their answers are there when
//! it returns. The socket belongs to the network namespace of the thread that opened it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{LinkUnspec, packet_core::DecodeError};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Datagrams one dump may take; one holds some 10 links.
const DUMP_DATAGRAMS_MAX: usize = 20_000;

/// One change to ask for.
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// Makes a link; fails with `EEXIST` where one of that name is.
    pub(super) fn create_link(link: LinkMessage) -> Self {
        Self { message: RouteNetlinkMessage::NewLink(link), flags: NLM_F_CREATE | NLM_F_EXCL }
    }

    /// Changes a link there is.
    pub(super) fn change_link(link: LinkMessage) -> Self {
        Self { message: RouteNetlinkMessage::NewLink(link), flags: 0 }
    }

    /// Removes a link.
    pub(super) fn delete_link(link: LinkMessage) -> Self {
        Self { message: RouteNetlinkMessage::DelLink(link), flags: 0 }
    }

    /// Adds an address, or finds it there.
    pub(super) fn put_address(address: AddressMessage) -> Self {
        Self {
            message: RouteNetlinkMessage::NewAddress(address),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Removes an address.
    pub(super) fn delete_address(address: AddressMessage) -> Self {
        Self { message: RouteNetlinkMessage::DelAddress(address), flags: 0 }
    }

    /// Adds a route, or puts it in the place of one with the same destination and metric.
    pub(super) fn put_route(route: RouteMessage) -> Self {
        Self { message: RouteNetlinkMessage::NewRoute(route), flags: NLM_F_CREATE | NLM_F_REPLACE }
    }
}

/// An open conversation.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(socket.as_fd(), Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests at once. The kernel works through them in order, also after one that
    /// fails; the answers are in the same order.
    pub(super) fn apply<const N: usize>(
        &mut self,
        requests: [Request; N],
    ) -> io::Result<[Result<(), Errno>; N]> {
        let first = self.sequence.wrapping_add(1);
        let mut buffer = Vec::with_capacity(1024);
        for request in requests {
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            self.push(&mut buffer, request.message, flags);
        }
        self.socket.send(&buffer, 0)?;
        let mut answers = [Ok(()); N];
        let mut open = N;
        while open > 0 {
            for message in self.receive()? {
                let at = message.header.sequence_number.wrapping_sub(first) as usize;
                if let (NetlinkPayload::Error(answer), Some(slot)) =
                    (message.payload, answers.get_mut(at))
                {
                    *slot = errno(answer.raw_code());
                    open -= 1;
                }
            }
        }
        Ok(answers)
    }

    /// Sends one request and gives the kernel's answer.
    pub(super) fn apply_one(&mut self, request: Request) -> io::Result<()> {
        let [answer] = self.apply([request])?;
        Ok(answer?)
    }

    /// The link of that name, none if there is none.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        self.look_up(LinkUnspec::new_with_name(name).build())
    }

    /// The link that `of` names or numbers, none if there is none.
    pub(super) fn look_up(&mut self, of: LinkMessage) -> io::Result<Option<LinkMessage>> {
        let question = RouteNetlinkMessage::GetLink(of);
        let mut found = None;
        let result = self.ask(question, NLM_F_ACK, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                found = Some(link);
            }
        });
        match result {
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// All links of the namespace.
    pub(super) fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let mut links = Vec::new();
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.ask(question, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(link);
            }
        })?;
        Ok(links)
    }

    /// All addresses of the namespace.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let mut addresses = Vec::new();
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.ask(question, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message {
                addresses.push(address);
            }
        })?;
        Ok(addresses)
    }

    fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        self.push(&mut buffer, question, NLM_F_REQUEST | flags);
        self.socket.send(&buffer, 0)?;
        for _ in 0..DUMP_DATAGRAMS_MAX {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(answer) => return Ok(errno(answer.raw_code())?),
                    _ => {}
                }
            }
        }
        Err(io::Error::other("the kernel's answer does not end"))
    }

    fn push(&mut self, buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let start = buffer.len();
        buffer.resize(start + packet.buffer_len().next_multiple_of(4), 0);
        packet.serialize(&mut buffer[start..]);
    }

    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(malformed)?;
            let taken = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            messages.push(message);
            if taken == 0 {
                break;
            }
            rest = &rest[taken..];
        }
        Ok(messages)
    }
}

/// The name of a link.
pub(super) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The index of the bridge a link is a port of.
pub(super) fn link_controller(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// The index of the other end of a veth pair, in that end's namespace.
pub(super) fn link_peer(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// Whether the link is up on both sides, and all of the kernel knows it.
pub(super) fn link_is_up(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}

fn errno(code: i32) -> Result<(), Errno> {
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(code.saturating_abs())),
    }
}

fn malformed(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
