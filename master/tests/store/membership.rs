//! Changes of the members that would harm are refused, each with what to do instead.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use timonier_master::store::{ChangeError, Start, Store, WIRE_VERSION};
use timonier_master_core::level;
use timonier_proto::v1::{PeerStatusRequest, RaftHeader};
use tracing::Level;
use tracing::subscriber::DefaultGuard;

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

/// Of four masters one is lost. One more may go, whichever; with both of them, two of three would be
/// left alone with the lost one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_removals_at_once_the_one_that_would_cost_the_quorum_is_refused() {
    let cluster = Cluster::new(20_000);
    let mut stores = Vec::from(cluster.of_three().await);
    let leader = stores.remove(leader_of(&stores).unwrap());
    let (one, two) = (stores.remove(0), stores.remove(0));
    let lost = cluster.join("d", &leader).await;
    let lost_id = lost.id();
    cluster.kill(lost).await;
    until_silent(&leader, lost_id).await;
    let results = tokio::join!(leader.remove(one.id()), leader.remove(two.id()));
    let text = match results {
        (Ok(()), refused @ Err(_)) | (refused @ Err(_), Ok(())) => why(refused),
        both => panic!("{both:?}"),
    };
    assert!(text.contains("only 1 would answer") && text.contains("hint: bring"), "{text}");
    let members: Vec<_> = leader.members().iter().map(|member| member.id).collect();
    assert_eq!(members.len(), 3, "{members:?}");
    put(&leader, "after", "1").await.unwrap();
    close([leader, one, two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_changes_at_once_that_harm_nobody_are_made_one_after_the_other() {
    let cluster = Cluster::new(20_000);
    let mut stores = Vec::from(cluster.of_three().await);
    let leader = stores.remove(leader_of(&stores).unwrap());
    let (one, lost) = (stores.remove(0), stores.remove(0));
    let lost_id = lost.id();
    cluster.kill(lost).await;
    until_silent(&leader, lost_id).await;
    let (new, gone) =
        tokio::join!(leader.admit("d", "d:7443", level::Level::NEWEST.into()), one.remove(lost_id));
    let id = new.unwrap();
    gone.unwrap();
    let cluster_id = leader.cluster_id().to_owned();
    let d = cluster.open("d", Start::Joining { cluster_id, id }).await;
    let voters = |store: &Store| -> BTreeSet<u64> {
        store.members().iter().filter(|member| member.voter).map(|member| member.id).collect()
    };
    let wanted = BTreeSet::from([leader.id(), one.id(), id]);
    until("its vote, and no one else's", || voters(&leader) == wanted).await;
    put(&d, "after", "1").await.unwrap();
    close([leader, one, d]).await;
}

/// It answers all the time; how much it lacks is what counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_behind_votes_once_it_has_caught_up_and_not_before() {
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    let load = "x".repeat(10 << 10);
    for n in 0..300 {
        put(&a, &format!("n{}", n % 50), &format!("{n}-{load}")).await.unwrap();
    }
    let id = a.admit("b", "b:7443", level::Level::NEWEST.into()).await.unwrap();
    cluster.net.starve_after(100, id);
    let cluster_id = a.cluster_id().to_owned();
    let b = cluster.open("b", Start::Joining { cluster_id, id }).await;
    let status = || a.member_statuses().into_iter().find(|status| status.member.id == id).unwrap();
    let behind = a.status().last_index - 100;
    until("a part of the log", || status().behind == Some(behind)).await;
    for asked in [&a, &b] {
        let text = why(asked.promote(id).await);
        assert!(
            text.contains(&format!("promote master b (id {id}): it is {behind} log")),
            "{text}"
        );
        assert!(text.contains("hint: it is promoted by itself once it has caught up"), "{text}");
    }
    assert!(!status().member.voter);

    cluster.net.feed(id);
    until("nothing to catch up with", || status().behind == Some(0)).await;
    b.promote(id).await.unwrap();
    until("its vote", || status().member.voter).await;
    // Once more, it is done already.
    b.promote(id).await.unwrap();
    put(&b, "after", "1").await.unwrap();
    close([a, b]).await;
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn listen(&self) -> DefaultGuard {
        let writer = self.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::DEBUG);
        tracing::subscriber::set_default(lines.with_writer(move || writer.clone()).finish())
    }

    fn lines_with(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On one thread, which is the one that is listened to.
#[tokio::test]
async fn one_that_has_all_and_answers_no_more_is_warned_of_once() {
    let logged = Logged::default();
    let _listening = logged.listen();
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    let id = a.admit("b", "b:7443", level::Level::NEWEST.into()).await.unwrap();
    cluster.net.silence(id);
    let cluster_id = a.cluster_id().to_owned();
    let b = cluster.open("b", Start::Joining { cluster_id, id }).await;
    until("three attempts", || logged.lines_with("it cannot vote yet").len() >= 3).await;
    let warnings = logged.lines_with("it cannot vote yet");
    let warnings: Vec<_> = warnings.iter().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("it does not answer"), "{warnings:?}");
    let text = why(a.promote(id).await);
    assert!(text.contains("it does not answer"), "{text}");
    close([a, b]).await;
}

/// The next one is judged by what is known then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_known_when_it_is_done() {
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    for _ in 0..100 {
        // In the place of the one before, which never came.
        let id = a.admit("b", "b:7443", level::Level::NEWEST.into()).await.unwrap();
        let members: Vec<u64> = a.members().into_iter().map(|member| member.id).collect();
        assert_eq!(members, [a.id(), id]);
    }
    close([a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_came_does_not_vote() {
    let cluster = Cluster::new(20_000);
    let a = cluster.open("a", Start::First).await;
    let id = a.admit("b", "b:7443", level::Level::NEWEST.into()).await.unwrap();
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
