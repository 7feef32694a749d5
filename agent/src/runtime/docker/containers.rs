//! Containers: made, started, signalled, removed, looked at.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerSummaryStateEnum, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount as DockerMount, MountBindOptions, MountBindOptionsPropagationEnum, MountType,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};

use super::convert::{failed, time};
use crate::runtime::{
    ContainerInfo, ContainerLabels, ContainerSpec, ContainerSummary, Mount, NetworkMode,
    RuntimeError, RuntimeErrorKind, Signal, label,
};

/// A container's log is at most so large, twice.
const LOG_SIZE: &str = "10m";
const LOG_FILES: &str = "2";

pub(super) async fn create(docker: &Docker, spec: &ContainerSpec) -> Result<String, RuntimeError> {
    let options = || Some(CreateContainerOptionsBuilder::new().name(&spec.name).build());
    let what = || format!("create container {}", spec.name);
    let body = body(spec);
    match docker.create_container(options(), body.clone()).await {
        Ok(answer) => return Ok(answer.id),
        Err(error) => {
            let error = failed(what(), error);
            if error.kind != RuntimeErrorKind::Conflict {
                return Err(error);
            }
        }
    }
    // The name is taken, by a create whose answer was lost: it never ran as far as we know.
    remove_if_ours(docker, spec).await?;
    let answer = docker.create_container(options(), body).await;
    answer.map(|answer| answer.id).map_err(|error| failed(what(), error))
}

async fn remove_if_ours(docker: &Docker, spec: &ContainerSpec) -> Result<(), RuntimeError> {
    let what = format!("look at container {}, whose name is taken", spec.name);
    let found = docker
        .inspect_container(&spec.name, None::<InspectContainerOptions>)
        .await
        .map_err(|error| failed(&what, error))?;
    let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
    let same = |name: &str| labels.get(name) == spec.labels.get(name);
    if same(label::NODE) && same(label::POD_UID) {
        return remove(docker, &spec.name).await;
    }
    let text = format!("the name is taken by another; hint: docker rm -f {}", spec.name);
    Err(RuntimeError::new(RuntimeErrorKind::Refused, what, text))
}

fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let joins = matches!(spec.network, NetworkMode::Container(_));
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: Some(spec.entrypoint.clone()),
        cmd: Some(spec.args.clone()),
        env: Some(spec.env.clone()),
        user: text(&spec.user),
        working_dir: text(&spec.working_dir),
        // Docker refuses a host name for what joins another's namespaces.
        hostname: text(&spec.hostname).filter(|_| !joins),
        labels: Some(spec.labels.clone().into_iter().collect()),
        network_disabled: (spec.network == NetworkMode::Empty).then_some(true),
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin_once),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        host_config: Some(host_config(spec)),
        ..Default::default()
    }
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let nonzero = |value: i64| (value != 0).then_some(value);
    let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let log = [("max-size", LOG_SIZE), ("max-file", LOG_FILES)];
    let groups: Vec<String> = spec.supplemental_groups.iter().map(i64::to_string).collect();
    let limits = &spec.limits;
    HostConfig {
        network_mode: match &spec.network {
            NetworkMode::Empty => None,
            NetworkMode::Host => Some("host".to_owned()),
            NetworkMode::Container(id) => Some(format!("container:{id}")),
        },
        mounts: (!spec.mounts.is_empty()).then(|| spec.mounts.iter().map(mount).collect()),
        nano_cpus: nonzero(limits.cpu_millis * 1_000_000),
        cpu_shares: nonzero(limits.cpu_shares),
        memory: nonzero(limits.memory_bytes),
        // No swap on top, as in Kubernetes.
        memory_swap: nonzero(limits.memory_bytes),
        oom_score_adj: nonzero(limits.oom_score),
        readonly_rootfs: spec.read_only_root.then_some(true),
        privileged: spec.privileged.then_some(true),
        cap_add: list(&spec.capabilities_add),
        cap_drop: list(&spec.capabilities_drop),
        group_add: list(&groups),
        security_opt: spec.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        pid_mode: spec.host_pid.then(|| "host".to_owned()),
        ipc_mode: spec.host_ipc.then(|| "host".to_owned()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        }),
        ..Default::default()
    }
}

