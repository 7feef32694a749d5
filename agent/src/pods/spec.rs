//! From a container of a pod's spec to what the runtime is to make.

use std::net::Ipv4Addr;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec, SecurityContext};
use timonier_agent_core::net::{HostPortPlan, Protocol};
use timonier_proto::compiled::CompiledPod;
use timonier_proto::quantity::{cpu_millis, units};

use super::env::{NodeFacts, environment};
use crate::net::{INIT_PATH_IN_CONTAINER, PodFiles};
use crate::runtime::{
    ContainerLabels, ContainerRole, ContainerSpec, ImageInfo, Limits, Mount, NetworkMode,
};
use crate::volumes::{VolumePaths, mounts};

/// Docker's smallest weight.
const CPU_SHARES_MIN: i64 = 2;
/// As the kubelet's: the last to die when the host runs out of memory.
const OOM_SCORE_SANDBOX: i64 = -998;
const OOM_SCORE_GUARANTEED: i64 = -997;
/// The kernel's longest host name.
const HOSTNAME_BYTES_MAX: usize = 63;
/// Docker's least memory.
const MEMORY_BYTES_MIN: i64 = 6 << 20;

/// Where a pod's containers find what was prepared for them.
#[derive(Debug, Clone, Default)]
pub(super) struct Prepared {
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) volumes: VolumePaths,
    /// None on the host's network.
    pub(super) files: Option<PodFiles>,
    /// The sandbox's container, where the pod has one.
    pub(super) sandbox: Option<String>,
}

/// Everything that goes into one container.
pub(super) struct Parts<'a> {
    pub(super) compiled: &'a CompiledPod,
    pub(super) container: &'a Container,
    pub(super) image: &'a ImageInfo,
    pub(super) prepared: &'a Prepared,
    pub(super) facts: &'a NodeFacts,
    /// The init's program on the host.
    pub(super) init: &'a Path,
    pub(super) labels: ContainerLabels,
    pub(super) qos: &'a str,
}

/// The error is the message of a `CreateContainerConfigError`.
pub(super) fn container_spec(parts: &Parts<'_>) -> Result<ContainerSpec, String> {
    let none = PodSpec::default();
    let pod = parts.compiled.pod.spec.as_ref().unwrap_or(&none);
    let container = parts.container;
    let env = environment(parts.compiled, container, parts.facts)?;
    let expand = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        Some(list.iter().map(|text| env.expand(text)).collect())
    };
    let argv = argv(parts.image, expand(&container.command), expand(&container.args))?;
    let network = match (&parts.prepared.sandbox, pod.host_network) {
        (_, Some(true)) => NetworkMode::Host,
        (Some(sandbox), _) => NetworkMode::Container(sandbox.clone()),
        (None, _) => NetworkMode::Empty,
    };
    let mut list = mounts(container, &parts.prepared.volumes, |text| env.expand(text))
        .map_err(|error| error.to_string())?;
    list.extend(pod_files(parts.prepared, &list));
    let (entrypoint, args) = if network == NetworkMode::Empty {
        // Its network comes only once its process is there to get it: the init waits.
        list.push(read_only(&parts.init.to_string_lossy(), INIT_PATH_IN_CONTAINER));
        let init = [INIT_PATH_IN_CONTAINER, "run", "--"].map(str::to_owned);
        (init.to_vec(), argv)
    } else {
        let mut argv = argv;
        let rest = argv.split_off(1);
        (argv, rest)
    };
    let security = container.security_context.clone().unwrap_or_default();
    let pod_security = pod.security_context.clone().unwrap_or_default();
    let sysctls = pod_security.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone()));
    Ok(ContainerSpec {
        name: container_name(&parts.labels),
        image: container.image.clone().unwrap_or_default(),
        entrypoint,
        args,
        env: env.lines(),
        user: user(parts.image, &security, &pod_security)?,
        supplemental_groups: groups(&pod_security),
        working_dir: container.working_dir.clone().map(|d| env.expand(&d)).unwrap_or_default(),
        hostname: if network == NetworkMode::Host {
            String::new()
        } else {
            hostname(parts.compiled)
        },
        labels: parts.labels.to_map(),
        mounts: list,
        limits: limits(container, parts.qos, parts.facts),
        read_only_root: security.read_only_root_filesystem == Some(true),
        privileged: security.privileged == Some(true),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        capabilities_add: capabilities(security.capabilities.as_ref().and_then(|c| c.add.as_ref())),
        capabilities_drop: capabilities(
            security.capabilities.as_ref().and_then(|c| c.drop.as_ref()),
        ),
        sysctls: if network == NetworkMode::Empty { sysctls.collect() } else { Default::default() },
        network,
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        host_pid: pod.host_pid == Some(true),
        host_ipc: pod.host_ipc == Some(true),
    })
}

/// The sandbox of a pod with several containers.
pub(super) fn sandbox_spec(
    compiled: &CompiledPod,
    image: &str,
    labels: ContainerLabels,
    facts: &NodeFacts,
) -> ContainerSpec {
    ContainerSpec {
        name: container_name(&labels),
        image: image.to_owned(),
        entrypoint: ["/timonier-init", "sandbox"].map(str::to_owned).to_vec(),
        hostname: hostname(compiled),
        labels: labels.to_map(),
        read_only_root: true,
        limits: Limits {
            cpu_shares: CPU_SHARES_MIN,
            oom_score: OOM_SCORE_SANDBOX.max(facts.oom_score_min),
            ..Limits::default()
        },
        ..ContainerSpec::default()
    }
}

