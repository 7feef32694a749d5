//! Pages of deployments, replica sets, services, config maps, namespaces and latency autoscalers.

use serde_json::Value;
use timonier_proto::Kind;

use super::template::{containers, volumes};
use super::{Page, Related, conditions, long_time};
use crate::fields::Fields;
use crate::jsonpath::plain as plain_value;
use crate::output::printers::or_none;
use crate::output::yaml;
use crate::resolve::{selector_of, selector_text};

pub(super) fn deployment(page: &mut Page, object: &Value, related: &Related) {
    page.head(object, true);
    page.field(0, "CreationTimestamp", long_time(object.time("metadata.creationTimestamp")));
    page.labels(object);
    page.field(0, "Selector", or_none(&selector_text(object.at("spec.selector"))));
    let wanted = object.at("spec.replicas").as_i64().unwrap_or(1);
    page.field(
        0,
        "Replicas",
        format!(
            "{wanted} desired | {} updated | {} total | {} available | {} unavailable",
            object.int("status.updatedReplicas"),
            object.int("status.replicas"),
            object.int("status.availableReplicas"),
            object.int("status.unavailableReplicas")
        ),
    );
    let strategy = object.at("spec.strategy");
    let kind = match strategy.text("type") {
        "" => "RollingUpdate",
        kind => kind,
    };
    page.field(0, "StrategyType", kind);
    page.field(0, "MinReadySeconds", object.int("spec.minReadySeconds").to_string());
    if kind == "RollingUpdate" {
        let or = |path| match strategy.at(path) {
            Value::Null => "25%".to_owned(),
            value => plain_value(value),
        };
        page.field(
            0,
            "RollingUpdateStrategy",
            format!(
                "{} max unavailable, {} max surge",
                or("rollingUpdate.maxUnavailable"),
                or("rollingUpdate.maxSurge")
            ),
        );
    }
    template(page, object);
    conditions(page, object, true);
    replica_sets(page, object, &related.replica_sets);
}

pub(super) fn template(page: &mut Page, object: &Value) {
    let template = object.at("spec.template");
    page.line(0, "Pod Template:");
    page.map(1, "Labels", &template.pairs("metadata.labels"), "=");
    let annotations = template.pairs("metadata.annotations");
    if !annotations.is_empty() {
        page.map(1, "Annotations", &annotations, ": ");
    }
    containers(page, "Init Containers", 1, template.list("spec.initContainers"), &[]);
    containers(page, "Containers", 1, template.list("spec.containers"), &[]);
    volumes(page, 1, template.list("spec.volumes"));
}

fn replica_sets(page: &mut Page, object: &Value, sets: &[Value]) {
    const REVISION: &str = "deployment.kubernetes.io/revision";
    let current = object.annotation(REVISION);
    let text = |set: &Value| {
        format!(
            "{} ({}/{} replicas created)",
            set.name(),
            set.int("status.replicas"),
            set.at("spec.replicas").as_i64().unwrap_or(1)
        )
    };
    let is_new = |set: &&Value| set.annotation(REVISION) == current;
    let old: Vec<String> = sets.iter().filter(|s| !is_new(s)).map(text).collect();
    let new: Vec<String> = sets.iter().filter(is_new).map(text).collect();
    page.field(0, "OldReplicaSets", or_none(&old.join(", ")));
    page.field(0, "NewReplicaSet", or_none(&new.join(", ")));
}

pub(super) fn replica_set(page: &mut Page, object: &Value, related: &Related) {
    page.head(object, true);
    page.field(0, "Selector", or_none(&selector_text(object.at("spec.selector"))));
    page.labels(object);
    let owner = object.controller();
    if !owner.is_null() {
        page.field(0, "Controlled By", format!("{}/{}", owner.text("kind"), owner.text("name")));
    }
    let wanted = object.at("spec.replicas").as_i64().unwrap_or(1);
    let current = object.int("status.replicas");
    page.field(0, "Replicas", format!("{current} current / {wanted} desired"));
    let count =
        |phase: &str| related.pods.iter().filter(|p| p.text("status.phase") == phase).count();
    page.field(
        0,
        "Pods Status",
        format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            count("Running"),
            count("Pending"),
            count("Succeeded"),
            count("Failed")
        ),
    );
    template(page, object);
    conditions(page, object, true);
}

pub(super) fn service(page: &mut Page, object: &Value, related: &Related) {
    page.head(object, true);
    page.labels(object);
    page.field(0, "Selector", or_none(&selector_of(Kind::Service, object).unwrap_or_default()));
    let kind = object.text("spec.type");
    page.field(0, "Type", if kind.is_empty() { "ClusterIP" } else { kind });
    page.field(0, "IP", or_none(object.text("spec.clusterIP")));
    for port in object.list("spec.ports") {
        let name = match port.text("name") {
            "" => "<unset>",
            name => name,
        };
        let protocol = match port.text("protocol") {
            "" => "TCP",
            protocol => protocol,
        };
        page.field(0, "Port", format!("{name}  {}/{protocol}", port.int("port")));
        let target = match port.at("targetPort") {
            Value::Null => port.int("port").to_string(),
            target => plain_value(target),
        };
        page.field(0, "TargetPort", format!("{target}/{protocol}"));
        if port.int("nodePort") > 0 {
            page.field(0, "NodePort", format!("{name}  {}/{protocol}", port.int("nodePort")));
        }
        page.field(0, "Endpoints", endpoints_of(port, related.endpoints.as_ref()));
    }
    let affinity = object.text("spec.sessionAffinity");
    page.field(0, "Session Affinity", if affinity.is_empty() { "None" } else { affinity });
}

