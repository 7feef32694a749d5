//! The columns of each kind, as kubectl shows them. Pure: objects and the time in, cells out.

pub mod pod;
mod policies;
mod workloads;

pub use workloads::replicas;

use jiff::Timestamp;
use serde_json::Value;
use timonier_proto::Kind;

use super::age::age;
use super::table::{Column, column, wide};
use crate::fields::Fields;
use crate::resolve::selector_text;

/// Columns of a kind, wide ones included.
pub fn columns(kind: Kind) -> &'static [Column] {
    const NAME: Column = column("NAME");
    const AGE: Column = column("AGE");
    match kind {
        Kind::Namespace => const { &[NAME, column("STATUS"), AGE] },
        Kind::Node => {
            const {
                &[
                    NAME,
                    column("STATUS"),
                    column("ROLES"),
                    AGE,
                    column("VERSION"),
                    wide("INTERNAL-IP"),
                    wide("EXTERNAL-IP"),
                    wide("OS-IMAGE"),
                    wide("KERNEL-VERSION"),
                    wide("CONTAINER-RUNTIME"),
                ]
            }
        }
        Kind::Pod => {
            const {
                &[
                    NAME,
                    column("READY"),
                    column("STATUS"),
                    column("RESTARTS"),
                    AGE,
                    wide("IP"),
                    wide("NODE"),
                    wide("NOMINATED NODE"),
                    wide("READINESS GATES"),
                ]
            }
        }
        Kind::Service => {
            const {
                &[
                    NAME,
                    column("TYPE"),
                    column("CLUSTER-IP"),
                    column("EXTERNAL-IP"),
                    column("PORT(S)"),
                    AGE,
                    wide("SELECTOR"),
                ]
            }
        }
        Kind::Deployment => {
            const {
                &[
                    NAME,
                    column("READY"),
                    column("UP-TO-DATE"),
                    column("AVAILABLE"),
                    AGE,
                    wide("CONTAINERS"),
                    wide("IMAGES"),
                    wide("SELECTOR"),
                ]
            }
        }
        Kind::ReplicaSet => {
            const {
                &[
                    NAME,
                    column("DESIRED"),
                    column("CURRENT"),
                    column("READY"),
                    AGE,
                    wide("CONTAINERS"),
                    wide("IMAGES"),
                    wide("SELECTOR"),
                ]
            }
        }
        Kind::ConfigMap => const { &[NAME, column("DATA"), AGE] },
        Kind::Secret => const { &[NAME, column("TYPE"), column("DATA"), AGE] },
        Kind::ServiceAccount => const { &[NAME, AGE] },
        Kind::ResourceQuota => const { &[NAME, column("REQUEST"), column("LIMIT"), AGE] },
        Kind::LimitRange | Kind::Role | Kind::ClusterRole => {
            const { &[NAME, column("CREATED AT")] }
        }
        Kind::PodDisruptionBudget => {
            const {
                &[
                    NAME,
                    column("MIN AVAILABLE"),
                    column("MAX UNAVAILABLE"),
                    column("ALLOWED DISRUPTIONS"),
                    AGE,
                ]
            }
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            const { &[NAME, column("ROLE"), AGE, wide("USERS"), wide("GROUPS"), wide("SERVICEACCOUNTS")] }
        }
        Kind::Endpoints => const { &[NAME, column("ENDPOINTS"), AGE] },
        Kind::Event => {
            const {
                &[
                    column("LAST SEEN"),
                    column("TYPE"),
                    column("REASON"),
                    column("OBJECT"),
                    wide("SOURCE"),
                    column("MESSAGE"),
                    wide("FIRST SEEN"),
                    wide("COUNT"),
                    wide("NAME"),
                ]
            }
        }
        Kind::LatencyAutoscaler => {
            const {
                &[
                    NAME,
                    column("TARGET"),
                    column("LATENCY"),
                    column("THRESHOLD"),
                    column("STATE"),
                    column("MINPODS"),
                    column("MAXPODS"),
                    column("REPLICAS"),
                    AGE,
                    wide("STEP"),
                    wide("COOLDOWN"),
                ]
            }
        }
    }
}