/// Unique on the host, and legible in `docker ps`.
fn container_name(labels: &ContainerLabels) -> String {
    let ContainerLabels { container, pod_name, pod_namespace, pod_uid, attempt, .. } = labels;
    let container = match labels.role {
        ContainerRole::Sandbox => "POD",
        _ => container,
    };
    format!("timonier_{container}_{pod_name}_{pod_namespace}_{pod_uid}_{attempt}")
}

pub(super) fn hostname(compiled: &CompiledPod) -> String {
    let given = compiled.pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let name = given.filter(|name| !name.is_empty()).or(compiled.pod.metadata.name.clone());
    let mut name = name.unwrap_or_default();
    name.truncate(HOSTNAME_BYTES_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The spec's command replaces the image's entrypoint and command; its args only the command.
fn argv(
    image: &ImageInfo,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
) -> Result<Vec<String>, String> {
    let argv = match (command, args) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [image.entrypoint.clone(), args].concat(),
        (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if argv.is_empty() {
        return Err("no command specified; hint: the image has none, set command".to_owned());
    }
    Ok(argv)
}

fn user(
    image: &ImageInfo,
    security: &SecurityContext,
    pod: &PodSecurityContext,
) -> Result<String, String> {
    let uid = security.run_as_user.or(pod.run_as_user);
    let gid = security.run_as_group.or(pod.run_as_group);
    if security.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        let name = image.user.split(':').next().unwrap_or_default();
        let root = match uid {
            Some(uid) => uid == 0,
            None => matches!(name, "" | "0" | "root"),
        };
        if root {
            return Err("container has runAsNonRoot and image will run as root".to_owned());
        }
    }
    let own = || image.user.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned);
    let user = uid.map(|uid| uid.to_string());
    Ok(match (user, gid) {
        (None, None) => String::new(),
        (Some(user), None) => user,
        (user, Some(gid)) => {
            format!("{}:{gid}", user.or_else(own).unwrap_or_else(|| "0".to_owned()))
        }
    })
}

fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group).collect()
}

fn capabilities(list: Option<&Vec<String>>) -> Vec<String> {
    let bare = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_uppercase();
    list.into_iter().flatten().map(bare).collect()
}

/// As the kubelet derives cgroup settings from requests and limits.
fn limits(container: &Container, qos: &str, facts: &NodeFacts) -> Limits {
    let resources = container.resources.clone().unwrap_or_default();
    let of = |list: &Option<std::collections::BTreeMap<_, _>>, name: &str| {
        list.as_ref().and_then(|list| list.get(name).cloned())
    };
    let cpu_limit = of(&resources.limits, "cpu");
    let cpu_request = of(&resources.requests, "cpu").or_else(|| cpu_limit.clone());
    let memory_limit = of(&resources.limits, "memory");
    let memory_request = of(&resources.requests, "memory").or_else(|| memory_limit.clone());
    let memory = units(memory_limit.as_ref());
    let share = units(memory_request.as_ref()).saturating_mul(1000) / facts.memory_bytes.max(1);
    Limits {
        cpu_millis: cpu_millis(cpu_limit.as_ref()),
        memory_bytes: if memory > 0 { memory.max(MEMORY_BYTES_MIN) } else { 0 },
        cpu_shares: (cpu_millis(cpu_request.as_ref()) * 1024 / 1000).max(CPU_SHARES_MIN),
        oom_score: match qos {
            "Guaranteed" => OOM_SCORE_GUARANTEED.max(facts.oom_score_min),
            "BestEffort" => 1000,
            _ => (1000 - share).clamp(3, 999),
        },
    }
}

/// The files that name the pod, where the container mounts none of its own there.
fn pod_files(prepared: &Prepared, mounted: &[Mount]) -> Vec<Mount> {
    let Some(files) = &prepared.files else { return Vec::new() };
    let list = [
        (&files.hosts, "/etc/hosts"),
        (&files.hostname, "/etc/hostname"),
        (&files.resolv_conf, "/etc/resolv.conf"),
    ];
    let free = list.into_iter().filter(|(_, to)| !mounted.iter().any(|m| m.target == *to));
    free.map(|(from, to)| Mount { read_only: false, ..read_only(&from.to_string_lossy(), to) })
        .collect()
}

fn read_only(source: &str, target: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: true,
        propagation: None,
    }
}

/// The ports of the host that lead to this pod.
pub(super) fn host_ports(compiled: &CompiledPod, ip: Ipv4Addr) -> Vec<HostPortPlan> {
    let Some(spec) = &compiled.pod.spec else { return Vec::new() };
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    let ports = spec.containers.iter().flat_map(|c| c.ports.as_deref().unwrap_or_default());
    ports
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?;
            let protocol: Protocol =
                port.protocol.as_deref().unwrap_or_default().parse().unwrap_or_default();
            Some(HostPortPlan {
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                port: host_port,
                protocol,
                target: (ip, u16::try_from(port.container_port).ok()?),
            })
        })
        .collect()
}
