//! The content of a node's nftables table, as data: what [`DesiredNet`] compiles to.
//!
//! One table a node. Several agents can share a kernel (the lab does), each with its own table
//! holding the same services: conntrack lets only the first translation of a connection act, so
//! the others are idle. Hence nothing here may depend on being the only table, and no chain may
//! refuse what another agent's table could still translate: refusing is done in filter chains,
//! which run after every table's translation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::names::hash;
use super::{DesiredNet, Endpoint, Ipv4Cidr, Protocol, ServicePlan, ServicePortPlan};

/// Buckets that clients are hashed into by a service with client affinity. Each bucket has one
/// endpoint, so spread is even to within a few percent up to some 50 endpoints.
const AFFINITY_BUCKETS: usize = 256;

/// Sources that only the host itself has, and that no pod may talk to through its bridge.
const LOOPBACK: &str = "127.0.0.0/8";

/// The ranges a node's rules speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRanges {
    /// The node's bridge.
    pub bridge: String,
    /// The node's own pod range.
    pub pods: Ipv4Cidr,
    /// The pod range of the whole cluster, which holds `pods`.
    pub cluster: Ipv4Cidr,
    /// The range of the services' addresses.
    pub services: Ipv4Cidr,
}

/// A chain: for a base chain its hook, and its rules in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) hook: Option<&'static str>,
    pub(super) rules: Vec<String>,
}

/// A set or map: its declaration, and its elements with their values (none in a set).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) kind: &'static str,
    pub(super) key: &'static str,
    pub(super) elements: BTreeMap<String, Option<String>>,
}

/// A whole table. Compare or turn it into a script with [`Ruleset::full_script`] and
/// [`Ruleset::script_from`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) chains: BTreeMap<String, Chain>,
    pub(super) sets: BTreeMap<String, Set>,
}

impl Ruleset {
    /// Compiles what a node should have. Ports that two plans claim go to the first host port,
    /// else to the first service.
    pub fn compile(ranges: &NodeRanges, desired: &DesiredNet) -> Self {
        let mut table = Self::default();
        table.declare_sets();
        table.add_host_ports(desired);
        for service in &desired.services {
            for port in &service.ports {
                table.add_service_port(ranges, service, port);
            }
        }
        for plan in &desired.host_ports {
            table.add_self_pair(ranges, plan.target.0);
        }
        for (network, members) in &desired.isolated {
            table.add_isolated(ranges, network, members);
        }
        table.add_base_chains(ranges);
        table
    }

    fn declare_sets(&mut self) {
        for (name, kind, key) in [
            ("services", "map", "ipv4_addr . inet_proto . inet_service : verdict"),
            ("local_ports", "map", "inet_proto . inet_service : verdict"),
            ("refused_ports", "set", "inet_proto . inet_service"),
            ("self", "set", "ipv4_addr . ipv4_addr"),
            ("isolated", "map", "ipv4_addr : verdict"),
        ] {
            self.sets.insert(name.to_owned(), Set { kind, key, elements: BTreeMap::new() });
        }
    }

    fn add_service_port(
        &mut self,
        ranges: &NodeRanges,
        service: &ServicePlan,
        plan: &ServicePortPlan,
    ) {
        let endpoints: Vec<Endpoint> =
            plan.endpoints.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let (protocol, port) = (plan.protocol, plan.port);
        if endpoints.is_empty() {
            // The cluster address needs no entry: what no table translates is refused.
            if let Some(node_port) = plan.node_port {
                self.put("refused_ports", format!("{protocol} . {node_port}"), None);
            }
            return;
        }
        if service.cluster_ip.is_none() && plan.node_port.is_none() {
            return;
        }
        let chain = format!("svc-{}/{}/{protocol}/{port}", word(&service.ns), word(&service.name));
        let verdict = Some(format!("goto {chain}"));
        let rule = if service.client_ip_affinity {
            translate_by_client(&chain, protocol, &endpoints)
        } else {
            translate_at_random(protocol, &endpoints)
        };
        if let Some(ip) = service.cluster_ip {
            self.put("services", format!("{ip} . {protocol} . {port}"), verdict.clone());
        }
        if let Some(node_port) = plan.node_port {
            self.put("local_ports", format!("{protocol} . {node_port}"), verdict);
        }
        for (ip, _) in &endpoints {
            self.add_self_pair(ranges, *ip);
        }
        self.chains.insert(chain, Chain { hook: None, rules: vec![rule] });
    }

    fn add_host_ports(&mut self, desired: &DesiredNet) {
        for plan in &desired.host_ports {
            let (protocol, port) = (plan.protocol, plan.port);
            let host_ip = plan.host_ip.filter(|ip| !ip.is_unspecified());
            let (set, place, key) = match host_ip {
                Some(ip) => ("services", ip.to_string(), format!("{ip} . {protocol} . {port}")),
                None => ("local_ports", "any".to_owned(), format!("{protocol} . {port}")),
            };
            let chain = format!("host-{place}/{protocol}/{port}");
            if self.chains.contains_key(&chain) {
                continue;
            }
            self.put(set, key, Some(format!("goto {chain}")));
            let rule = translate_at_random(protocol, &[plan.target]);
            self.chains.insert(chain, Chain { hook: None, rules: vec![rule] });
        }
    }

    /// A pod of this node that meets itself through a service must see another source than its
    /// own address, or it would answer itself directly and wait for ever.
    fn add_self_pair(&mut self, ranges: &NodeRanges, ip: Ipv4Addr) {
        if ranges.pods.contains(ip) {
            self.put("self", format!("{ip} . {ip}"), None);
        }
    }

