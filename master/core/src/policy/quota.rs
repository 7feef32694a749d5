//! Quotas of a namespace: what is used, and whether one object more fits. All amounts are in
//! thousandths, counts too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSpec, ResourceQuota, ResourceQuotaStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use timonier_proto::kinds::KINDS;
use timonier_proto::quantity::{format_bytes, format_millis, parse_millis};
use timonier_proto::{Kind, Kinded, Object};

use crate::admission::qos_class;
use crate::object::{is_finished, name_of};
use crate::snapshot::Snapshot;

const ONE: i64 = 1000;

/// Why an object does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded(pub String);

/// What one name in a quota's `hard` counts.
#[derive(Debug, Clone, PartialEq)]
enum Counted {
    /// Objects of a kind.
    Objects(Kind),
    /// Services of a type.
    Services(&'static str),
    /// A resource of pods: whether limits, else requests; its name.
    Pods(bool, String),
    /// Nothing that is here.
    Nothing,
}

fn counted(name: &str) -> Counted {
    if let Some(rest) = name.strip_prefix("count/") {
        return Kind::by_typed(rest).map_or(Counted::Nothing, Counted::Objects);
    }
    if let Some(resource) = name.strip_prefix("requests.") {
        return Counted::Pods(false, resource.to_owned());
    }
    if let Some(resource) = name.strip_prefix("limits.") {
        return Counted::Pods(true, resource.to_owned());
    }
    match name {
        "cpu" | "memory" | "ephemeral-storage" => Counted::Pods(false, name.to_owned()),
        "services.nodeports" => Counted::Services("NodePort"),
        "services.loadbalancers" => Counted::Services("LoadBalancer"),
        _ => KINDS
            .iter()
            .find(|info| info.plural == name && info.group.is_empty() && info.namespaced)
            .map_or(Counted::Nothing, |info| Counted::Objects(info.kind)),
    }
}

impl Counted {
    fn kind(&self) -> Option<Kind> {
        match self {
            Counted::Objects(kind) => Some(*kind),
            Counted::Services(_) => Some(Kind::Service),
            Counted::Pods(..) => Some(Kind::Pod),
            Counted::Nothing => None,
        }
    }

