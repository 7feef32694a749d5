//! What the lifecycle asks for, done: each action as a future that ends in an [`Outcome`].
//!
//! Nothing is retried here; the lifecycle decides that.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use timonier_agent_core::pod::{
    Event, Exit, Failure, Hook, ImageFailure, ProbeKind, Pull, PullPolicy, Slot, StartFailure,
};
use timonier_proto::compiled::CompiledPod;
use timonier_proto::unique::is_unique;

use super::env::NodeFacts;
use super::shared::Shared;
use super::spec::{Parts, Prepared, container_spec, hostname, sandbox_spec};
use crate::blocking;
use crate::net::{Resolver, sandbox_image, sandbox_image_tar, write_pod_files};
use crate::probes::{self, Target};
use crate::runtime::{
    ContainerLabels, ContainerRole, ImageInfo, RuntimeError, RuntimeErrorKind, Signal,
};
use crate::volumes;

/// A hook without an end of its own is given up after this.
const HOOK_DEADLINE: Duration = Duration::from_secs(3600);
/// How a container's end is told when the container itself is gone.
const VANISHED_EXIT_CODE: i32 = 137;
const CONCURRENT_REMOVALS_MAX: usize = 4;

/// What an operation came to: the event for the lifecycle, with what only the task needs.
pub(super) enum Outcome {
    Event(Event),
    Prepared(Box<Prepared>),
    Image {
        slot: Slot,
        image: Arc<ImageInfo>,
        pull: Option<Pull>,
    },
    /// `pid` is 0 where starting it did not need to know.
    Started {
        slot: Slot,
        id: String,
        pid: u32,
    },
    Pid {
        id: String,
        pid: u32,
    },
    /// Nothing to tell.
    Nothing,
}

/// A pod and what its operations work with; clones are cheap.
#[derive(Clone)]
pub(super) struct Ops {
    pub(super) shared: Arc<Shared>,
    pub(super) compiled: Arc<CompiledPod>,
    pub(super) uid: String,
    pub(super) grace_s: u32,
    pub(super) needs_sandbox: bool,
    pub(super) qos: &'static str,
}

impl Ops {
    fn spec(&self) -> Option<&PodSpec> {
        self.compiled.pod.spec.as_ref()
    }

    fn host_network(&self) -> bool {
        self.spec().and_then(|spec| spec.host_network) == Some(true)
    }

    pub(super) fn container(&self, slot: Slot) -> Option<&Container> {
        let spec = self.spec()?;
        match slot {
            Slot::Init(index) => spec.init_containers.as_ref()?.get(index),
            Slot::Main(index) => spec.containers.get(index),
        }
    }

    fn labels(
        &self,
        role: ContainerRole,
        name: &str,
        attempt: u32,
        hash: &str,
        ip: Option<Ipv4Addr>,
    ) -> ContainerLabels {
        let meta = &self.compiled.pod.metadata;
        ContainerLabels {
            node: self.shared.config.node.clone(),
            pod_uid: self.uid.clone(),
            pod_name: meta.name.clone().unwrap_or_default(),
            pod_namespace: meta.namespace.clone().unwrap_or_default(),
            pod_ip: ip.map(|ip| ip.to_string()).unwrap_or_default(),
            container: name.to_owned(),
            role,
            attempt,
            spec_hash: hash.to_owned(),
            grace_s: self.grace_s,
            unique: is_unique(meta),
        }
    }

    // --- preparing ---

    /// `old` is a sandbox that is not good any more.
    pub(super) async fn prepare(self, old: Option<String>) -> Outcome {
        match self.try_prepare(old).await {
            Ok(prepared) => Outcome::Prepared(Box::new(prepared)),
            Err(failure) => Outcome::Event(Event::PrepareFailed(failure)),
        }
    }

    async fn try_prepare(&self, old: Option<String>) -> Result<Prepared, Failure> {
        let ip = match self.host_network() {
            true => None,
            false => Some(self.shared.network.allocate(&self.uid).map_err(sandbox_failed)?),
        };
        let mut prepared = self.prepare_disk(ip).await?;
        if let (true, Some(ip)) = (self.needs_sandbox, ip) {
            if let Some(old) = old {
                self.shared.runtime.remove(&old).await.map_err(engine_failed)?;
            }
            prepared.sandbox = Some(self.sandbox(ip).await?);
        }
        Ok(prepared)
    }

