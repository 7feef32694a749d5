//! Which pod has which address of the node's range.
//!
//! Addresses are handed out round robin: the one that was free for the longest time comes first,
//! so a released address rests as long as it can before somebody else gets it (connections and
//! caches that still point to it die meanwhile). It keeps nothing on disk: a restarted agent
//! adopts the addresses its containers carry.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use super::Ipv4Cidr;

/// The addresses of one node's pods, by pod uid.
#[derive(Debug, Clone)]
pub struct Ipam {
    range: Ipv4Cidr,
    held: BTreeMap<String, Ipv4Addr>,
    holders: BTreeMap<Ipv4Addr, String>,
    /// Free addresses, longest free first.
    free: VecDeque<Ipv4Addr>,
}

/// Why an address could not be given or adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address has a pod.
    #[error(
        "no address left for pod {uid}: all {count} of {range} are taken; \
         hint: fewer pods on this node, or a larger pod range"
    )]
    Full {
        /// The pod that got none.
        uid: String,
        /// The node's range.
        range: Ipv4Cidr,
        /// How many addresses it has for pods.
        count: usize,
    },
    /// The address to adopt is not one a pod of this node can have.
    #[error("cannot adopt {ip} for pod {uid}: it is no pod address of {range}")]
    Foreign {
        /// The pod.
        uid: String,
        /// Its address.
        ip: Ipv4Addr,
        /// The node's range.
        range: Ipv4Cidr,
    },
    /// The address to adopt belongs to another pod.
    #[error("cannot adopt {ip} for pod {uid}: pod {holder} has it")]
    Taken {
        /// The pod.
        uid: String,
        /// The address.
        ip: Ipv4Addr,
        /// The pod that has it.
        holder: String,
    },
    /// The pod has another address already.
    #[error("cannot adopt {ip} for pod {uid}: it has {held} already")]
    Other {
        /// The pod.
        uid: String,
        /// The address to adopt.
        ip: Ipv4Addr,
        /// The one it has.
        held: Ipv4Addr,
    },
}

impl Ipam {
    /// All of `range` free but its first two addresses and its last.
    pub fn new(range: Ipv4Cidr) -> Self {
        Self {
            range,
            held: BTreeMap::new(),
            holders: BTreeMap::new(),
            free: range.pod_addresses().collect(),
        }
    }

    /// The address of pod `uid`: the one it has, or the one that was free the longest.
    pub fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, IpamError> {
        if let Some(ip) = self.held.get(uid) {
            return Ok(*ip);
        }
        let ip = self.free.pop_front().ok_or_else(|| IpamError::Full {
            uid: uid.to_owned(),
            range: self.range,
            count: self.held.len(),
        })?;
        self.hold(uid, ip);
        Ok(ip)
    }

    /// Notes that pod `uid` has `ip`, as a container found at start says. Twice is once.
    pub fn adopt(&mut self, uid: &str, ip: Ipv4Addr) -> Result<(), IpamError> {
        let uid = uid.to_owned();
        match (self.held.get(&uid), self.holders.get(&ip)) {
            (Some(held), _) if *held == ip => return Ok(()),
            (Some(held), _) => return Err(IpamError::Other { uid, ip, held: *held }),
            (None, Some(holder)) => {
                return Err(IpamError::Taken { uid, ip, holder: holder.clone() });
            }
            (None, None) => {}
        }
        let Some(at) = self.free.iter().position(|free| *free == ip) else {
            return Err(IpamError::Foreign { uid, ip, range: self.range });
        };
        self.free.remove(at);
        self.hold(&uid, ip);
        Ok(())
    }

    /// Takes the address back from pod `uid`; the address it had, none if it had none.
    pub fn release(&mut self, uid: &str) -> Option<Ipv4Addr> {
        let ip = self.held.remove(uid)?;
        self.holders.remove(&ip);
        self.free.push_back(ip);
        Some(ip)
    }

