//! A pod's quality-of-service class, from its requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use timonier_proto::quantity::parse_millis;

/// `Guaranteed`, `Burstable` or `BestEffort`, by Kubernetes' rule.
pub fn qos_class(spec: Option<&PodSpec>) -> &'static str {
    let millis = |list: Option<&BTreeMap<String, Quantity>>, name: &str| {
        list.and_then(|list| list.get(name))
            .and_then(|quantity| parse_millis(&quantity.0).ok())
            .filter(|value| *value > 0)
    };
    let (mut any, mut guaranteed) = (false, true);
    let containers = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    for container in containers {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let request = millis(resources.and_then(|r| r.requests.as_ref()), name);
            let limit = millis(resources.and_then(|r| r.limits.as_ref()), name);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