/// The cells of one object, in the order of [`columns`].
pub fn cells(kind: Kind, object: &Value, now: Timestamp) -> Vec<String> {
    let age = age(object.time("metadata.creationTimestamp"), now);
    match kind {
        Kind::Namespace => vec![object.name().into(), object.text("status.phase").into(), age],
        Kind::Node => node(object, age),
        Kind::Pod => pod::cells(object, now, age),
        Kind::Service => workloads::service(object, age),
        Kind::Deployment => workloads::deployment(object, age),
        Kind::ReplicaSet => workloads::replica_set(object, age),
        Kind::ConfigMap => {
            let count = |path| object.at(path).as_object().map_or(0, serde_json::Map::len);
            vec![object.name().into(), (count("data") + count("binaryData")).to_string(), age]
        }
        Kind::Secret => policies::secret(object, age),
        Kind::ServiceAccount => vec![object.name().into(), age],
        Kind::ResourceQuota => policies::resource_quota(object, age),
        Kind::LimitRange | Kind::Role | Kind::ClusterRole => {
            vec![object.name().into(), object.text("metadata.creationTimestamp").into()]
        }
        Kind::PodDisruptionBudget => policies::disruption_budget(object, age),
        Kind::RoleBinding | Kind::ClusterRoleBinding => policies::role_binding(object, age),
        Kind::Endpoints => vec![object.name().into(), workloads::endpoints(object), age],
        Kind::Event => event(object, now),
        Kind::LatencyAutoscaler => workloads::latency_autoscaler(object, age),
    }
}

pub(crate) fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// `Ready,SchedulingDisabled`.
pub fn node_status(node: &Value) -> String {
    let ready = node.condition("Ready");
    let mut status = match ready.text("status") {
        "True" => "Ready".to_owned(),
        "" => "Unknown".to_owned(),
        _ => "NotReady".to_owned(),
    };
    if node.flag("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

pub fn node_roles(node: &Value) -> String {
    const PREFIX: &str = "node-role.kubernetes.io/";
    let mut roles: Vec<&str> =
        node.pairs("metadata.labels").iter().filter_map(|(k, _)| k.strip_prefix(PREFIX)).collect();
    roles.sort_unstable();
    or_none(&roles.join(","))
}

/// The node's address of a type; `<none>` without one.
pub fn node_address(node: &Value, kind: &str) -> String {
    let found = node.list("status.addresses").iter().find(|a| a.text("type") == kind);
    or_none(found.map_or("", |a| a.text("address")))
}

fn node(node: &Value, age: String) -> Vec<String> {
    let unknown = |path| match node.text(path) {
        "" => "<unknown>".to_owned(),
        text => text.to_owned(),
    };
    vec![
        node.name().into(),
        node_status(node),
        node_roles(node),
        age,
        node.text("status.nodeInfo.kubeletVersion").into(),
        node_address(node, "InternalIP"),
        node_address(node, "ExternalIP"),
        unknown("status.nodeInfo.osImage"),
        unknown("status.nodeInfo.kernelVersion"),
        unknown("status.nodeInfo.containerRuntimeVersion"),
    ]
}

/// When an event was last seen.
pub fn event_time(event: &Value) -> Option<Timestamp> {
    ["series.lastObservedTime", "lastTimestamp", "eventTime", "metadata.creationTimestamp"]
        .iter()
        .find_map(|path| event.time(path))
}

pub fn event_count(event: &Value) -> i64 {
    event.int("series.count").max(event.int("count")).max(1)
}

/// `4s`, or `4s (x3 over 2m)` for one that came back.
pub fn event_age(event: &Value, now: Timestamp) -> String {
    let last = age(event_time(event), now);
    match event_count(event) {
        1 => last,
        count => format!("{last} (x{count} over {})", age(event_first(event), now)),
    }
}

fn event_first(event: &Value) -> Option<Timestamp> {
    event.time("firstTimestamp").or_else(|| event_time(event))
}

/// `pod/web-1`.
pub fn event_object(event: &Value) -> String {
    let kind = event.text("involvedObject.kind").to_ascii_lowercase();
    format!("{kind}/{}", event.text("involvedObject.name"))
}

pub fn event_source(event: &Value) -> String {
    let component = match event.text("source.component") {
        "" => event.text("reportingComponent"),
        component => component,
    };
    match event.text("source.host") {
        "" => component.into(),
        host => format!("{component}, {host}"),
    }
}

fn event(event: &Value, now: Timestamp) -> Vec<String> {
    vec![
        event_age(event, now),
        event.text("type").into(),
        event.text("reason").into(),
        event_object(event),
        event_source(event),
        event.text("message").trim().replace('\n', " "),
        age(event_first(event), now),
        event_count(event).to_string(),
        event.name().into(),
    ]
}

fn selector_cell(object: &Value) -> String {
    or_none(&selector_text(object.at("spec.selector")))
}

#[cfg(test)]
mod tests;