    /// Volumes and files: made, or found as an agent before made them.
    pub(super) async fn prepare_disk(&self, ip: Option<Ipv4Addr>) -> Result<Prepared, Failure> {
        let dir = self.shared.pod_dir(&self.uid);
        let (compiled, host_network) = (self.compiled.clone(), self.host_network());
        let facts = self.shared.facts.clone();
        let work = move || {
            let volumes = volumes::prepare(&dir, &compiled, &facts)
                .map_err(|error| failure("FailedMount", error.to_string()))?;
            let files = match host_network {
                true => None,
                false => {
                    let (aliases, resolver) = (aliases(&compiled), resolver(&compiled));
                    let name = hostname(&compiled);
                    let ip = ip.map(IpAddr::V4);
                    let written = write_pod_files(&dir.join("etc"), &name, ip, &aliases, &resolver);
                    Some(written.map_err(|error| sandbox_failed(error.to_string()))?)
                }
            };
            Ok(Prepared { ip, volumes, files, sandbox: None })
        };
        blocking::run(work).await.map_err(|error| sandbox_failed(error.to_string()))?
    }

    /// Makes, starts and wires the sandbox; its id.
    async fn sandbox(&self, ip: Ipv4Addr) -> Result<String, Failure> {
        let image = self.shared.sandbox.get_or_try_init(|| self.sandbox_image()).await;
        let labels = self.labels(ContainerRole::Sandbox, "", 0, "", Some(ip));
        let spec =
            sandbox_spec(&self.compiled, image.map_err(engine_failed)?, labels, &self.shared.facts);
        let _permit = self.shared.starts.acquire().await.ok();
        let runtime = &self.shared.runtime;
        let id = runtime.create(&spec).await.map_err(engine_failed)?;
        let wired = async {
            runtime.start(&id).await.map_err(engine_failed)?;
            self.wire(&id, ip).await.map_err(sandbox_failed)
        };
        match wired.await {
            Ok(_) => Ok(id),
            Err(failure) => {
                self.discard(&id).await;
                Err(failure)
            }
        }
    }

    async fn sandbox_image(&self) -> Result<String, RuntimeError> {
        let name = sandbox_image();
        if self.shared.runtime.image(&name).await?.is_none() {
            let archive = bytes::Bytes::from(sandbox_image_tar());
            let archive = futures::stream::once(async move { Ok(archive) });
            self.shared.runtime.load_image(Box::pin(archive), &|_| ()).await?;
        }
        Ok(name)
    }

    /// Puts the pod's interface into the namespace of a started container; its pid.
    async fn wire(&self, id: &str, ip: Ipv4Addr) -> Result<u32, String> {
        let info = self.shared.runtime.inspect(id).await.map_err(|error| error.to_string())?;
        let pid = info.map_or(0, |info| info.pid);
        if pid == 0 {
            return Err("it ended before it had its network".to_owned());
        }
        self.shared.network.attach(&self.uid, pid, ip).await?;
        Ok(pid)
    }

    async fn discard(&self, id: &str) {
        if let Err(error) = self.shared.runtime.remove(id).await {
            tracing::warn!(%error, "a container that could not be used is left");
        }
    }

    // --- containers ---

    pub(super) async fn ensure_image(
        self,
        slot: Slot,
        policy: PullPolicy,
        pulling: impl AsyncFnOnce(),
    ) -> Outcome {
        let image = self.container(slot).and_then(|c| c.image.clone()).unwrap_or_default();
        match self.shared.images.ensure(&image, policy, &self.compiled.registries, pulling).await {
            Ok((image, pull)) => Outcome::Image { slot, image, pull },
            Err((kind, message)) => Outcome::Event(Event::ImageFailed { slot, kind, message }),
        }
    }

    pub(super) async fn start(
        self,
        slot: Slot,
        attempt: u32,
        image: Arc<ImageInfo>,
        prepared: Arc<Prepared>,
        hash: String,
    ) -> Outcome {
        match self.try_start(slot, attempt, &image, &prepared, &hash).await {
            Ok((id, pid)) => Outcome::Started { slot, id, pid },
            Err((kind, message)) => {
                Outcome::Event(Event::StartFailed { slot, kind, message, id: None })
            }
        }
    }