    fn add_isolated(&mut self, ranges: &NodeRanges, network: &str, members: &BTreeSet<Ipv4Addr>) {
        let name = format!("net-{}", word(network));
        let elements = members.iter().map(|ip| (ip.to_string(), None)).collect();
        self.sets.insert(name.clone(), Set { kind: "set", key: "ipv4_addr", elements });
        for ip in members {
            self.put("isolated", ip.to_string(), Some(format!("goto {name}")));
        }
        let rules = vec![
            format!("ip saddr @{name} accept"),
            // Asked for at an address of the host: a node port or a host port.
            format!(
                "ct status dnat ct original ip daddr != {{ {}, {} }} accept",
                ranges.cluster, ranges.services
            ),
            "reject with icmp type admin-prohibited".to_owned(),
        ];
        self.chains.insert(name, Chain { hook: None, rules });
    }

    fn add_base_chains(&mut self, ranges: &NodeRanges) {
        self.add_nat_chains(ranges);
        self.add_filter_chains(ranges);
    }

    fn add_nat_chains(&mut self, ranges: &NodeRanges) {
        let NodeRanges { pods, cluster, services, .. } = ranges;
        self.chain(
            "translate",
            None,
            [
                "ip daddr . meta l4proto . th dport vmap @services".to_owned(),
                "fib daddr type local meta l4proto . th dport vmap @local_ports".to_owned(),
            ],
        );
        let jump = || ["jump translate".to_owned()];
        self.chain("nat-prerouting", Some("type nat hook prerouting priority dstnat"), jump());
        self.chain("nat-output", Some("type nat hook output priority -100"), jump());
        self.chain(
            "nat-postrouting",
            Some("type nat hook postrouting priority srcnat"),
            [
                "ip saddr . ip daddr @self masquerade fully-random".to_owned(),
                format!("ip saddr {LOOPBACK} ip daddr {cluster} masquerade fully-random"),
                format!(
                    "ip saddr {pods} ip daddr != {{ {cluster}, {services} }} \
                     masquerade fully-random"
                ),
            ],
        );
    }

    fn add_filter_chains(&mut self, ranges: &NodeRanges) {
        let NodeRanges { bridge, pods, services, .. } = ranges;
        let known = || "ct state established,related accept".to_owned();
        let untranslated = || format!("ip daddr {services} goto refuse");
        let closed = "meta l4proto . th dport @refused_ports goto refuse";
        self.chain(
            "guard",
            Some("type filter hook prerouting priority raw"),
            [
                // route_localnet lets answers to 127.0.0.1 in; nothing else may come so.
                format!("iifname \"{bridge}\" ip daddr {LOOPBACK} drop"),
                format!("iifname \"{bridge}\" ip saddr != {pods} drop"),
            ],
        );
        self.chain(
            "refuse",
            None,
            [
                "meta l4proto tcp reject with tcp reset".to_owned(),
                "reject with icmp type port-unreachable".to_owned(),
            ],
        );
        self.chain(
            "filter-forward",
            Some("type filter hook forward priority filter"),
            [known(), "ip daddr vmap @isolated".to_owned(), untranslated()],
        );
        self.chain(
            "filter-input",
            Some("type filter hook input priority filter"),
            [known(), closed.to_owned()],
        );
        self.chain(
            "filter-output",
            Some("type filter hook output priority filter"),
            [known(), untranslated(), format!("fib daddr type local {closed}")],
        );
    }

    fn chain<const N: usize>(
        &mut self,
        name: &str,
        hook: Option<&'static str>,
        rules: [String; N],
    ) {
        self.chains.insert(name.to_owned(), Chain { hook, rules: rules.into() });
    }

    /// Puts an element that is not there yet; the first claim stays.
    fn put(&mut self, set: &str, key: String, value: Option<String>) {
        let set = self.sets.get_mut(set).expect("declare_sets made it");
        set.elements.entry(key).or_insert(value);
    }
}

fn translate_at_random(protocol: Protocol, endpoints: &[Endpoint]) -> String {
    if let [(ip, port)] = endpoints {
        return format!("meta l4proto {protocol} dnat to {ip}:{port}");
    }
    let count = endpoints.len();
    let map = elements(endpoints.iter());
    format!("meta l4proto {protocol} dnat ip addr . port to numgen random mod {count} map {map}")
}

/// Rendezvous hashing: each bucket belongs to the endpoint with the highest hash for it, so an
/// endpoint that goes takes only its own clients with it.
fn translate_by_client(chain: &str, protocol: Protocol, endpoints: &[Endpoint]) -> String {
    let seed = hash(chain) as u32;
    let owners = (0..AFFINITY_BUCKETS).filter_map(|bucket| {
        endpoints.iter().max_by_key(|(ip, port)| hash(&format!("{bucket}/{ip}:{port}")))
    });
    let map = elements(owners);
    format!(
        "meta l4proto {protocol} dnat ip addr . port to \
         jhash ip saddr mod {AFFINITY_BUCKETS} seed {seed:#x} map {map}"
    )
}

fn elements<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> String {
    let items: Vec<String> =
        endpoints.enumerate().map(|(i, (ip, port))| format!("{i} : {ip} . {port}")).collect();
    format!("{{ {} }}", items.join(", "))
}

/// A name as part of an nftables identifier. Names of objects are DNS labels and pass unchanged;
/// anything else is kept from ending the identifier.
fn word(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .collect()
}
