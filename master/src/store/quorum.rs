//! Whether so many masters answer that a change of the members comes to its end. One that does not
//! leaves the cluster between two sets of members, where it writes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use super::members::{ChangeError, Member, named, refused};
use super::raft::NodeId;

/// Before a change, every master that runs has answered within this time.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_LOOK: Duration = Duration::from_millis(10);

/// Those that do not answer, for a hint.
fn silent(members: &[Member], answering: &BTreeSet<NodeId>) -> String {
    let silent = members.iter().filter(|member| !answering.contains(&member.id)).map(named);
    silent.collect::<Vec<_>>().join(" or ")
}

impl Store {
    /// The members that have answered since this was asked, this master included. What was heard
    /// before is not enough: a change that needs one that has just died hangs until it is back.
    pub(super) async fn answering(&self) -> BTreeSet<NodeId> {
        let begun = Instant::now();
        let members: BTreeSet<NodeId> = self.members().into_iter().map(|m| m.id).collect();
        let answer = |id: &NodeId| {
            let silence = self.shared.links.silence(*id);
            *id == self.shared.id || silence.is_some_and(|silence| silence < begun.elapsed())
        };
        while begun.elapsed() < ANSWER_TIMEOUT && !members.iter().all(answer) {
            tokio::time::sleep(ANSWER_LOOK).await;
        }
        members.into_iter().filter(answer).collect()
    }

    /// Without a majority that answers nothing is agreed on, and what is begun would hang there.
    pub(super) fn check_quorum(&self, answering: &BTreeSet<NodeId>) -> Result<(), ChangeError> {
        let voters: Vec<_> = self.members().into_iter().filter(|member| member.voter).collect();
        let answer = voters.iter().filter(|voter| answering.contains(&voter.id)).count();
        let needed = voters.len() / 2 + 1;
        if answer >= needed {
            return Ok(());
        }
        Err(refused(format!(
            "change the masters: only {answer} of {} that vote answer, and {needed} are needed; \
             hint: bring {} back; if that cannot be, timonctl recover",
            voters.len(),
            silent(&voters, answering),
        )))
    }

    pub(super) fn check_quorum_without(
        &self,
        member: &Member,
        answering: &BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        let left: Vec<_> = (self.members().into_iter())
            .filter(|other| other.voter && other.id != member.id)
            .collect();
        if left.is_empty() {
            return Err(refused(format!("remove {}: it is the only master", named(member))));
        }
        let would_answer = left.iter().filter(|other| answering.contains(&other.id)).count();
        let needed = left.len() / 2 + 1;
        if would_answer >= needed {
            return Ok(());
        }
        Err(refused(format!(
            "remove {}: of the {} masters that would be left, only {would_answer} would answer, \
             and {needed} are needed; hint: bring {} back, or remove it first",
            named(member),
            left.len(),
            silent(&left, answering),
        )))
    }
}