    /// The address of pod `uid`, if it has one.
    pub fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.held.get(uid).copied()
    }

    /// The uids of the pods that have an address.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(String::as_str)
    }

    fn hold(&mut self, uid: &str, ip: Ipv4Addr) {
        self.held.insert(uid.to_owned(), ip);
        self.holders.insert(ip, uid.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_released_address_rests_while_others_are_free() {
        let mut ipam = Ipam::new(range("10.244.1.0/29"));
        let first = ipam.allocate("a").unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 1, 2));
        assert_eq!(ipam.allocate("a").unwrap(), first, "asked twice, answered alike");
        ipam.release("a");
        for uid in ["b", "c", "d", "e"] {
            assert_ne!(ipam.allocate(uid).unwrap(), first);
        }
        assert_eq!(ipam.allocate("f").unwrap(), first, "the last one left");
        assert_eq!(
            ipam.allocate("g").unwrap_err().to_string(),
            "no address left for pod g: all 5 of 10.244.1.0/29 are taken; \
             hint: fewer pods on this node, or a larger pod range"
        );
    }

    #[test]
    fn adopting_explains_its_refusals() {
        let mut ipam = Ipam::new(range("10.244.1.0/24"));
        let ip = Ipv4Addr::new(10, 244, 1, 9);
        ipam.adopt("a", ip).unwrap();
        ipam.adopt("a", ip).unwrap();
        let taken = IpamError::Taken { uid: "b".into(), ip, holder: "a".into() };
        assert_eq!(ipam.adopt("b", ip), Err(taken));
        assert!(matches!(
            ipam.adopt("a", Ipv4Addr::new(10, 244, 1, 10)),
            Err(IpamError::Other { held, .. }) if held == ip
        ));
        for foreign in ["10.244.2.9", "10.244.1.0", "10.244.1.1", "10.244.1.255"] {
            let foreign = foreign.parse().unwrap();
            assert!(matches!(ipam.adopt("c", foreign), Err(IpamError::Foreign { .. })));
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u8),
        Adopt(u8, u8),
        Release(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u8).prop_map(Step::Allocate),
            (0..20u8, 0..16u8).prop_map(|(uid, ip)| Step::Adopt(uid, ip)),
            (0..20u8).prop_map(Step::Release),
        ]
    }

    proptest! {
        /// Whatever happens, no address has two pods or is lost, and what was released last is
        /// given last.
        #[test]
        fn addresses_are_neither_shared_nor_lost(steps in prop::collection::vec(step(), 0..200)) {
            let all: Vec<_> = range("10.0.0.0/28").pod_addresses().collect();
            let mut ipam = Ipam::new(range("10.0.0.0/28"));
            let mut last_released = None;
            for step in steps {
                match step {
                    Step::Allocate(uid) => {
                        let uid = uid.to_string();
                        let (known, rested) = (ipam.get(&uid), ipam.free.len() > 1);
                        match ipam.allocate(&uid) {
                            Ok(ip) => prop_assert!(
                                known == Some(ip) || !rested || last_released != Some(ip)
                            ),
                            Err(_) => prop_assert_eq!(ipam.held.len(), all.len()),
                        }
                    }
                    Step::Adopt(uid, ip) => {
                        let ip = Ipv4Addr::new(10, 0, 0, ip);
                        let uid = uid.to_string();
                        if ipam.adopt(&uid, ip).is_ok() {
                            prop_assert_eq!(ipam.get(&uid), Some(ip));
                        }
                    }
                    Step::Release(uid) => {
                        last_released = ipam.release(&uid.to_string()).or(last_released);
                    }
                }
                let mut seen: Vec<_> = ipam.held.values().chain(&ipam.free).copied().collect();
                seen.sort();
                prop_assert_eq!(&seen, &all);
                prop_assert_eq!(ipam.held.len(), ipam.holders.len());
            }
        }
    }
}
