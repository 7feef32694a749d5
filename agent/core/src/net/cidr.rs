//! IPv4 ranges in prefix notation, such as `10.244.1.0/24`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network: an address whose host bits are zero, and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    network: u32,
    prefix: u8,
}

/// Why a text is no IPv4 range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `a.b.c.d/n`.
    #[error("`{0}` is not an IPv4 range; hint: write it like 10.244.1.0/24")]
    Malformed(String),
    /// Bits are set behind the prefix.
    #[error("`{given}` has bits set behind its prefix; hint: the range is {network}")]
    HostBits {
        /// What was given.
        given: String,
        /// The range that was probably meant.
        network: Ipv4Cidr,
    },
}

impl Ipv4Cidr {
    /// The range of `prefix` bits that holds `address`; a prefix over 32 counts as 32.
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    /// The first address, the one that names the range.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The length of the prefix in bits, 0 to 32.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The last address, the broadcast address of a range on a wire.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network | !mask(self.prefix))
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// The address by which pods of the range reach their host: the one after the network's.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network.saturating_add(1))
    }

    /// The addresses pods can have: all but the network's, the gateway's and the last.
    pub fn pod_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (self.network.saturating_add(2)..u32::from(self.last())).map(Ipv4Addr::from)
    }

    /// Whether `address` is one a pod of this range can have.
    pub fn is_pod_address(&self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address != self.network()
            && address != self.gateway()
            && address != self.last()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(malformed)?;
        let network = Self::of(address, prefix);
        if network.network() != address {
            return Err(CidrError::HostBits { given: text.to_owned(), network });
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_names_its_parts() {
        let range: Ipv4Cidr = "10.244.1.0/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.244.1.0/24");
        assert_eq!(range.gateway(), Ipv4Addr::new(10, 244, 1, 1));
        assert_eq!(range.last(), Ipv4Addr::new(10, 244, 1, 255));
        assert_eq!(range.pod_addresses().count(), 253);
        assert!(range.is_pod_address(Ipv4Addr::new(10, 244, 1, 2)));
        assert!(!range.is_pod_address(Ipv4Addr::new(10, 244, 1, 1)));
        assert!(!range.is_pod_address(Ipv4Addr::new(10, 244, 2, 2)));
        let all: Ipv4Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::new(8, 8, 8, 8)));
    }

    #[test]
    fn refuses_with_a_hint() {
        for bad in ["", "10.244.1.0", "10.244.1.0/33", "10.244.1/24", "a/8", "10.244.1.0/-1"] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
        assert_eq!(
            "10.244.1.7/24".parse::<Ipv4Cidr>().unwrap_err().to_string(),
            "`10.244.1.7/24` has bits set behind its prefix; hint: the range is 10.244.1.0/24"
        );
    }
}
