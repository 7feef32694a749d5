//! What is known of a rollout, and what follows from it: the phases reached, and whether it is
//! stuck. Knows no network; it is fed what watches see.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::Seen;
use crate::error::{Failure, Outcome, fail};
use crate::fields::Fields;
use crate::resolve;

/// Why a container that waits will hardly ever start.
const HOPELESS: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    pub first_ready: bool,
    pub all_ready: bool,
    pub old_gone: bool,
}

impl Phases {
    /// What has been reached by now; a phase is told once.
    pub fn and(self, now: Phases) -> Phases {
        Phases {
            first_ready: self.first_ready || now.first_ready,
            all_ready: self.all_ready || now.all_ready,
            old_gone: self.old_gone || now.old_gone,
        }
    }
}

/// What is known of the rollout of one image.
pub struct Rollout {
    name: String,
    index: usize,
    container: String,
    image: String,
    /// The generation that our change made.
    generation: i64,
    pub wanted: i64,
    /// The deployment's newest state; null until the watch has shown ours.
    deployment: Value,
    /// By UID.
    pods: BTreeMap<String, Value>,
}

impl Rollout {
    pub fn new(patched: &Value, index: usize, image: &str) -> Self {
        let container = patched.list("spec.template.spec.containers")[index].text("name");
        Self {
            name: patched.name().to_owned(),
            index,
            container: container.to_owned(),
            image: image.to_owned(),
            generation: patched.int("metadata.generation"),
            wanted: patched.at("spec.replicas").as_i64().unwrap_or(1),
            deployment: Value::Null,
            pods: BTreeMap::new(),
        }
    }

    pub fn deployment(&mut self, seen: Seen) -> Outcome {
        let object = match seen {
            Seen::Added(object) | Seen::Modified(object) => object,
            Seen::Deleted(_) => {
                return Err(fail(format!("{} was deleted during its update", self.name))
                    .hint("timonctl apply -f makes it again"));
            }
            Seen::Reset => return Ok(()),
        };
        if object.int("metadata.generation") < self.generation {
            return Ok(());
        }
        let image = object.list("spec.template.spec.containers").get(self.index);
        let image = image.map_or("", |container| container.text("image"));
        if image != self.image {
            return Err(fail(format!("{} was changed to {image} during its update", self.name))
                .hint(format!(
                    "timonctl rollout status deployment/{} follows that one",
                    self.name
                )));
        }
        self.wanted = object.at("spec.replicas").as_i64().unwrap_or(1);
        self.deployment = object;
        Ok(())
    }

    pub fn pod(&mut self, seen: Seen) {
        match seen {
            Seen::Added(pod) | Seen::Modified(pod) => {
                self.pods.insert(pod.uid().to_owned(), pod);
            }
            Seen::Deleted(pod) => {
                self.pods.remove(pod.uid());
            }
            Seen::Reset => self.pods.clear(),
        }
    }

    fn is_new(&self, pod: &Value) -> bool {
        let mut containers = pod.list("spec.containers").iter();
        containers.any(|c| c.text("name") == self.container && c.text("image") == self.image)
    }

    fn new_pods(&self) -> impl Iterator<Item = &Value> {
        self.pods.values().filter(|pod| self.is_new(pod) && !pod.has("metadata.deletionTimestamp"))
    }

    fn ready(&self) -> impl Iterator<Item = &Value> {
        self.new_pods().filter(|pod| resolve::is_ready(pod))
    }

    pub fn first_ready_pod(&self) -> &str {
        self.ready().next().map_or("", |pod| pod.name())
    }

    pub fn count(&self) -> String {
        format!("{} of {} new pods ready", self.ready().count(), self.wanted)
    }

    /// Pods alone can mislead (another template may share the image), so the master must agree.
    pub fn phases(&self) -> Phases {
        let status = |field: &str| self.deployment.int(&format!("status.{field}"));
        let observed =
            !self.deployment.is_null() && status("observedGeneration") >= self.generation;
        let ready = i64::try_from(self.ready().count()).unwrap_or(i64::MAX);
        let updated = observed && status("updatedReplicas") >= self.wanted;
        let only_updated = observed && status("replicas") <= status("updatedReplicas");
        Phases {
            first_ready: ready > 0,
            all_ready: ready >= self.wanted && updated,
            old_gone: self.pods.values().all(|pod| self.is_new(pod))
                && !self.pods.is_empty()
                && updated
                && only_updated,
        }
    }

    /// Fails when the new pods cannot come up.
    pub fn check(&self) -> Outcome {
        let hopeless = self
            .new_pods()
            .filter_map(|pod| Some((pod, waiting(pod)?)))
            .find(|(_, state)| HOPELESS.contains(&state.text("reason")));
        if let Some((pod, state)) = hopeless {
            return Err(self.stuck(pod, state));
        }
        let progressing = self.deployment.condition("Progressing");
        let observed = self.deployment.int("status.observedGeneration") >= self.generation;
        if observed && progressing.text("reason") == "ProgressDeadlineExceeded" {
            return Err(self.late("it made no progress within its deadline"));
        }
        Ok(())
    }

    fn stuck(&self, pod: &Value, state: &Value) -> Failure {
        let (reason, message) = (state.text("reason"), state.text("message"));
        let colon = if message.is_empty() { "" } else { ": " };
        fail(format!("update {}: pod {} is in {reason}{colon}{message}", self.name, pod.name()))
    }

    /// Names the pod that keeps the rollout waiting, where there is one.
    pub fn late(&self, why: &str) -> Failure {
        let laggard = self.new_pods().find(|pod| !resolve::is_ready(pod));
        let about = match laggard {
            Some(pod) => format!("; pod {} is not ready: {}", pod.name(), not_ready(pod)),
            None => match self.pods.values().find(|pod| !self.is_new(pod)) {
                Some(pod) => format!("; the old pod {} is still there", pod.name()),
                None => format!("; {}", self.count()),
            },
        };
        fail(format!("update {}: {why}{about}", self.name))
    }
}

/// The state of the first container that waits.
fn waiting(pod: &Value) -> Option<&Value> {
    let lists = ["status.initContainerStatuses", "status.containerStatuses"];
    let states = lists.iter().flat_map(|list| pod.list(list));
    states.map(|status| status.at("state.waiting")).find(|state| !state.is_null())
}

fn not_ready(pod: &Value) -> String {
    let state = waiting(pod);
    let condition = ["PodScheduled", "Ready"]
        .into_iter()
        .map(|kind| pod.condition(kind))
        .find(|condition| condition.text("status") == "False");
    let told = [condition, state].into_iter().flatten();
    let mut parts: Vec<&str> = Vec::new();
    for source in told {
        parts.extend(
            [source.text("reason"), source.text("message")].into_iter().filter(|t| !t.is_empty()),
        );
    }
    if parts.is_empty() { pod.text("status.phase").to_owned() } else { parts.join(": ") }
}