    /// What the object takes of it.
    fn cost(&self, object: &Object) -> i64 {
        match (self, object) {
            (Counted::Objects(_), Object::Pod(pod)) if is_finished(pod) => 0,
            (Counted::Objects(kind), _) if object.kind() == *kind => ONE,
            (Counted::Services(type_), Object::Service(service)) => {
                let own = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
                if own == Some(type_) { ONE } else { 0 }
            }
            (Counted::Pods(limits, name), Object::Pod(pod)) if !is_finished(pod) => {
                pod.spec.as_ref().map_or(0, |spec| of_pod(spec, *limits, name))
            }
            _ => 0,
        }
    }
}

fn of_container(container: &Container, limits: bool, name: &str) -> Option<i64> {
    let ResourceRequirements { limits: limit, requests, .. } = container.resources.as_ref()?;
    let list = if limits { limit } else { requests };
    parse_millis(&list.as_ref()?.get(name)?.0).ok()
}

/// The containers together, or the largest init container.
fn of_pod(spec: &PodSpec, limits: bool, name: &str) -> i64 {
    let amount = |container: &Container| of_container(container, limits, name).unwrap_or(0);
    let sum = spec.containers.iter().map(amount).fold(0_i64, i64::saturating_add);
    sum.max(spec.init_containers.iter().flatten().map(amount).max().unwrap_or(0))
}

/// Whether the quota is about the object: its scopes concern pods only.
fn concerns(quota: &ResourceQuota, object: &Object) -> bool {
    let scopes = quota.spec.iter().flat_map(|spec| spec.scopes.iter().flatten());
    scopes.into_iter().all(|scope| {
        let Object::Pod(pod) = object else { return false };
        let spec = pod.spec.as_ref();
        let best_effort = qos_class(spec) == "BestEffort";
        let terminating = spec.is_some_and(|spec| spec.active_deadline_seconds.is_some());
        match scope.as_str() {
            "BestEffort" => best_effort,
            "NotBestEffort" => !best_effort,
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            _ => false,
        }
    })
}

fn hard(quota: &ResourceQuota) -> impl Iterator<Item = (&String, &Quantity)> {
    quota.spec.iter().flat_map(|spec| spec.hard.iter().flatten())
}

fn used(snapshot: &Snapshot, quota: &ResourceQuota, of: &Counted) -> i64 {
    let (Some(kind), namespace) = (of.kind(), quota.metadata.namespace.as_deref()) else {
        return 0;
    };
    snapshot
        .objects_of(kind, namespace)
        .filter(|object| concerns(quota, object))
        .map(|object| of.cost(object))
        .fold(0, i64::saturating_add)
}

/// Whether `new` (in the place of `old`) fits what its namespace's quotas allow.
pub fn admits(snapshot: &Snapshot, old: Option<&Object>, new: &Object) -> Result<(), Exceeded> {
    if !new.kind().info().namespaced || new.kind() == Kind::Event {
        return Ok(());
    }
    let namespace = new.meta().namespace.as_deref();
    for quota in snapshot.list::<ResourceQuota>(namespace) {
        if concerns(quota, new) {
            fits(snapshot, quota, old, new, 1)?;
        }
    }
    Ok(())
}

/// How many of up to `count` pods such as this one fit, and why no more do.
pub fn room(snapshot: &Snapshot, pod: &Pod, count: usize) -> (usize, Option<Exceeded>) {
    let namespace = pod.metadata.namespace.as_deref();
    let quotas: Vec<_> = snapshot.list::<ResourceQuota>(namespace).collect();
    if quotas.is_empty() || count == 0 {
        return (count, None);
    }
    let object = pod.clone().into_object();
    let all_fit = |count: usize| {
        let times = i64::try_from(count).unwrap_or(i64::MAX);
        quotas
            .iter()
            .filter(|quota| concerns(quota, &object))
            .try_for_each(|quota| fits(snapshot, quota, None, &object, times))
    };
    // The largest count that fits lies in [low, high).
    let (mut low, mut high, mut why) = (0, count + 1, None);
    while low + 1 < high {
        let middle = if why.is_none() && low == 0 { high - 1 } else { low.midpoint(high) };
        match all_fit(middle) {
            Ok(()) => low = middle,
            Err(exceeded) => {
                why = Some(exceeded);
                high = middle;
            }
        }
    }
    (low, why)
}

fn fits(
    snapshot: &Snapshot,
    quota: &ResourceQuota,
    old: Option<&Object>,
    new: &Object,
    times: i64,
) -> Result<(), Exceeded> {
    let quota_name = name_of(&quota.metadata);
    let (mut requested, mut taken, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for (name, value) in hard(quota) {
        let of = counted(name);
        let before = old.filter(|old| concerns(quota, old)).map_or(0, |old| of.cost(old));
        let more = of.cost(new).saturating_sub(before);
        if let (Counted::Pods(limits, resource), Object::Pod(pod), None) = (&of, new, old) {
            unspecified(quota_name, name, pod, *limits, resource)?;
        }
        if more <= 0 {
            continue;
        }
        let max = parse_millis(&value.0).unwrap_or(i64::MAX);
        let now = used(snapshot, quota, &of);
        if now.saturating_add(more.saturating_mul(times)) > max {
            requested.push(format!("{name}={}", shown(name, more)));
            taken.push(format!("{name}={}", shown(name, now)));
            limited.push(format!("{name}={}", value.0));
        }
    }
    if requested.is_empty() {
        return Ok(());
    }
    Err(Exceeded(format!(
        "exceeded quota: {quota_name}, requested: {}, used: {}, limited: {}",
        requested.join(","),
        taken.join(","),
        limited.join(",")
    )))
}

/// What a quota counts must be said by every container.
fn unspecified(
    quota: &str,
    name: &str,
    pod: &Pod,
    limits: bool,
    resource: &str,
) -> Result<(), Exceeded> {
    let silent: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter(|container| of_container(container, limits, resource).is_none())
        .map(|container| container.name.as_str())
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    let of = silent.join(",");
    Err(Exceeded(format!("failed quota: {quota}: must specify {name} for: {of}")))
}

fn shown(name: &str, millis: i64) -> String {
    match counted(name) {
        Counted::Pods(_, resource) if resource != "cpu" => format_bytes((millis + ONE - 1) / ONE),
        _ => format_millis(millis),
    }
}

/// The status that a quota should have.
pub fn status_of(snapshot: &Snapshot, quota: &ResourceQuota) -> ResourceQuotaStatus {
    let limits: BTreeMap<String, Quantity> =
        hard(quota).map(|(name, value)| (name.clone(), value.clone())).collect();
    let used = limits
        .keys()
        .map(|name| {
            let amount = used(snapshot, quota, &counted(name));
            (name.clone(), Quantity(shown(name, amount)))
        })
        .collect();
    ResourceQuotaStatus { hard: Some(limits), used: Some(used) }
}
