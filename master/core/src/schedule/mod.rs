//! Which node a pod goes to. Filters say where it cannot go, each with its reason; scores say where
//! it goes best. Nothing is preempted, and images are not looked at.

mod demand;
mod filter;
mod pending;
mod score;
mod selector;
#[cfg(test)]
mod tests;
mod view;

use k8s_openapi::api::core::v1::Pod;
use timonier_proto::ObjectKey;

pub use self::demand::{Demand, Resources};
pub(crate) use self::filter::tolerates;
pub use self::pending::SchedulerLoop;
pub use self::view::{ClusterView, NodeView};
use crate::object::{key_of, uid_of};

/// What was decided for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub pod: ObjectKey,
    pub uid: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Node(String),
    /// No node can take it; the text says why, as people read it.
    Refused(String),
}

/// Decides for each pod in turn; a placed pod takes its room in the view before the next one's turn.
pub fn schedule(view: &mut ClusterView, pods: &[impl AsRef<Pod>]) -> Vec<Decision> {
    pods.iter()
        .map(|pod| {
            let pod = pod.as_ref();
            let outcome = place(view, pod);
            Decision { pod: key_of(pod), uid: uid_of(&pod.metadata).to_owned(), outcome }
        })
        .collect()
}

fn place(view: &mut ClusterView, pod: &Pod) -> Outcome {
    let demand = Demand::of(pod);
    let mut refusals = filter::Refusals::default();
    let fitting: Vec<usize> = (0..view.nodes().len())
        .filter(|index| filter::fits(&view.nodes()[*index], pod, &demand, &mut refusals))
        .collect();
    let Some(best) = score::best(view, &fitting, pod, &demand) else {
        return Outcome::Refused(refusals.explain(view.nodes().len()));
    };
    let name = view.nodes()[best].name.clone();
    view.take(best, pod, &demand);
    Outcome::Node(name)
}
