//! Services: ClusterIP and NodePort, headless with `clusterIP: None`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::{NODE_PORTS, names};

use super::field::{Field, Problems};
use super::meta;
use super::pod::unsupported;

/// A day, as in Kubernetes.
const AFFINITY_SECONDS_MAX: i32 = 86_400;

pub fn check(field: &Field<'_>, service: &Service, problems: &mut Problems) {
    let Some(spec) = &service.spec else {
        problems.required(field, "");
        return;
    };
    type_(&field.name("type"), spec, problems);
    unsupported!(problems, field, spec, {
        external_ips: "externalIPs", "";
        external_name: "externalName", "";
        load_balancer_ip: "loadBalancerIP", "";
        load_balancer_class: "loadBalancerClass", "";
        load_balancer_source_ranges: "loadBalancerSourceRanges", "";
    });
    for (name, value) in [
        ("internalTrafficPolicy", &spec.internal_traffic_policy),
        ("externalTrafficPolicy", &spec.external_traffic_policy),
    ] {
        if value.as_deref().is_some_and(|policy| policy != "Cluster") {
            problems.not_supported(&field.name(name), "only Cluster");
        }
    }
    if spec.ip_families.as_ref().is_some_and(|families| families.iter().any(|f| f != "IPv4")) {
        problems.not_supported(&field.name("ipFamilies"), "only IPv4");
    }
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let headless = ip == "None";
    if !headless && !ip.is_empty() && ip.parse::<Ipv4Addr>().is_err() {
        let why = "must be an IPv4 address, or None for a headless service";
        problems.invalid(&field.name("clusterIP"), ip, why);
    }
    if headless && spec.type_.as_deref() == Some("NodePort") {
        problems.invalid(
            &field.name("clusterIP"),
            ip,
            "may not be set to 'None' for NodePort services",
        );
    }
    let affinity = spec.session_affinity.as_deref().unwrap_or_default();
    problems.one_of(&field.name("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let timeout = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    if let Some(seconds) = timeout.filter(|s| !(1..=AFFINITY_SECONDS_MAX).contains(s)) {
        let config = field.name("sessionAffinityConfig");
        let client = config.name("clientIP");
        let why = format!("must be greater than 0 && less than or equal to {AFFINITY_SECONDS_MAX}");
        problems.invalid(&client.name("timeoutSeconds"), seconds, why);
    }
    meta::labels(&field.name("selector"), spec.selector.as_ref(), problems);
    ports(&field.name("ports"), spec, headless, problems);
}

fn type_(field: &Field<'_>, spec: &ServiceSpec, problems: &mut Problems) {
    match spec.type_.as_deref().unwrap_or_default() {
        "LoadBalancer" => problems.not_supported(field, "use NodePort"),
        "ExternalName" => problems.not_supported(field, "there is no cluster DNS yet"),
        other => problems.one_of(field, other, &["ClusterIP", "NodePort"]),
    }
}

fn ports(field: &Field<'_>, spec: &ServiceSpec, headless: bool, problems: &mut Problems) {
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless {
        problems.required(field, "");
    }
    let mut names_taken = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, one) in ports.iter().enumerate() {
        let field = field.index(index);
        port(&field, one, ports.len() > 1, problems);
        let name = one.name.as_deref().unwrap_or_default();
        if !name.is_empty() && !names_taken.insert(name) {
            problems.duplicate(&field.name("name"), name);
        }
        let protocol = one.protocol.as_deref().unwrap_or_default();
        if !numbers.insert((one.port, protocol)) {
            problems.duplicate(&field, format!("{}/{protocol}", one.port));
        }
        let Some(number) = one.node_port else { continue };
        let field = field.name("nodePort");
        if spec.type_.as_deref() == Some("ClusterIP") {
            problems.forbidden(&field, "may not be used when `type` is 'ClusterIP'");
        } else if !u16::try_from(number).is_ok_and(|port| NODE_PORTS.contains(&port)) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            );
            problems.invalid(&field, number, why);
        } else if !node_ports.insert(number) {
            problems.duplicate(&field, number);
        }
    }
}

fn port(field: &Field<'_>, port: &ServicePort, several: bool, problems: &mut Problems) {
    match port.name.as_deref().unwrap_or_default() {
        "" if several => problems.required(&field.name("name"), ""),
        "" => {}
        name => problems.name(&field.name("name"), name, names::dns_label(name)),
    }
    problems.port(&field.name("port"), port.port);
    let protocol = port.protocol.as_deref().unwrap_or_default();
    problems.one_of(&field.name("protocol"), protocol, &["TCP", "UDP"]);
    match &port.target_port {
        Some(IntOrString::Int(number)) => problems.port(&field.name("targetPort"), *number),
        Some(IntOrString::String(name)) => {
            problems.name(&field.name("targetPort"), name, names::port_name(name));
        }
        None => {}
    }
}
