//! A pod that ran before this agent did: its state out of its containers' labels.

use std::collections::HashMap;
use std::sync::Arc;

use timonier_agent_core::pod::{Found, FoundState, PodState, Slot};
use timonier_proto::compiled::CompiledPod;

use super::ops::{Ops, exit_of};
use super::shared::Shared;
use super::worker::{Adopted, plan};
use crate::runtime::{ContainerInfo, ContainerRole, ContainerSummary};

/// None where nothing of the pod is there. Containers that run are left alone but for their
/// network, which is looked after.
pub(super) async fn adopt(
    shared: &Arc<Shared>,
    compiled: &Arc<CompiledPod>,
    found: Vec<ContainerSummary>,
) -> Option<Adopted> {
    if found.is_empty() {
        return None;
    }
    let plan = plan(compiled, shared);
    let ops = Ops {
        shared: shared.clone(),
        compiled: compiled.clone(),
        uid: plan.uid.clone(),
        grace_s: plan.grace_s,
        needs_sandbox: plan.needs_sandbox(),
        qos: plan.qos,
    };
    let ip = found.iter().filter(|one| one.running).find_map(|one| one.labels.pod_ip.parse().ok());
    // What is on disk is as it was; where it is not, the next start says so.
    let mut prepared = ops.prepare_disk(ip).await.unwrap_or_default();
    prepared.ip = ip;
    let mut pids = HashMap::new();
    let mut list = Vec::new();
    for one in found {
        let Some(info) = shared.runtime.inspect(&one.id).await.ok().flatten() else { continue };
        if one.labels.role == ContainerRole::Sandbox {
            prepared.sandbox = Some(one.id.clone());
        }
        let slot = slot(compiled, &one);
        if info.running
            && let Some(ip) = ip
            && (one.labels.role == ContainerRole::Sandbox || !ops.needs_sandbox)
            && let Err(error) = shared.network.attach(&ops.uid, info.pid, ip).await
        {
            tracing::warn!(uid = ops.uid, error, "a running pod's network cannot be looked after");
        }
        if let Some(slot) = slot {
            pids.insert(one.id.clone(), info.pid);
            list.push(read(slot, one, &info));
        } else if one.labels.role != ContainerRole::Sandbox {
            ops.clone().remove(one.id).await;
        }
    }
    let sandbox = match &prepared.sandbox {
        Some(id) => {
            let info = shared.runtime.inspect(id).await.ok().flatten();
            info.is_some_and(|info| info.running)
        }
        None => !ops.needs_sandbox,
    };
    let now = shared.clock.now();
    let ip = ip.map(|ip| ip.to_string());
    let (state, actions) = PodState::adopt(plan, list, sandbox, ip, now);
    Some(Adopted { state, actions, prepared, pids })
}

fn slot(compiled: &CompiledPod, one: &ContainerSummary) -> Option<Slot> {
    let spec = compiled.pod.spec.as_ref()?;
    let name = &one.labels.container;
    match one.labels.role {
        ContainerRole::Sandbox => None,
        ContainerRole::Init => {
            let list = spec.init_containers.as_deref().unwrap_or_default();
            list.iter().position(|c| &c.name == name).map(Slot::Init)
        }
        ContainerRole::Main => spec.containers.iter().position(|c| &c.name == name).map(Slot::Main),
    }
}

fn read(slot: Slot, one: ContainerSummary, info: &ContainerInfo) -> Found {
    let state = match (info.running, info.started_at) {
        (true, Some(started_at)) => FoundState::Running { started_at },
        (false, Some(_)) => FoundState::Exited(exit_of(info)),
        _ => FoundState::Created,
    };
    Found {
        slot,
        attempt: one.labels.attempt,
        id: one.id,
        image_id: info.image_id.clone(),
        spec_hash: one.labels.spec_hash,
        state,
    }
}
