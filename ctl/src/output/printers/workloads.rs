//! Rows of deployments, replica sets, services, endpoints and latency autoscalers.

use serde_json::Value;

use super::{or_none, selector_cell};
use crate::fields::Fields;
use crate::resolve::selector_of;
use timonier_proto::Kind;

/// Endpoints shown in a row before `+ n more...`.
const ENDPOINTS_SHOWN: usize = 3;

pub(super) fn deployment(object: &Value, age: String) -> Vec<String> {
    let (names, images) = containers(object);
    vec![
        object.name().into(),
        format!("{}/{}", object.int("status.readyReplicas"), replicas(object)),
        object.int("status.updatedReplicas").to_string(),
        object.int("status.availableReplicas").to_string(),
        age,
        names,
        images,
        selector_cell(object),
    ]
}

pub(super) fn replica_set(object: &Value, age: String) -> Vec<String> {
    let (names, images) = containers(object);
    vec![
        object.name().into(),
        replicas(object).to_string(),
        object.int("status.replicas").to_string(),
        object.int("status.readyReplicas").to_string(),
        age,
        names,
        images,
        selector_cell(object),
    ]
}

/// Replicas wanted: 1 where the field is absent.
pub fn replicas(object: &Value) -> i64 {
    object.at("spec.replicas").as_i64().unwrap_or(1)
}

fn containers(object: &Value) -> (String, String) {
    let list = object.list("spec.template.spec.containers");
    let join = |field: &str| list.iter().map(|c| c.text(field)).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

pub(super) fn service(object: &Value, age: String) -> Vec<String> {
    let kind = match object.text("spec.type") {
        "" => "ClusterIP",
        kind => kind,
    };
    let ports: Vec<String> = object
        .list("spec.ports")
        .iter()
        .map(|port| {
            let protocol = match port.text("protocol") {
                "" => "TCP",
                protocol => protocol,
            };
            match port.int("nodePort") {
                0 => format!("{}/{protocol}", port.int("port")),
                node => format!("{}:{node}/{protocol}", port.int("port")),
            }
        })
        .collect();
    vec![
        object.name().into(),
        kind.into(),
        or_none(object.text("spec.clusterIP")),
        external_address(object, kind),
        or_none(&ports.join(",")),
        age,
        or_none(&selector_of(Kind::Service, object).unwrap_or_default()),
    ]
}

fn external_address(object: &Value, kind: &str) -> String {
    let mut addresses: Vec<&str> =
        object.list("spec.externalIPs").iter().filter_map(Value::as_str).collect();
    match kind {
        "LoadBalancer" => {
            let ingress = object.list("status.loadBalancer.ingress");
            addresses.extend(ingress.iter().map(|i| match i.text("ip") {
                "" => i.text("hostname"),
                ip => ip,
            }));
            if addresses.is_empty() { "<pending>".into() } else { addresses.join(",") }
        }
        "ExternalName" => object.text("spec.externalName").into(),
        _ => or_none(&addresses.join(",")),
    }
}

/// `10.244.1.2:80,10.244.2.3:80 + 4 more...`.
pub fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in object.list("subsets") {
        let ports = subset.list("ports");
        for address in subset.list("addresses") {
            let ip = address.text("ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{ip}:{}", port.int("port"))));
        }
    }
    let more = all.len().saturating_sub(ENDPOINTS_SHOWN);
    all.truncate(ENDPOINTS_SHOWN);
    match more {
        0 => or_none(&all.join(",")),
        more => format!("{} + {more} more...", all.join(",")),
    }
}

pub(super) fn latency_autoscaler(object: &Value, age: String) -> Vec<String> {
    let number = |path: &str, default: &str| match object.at(path).as_i64() {
        Some(n) => n.to_string(),
        None => default.to_owned(),
    };
    let latency = match object.at("status.latencyMicroseconds").as_i64() {
        Some(us) => format!("{:.1}ms", us as f64 / 1000.0),
        None => "<unknown>".into(),
    };
    let state = match object.text("status.state") {
        "" => "<unknown>",
        state => state,
    };
    let floor = match object.at("spec.minReplicas").as_i64() {
        Some(n) => n.to_string(),
        None => number("status.baseReplicas", "<unset>"),
    };
    let target = format!(
        "{}/{}",
        object.text("spec.scaleTargetRef.kind"),
        object.text("spec.scaleTargetRef.name")
    );
    vec![
        object.name().into(),
        target,
        latency,
        format!("{}ms", object.int("spec.latencyMilliseconds")),
        state.into(),
        floor,
        number("spec.maxReplicas", "10"),
        number("status.currentReplicas", "<unknown>"),
        age,
        number("spec.step", "1"),
        format!("{}s", number("spec.cooldownSeconds", "5")),
    ]
}
