//! Changes of the members that would harm are refused, each with what to do instead.

use timonier_master::store::{ChangeError, Start, Store, WIRE_VERSION};
use timonier_master_core::level::Level;
use timonier_proto::v1::{PeerStatusRequest, RaftHeader};

use crate::cluster::{Cluster, close, leader_of};
use crate::{put, until};

fn why(result: Result<(), ChangeError>) -> String {
    match result.unwrap_err() {
        ChangeError::Refused(why) => why,
        other => panic!("{other}"),
    }
}

async fn until_silent(leader: &Store, id: u64) {
    until("its silence", || {
        leader.member_statuses().iter().any(|status| status.member.id == id && !status.answers)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_that_the_quorum_needs() {
    let cluster = Cluster::new(20_000);
    let mut stores = Vec::from(cluster.of_three().await);
    let leader = stores.remove(leader_of(&stores).unwrap());
    let (one, two) = (stores.remove(0), stores.remove(0));
    assert!(why(leader.remove(4711).await).contains("no master with the id 4711"));
    let lost = one.id();
    cluster.kill(one).await;
    until_silent(&leader, lost).await;
    // Of two that would be left, one would not answer.
    for id in [two.id(), leader.id()] {
        let text = why(leader.remove(id).await);
        assert!(text.contains("only 1 would answer") && text.contains("hint: bring"), "{text}");
    }
    // The lost one itself may go.
    leader.remove(lost).await.unwrap();
    until("two members", || leader.members().len() == 2).await;
    put(&leader, "two", "1").await.unwrap();
    // Of two, the lost one cannot even be removed: there is no majority to agree.
    let other = two.id();
    cluster.kill(two).await;
    until_silent(&leader, other).await;
    let text = why(leader.remove(other).await);
    assert!(text.contains("only 1 of 2 that vote answer"), "{text}");
    assert!(text.contains("timonctl recover"), "{text}");
    close([leader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_came_does_not_vote() {
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    let id = a.admit("b", "b:7443", Level::NEWEST.into()).await.unwrap();
    let text = why(a.promote(id).await);
    assert!(text.contains("it does not answer"), "{text}");
    let text = why(a.transfer_leadership(Some(id)).await);
    assert!(text.contains("does not vote yet"), "{text}");
    let text = why(a.transfer_leadership(None).await);
    assert!(text.contains("no other master that votes answers"), "{text}");
    // It holds up nothing, and may go.
    put(&a, "alone", "1").await.unwrap();
    a.remove(id).await.unwrap();
    until("one member", || a.members().len() == 1).await;
    close([a]).await;
}

/// A master that answers is not a leader's to give the lead to when it cannot keep up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_not_given_to_one_that_is_away() {
    let cluster = Cluster::new(20_000);
    let mut stores = Vec::from(cluster.of_three().await);
    let leader = stores.remove(leader_of(&stores).unwrap());
    let lost = stores.remove(0);
    let id = lost.id();
    cluster.kill(lost).await;
    put(&leader, "since", "1").await.unwrap();
    let text = why(leader.transfer_leadership(Some(id)).await);
    assert!(text.contains("does not catch up"), "{text}");
    put(&leader, "still", "1").await.unwrap();
    close(stores.into_iter().chain([leader])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_an_unknown_version_or_of_another_cluster_is_refused() {
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    let own = a.header_to(a.id());
    let status = |header: RaftHeader| {
        let asked = a.inbox().status(&PeerStatusRequest { header: Some(header) });
        asked.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(status(own.clone()), Ok(()));
    let newer = RaftHeader { version: WIRE_VERSION + 1, ..own.clone() };
    assert!(status(newer).unwrap_err().contains("hint: upgrade the masters one version at a time"));
    let foreign = RaftHeader { cluster_id: "another".to_owned(), ..own };
    assert!(status(foreign).unwrap_err().contains("of cluster another"));
    close([a]).await;
}