/// All ready endpoints of one port, not ready ones told apart.
fn endpoints_of(port: &Value, endpoints: Option<&Value>) -> String {
    let (mut ready, mut waiting) = (Vec::new(), 0);
    for subset in endpoints.map_or(&[][..], |e| e.list("subsets")) {
        let matching = subset.list("ports").iter().filter(|p| p.text("name") == port.text("name"));
        for target in matching {
            let number = target.int("port");
            ready.extend(
                subset.list("addresses").iter().map(|a| format!("{}:{number}", a.text("ip"))),
            );
            waiting += subset.list("notReadyAddresses").len();
        }
    }
    let text = or_none(&ready.join(","));
    if waiting > 0 { format!("{text} ({waiting} not ready)") } else { text }
}

pub(super) fn config_map(page: &mut Page, object: &Value) {
    page.head(object, true);
    page.labels(object);
    page.line(0, "");
    page.line(0, "Data");
    page.line(0, "====");
    for (key, value) in object.pairs("data") {
        page.line(0, format!("{key}:"));
        page.line(0, "----");
        page.line(0, value);
        page.line(0, "");
    }
    page.line(0, "");
    page.line(0, "BinaryData");
    page.line(0, "====");
    for (key, value) in object.pairs("binaryData") {
        page.line(0, format!("{key}: {} bytes", value.len() / 4 * 3));
    }
    page.line(0, "");
}

pub(super) fn namespace(page: &mut Page, object: &Value) {
    page.head(object, false);
    page.labels(object);
    page.field(0, "Status", object.text("status.phase"));
    if object.annotation("timonier.io/network") == "isolated" {
        page.field(0, "Network", "isolated: its pods are reached from this namespace only");
    }
}

pub(super) fn latency_autoscaler(page: &mut Page, object: &Value) {
    page.head(object, true);
    page.labels(object);
    page.field(0, "CreationTimestamp", long_time(object.time("metadata.creationTimestamp")));
    let target = object.at("spec.scaleTargetRef");
    page.field(0, "Target", format!("{}/{}", target.text("kind"), target.text("name")));
    page.field(0, "Threshold", format!("{} ms", object.int("spec.latencyMilliseconds")));
    if let Some(us) = object.at("status.latencyMicroseconds").as_i64() {
        page.field(0, "Latency", format!("{:.1} ms", us as f64 / 1000.0));
    }
    page.field(0, "State", or_none(object.text("status.state")));
    let or = |path: &str, default: i64| object.at(path).as_i64().unwrap_or(default);
    page.field(0, "Step", or("spec.step", 1).to_string());
    page.field(0, "Min replicas", or("spec.minReplicas", or("status.baseReplicas", 1)).to_string());
    page.field(0, "Max replicas", or("spec.maxReplicas", 10).to_string());
    page.field(0, "Cooldown", format!("{} s", or("spec.cooldownSeconds", 5)));
    page.field(0, "Scale down after", format!("{} s good", or("spec.scaleDownSeconds", 60)));
    page.field(
        0,
        "Replicas",
        format!(
            "{} current / {} desired",
            or("status.currentReplicas", 0),
            or("status.desiredReplicas", 0)
        ),
    );
    page.field(0, "Last scale", long_time(object.time("status.lastScaleTime")));
}

/// As kubectl: what may go now, and out of what that follows.
pub(super) fn disruption_budget(page: &mut Page, object: &Value) {
    page.head(object, true);
    let bound = |path: &str| match object.at(path) {
        Value::String(text) => text.clone(),
        number => number.to_string(),
    };
    if object.has("spec.minAvailable") {
        page.field(0, "Min available", bound("spec.minAvailable"));
    } else if object.has("spec.maxUnavailable") {
        page.field(0, "Max unavailable", bound("spec.maxUnavailable"));
    }
    page.field(0, "Selector", or_none(&selector_text(object.at("spec.selector"))));
    page.line(0, "Status:");
    page.field(1, "Allowed disruptions", object.int("status.disruptionsAllowed").to_string());
    page.field(1, "Current", object.int("status.currentHealthy").to_string());
    page.field(1, "Desired", object.int("status.desiredHealthy").to_string());
    page.field(1, "Total", object.int("status.expectedPods").to_string());
    conditions(page, object, true);
}

/// Kinds without a page of their own are shown whole.
/// How long each value is, never what it is.
pub(super) fn secret(page: &mut Page, object: &Value) {
    page.head(object, true);
    page.labels(object);
    page.field(0, "Type", object.text("type"));
    page.line(0, "");
    page.line(0, "Data");
    page.line(0, "====");
    for (key, value) in object.pairs("data") {
        page.line(0, format!("{key}:  {} bytes", decoded_len(value)));
    }
}

/// Of base64 with its padding.
fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

pub(super) fn plain(page: &mut Page, object: &Value) {
    let text = yaml::yaml(object).unwrap_or_default();
    text.lines().for_each(|line| page.line(0, line));
}