    async fn try_start(
        &self,
        slot: Slot,
        attempt: u32,
        image: &ImageInfo,
        prepared: &Prepared,
        hash: &str,
    ) -> Result<(String, u32), (StartFailure, String)> {
        let config = |message: String| (StartFailure::Config, message);
        let container =
            self.container(slot).ok_or_else(|| config("it is not in the spec".to_owned()))?;
        let role = match slot {
            Slot::Init(_) => ContainerRole::Init,
            Slot::Main(_) => ContainerRole::Main,
        };
        let pod_ip = match prepared.ip {
            Some(ip) => ip.to_string(),
            None => self.shared.config.host_ip.clone(),
        };
        let facts = NodeFacts { pod_ip, ..self.shared.facts.clone() };
        let spec = container_spec(&Parts {
            compiled: &self.compiled,
            container,
            image,
            prepared,
            facts: &facts,
            init: &self.shared.init,
            labels: self.labels(role, &container.name, attempt, hash, prepared.ip),
            qos: self.qos,
        })
        .map_err(config)?;
        let runtime = &self.shared.runtime;
        let permit = self.shared.starts.acquire().await.ok();
        let id = runtime.create(&spec).await.map_err(|e| start_failure(e, StartFailure::Create))?;
        if is_unique(&self.compiled.pod.metadata) && !self.shared.config.lease.is_valid() {
            self.discard(&id).await;
            return Err((StartFailure::Unavailable, "its lease has run out".to_owned()));
        }
        if let Err(error) = runtime.start(&id).await {
            self.discard(&id).await;
            return Err(start_failure(error, StartFailure::Start));
        }
        // The engine has done its part: the next one may begin while this one gets its network.
        drop(permit);
        let own_network = prepared.ip.filter(|_| prepared.sandbox.is_none());
        let Some(ip) = own_network else {
            return Ok((id, 0));
        };
        match self.wire(&id, ip).await {
            Ok(pid) => Ok((id, pid)),
            Err(message) => {
                self.discard(&id).await;
                Err((StartFailure::Create, format!("cannot set up its network: {message}")))
            }
        }
    }

    /// The pid of a container that joined a sandbox, which its start did not need.
    pub(super) async fn pid(&self, id: &str) -> u32 {
        let info = self.shared.runtime.inspect(id).await.ok().flatten();
        info.map_or(0, |info| info.pid)
    }

    /// How a container that has died ended.
    pub(super) async fn exit(self, slot: Slot, id: String) -> Outcome {
        match self.shared.runtime.inspect(&id).await {
            Ok(Some(info)) if info.running => Outcome::Nothing,
            Ok(Some(info)) => {
                let exit = exit_of(&info);
                Outcome::Event(Event::Exited { slot, id, exit })
            }
            Ok(None) => {
                let exit = Exit {
                    code: VANISHED_EXIT_CODE,
                    oom_killed: false,
                    started_at: None,
                    finished_at: None,
                    message: "the container was removed by another hand".to_owned(),
                    vanished: true,
                };
                Outcome::Event(Event::Exited { slot, id, exit })
            }
            // The resync after the engine is back tells.
            Err(error) => {
                tracing::debug!(%error, "how a container ended is not known yet");
                Outcome::Nothing
            }
        }
    }

    pub(super) async fn signal(self, id: String, kill: bool) -> Outcome {
        let signal = if kill { Signal::Kill } else { Signal::Terminate };
        if let Err(error) = self.shared.runtime.signal(&id, signal).await {
            tracing::warn!(%error, "a signal is not delivered; it will be killed in the end");
        }
        Outcome::Nothing
    }

    pub(super) async fn remove(self, id: String) -> Outcome {
        self.discard(&id).await;
        Outcome::Nothing
    }

    // --- looks ---

    pub(super) async fn probe(
        self,
        slot: Slot,
        id: String,
        kind: ProbeKind,
        ip: Option<Ipv4Addr>,
    ) -> Outcome {
        let container = self.container(slot);
        let probe = container.and_then(|c| match kind {
            ProbeKind::Startup => c.startup_probe.as_ref(),
            ProbeKind::Liveness => c.liveness_probe.as_ref(),
            ProbeKind::Readiness => c.readiness_probe.as_ref(),
        });
        let (Some(container), Some(probe)) = (container, probe) else {
            return Outcome::Nothing;
        };
        let _permit = self.shared.probes.acquire().await.ok();
        let result = probes::probe(self.target(container, &id, ip), probe).await;
        Outcome::Event(Event::Probed { slot, id, kind, result })
    }

    pub(super) async fn hook(
        self,
        slot: Slot,
        id: String,
        hook: Hook,
        ip: Option<Ipv4Addr>,
    ) -> Outcome {
        let container = self.container(slot);
        let lifecycle = container.and_then(|c| c.lifecycle.as_ref());
        let handler = lifecycle.and_then(|lifecycle| match hook {
            Hook::PostStart => lifecycle.post_start.as_ref(),
            Hook::PreStop => lifecycle.pre_stop.as_ref(),
        });
        let result = match (container, handler) {
            (Some(container), Some(handler)) => {
                probes::hook(self.target(container, &id, ip), handler, HOOK_DEADLINE).await
            }
            _ => Ok(()),
        };
        Outcome::Event(Event::HookDone { slot, id, hook, result })
    }

