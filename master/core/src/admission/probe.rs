//! Probes and lifecycle hooks: exactly one handler each, with a port that exists.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use timonier_proto::names;

use super::container::Kind;
use super::field::{Field, Problems};
use super::pod::unsupported;

pub fn check(field: &Field<'_>, container: &Container, kind: Kind, problems: &mut Problems) {
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let field = field.name(name);
        if kind == Kind::Init && !sidecar {
            let why = "may not be set for init containers without restartPolicy=Always";
            problems.forbidden(&field, why);
        }
        self::probe(&field, probe, container, problems);
        let wants_one = name != "readinessProbe";
        if wants_one && probe.success_threshold.is_some_and(|count| count != 1) {
            problems.invalid(
                &field.name("successThreshold"),
                probe.success_threshold.unwrap_or(0),
                "must be 1",
            );
        }
    }
    let Some(lifecycle) = &container.lifecycle else { return };
    let field = field.name("lifecycle");
    if kind == Kind::Init && !sidecar {
        problems
            .forbidden(&field, "may not be set for init containers without restartPolicy=Always");
    }
    unsupported!(problems, field, lifecycle, { stop_signal: "stopSignal", ""; });
    for (name, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            self::hook(&field.name(name), hook, container, problems);
        }
    }
}

fn probe(field: &Field<'_>, probe: &Probe, container: &Container, problems: &mut Problems) {
    let given = usize::from(probe.exec.is_some())
        + usize::from(probe.http_get.is_some())
        + usize::from(probe.tcp_socket.is_some())
        + usize::from(probe.grpc.is_some());
    one_handler(field, given, problems);
    exec(field, probe.exec.as_ref(), problems);
    http_get(field, probe.http_get.as_ref(), container, problems);
    tcp_socket(field, probe.tcp_socket.as_ref(), container, problems);
    if let Some(grpc) = &probe.grpc {
        problems.port(&field.name("grpc").name("port"), grpc.port);
    }
    for (name, value, least) in [
        ("initialDelaySeconds", probe.initial_delay_seconds, 0),
        ("timeoutSeconds", probe.timeout_seconds, 1),
        ("periodSeconds", probe.period_seconds, 1),
        ("successThreshold", probe.success_threshold, 1),
        ("failureThreshold", probe.failure_threshold, 1),
    ] {
        problems.at_least(&field.name(name), value.map(i64::from), least);
    }
    let grace = probe.termination_grace_period_seconds;
    problems.at_least(&field.name("terminationGracePeriodSeconds"), grace, 1);
}

fn hook(
    field: &Field<'_>,
    hook: &LifecycleHandler,
    container: &Container,
    problems: &mut Problems,
) {
    let given = usize::from(hook.exec.is_some())
        + usize::from(hook.http_get.is_some())
        + usize::from(hook.tcp_socket.is_some())
        + usize::from(hook.sleep.is_some());
    one_handler(field, given, problems);
    exec(field, hook.exec.as_ref(), problems);
    http_get(field, hook.http_get.as_ref(), container, problems);
    tcp_socket(field, hook.tcp_socket.as_ref(), container, problems);
}

fn one_handler(field: &Field<'_>, given: usize, problems: &mut Problems) {
    match given {
        0 => problems.required(field, "must specify a handler type"),
        1 => {}
        _ => problems.forbidden(field, "may not specify more than 1 handler type"),
    }
}

fn exec(field: &Field<'_>, action: Option<&ExecAction>, problems: &mut Problems) {
    if action.is_some_and(|action| action.command.as_ref().is_none_or(Vec::is_empty)) {
        let field = field.name("exec");
        problems.required(&field.name("command"), "");
    }
}

fn http_get(
    field: &Field<'_>,
    action: Option<&HTTPGetAction>,
    container: &Container,
    problems: &mut Problems,
) {
    let Some(action) = action else { return };
    let field = field.name("httpGet");
    if action.path.as_deref().is_some_and(|path| !path.starts_with('/')) {
        let why = "must be an absolute path, such as /";
        problems.invalid(&field.name("path"), action.path.as_deref().unwrap_or_default(), why);
    }
    let scheme = action.scheme.as_deref().unwrap_or_default();
    problems.one_of(&field.name("scheme"), scheme, &["HTTP", "HTTPS"]);
    port(&field.name("port"), &action.port, container, problems);
    for (index, header) in action.http_headers.iter().flatten().enumerate() {
        let headers = field.name("httpHeaders");
        if header.name.is_empty() {
            problems.required(&headers.index(index).name("name"), "");
        }
    }
}

fn tcp_socket(
    field: &Field<'_>,
    action: Option<&TCPSocketAction>,
    container: &Container,
    problems: &mut Problems,
) {
    if let Some(action) = action {
        let field = field.name("tcpSocket");
        port(&field.name("port"), &action.port, container, problems);
    }
}

/// A number, or the name of one of the container's own ports.
fn port(field: &Field<'_>, port: &IntOrString, container: &Container, problems: &mut Problems) {
    match port {
        IntOrString::Int(number) => problems.port(field, *number),
        IntOrString::String(name) => {
            problems.name(field, name, names::port_name(name));
            let known = container.ports.iter().flatten().any(|p| p.name.as_ref() == Some(name));
            if !known && names::port_name(name).is_ok() {
                problems.invalid(field, name, "no port of this container has that name");
            }
        }
    }
}
