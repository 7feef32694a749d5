//! A node's page: what it has, what its pods ask for, and what is measured.

use serde_json::Value;
use timonier_proto::quantity::{format_bytes, format_millis, parse_millis, parse_units};

use super::{Page, Related, long_time};
use crate::fields::Fields;
use crate::output::age::age;
use crate::output::printers::{node_roles, or_none};

pub(super) fn write(page: &mut Page, node: &Value, related: &Related) {
    page.head(node, false);
    page.field(0, "Roles", node_roles(node));
    page.labels(node);
    page.field(0, "CreationTimestamp", long_time(node.time("metadata.creationTimestamp")));
    let taints: Vec<String> = node.list("spec.taints").iter().map(taint).collect();
    page.many(0, "Taints", &taints);
    page.field(0, "Unschedulable", node.flag("spec.unschedulable").to_string());
    node_conditions(page, node);
    page.line(0, "Addresses:");
    for address in node.list("status.addresses") {
        page.field(1, address.text("type"), address.text("address"));
    }
    for (name, path) in [("Capacity", "status.capacity"), ("Allocatable", "status.allocatable")] {
        page.line(0, format!("{name}:"));
        node.pairs(path).iter().for_each(|(key, value)| page.field(1, key, value));
    }
    system(page, node);
    page.field_if(0, "PodCIDR", node.text("spec.podCIDR"));
    pods(page, node, &related.pods);
    measured(page, related);
}

fn taint(taint: &Value) -> String {
    match taint.text("value") {
        "" => format!("{}:{}", taint.text("key"), taint.text("effect")),
        value => format!("{}={value}:{}", taint.text("key"), taint.text("effect")),
    }
}

fn node_conditions(page: &mut Page, node: &Value) {
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastTransition\tReason\tMessage");
    page.line(1, "----\t------\t--------------\t------\t-------");
    for condition in node.list("status.conditions") {
        let since = age(condition.time("lastTransitionTime"), page.now);
        let cells = [
            condition.text("type"),
            condition.text("status"),
            &format!("{since} ago"),
            condition.text("reason"),
            condition.text("message"),
        ];
        page.line(1, cells.join("\t"));
    }
}

fn system(page: &mut Page, node: &Value) {
    page.line(0, "System Info:");
    for (name, field) in [
        ("Machine ID", "machineID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Agent Version", "kubeletVersion"),
    ] {
        page.field_if(1, name, node.at("status.nodeInfo").text(field));
    }
}

/// CPU in thousandths and memory in bytes, requested and at most.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Asked {
    cpu: i64,
    cpu_limit: i64,
    memory: i64,
    memory_limit: i64,
}

impl Asked {
    /// The larger of what all containers ask for together and what one init container does.
    fn of(pod: &Value) -> Asked {
        let mut asked = Asked::default();
        for container in pod.list("spec.containers") {
            asked.add(Asked::of_container(container));
        }
        for container in pod.list("spec.initContainers") {
            let one = Asked::of_container(container);
            asked = Asked {
                cpu: asked.cpu.max(one.cpu),
                cpu_limit: asked.cpu_limit.max(one.cpu_limit),
                memory: asked.memory.max(one.memory),
                memory_limit: asked.memory_limit.max(one.memory_limit),
            };
        }
        asked
    }

    fn of_container(container: &Value) -> Asked {
        let cpu = |path| parse_millis(container.text(path)).unwrap_or(0);
        let memory = |path| parse_units(container.text(path)).unwrap_or(0);
        Asked {
            cpu: cpu("resources.requests.cpu"),
            cpu_limit: cpu("resources.limits.cpu"),
            memory: memory("resources.requests.memory"),
            memory_limit: memory("resources.limits.memory"),
        }
    }

    fn add(&mut self, other: Asked) {
        self.cpu += other.cpu;
        self.cpu_limit += other.cpu_limit;
        self.memory += other.memory;
        self.memory_limit += other.memory_limit;
    }
}

fn pods(page: &mut Page, node: &Value, all: &[Value]) {
    let over = |pod: &Value| matches!(pod.text("status.phase"), "Succeeded" | "Failed");
    let pods: Vec<&Value> = all.iter().filter(|pod| !over(pod)).collect();
    let cpu = parse_millis(node.text("status.allocatable.cpu")).unwrap_or(0);
    let memory = parse_units(node.text("status.allocatable.memory")).unwrap_or(0);
    let cpu_text = |millis: i64| format!("{} ({}%)", format_millis(millis), percent(millis, cpu));
    let memory_text = |bytes: i64| format!("{} ({}%)", format_bytes(bytes), percent(bytes, memory));
    let total_pods = node.text("status.allocatable.pods");
    page.field(
        0,
        "Non-terminated Pods",
        format!("({} in total, {} at most)", pods.len(), or_none(total_pods)),
    );
    page.line(1, "Namespace\tName\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    page.line(1, "---------\t----\t------------\t----------\t---------------\t-------------\t---");
    let mut total = Asked::default();
    for pod in pods {
        let asked = Asked::of(pod);
        total.add(asked);
        let cells = [
            pod.namespace(),
            pod.name(),
            &cpu_text(asked.cpu),
            &cpu_text(asked.cpu_limit),
            &memory_text(asked.memory),
            &memory_text(asked.memory_limit),
            &age(pod.time("metadata.creationTimestamp"), page.now),
        ];
        page.line(1, cells.join("\t"));
    }
    page.line(0, "Allocated resources:");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    page.line(1, format!("cpu\t{}\t{}", cpu_text(total.cpu), cpu_text(total.cpu_limit)));
    page.line(
        1,
        format!("memory\t{}\t{}", memory_text(total.memory), memory_text(total.memory_limit)),
    );
}

fn percent(part: i64, whole: i64) -> i64 {
    if whole == 0 { 0 } else { (part as i128 * 100 / whole as i128) as i64 }
}

fn measured(page: &mut Page, related: &Related) {
    let Some((sample, usage)) = related.usage.as_ref().and_then(|s| Some((s, s.usage.as_ref()?)))
    else {
        return;
    };
    let gib = |bytes: u64| format!("{:.1}Gi", bytes as f64 / f64::from(1 << 30));
    page.line(0, "Measured use:");
    page.field(1, "cpu", format!("{:.1}% of {} cores", usage.cpu_percent, usage.cores));
    page.field(
        1,
        "memory",
        format!(
            "{:.1}% ({} of {})",
            usage.memory_percent,
            gib(usage.memory_used_bytes),
            gib(usage.memory_total_bytes)
        ),
    );
    page.field(
        1,
        "disk",
        format!("{} of {}", gib(usage.disk_used_bytes), gib(usage.disk_total_bytes)),
    );
    page.field(1, "load", format!("{:.2} {:.2} {:.2}", usage.load1, usage.load5, usage.load15));
    let kib = |bytes: u64| format!("{:.1} KiB/s", bytes as f64 / 1024.0);
    page.field(
        1,
        "network",
        format!("{} in, {} out", kib(usage.net_rx_bytes_per_s), kib(usage.net_tx_bytes_per_s)),
    );
    page.field(1, "last heartbeat", format!("{} ms ago", sample.age_ms));
}
