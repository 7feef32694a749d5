//! Names and link addresses the kernel sees, derived from the cluster's own names, so that a
//! restarted agent finds its things again without keeping a list of them.

use std::net::Ipv4Addr;

/// The longest name an interface can have, in bytes (the kernel's `IFNAMSIZ` less the final zero).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

const BRIDGE_PREFIX: &str = "tim-";
const HOST_LINK_PREFIX: &str = "tv";

/// The bridge of the agent of `node`: `tim-<node>` where that fits an interface's name, else
/// `tim-` and a hash of the node's name.
pub fn bridge_name(node: &str) -> String {
    let fits = node.len() <= INTERFACE_NAME_BYTES_MAX - BRIDGE_PREFIX.len()
        && node.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits && !node.is_empty() {
        return format!("{BRIDGE_PREFIX}{node}");
    }
    format!("{BRIDGE_PREFIX}{:011x}", hash(node) >> 20)
}

/// The host's end of the veth pair of the pod with this uid: `tv` and 12 hexadecimal digits.
pub fn host_link_name(uid: &str) -> String {
    format!("{HOST_LINK_PREFIX}{:012x}", hash(uid) >> 16)
}

/// The nftables table of the agent of `node`.
pub fn table_name(node: &str) -> String {
    let clean: String = node
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .collect();
    format!("timonier-{clean}")
}

/// The link address of the pod with address `ip`: locally administered, and always the same for
/// the same address, so a neighbour's cache is right when an address is used again.
pub fn pod_mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The link address of a bridge with address `gateway`. A bridge without one of its own takes the
/// lowest of its ports', which changes under the pods' feet as pods come and go.
pub fn gateway_mac(gateway: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = gateway.octets();
    [0x0a, 0x57, a, b, c, d]
}

/// FNV-1a with 64 bits and a final mix: stable across versions and machines, not secret.
pub(super) fn hash(text: &str) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state ^= state >> 32;
    state = state.wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel() {
        assert_eq!(bridge_name("node-1"), "tim-node-1");
        let long = bridge_name("a-node-with-a-long-name");
        assert_eq!(long.len(), INTERFACE_NAME_BYTES_MAX);
        assert_ne!(long, bridge_name("a-node-with-a-long-namf"));
        assert_eq!(host_link_name("8f1a").len(), 14);
        assert_ne!(host_link_name("8f1a"), host_link_name("8f1b"));
        assert_eq!(table_name("Node 1;drop"), "timonier-Node_1_drop");
    }

    #[test]
    fn link_addresses_are_local_and_differ() {
        let ip = Ipv4Addr::new(10, 244, 1, 1);
        for mac in [pod_mac(ip), gateway_mac(ip)] {
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, not a group");
        }
        assert_ne!(pod_mac(ip), gateway_mac(ip));
    }
}
