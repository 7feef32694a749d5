//! A pod's page.

use serde_json::Value;

use super::template::{containers, volumes};
use super::{Page, conditions, long_time};
use crate::fields::Fields;
use crate::output::age;
use crate::output::printers::or_none;

pub(super) fn write(page: &mut Page, pod: &Value) {
    page.head(pod, true);
    page.field(0, "Priority", pod.int("spec.priority").to_string());
    let account = pod.text("spec.serviceAccountName");
    page.field(0, "Service Account", if account.is_empty() { "default" } else { account });
    match (pod.text("spec.nodeName"), pod.text("status.hostIP")) {
        ("", _) => page.field(0, "Node", "<none>"),
        (node, host) => page.field(0, "Node", format!("{node}/{host}")),
    }
    if let Some(start) = pod.time("status.startTime") {
        page.field(0, "Start Time", long_time(Some(start)));
    }
    page.labels(pod);
    status(page, pod);
    page.field(0, "IP", pod.text("status.podIP"));
    let owner = pod.controller();
    if !owner.is_null() {
        page.field(0, "Controlled By", format!("{}/{}", owner.text("kind"), owner.text("name")));
    }
    let init = pod.list("spec.initContainers");
    containers(page, "Init Containers", 0, init, pod.list("status.initContainerStatuses"));
    containers(
        page,
        "Containers",
        0,
        pod.list("spec.containers"),
        pod.list("status.containerStatuses"),
    );
    conditions(page, pod, false);
    volumes(page, 0, pod.list("spec.volumes"));
    page.field(0, "QoS Class", pod.text("status.qosClass"));
    page.map(0, "Node-Selectors", &pod.pairs("spec.nodeSelector"), "=");
    page.many(0, "Tolerations", &tolerations(pod));
}

fn status(page: &mut Page, pod: &Value) {
    match pod.time("metadata.deletionTimestamp") {
        Some(deleted) => {
            let since = age::age(Some(deleted), page.now);
            page.field(0, "Status", format!("Terminating (lasts {since})"));
            let grace = pod.int("metadata.deletionGracePeriodSeconds");
            page.field(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => page.field(0, "Status", pod.text("status.phase")),
    }
    page.field_if(0, "Reason", pod.text("status.reason"));
    page.field_if(0, "Message", pod.text("status.message"));
}

fn tolerations(pod: &Value) -> Vec<String> {
    let list = pod.list("spec.tolerations").iter();
    list.map(|t| {
        let mut text = t.text("key").to_owned();
        if !t.text("value").is_empty() {
            text = format!("{text}={}", t.text("value"));
        }
        if !t.text("effect").is_empty() {
            text = format!("{text}:{}", t.text("effect"));
        }
        if t.text("operator") == "Exists" {
            text = format!("{text} op=Exists");
        }
        match t.at("tolerationSeconds").as_i64() {
            Some(seconds) => format!("{text} for {seconds}s"),
            None => or_none(&text),
        }
    })
    .collect()
}
