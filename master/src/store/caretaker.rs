//! What a store sees to by itself: that masters which have caught up vote, and that the others know
//! where it answers. How members change is not decided here.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::members::{CAUGHT_UP_ENTRIES, CHANGE_TIMEOUT, Change, Member, behind};
use super::raft::{MasterNode, NodeId};
use super::{Shared, Store};

/// How often it is looked whether one has caught up.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Until the store is closed: on the leader, promotes masters that have caught up; on a member that
/// answers at another address than before, tells the leader.
pub(super) async fn look_after(shared: Weak<Shared>, me: MasterNode, closing: CancellationToken) {
    let Some(mut members) = shared.upgrade().map(|shared| shared.members.subscribe()) else {
        return;
    };
    let mut complaints = Complaints::default();
    loop {
        let pending = {
            let members = members.borrow_and_update();
            let Some(shared) = shared.upgrade() else { return };
            let leads = *shared.leader.borrow();
            let moved = members.iter().any(|member| {
                member.id == shared.id
                    && !me.address.is_empty()
                    && (member.address != me.address || member.name != me.name)
            });
            moved || (leads && members.iter().any(|member| !member.voter))
        };
        let wait = if pending { LOOK_INTERVAL } else { Duration::from_secs(3600) };
        tokio::select! {
            () = closing.cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
        if let Some(shared) = shared.upgrade() {
            let store = Store { shared };
            tokio::select! {
                () = closing.cancelled() => return,
                () = look(&store, &me, &mut complaints) => {}
            }
        }
    }
}

async fn look(store: &Store, me: &MasterNode, complaints: &mut Complaints) {
    let members = store.members();
    let own = members.iter().find(|member| member.id == store.id());
    if let Some(own) = own
        && !me.address.is_empty()
        && (own.address != me.address || own.name != me.name)
        && let Err(error) = store.change(&Change::Move(own.id, me.clone())).await
    {
        tracing::warn!(%error, address = me.address, "could not tell the new address");
        tokio::time::sleep(CHANGE_TIMEOUT).await;
    }
    if !*store.shared.leader.borrow() {
        return;
    }
    let learners: Vec<_> = members.into_iter().filter(|member| !member.voter).collect();
    complaints.keep(&learners);
    for learner in learners {
        let metrics = store.shared.raft.metrics().borrow().clone();
        if behind(&metrics, learner.id).is_none_or(|behind| behind > CAUGHT_UP_ENTRIES) {
            continue;
        }
        match store.change_here(&Change::Promote(learner.id)).await {
            Ok(()) => tracing::info!(id = learner.id, "a master has caught up and votes"),
            Err(error) if complaints.is_new(learner.id, &error.to_string()) => {
                tracing::warn!(id = learner.id, %error, "it cannot vote yet");
            }
            Err(error) => tracing::debug!(id = learner.id, %error, "it cannot vote yet"),
        }
    }
}

/// Why learners could not be made voters the last time: it is tried about once a second for as
/// long as they are away, and each reason is worth one warning.
#[derive(Debug, Default)]
struct Complaints(BTreeMap<NodeId, String>);

impl Complaints {
    /// Whether this was not the reason the last time.
    fn is_new(&mut self, id: NodeId, why: &str) -> bool {
        self.0.insert(id, why.to_owned()).is_none_or(|last| last != why)
    }

    /// Forgets those who are no learners any more.
    fn keep(&mut self, learners: &[Member]) {
        self.0.retain(|id, _| learners.iter().any(|learner| learner.id == *id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_new_once_for_each_learner_and_again_after_another() {
        let mut complaints = Complaints::default();
        let away = "it does not answer";
        assert!(complaints.is_new(4, away));
        assert!((0..1000).all(|_| !complaints.is_new(4, away)));
        assert!(complaints.is_new(5, away), "another one's");
        assert!(complaints.is_new(4, "it is 7 log entries behind"));
        assert!(complaints.is_new(4, away));
        // It votes now; a learner of its name that comes later has another id.
        complaints.keep(&[]);
        assert!(complaints.0.is_empty());
    }
}
