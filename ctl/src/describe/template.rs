//! Containers, probes, environment and volumes, of pods and of pod templates.

use serde_json::Value;

use super::{Page, long_time};
use crate::fields::Fields;
use crate::jsonpath::plain;

/// `statuses` is empty for a template.
pub(super) fn containers(
    page: &mut Page,
    title: &str,
    level: usize,
    list: &[Value],
    statuses: &[Value],
) {
    if list.is_empty() {
        return;
    }
    page.line(level, format!("{title}:"));
    for container in list {
        let status = statuses.iter().find(|s| s.text("name") == container.text("name"));
        one(page, level + 1, container, status);
    }
}

fn one(page: &mut Page, level: usize, container: &Value, status: Option<&Value>) {
    page.line(level, format!("{}:", container.text("name")));
    let inner = level + 1;
    if let Some(status) = status {
        page.field(inner, "Container ID", status.text("containerID"));
    }
    page.field(inner, "Image", container.text("image"));
    if let Some(status) = status {
        page.field(inner, "Image ID", status.text("imageID"));
    }
    ports(page, inner, container);
    for (name, path) in [("Command", "command"), ("Args", "args")] {
        let words = container.list(path);
        if !words.is_empty() {
            page.line(inner, format!("{name}:"));
            words.iter().for_each(|word| page.line(inner + 1, plain(word)));
        }
    }
    if let Some(status) = status {
        states(page, inner, status);
    }
    resources(page, inner, container);
    for (name, path) in [
        ("Liveness", "livenessProbe"),
        ("Readiness", "readinessProbe"),
        ("Startup", "startupProbe"),
    ] {
        if container.has(path) {
            page.field(inner, name, probe(container.at(path)));
        }
    }
    environment(page, inner, container);
    mounts(page, inner, container);
}

fn ports(page: &mut Page, level: usize, container: &Value) {
    let protocol = |port: &Value| match port.text("protocol") {
        "" => "TCP".to_owned(),
        protocol => protocol.to_owned(),
    };
    let list = container.list("ports");
    let (port, host) = if list.len() > 1 { ("Ports", "Host Ports") } else { ("Port", "Host Port") };
    let text = |field: &str| {
        let texts: Vec<String> =
            list.iter().map(|p| format!("{}/{}", p.int(field), protocol(p))).collect();
        if texts.is_empty() { "<none>".to_owned() } else { texts.join(", ") }
    };
    page.field(level, port, text("containerPort"));
    page.field(level, host, text("hostPort"));
}

fn states(page: &mut Page, level: usize, status: &Value) {
    state(page, level, "State", status.at("state"));
    if status.at("lastState").as_object().is_some_and(|s| !s.is_empty()) {
        state(page, level, "Last State", status.at("lastState"));
    }
    let ready = if status.flag("ready") { "True" } else { "False" };
    page.field(level, "Ready", ready);
    page.field(level, "Restart Count", status.int("restartCount").to_string());
}

fn state(page: &mut Page, level: usize, name: &str, state: &Value) {
    if state.has("running") {
        page.field(level, name, "Running");
        page.field(level + 1, "Started", long_time(state.time("running.startedAt")));
    } else if state.has("terminated") {
        let terminated = state.at("terminated");
        page.field(level, name, "Terminated");
        page.field_if(level + 1, "Reason", terminated.text("reason"));
        page.field_if(level + 1, "Message", terminated.text("message"));
        page.field(level + 1, "Exit Code", terminated.int("exitCode").to_string());
        if terminated.int("signal") > 0 {
            page.field(level + 1, "Signal", terminated.int("signal").to_string());
        }
        page.field(level + 1, "Started", long_time(terminated.time("startedAt")));
        page.field(level + 1, "Finished", long_time(terminated.time("finishedAt")));
    } else {
        page.field(level, name, "Waiting");
        page.field_if(level + 1, "Reason", state.text("waiting.reason"));
        page.field_if(level + 1, "Message", state.text("waiting.message"));
    }
}

fn resources(page: &mut Page, level: usize, container: &Value) {
    for (name, path) in [("Limits", "resources.limits"), ("Requests", "resources.requests")] {
        let pairs = container.pairs(path);
        if !pairs.is_empty() {
            page.line(level, format!("{name}:"));
            pairs.iter().for_each(|(key, value)| page.field(level + 1, key, value));
        }
    }
}