    fn target<'a>(
        &'a self,
        container: &'a Container,
        id: &'a str,
        ip: Option<Ipv4Addr>,
    ) -> Target<'a> {
        let host = self.shared.config.host_ip.parse().ok();
        Target {
            runtime: self.shared.runtime.as_ref(),
            container_id: id,
            container,
            ip: ip.map(IpAddr::V4).or(host),
        }
    }

    // --- the end ---

    /// Frees the address of a pod that has finished; its containers stay for their logs.
    pub(super) async fn release_network(self, sandbox: Option<String>) -> Outcome {
        if let Err(message) = self.unwire(sandbox).await {
            tracing::warn!(pod = self.uid, message, "a finished pod's network is left for now");
        }
        Outcome::Nothing
    }

    async fn unwire(&self, sandbox: Option<String>) -> Result<(), String> {
        if let Some(sandbox) = sandbox {
            self.shared.runtime.remove(&sandbox).await.map_err(|error| error.to_string())?;
        }
        if !self.host_network() {
            self.shared.network.detach(&self.uid).await?;
            self.shared.network.release(&self.uid);
        }
        Ok(())
    }

    pub(super) async fn tear_down(self, ids: Vec<String>, sandbox: Option<String>) -> Outcome {
        match self.try_tear_down(ids, sandbox).await {
            Ok(()) => Outcome::Event(Event::TornDown),
            Err(message) => Outcome::Event(Event::TearDownFailed { message }),
        }
    }

    async fn try_tear_down(&self, ids: Vec<String>, sandbox: Option<String>) -> Result<(), String> {
        futures::stream::iter(ids)
            .map(|id| async move { self.shared.runtime.remove(&id).await })
            .buffer_unordered(CONCURRENT_REMOVALS_MAX)
            .try_collect::<()>()
            .await
            .map_err(|error| error.to_string())?;
        self.unwire(sandbox).await?;
        let dir = self.shared.pod_dir(&self.uid);
        let shown = dir.display().to_string();
        let removed = blocking::run(move || volumes::remove(&dir)).await;
        removed
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("cannot remove {shown}: {error}"))
    }
}

pub(super) fn exit_of(info: &crate::runtime::ContainerInfo) -> Exit {
    Exit {
        code: info.exit_code,
        oom_killed: info.oom_killed,
        started_at: info.started_at,
        finished_at: info.finished_at,
        message: info.error.clone(),
        vanished: false,
    }
}

fn failure(reason: &str, message: String) -> Failure {
    Failure { reason: reason.to_owned(), message }
}

fn sandbox_failed(message: String) -> Failure {
    failure("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"))
}

fn engine_failed(error: RuntimeError) -> Failure {
    if error.is_unavailable() {
        return failure("", error.to_string());
    }
    sandbox_failed(error.to_string())
}

fn start_failure(error: RuntimeError, otherwise: StartFailure) -> (StartFailure, String) {
    match error.kind {
        RuntimeErrorKind::Unavailable => (StartFailure::Unavailable, error.to_string()),
        _ => (otherwise, error.message),
    }
}

fn aliases(compiled: &CompiledPod) -> Vec<(IpAddr, Vec<String>)> {
    let list = compiled.pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref());
    let alias = |alias: &k8s_openapi::api::core::v1::HostAlias| {
        Some((alias.ip.parse().ok()?, alias.hostnames.clone().unwrap_or_default()))
    };
    list.unwrap_or_default().iter().filter_map(alias).collect()
}

fn resolver(compiled: &CompiledPod) -> Resolver {
    let spec = compiled.pod.spec.as_ref();
    let only_given = spec.and_then(|spec| spec.dns_policy.as_deref()) == Some("None");
    let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()).filter(|_| only_given) else {
        return Resolver::Host;
    };
    let option = |option: &k8s_openapi::api::core::v1::PodDNSConfigOption| {
        let name = option.name.clone().unwrap_or_default();
        match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        }
    };
    Resolver::Given {
        servers: config.nameservers.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
        searches: config.searches.clone().unwrap_or_default(),
        options: config.options.iter().flatten().map(option).collect(),
    }
}

/// For a lifecycle that asks for the image of a container that is not there.
pub(super) fn no_container(slot: Slot) -> Event {
    let message = "it is not in the spec".to_owned();
    Event::ImageFailed { slot, kind: ImageFailure::InvalidName, message }
}
