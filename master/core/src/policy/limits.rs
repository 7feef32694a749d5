//! One limit range and one pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LimitRange, LimitRangeItem, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use timonier_proto::quantity::parse_millis;

type List = BTreeMap<String, Quantity>;

fn items<'a>(range: &'a LimitRange, type_: &'a str) -> impl Iterator<Item = &'a LimitRangeItem> {
    range.spec.iter().flat_map(|spec| &spec.limits).filter(move |item| item.type_ == type_)
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
}

/// Limits and requests of containers that name none. A limit without a request is the request too,
/// as everywhere in Kubernetes; so is the default of a limit range.
pub(super) fn fill(range: &LimitRange, spec: &mut PodSpec) {
    for item in items(range, "Container") {
        let limits = item.default.clone().or_else(|| item.max.clone()).unwrap_or_default();
        let requests = item.default_request.clone().unwrap_or_default();
        for container in containers(spec) {
            let resources = container.resources.get_or_insert_default();
            let had = resources.limits.clone().unwrap_or_default();
            for (name, value) in &limits {
                let own = resources.limits.get_or_insert_default();
                own.entry(name.clone()).or_insert_with(|| value.clone());
            }
            for (name, value) in had.iter().chain(&requests).chain(&limits) {
                let own = resources.requests.get_or_insert_default();
                own.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

/// What of the pod is out of the range's bounds, in Kubernetes' words.
pub(super) fn broken(range: &LimitRange, spec: &PodSpec) -> Vec<String> {
    let mut all = Vec::new();
    let inits = spec.init_containers.iter().flatten();
    for item in items(range, "Container") {
        for container in spec.containers.iter().chain(inits.clone()) {
            let resources = container.resources.clone().unwrap_or_default();
            let (requests, limits) = (resources.requests, resources.limits);
            check(
                item,
                "Container",
                &millis(requests.as_ref()),
                &millis(limits.as_ref()),
                &mut all,
            );
        }
    }
    for item in items(range, "Pod") {
        let sum = |limits: bool| {
            let mut sum: BTreeMap<String, i64> = BTreeMap::new();
            for container in &spec.containers {
                let resources = container.resources.clone().unwrap_or_default();
                let list = if limits { resources.limits } else { resources.requests };
                for (name, value) in millis(list.as_ref()) {
                    let own = sum.entry(name).or_default();
                    *own = own.saturating_add(value);
                }
            }
            sum
        };
        check(item, "Pod", &sum(false), &sum(true), &mut all);
    }
    all
}

fn millis(list: Option<&List>) -> BTreeMap<String, i64> {
    list.into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), parse_millis(&value.0).ok()?)))
        .collect()
}

fn check(
    item: &LimitRangeItem,
    of: &str,
    requests: &BTreeMap<String, i64>,
    limits: &BTreeMap<String, i64>,
    all: &mut Vec<String>,
) {
    for (name, value) in item.min.iter().flatten() {
        let Ok(min) = parse_millis(&value.0) else { continue };
        match requests.get(name).or_else(|| limits.get(name)) {
            None => all.push(format!(
                "minimum {name} usage per {of} is {}. No request is specified",
                value.0
            )),
            Some(request) if *request < min => {
                all.push(format!(
                    "minimum {name} usage per {of} is {}, but request is less",
                    value.0
                ));
            }
            Some(_) => {}
        }
    }
    for (name, value) in item.max.iter().flatten() {
        let Ok(max) = parse_millis(&value.0) else { continue };
        match limits.get(name) {
            None => all.push(format!(
                "maximum {name} usage per {of} is {}. No limit is specified",
                value.0
            )),
            Some(limit) if *limit > max => {
                all.push(format!(
                    "maximum {name} usage per {of} is {}, but limit is more",
                    value.0
                ));
            }
            Some(_) => {}
        }
    }
    for (name, value) in item.max_limit_request_ratio.iter().flatten() {
        let Ok(ratio) = parse_millis(&value.0) else { continue };
        let (Some(request), Some(limit)) = (requests.get(name), limits.get(name)) else { continue };
        // In thousandths, both.
        if *request > 0 && limit.saturating_mul(1000) / request > ratio {
            all.push(format!(
                "{name} max limit to request ratio per {of} is {}, but provided ratio is more",
                value.0
            ));
        }
    }
}
