//! Several stores in one process, over a network in memory that can be cut: what is acknowledged
//! survives, whoever leads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use timonier_master::store::{
    ChangeError, CommitError, Inbox, InboxError, Sending, Start, Store, StoreConfig, Target,
    Transport, TransportError,
};
use timonier_master_core::level::Level;
use timonier_master_core::op::Txn;
use timonier_proto::v1::{
    AppendReply, AppendRequest, ChangeMemberReply, ChangeMemberRequest, HandoverReply,
    HandoverRequest, InstallSnapshotReply, InstallSnapshotRequest, ProposeReply, ProposeRequest,
    RaftLogId, ReadIndexReply, ReadIndexRequest, VoteReply, VoteRequest, append_reply,
};

use crate::{DEADLINE, config, create, put, until, value};

#[derive(Clone, Default)]
pub(crate) struct Net {
    /// Who answers, by id; who is cut off is not in it.
    inboxes: Arc<Mutex<BTreeMap<u64, Inbox>>>,
    /// The last entries that reach those who are not to have all, by id.
    last_entries: Arc<Mutex<BTreeMap<u64, u64>>>,
    /// These get messages with entries only, so that they have all and say nothing between them.
    silent: Arc<Mutex<BTreeSet<u64>>>,
}

/// One master's end of it.
struct End {
    net: Net,
    /// Its own id, once it is known: a master that is cut off sends nothing either.
    me: Arc<Mutex<Option<u64>>>,
}

impl Net {
    pub fn plug(&self, store: &Store) {
        self.inboxes.lock().unwrap().insert(store.id(), store.inbox());
    }

    pub fn unplug(&self, id: u64) {
        self.inboxes.lock().unwrap().remove(&id);
    }

    /// No entries after this one reach it; it answers all the same.
    pub fn starve_after(&self, index: u64, id: u64) {
        self.last_entries.lock().unwrap().insert(id, index);
    }

    pub fn feed(&self, id: u64) {
        self.last_entries.lock().unwrap().remove(&id);
    }

    pub fn silence(&self, id: u64) {
        self.silent.lock().unwrap().insert(id);
    }

    fn lets_through(&self, id: u64, request: &AppendRequest) -> bool {
        !request.entries.is_empty() || !self.silent.lock().unwrap().contains(&id)
    }

    /// Takes out of it what is not to arrive; the entry before that, where it is any.
    fn cut(&self, id: u64, request: &mut AppendRequest) -> Option<Option<RaftLogId>> {
        let last = *self.last_entries.lock().unwrap().get(&id)?;
        let wanted = request.entries.len();
        request.entries.retain(|entry| entry.id.is_some_and(|id| id.index <= last));
        let arrives = request.entries.last().map_or(request.previous, |entry| entry.id);
        (request.entries.len() < wanted).then_some(arrives)
    }
}

macro_rules! carry {
    ($self:ident, $to:ident, $request:ident, $method:ident) => {{
        let (inboxes, me, to) = ($self.net.inboxes.clone(), *$self.me.lock().unwrap(), $to.id);
        Box::pin(async move {
            let inbox = {
                let inboxes = inboxes.lock().unwrap();
                let cut = me.is_some_and(|me| !inboxes.contains_key(&me));
                inboxes.get(&to).cloned().filter(|_| !cut)
            };
            let inbox = inbox.ok_or_else(|| TransportError(format!("master {to} is cut off")))?;
            inbox.$method($request).await.map_err(|e: InboxError| TransportError(e.to_string()))
        })
    }};
}

impl Transport for End {
    fn append(&self, to: &Target, mut request: AppendRequest) -> Sending<AppendReply> {
        if !self.net.lets_through(to.id, &request) {
            let why = format!("master {} does not get this", to.id);
            return Box::pin(std::future::ready(Err(TransportError(why))));
        }
        let cut = self.net.cut(to.id, &mut request);
        let sending: Sending<AppendReply> = carry!(self, to, request, append);
        Box::pin(async move {
            let reply = sending.await?;
            let Some(matched) = cut.filter(|_| reply.result() == append_reply::Result::Success)
            else {
                return Ok(reply);
            };
            // A slow line rather than one that is asked again at once.
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(AppendReply { result: append_reply::Result::Partial.into(), matched, ..reply })
        })
    }