fn mount(mount: &Mount) -> DockerMount {
    DockerMount {
        typ: Some(MountType::BIND),
        source: Some(mount.source.clone()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        bind_options: mount.propagation.as_deref().map(|propagation| MountBindOptions {
            propagation: Some(match propagation {
                "Bidirectional" => MountBindOptionsPropagationEnum::RSHARED,
                "HostToContainer" => MountBindOptionsPropagationEnum::RSLAVE,
                _ => MountBindOptionsPropagationEnum::RPRIVATE,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) async fn start(docker: &Docker, id: &str) -> Result<(), RuntimeError> {
    match docker.start_container(id, None::<StartContainerOptions>).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = failed(format!("start container {}", short(id)), error);
            // 304: it runs already.
            if error.kind == RuntimeErrorKind::Conflict && error.message.is_empty() {
                return Ok(());
            }
            Err(error)
        }
    }
}

pub(super) async fn signal(docker: &Docker, id: &str, signal: Signal) -> Result<(), RuntimeError> {
    let name = match signal {
        Signal::Terminate => "SIGTERM",
        Signal::Kill => "SIGKILL",
    };
    let options = KillContainerOptionsBuilder::new().signal(name).build();
    let done = docker.kill_container(id, Some(options)).await;
    let done = done.map_err(|error| failed(format!("send {name} to {}", short(id)), error));
    unless_gone(done)
}

pub(super) async fn remove(docker: &Docker, id: &str) -> Result<(), RuntimeError> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    let done = docker.remove_container(id, Some(options)).await;
    let done = done.map_err(|error| failed(format!("remove container {}", short(id)), error));
    unless_gone(done)
}

/// Not there any more, not running any more, or being removed: what was wanted holds.
fn unless_gone(done: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match done {
        Err(error)
            if matches!(error.kind, RuntimeErrorKind::NotFound | RuntimeErrorKind::Conflict) =>
        {
            Ok(())
        }
        other => other,
    }
}

pub(super) async fn list(
    docker: &Docker,
    node: &str,
) -> Result<Vec<ContainerSummary>, RuntimeError> {
    let filters = HashMap::from([("label", vec![format!("{}={node}", label::NODE)])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = docker
        .list_containers(Some(options))
        .await
        .map_err(|error| failed(format!("list the containers of node {node}"), error))?;
    let read = |one: bollard::models::ContainerSummary| {
        let labels = one.labels.unwrap_or_default();
        let get = |name: &str| labels.get(name).map(String::as_str);
        Some(ContainerSummary {
            id: one.id?,
            running: matches!(
                one.state,
                Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
            ),
            created_only: one.state == Some(ContainerSummaryStateEnum::CREATED),
            labels: ContainerLabels::from_lookup(get)?,
        })
    };
    Ok(found.into_iter().filter_map(read).collect())
}

pub(super) async fn inspect(
    docker: &Docker,
    id: &str,
) -> Result<Option<ContainerInfo>, RuntimeError> {
    let answer = match docker.inspect_container(id, None::<InspectContainerOptions>).await {
        Ok(answer) => answer,
        Err(error) => {
            let error = failed(format!("inspect container {}", short(id)), error);
            let absent = error.kind == RuntimeErrorKind::NotFound;
            return if absent { Ok(None) } else { Err(error) };
        }
    };
    let state = answer.state.unwrap_or_default();
    Ok(Some(ContainerInfo {
        id: answer.id.unwrap_or_default(),
        image_id: answer.image.unwrap_or_default(),
        running: state.running.unwrap_or(false),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        started_at: time(state.started_at.as_deref()),
        finished_at: time(state.finished_at.as_deref()),
    }))
}

/// As Docker's tools show ids.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
