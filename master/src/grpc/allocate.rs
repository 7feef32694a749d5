//! Service addresses and node ports, out of what the snapshot shows to be free.
//!
//! The caller holds the door's allocation lock from the snapshot to the commit, so that two requests
//! at this master seldom choose the same. What other masters give away meanwhile is seen by the
//! store: what was chosen here must be free when it is applied.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use timonier_master_core::ipam::{self, IpamError};
use timonier_master_core::op::{Claimed, Precondition};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::{ApiError, Kinded, Object, ObjectKey, Reason};

/// Addresses and ports that other operations of the same request have got.
#[derive(Debug, Default)]
pub(super) struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
    /// The same for the store, which knows what other masters have given away.
    free: Vec<Precondition>,
}

impl Taken {
    /// What must hold when the request is applied.
    pub fn preconditions(&mut self) -> Vec<Precondition> {
        std::mem::take(&mut self.free)
    }

    fn claim(&mut self, what: Claimed, by: &ObjectKey) {
        self.free.push(Precondition::Free { what, by: by.clone() });
    }
}

/// Different addresses tried before the request is refused, when operations of one request collide.
const ATTEMPTS_MAX: u64 = 64;

/// Gives `object`, if it is a service, the addresses that it lacks. `old` is what it replaces.
pub(super) fn allocate(
    snapshot: &Snapshot,
    range: &str,
    old: Option<&Object>,
    object: &mut Object,
    taken: &mut Taken,
) -> Result<(), ApiError> {
    let key = object.key();
    let Object::Service(service) = object else { return Ok(()) };
    let refuse = |field: &str, error: IpamError| match error {
        IpamError::AddressRefused { .. } | IpamError::PortRefused { .. } => {
            ApiError::invalid(&key, vec![(field.to_owned(), error.to_string())])
        }
        other => ApiError::new(Reason::TooManyRequests, format!("create {key}: {other}")),
    };
    let old = old.and_then(Service::from_object).and_then(|service| service.spec.as_ref());
    let Some(spec) = &mut Arc::make_mut(service).spec else { return Ok(()) };
    let had = old.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    let wanted = spec.cluster_ip.clone().unwrap_or_default();
    if wanted != "None" && (wanted.is_empty() || wanted != had) {
        let wanted = (!wanted.is_empty()).then_some(wanted.as_str());
        let address = free_address(snapshot, range, wanted, &taken.addresses)
            .map_err(|error| refuse("spec.clusterIPs", error))?;
        taken.addresses.insert(address);
        taken.claim(Claimed::ServiceAddress(address.to_string()), &key);
        spec.cluster_ip = Some(address.to_string());
    }
    spec.cluster_ips = spec.cluster_ip.clone().map(|address| vec![address]);
    if spec.type_.as_deref() != Some("NodePort") {
        return Ok(());
    }
    let had: BTreeSet<i32> = old
        .into_iter()
        .flat_map(|spec| spec.ports.iter().flatten())
        .filter_map(|p| p.node_port)
        .collect();
    // Those asked for first, so that none of them is given to a port that takes any.
    let ports = spec.ports.as_deref_mut().unwrap_or_default();
    for asked in [true, false] {
        for (index, port) in ports.iter_mut().enumerate() {
            if port.node_port.is_some() != asked || port.node_port.is_some_and(|p| had.contains(&p))
            {
                continue;
            }
            let wanted = port.node_port.and_then(|port| u16::try_from(port).ok());
            let free = ipam::node_port(snapshot, wanted, &taken.ports, fastrand::u64(..))
                .map_err(|error| refuse(&format!("spec.ports[{index}].nodePort"), error))?;
            taken.ports.insert(free);
            taken.claim(Claimed::NodePort(free), &key);
            port.node_port = Some(i32::from(free));
        }
    }
    Ok(())
}

fn free_address(
    snapshot: &Snapshot,
    range: &str,
    wanted: Option<&str>,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, IpamError> {
    for _ in 0..ATTEMPTS_MAX {
        let address = ipam::service_address(snapshot, range, wanted, fastrand::u64(..))?;
        if !taken.contains(&address) {
            return Ok(address);
        }
        if wanted.is_some() {
            let why = "another operation of this request has got it".to_owned();
            return Err(IpamError::AddressRefused { address: address.to_string(), why });
        }
    }
    Err(IpamError::AddressesExhausted(range.to_owned()))
}