    fn vote(&self, to: &Target, request: VoteRequest) -> Sending<VoteReply> {
        carry!(self, to, request, vote)
    }

    fn install(
        &self,
        to: &Target,
        request: InstallSnapshotRequest,
    ) -> Sending<InstallSnapshotReply> {
        carry!(self, to, request, install)
    }

    fn propose(&self, to: &Target, request: ProposeRequest) -> Sending<ProposeReply> {
        carry!(self, to, request, propose)
    }

    fn read_index(&self, to: &Target, request: ReadIndexRequest) -> Sending<ReadIndexReply> {
        carry!(self, to, request, read_index)
    }

    fn handover(&self, to: &Target, request: HandoverRequest) -> Sending<HandoverReply> {
        carry!(self, to, request, handover)
    }

    fn change(&self, to: &Target, request: ChangeMemberRequest) -> Sending<ChangeMemberReply> {
        carry!(self, to, request, change)
    }
}

pub(crate) struct Cluster {
    pub dir: tempfile::TempDir,
    pub net: Net,
    snapshot_entries: u64,
    /// Of the masters that are opened from now on.
    pub level_max: Level,
}

impl Cluster {
    pub fn new(snapshot_entries: u64) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            net: Net::default(),
            snapshot_entries,
            level_max: Level::NEWEST,
        }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn open(&self, name: &str, start: Start) -> Store {
        let me = Arc::new(Mutex::new(None));
        let store = Store::open(StoreConfig {
            start,
            name: name.to_owned(),
            address: format!("{name}:7443"),
            snapshot_entries: self.snapshot_entries,
            level_max: self.level_max,
            transport: Some(Arc::new(End { net: self.net.clone(), me: me.clone() })),
            ..config(&self.dir(name))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}"));
        *me.lock().unwrap() = Some(store.id());
        self.net.plug(&store);
        store
    }

    pub async fn join(&self, name: &str, leader: &Store) -> Store {
        let id = leader.admit(name, &format!("{name}:7443"), Level::NEWEST.into()).await.unwrap();
        let cluster_id = leader.cluster_id().to_owned();
        let store = self.open(name, Start::Joining { cluster_id, id }).await;
        until("the vote of the new master", || {
            leader.members().iter().any(|member| member.id == id && member.voter)
        })
        .await;
        store
    }

    pub async fn of_three(&self) -> [Store; 3] {
        let a = self.open("a", Start::First).await;
        put(&a, "before", "1").await.unwrap();
        let b = self.join("b", &a).await;
        let c = self.join("c", &a).await;
        // A master's id is the index of the entry that admits it; the memberships that make it a
        // voter, the joint one and the one after, follow.
        until("three members everywhere", || {
            [&a, &b, &c].iter().all(|s| s.status().applied_index >= c.id() + 2)
        })
        .await;
        [a, b, c]
    }

    /// As if its process were killed: nothing more gets in or out.
    pub async fn kill(&self, store: Store) {
        self.net.unplug(store.id());
        store.shutdown().await.unwrap();
    }
}

pub(crate) async fn close(stores: impl IntoIterator<Item = Store>) {
    for store in stores {
        store.shutdown().await.unwrap();
    }
}