/// `http-get http://:http/healthz delay=0s timeout=1s period=1s #success=1 #failure=3`.
pub(super) fn probe(probe: &Value) -> String {
    let or = |path: &str, default: i64| probe.at(path).as_i64().unwrap_or(default);
    let action = if probe.has("httpGet") {
        let get = probe.at("httpGet");
        let scheme = match get.text("scheme") {
            "" => "http".to_owned(),
            scheme => scheme.to_ascii_lowercase(),
        };
        format!(
            "http-get {scheme}://{}:{}{}",
            get.text("host"),
            plain(get.at("port")),
            get.text("path")
        )
    } else if probe.has("tcpSocket") {
        format!("tcp-socket {}:{}", probe.text("tcpSocket.host"), plain(probe.at("tcpSocket.port")))
    } else if probe.has("exec") {
        let words: Vec<String> = probe.list("exec.command").iter().map(plain).collect();
        format!("exec [{}]", words.join(" "))
    } else if probe.has("grpc") {
        format!("grpc <pod>:{} {}", probe.int("grpc.port"), probe.text("grpc.service"))
    } else {
        "unknown".into()
    };
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        or("initialDelaySeconds", 0),
        or("timeoutSeconds", 1),
        or("periodSeconds", 10),
        or("successThreshold", 1),
        or("failureThreshold", 3)
    )
}

fn environment(page: &mut Page, level: usize, container: &Value) {
    let from = container.list("envFrom");
    if !from.is_empty() {
        page.line(level, "Environment Variables from:");
        for source in from {
            let name = source.text("configMapRef.name");
            let optional = source.flag("configMapRef.optional");
            page.line(level + 1, format!("{name}\tConfigMap\tOptional: {optional}"));
        }
    }
    let env = container.list("env");
    if env.is_empty() {
        page.field(level, "Environment", "<none>");
        return;
    }
    page.line(level, "Environment:");
    for variable in env {
        let name = variable.text("name");
        let source = variable.at("valueFrom");
        let value = if source.has("fieldRef") {
            format!(
                " ({}:{})",
                source.text("fieldRef.apiVersion"),
                source.text("fieldRef.fieldPath")
            )
        } else if source.has("configMapKeyRef") {
            let (map, key) =
                (source.text("configMapKeyRef.name"), source.text("configMapKeyRef.key"));
            format!("<set to the key '{key}' of config map '{map}'>")
        } else if source.has("resourceFieldRef") {
            format!(" ({})", source.text("resourceFieldRef.resource"))
        } else {
            variable.text("value").to_owned()
        };
        page.field(level + 1, name, value);
    }
}

fn mounts(page: &mut Page, level: usize, container: &Value) {
    let mounts = container.list("volumeMounts");
    if mounts.is_empty() {
        page.field(level, "Mounts", "<none>");
        return;
    }
    page.line(level, "Mounts:");
    for mount in mounts {
        let access = if mount.flag("readOnly") { "ro" } else { "rw" };
        let path = match mount.text("subPath") {
            "" => String::new(),
            path => format!(",path={path:?}"),
        };
        page.line(
            level + 1,
            format!("{} from {} ({access}{path})", mount.text("mountPath"), mount.text("name")),
        );
    }
}

pub(super) fn volumes(page: &mut Page, level: usize, list: &[Value]) {
    if list.is_empty() {
        page.field(level, "Volumes", "<none>");
        return;
    }
    page.line(level, "Volumes:");
    for volume in list {
        page.line(level + 1, format!("{}:", volume.text("name")));
        let inner = level + 2;
        if volume.has("emptyDir") {
            page.field(
                inner,
                "Type",
                "EmptyDir (a temporary directory that shares a pod's lifetime)",
            );
            page.field(inner, "Medium", volume.text("emptyDir.medium"));
            let limit = volume.text("emptyDir.sizeLimit");
            page.field(inner, "SizeLimit", if limit.is_empty() { "<unset>" } else { limit });
        } else if volume.has("hostPath") {
            page.field(inner, "Type", "HostPath (bare host directory volume)");
            page.field(inner, "Path", volume.text("hostPath.path"));
            page.field(inner, "HostPathType", volume.text("hostPath.type"));
        } else if volume.has("configMap") {
            page.field(inner, "Type", "ConfigMap (a volume populated by a ConfigMap)");
            page.field(inner, "Name", volume.text("configMap.name"));
            page.field(inner, "Optional", volume.flag("configMap.optional").to_string());
        } else {
            let kind = volume.as_object().and_then(|v| v.keys().find(|k| *k != "name"));
            page.field(inner, "Type", kind.map_or("<unknown>", String::as_str));
        }
    }
}
