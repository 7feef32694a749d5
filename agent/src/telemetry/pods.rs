//! How the pods use the host, from their containers' cgroups.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use timonier_proto::v1::PodUsage;
use uuid::Uuid;

use super::cgroup::{Cgroup, Mounts};
use crate::pods::{RunningContainer, RunningPod};

/// Reads how pods use the host since it was last asked: three small files a container. A
/// container's cgroup is looked for once.
pub struct PodSampler {
    proc: PathBuf,
    mounts: Mounts,
    /// By the container's id.
    pub(super) known: HashMap<String, Known>,
    /// Of the sample: what was not seen in it is forgotten.
    round: u64,
    buffer: String,
}

pub(super) struct Known {
    cgroup: Cgroup,
    /// When CPU time was last read, and what it was, in nanoseconds.
    last: Option<(Instant, u64)>,
    round: u64,
}

impl Default for PodSampler {
    fn default() -> Self {
        Self::new()
    }
}

impl PodSampler {
    pub fn new() -> Self {
        Self::with_proc("/proc".into())
    }

    pub(super) fn with_proc(proc: PathBuf) -> Self {
        let mounts = Mounts::read(&proc);
        Self { proc, mounts, known: HashMap::new(), round: 0, buffer: String::new() }
    }

    /// Usage of those pods of which anything can be read; CPU is 0 in a container's first sample.
    pub fn sample(&mut self, pods: &[RunningPod]) -> Vec<PodUsage> {
        self.sample_at(pods, Instant::now())
    }

    pub(super) fn sample_at(&mut self, pods: &[RunningPod], now: Instant) -> Vec<PodUsage> {
        self.round += 1;
        let usages = pods.iter().filter_map(|pod| self.pod(pod, now)).collect();
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        usages
    }

    fn pod(&mut self, pod: &RunningPod, now: Instant) -> Option<PodUsage> {
        let uid = Uuid::parse_str(&pod.uid).ok()?;
        let read: Vec<(u64, u64)> =
            pod.containers.iter().filter_map(|container| self.container(container, now)).collect();
        if read.is_empty() {
            return None;
        }
        let cpu_millis = read.iter().map(|(cpu, _)| cpu).sum::<u64>();
        Some(PodUsage {
            uid: uid.as_bytes().to_vec().into(),
            cpu_millis: u32::try_from(cpu_millis).unwrap_or(u32::MAX),
            memory_bytes: read.iter().map(|(_, memory)| memory).sum(),
        })
    }

    /// Thousandths of a core, and bytes.
    fn container(&mut self, container: &RunningContainer, now: Instant) -> Option<(u64, u64)> {
        if container.pid == 0 {
            return None;
        }
        if !self.known.contains_key(&container.id) {
            let cgroup = Cgroup::find(&self.proc, &self.mounts, &container.id, container.pid)?;
            let known = Known { cgroup, last: None, round: 0 };
            self.known.insert(container.id.clone(), known);
        }
        let known = self.known.get_mut(&container.id)?;
        // One that cannot be read is not of this round: forgotten, and looked for again.
        let cpu_ns = known.cgroup.cpu_ns(&mut self.buffer)?;
        let memory = known.cgroup.memory_bytes(&mut self.buffer).unwrap_or(0);
        known.round = self.round;
        let before = known.last.replace((now, cpu_ns));
        let cpu = before.map_or(0, |(then, before_ns)| {
            let elapsed_ns = now.saturating_duration_since(then).as_nanos();
            millis_of_a_core(cpu_ns.saturating_sub(before_ns), elapsed_ns)
        });
        Some((cpu, memory))
    }
}

/// Rounded.
fn millis_of_a_core(cpu_ns: u64, elapsed_ns: u128) -> u64 {
    let millis = (u128::from(cpu_ns) * 1000 + elapsed_ns / 2).checked_div(elapsed_ns);
    millis.and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0)
}