pub(crate) fn leader_of(stores: &[Store]) -> Option<usize> {
    stores.iter().position(|store| store.status().leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_master_writes_and_reads_and_a_new_one_leads_when_the_leader_dies() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    for (n, store) in [&a, &b, &c].into_iter().enumerate() {
        let name = format!("by-{n}");
        let done = put(store, &name, "1").await.unwrap();
        // What is answered is in the master's own state.
        assert!(store.snapshot().revision >= done.revision);
        assert_eq!(value(store, &name).as_deref(), Some("1"));
        for reader in [&a, &b, &c] {
            reader.linearize().await.unwrap();
            assert_eq!(value(reader, &name).as_deref(), Some("1"));
        }
    }
    // A refusal comes back as one, too.
    assert!(b.commit(create("by-0", "again")).await.is_err());
    // The same write twice is done once, wherever it is asked for.
    let txn = Txn { id: Some("once".to_owned()), ..create("once", "1") };
    let first = b.commit(txn.clone()).await.unwrap();
    let again = c.commit(txn).await.unwrap();
    assert_eq!((again.revision, again.repeated), (first.revision, true));

    cluster.kill(a).await;
    let killed = Instant::now();
    put(&b, "after", "2").await.unwrap();
    let gap = killed.elapsed();
    assert!(gap < Duration::from_secs(8), "{gap:?} without a leader");
    c.linearize().await.unwrap();
    for name in ["before", "by-0", "by-1", "by-2", "once", "after"] {
        assert!(value(&c, name).is_some(), "{name} is lost");
    }
    // It comes back with its disk, and has it all.
    let a = cluster.open("a", Start::First).await;
    a.linearize().await.unwrap();
    assert_eq!(value(&a, "after").as_deref(), Some("2"));
    assert!(a.snapshot() == b.snapshot());
    close([a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_agreed_on_is_cut() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    cluster.net.unplug(a.id());
    // The old leader takes a write that nobody else sees.
    let alone = {
        let a = a.clone();
        tokio::spawn(async move { put(&a, "lost", "1").await })
    };
    until("the write in the old leader's log", || a.status().last_index > b.status().last_index)
        .await;
    let mut stores = vec![b, c];
    until("a new leader", || leader_of(&stores).is_some()).await;
    for n in 0..20 {
        put(&stores[0], &format!("n{n}"), "1").await.unwrap();
    }
    cluster.net.plug(&a);
    a.linearize().await.unwrap();
    assert_eq!(value(&a, "n19").as_deref(), Some("1"));
    // It was told that it is not known whether the write was done; sent again with its id, it is.
    let told = tokio::time::timeout(DEADLINE, alone).await.unwrap().unwrap();
    assert_eq!(told.is_ok(), value(&a, "lost").is_some());
    stores.push(a);
    until("the same state everywhere", || {
        stores.iter().all(|store| store.snapshot() == stores[0].snapshot())
    })
    .await;
    close(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_steps_back_and_one_that_was_cut_off_unseats_nobody() {
    let cluster = Cluster::new(20_000);
    let stores = cluster.of_three().await;
    let leader = leader_of(&stores).unwrap();
    let others: Vec<&Store> =
        stores.iter().filter(|store| store.id() != stores[leader].id()).collect();
    let old = &stores[leader];
    for other in &others {
        cluster.net.unplug(other.id());
    }
    let mut leadership = old.leadership();
    let stepped_back = leadership.wait_for(|leads| !*leads);
    tokio::time::timeout(DEADLINE, stepped_back).await.unwrap().unwrap();
    assert!(!old.status().leader && old.leader().is_none());
    // Nobody hangs, and nobody reads what may be old.
    let (wrote, read) = tokio::join!(put(old, "nobody", "1"), old.linearize());
    assert!(matches!(wrote, Err(CommitError::NoLeader(_))), "{wrote:?}");
    assert!(matches!(read, Err(CommitError::NoLeader(_))), "{read:?}");
    // Those that were cut off cannot win, so they did not stand: the leader goes on in its term.
    let term = old.status().term;
    cluster.net.plug(others[0]);
    cluster.net.plug(others[1]);
    put(old, "again", "1").await.unwrap();
    assert!(old.status().leader);
    assert_eq!(old.status().term, term);
    close(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_far_behind_gets_a_snapshot_under_load() {
    let cluster = Cluster::new(60);
    let [a, b, c] = cluster.of_three().await;
    let id = c.id();
    cluster.kill(c).await;
    let load = "x".repeat(10 << 10);
    for n in 0..400 {
        put(&a, &format!("n{}", n % 50), &format!("{n}-{load}")).await.unwrap();
    }
    until("a purge", || a.status().snapshots >= 3).await;
    let writing = {
        let (b, load) = (b.clone(), load.clone());
        tokio::spawn(async move {
            for n in 0..200 {
                put(&b, &format!("m{}", n % 50), &format!("{n}-{load}")).await.unwrap();
            }
        })
    };
    let c = cluster.open("c", Start::First).await;
    assert_eq!(c.id(), id);
    writing.await.unwrap();
    c.linearize().await.unwrap();
    assert!(c.status().snapshots >= 1, "it was not sent one");
    assert!(c.snapshot() == a.snapshot());
    // The log goes on after the snapshot, not after what it had before: also for a new start.
    put(&a, "after", "1").await.unwrap();
    c.linearize().await.unwrap();
    cluster.kill(c).await;
    put(&a, "after", "2").await.unwrap();
    let c = cluster.open("c", Start::First).await;
    c.linearize().await.unwrap();
    assert_eq!(value(&c, "after").as_deref(), Some("2"));
    close([a, b, c]).await;
}

/// The log must not be cut before the snapshot that stands for it is on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_written_costs_nothing_that_is_there() {
    let cluster = Cluster::new(60);
    let [a, b, c] = cluster.of_three().await;
    cluster.net.unplug(c.id());
    for n in 0..400 {
        put(&a, &format!("n{}", n % 50), &n.to_string()).await.unwrap();
    }
    until("a purge", || a.status().snapshots >= 3).await;
    let snapshots = cluster.dir("c").join("snapshots");
    let away = cluster.dir("c").join("away");
    std::fs::rename(&snapshots, &away).unwrap();
    std::fs::write(&snapshots, "not a folder").unwrap();
    cluster.net.plug(&c);
    let text = tokio::time::timeout(DEADLINE, c.failed()).await.unwrap();
    assert!(text.contains("nothing acknowledged is lost"), "{text}");
    cluster.kill(c).await;
    std::fs::remove_file(&snapshots).unwrap();
    std::fs::rename(&away, &snapshots).unwrap();
    let c = cluster.open("c", Start::First).await;
    c.linearize().await.unwrap();
    assert!(c.snapshot() == a.snapshot());
    close([a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_come_back() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    for n in 0..50 {
        put(&b, &format!("n{n}"), "1").await.unwrap();
    }
    let before = b.snapshot();
    close([a, b, c]).await;
    let mut stores = Vec::new();
    for name in ["a", "b", "c"] {
        stores.push(cluster.open(name, Start::First).await);
    }
    stores[2].linearize().await.unwrap();
    assert!(stores[2].snapshot() == before, "{}", stores[2].snapshot().revision);
    put(&stores[1], "after", "1").await.unwrap();
    close(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_go_and_come_and_the_leadership_is_handed_over() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    // Handed over on request, without a write lost.
    let begun = Instant::now();
    c.transfer_leadership(Some(c.id())).await.unwrap();
    eprintln!("handed over in {:?}", begun.elapsed());
    until("the new leader", || c.status().leader).await;
    put(&a, "handed", "1").await.unwrap();

    // One whose disk is lost is removed, and joins again as a new one.
    let lost = b.id();
    cluster.kill(b).await;
    std::fs::remove_dir_all(cluster.dir("b")).unwrap();
    // While it is away, no other may go.
    until("its silence", || c.member_statuses().iter().any(|s| s.member.id == lost && !s.answers))
        .await;
    let refused = a.remove(a.id()).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::Refused(why) if why.contains("hint: ")), "{refused}");
    let taken = c.admit("b", "b:7443", Level::NEWEST.into()).await.unwrap_err();
    assert!(taken.to_string().contains("--name"), "{taken}");
    a.remove(lost).await.unwrap();
    let b = cluster.join("b", &c).await;
    assert_ne!(b.id(), lost);
    b.linearize().await.unwrap();
    assert_eq!(value(&b, "handed").as_deref(), Some("1"));

    // The leader itself may go.
    c.remove(c.id()).await.unwrap();
    cluster.kill(c).await;
    put(&a, "two", "1").await.unwrap();
    let only = [&a, &b].into_iter().find(|store| store.status().leader).unwrap();
    let other = if only.id() == a.id() { &b } else { &a };
    only.remove(other.id()).await.unwrap();
    put(only, "one", "1").await.unwrap();
    let refused = only.remove(only.id()).await.unwrap_err();
    assert!(refused.to_string().contains("the only master"), "{refused}");
    close([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_masters_write_nothing() {
    let cluster = Cluster::new(20_000);
    let [a, b, c] = cluster.of_three().await;
    put(&a, "last", "1").await.unwrap();
    c.linearize().await.unwrap();
    b.linearize().await.unwrap();
    let fsyncs = || [&a, &b, &c].map(|store| store.status().fsyncs);
    let before = fsyncs();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fsyncs(), before);
    close([a, b, c]).await;
}
