use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeSpec, NodeStatus, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use proptest::prelude::*;
use timonier_proto::Kind;

use super::*;
use crate::level::Level;
use crate::snapshot::{TXN_ID_KEPT_MS, TXN_IDS_MAX};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn pod(name: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.spec = Some(PodSpec::default());
    pod
}

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Pod, "default", name)
}

fn deployment(replicas: i32) -> Deployment {
    let mut deployment = Deployment::default();
    deployment.metadata.name = Some("web".to_owned());
    deployment.metadata.namespace = Some("default".to_owned());
    deployment.metadata.uid = Some("uid-web".to_owned());
    deployment.spec = Some(DeploymentSpec { replicas: Some(replicas), ..Default::default() });
    deployment
}

fn one(snapshot: &mut Snapshot, op: Op) -> Result<Applied, Rejection> {
    snapshot.apply(&Txn::of(vec![op]))
}

/// With the pod `a`, which node `n1` runs if `bound`.
fn with_pod(bound: bool) -> Snapshot {
    let mut snapshot = Snapshot::default();
    one(&mut snapshot, Op::Create(pod("a").into_object())).unwrap();
    if bound {
        one(&mut snapshot, bind("a", "n1")).unwrap();
    }
    snapshot
}

fn bind(pod: &str, node: &str) -> Op {
    Op::Bind { pod: pod_key(pod), uid: format!("uid-{pod}"), node: node.to_owned(), at: at(0) }
}

#[test]
fn a_created_object_begins_at_generation_one_under_its_revision() {
    let mut snapshot = Snapshot::default();
    let applied = one(&mut snapshot, Op::Create(deployment(1).into_object())).unwrap();
    assert_eq!((applied.revision, snapshot.revision), (1, 1));
    let stored = snapshot.get::<Deployment>("default", "web").unwrap();
    assert_eq!(stored.metadata.resource_version.as_deref(), Some("1"));
    assert_eq!(stored.metadata.generation, Some(1));
    assert_eq!(applied.changes[0].before, None);
    assert_eq!(applied.changes[0].after, Some(Object::Deployment(stored.clone())));
    // A kind without a spec has no generation.
    let map = ConfigMap { metadata: pod("m").metadata, ..ConfigMap::default() };
    one(&mut snapshot, Op::Create(map.into_object())).unwrap();
    let stored = snapshot.get::<ConfigMap>("default", "m").unwrap();
    assert_eq!(stored.metadata.generation, None);
}

#[test]
fn what_cannot_be_created_is_refused() {
    let mut nameless = pod("");
    nameless.metadata.name = None;
    let mut without_uid = pod("b");
    without_uid.metadata.uid = None;
    let mut homeless = pod("b");
    homeless.metadata.namespace = None;
    for (object, why) in [
        (pod("a"), "pod default/a already exists"),
        (nameless, "pod default/: it has no name"),
        (without_uid, "pod default/b: it has no uid"),
        (homeless, "pod b: it has no namespace"),
    ] {
        let mut snapshot = with_pod(false);
        let before = snapshot.clone();
        let refused = one(&mut snapshot, Op::Create(object.into_object())).unwrap_err();
        assert_eq!(refused.to_string(), why);
        assert_eq!(snapshot, before);
    }
}

#[test]
fn a_replacement_keeps_what_is_not_its_to_write() {
    let mut snapshot = Snapshot::default();
    let mut first = deployment(1);
    first.metadata.creation_timestamp = Some(stored_time(at(0)));
    one(&mut snapshot, Op::Create(first.into_object())).unwrap();
    let status = DeploymentStatus { ready_replicas: Some(1), ..Default::default() };
    let mut reported = deployment(9);
    reported.status = Some(status.clone());
    one(&mut snapshot, Op::ReplaceStatus(reported.into_object())).unwrap();
    let key = ObjectKey::new(Kind::Deployment, "default", "web");
    let mark = Op::MarkDeleted { key, uid: None, at: at(5), grace_seconds: 30 };
    one(&mut snapshot, mark).unwrap();

    let mut next = deployment(3);
    next.metadata.uid = None;
    next.metadata.creation_timestamp = Some(stored_time(at(99)));
    let applied = one(&mut snapshot, Op::Replace(next.into_object())).unwrap();
    let stored = snapshot.get::<Deployment>("default", "web").unwrap();
    assert_eq!(stored.spec.as_ref().unwrap().replicas, Some(3));
    assert_eq!(stored.status, Some(status));
    assert_eq!(stored.metadata.uid.as_deref(), Some("uid-web"));
    assert_eq!(stored.metadata.creation_timestamp, Some(stored_time(at(0))));
    assert_eq!(stored.metadata.deletion_timestamp, Some(stored_time(at(35))));
    assert_eq!(stored.metadata.generation, Some(2));
    assert_eq!(stored.metadata.resource_version, Some(applied.revision.to_string()));
    // Metadata alone is no new generation.
    let mut labelled = Deployment::clone(stored);
    labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    one(&mut snapshot, Op::Replace(labelled.into_object())).unwrap();
    let stored = snapshot.get::<Deployment>("default", "web").unwrap();
    assert_eq!(stored.metadata.generation, Some(2));
}

#[test]
fn what_changes_nothing_is_no_change() {
    let mut snapshot = with_pod(true);
    let stored = snapshot.object(&pod_key("a")).unwrap().clone();
    let before = snapshot.clone();
    let mark = |at| Op::MarkDeleted { key: pod_key("a"), uid: None, at, grace_seconds: 30 };
    for op in [Op::Replace(stored.clone()), Op::ReplaceStatus(stored)] {
        let applied = one(&mut snapshot, op).unwrap();
        assert_eq!(
            applied,
            Applied { changes: vec![], revision: before.revision, repeated: false }
        );
        assert_eq!(snapshot, before);
    }
    assert_eq!(one(&mut snapshot, mark(at(0))).unwrap().changes.len(), 1);
    assert_eq!(one(&mut snapshot, mark(at(9))).unwrap().changes.len(), 0);
}

#[test]
fn writers_that_read_something_else_are_refused() {
    let stale = |mut pod: Pod| {
        pod.metadata.resource_version = Some("77".to_owned());
        Op::Replace(pod.into_object())
    };
    let other = |mut pod: Pod| {
        pod.metadata.uid = Some("other".to_owned());
        pod.into_object()
    };
    let uid = Some("other".to_owned());
    let key = pod_key("a");
    let conflict = Rejection::Conflict { key: key.clone(), expected: 77, found: 1 };
    for (op, expected) in [
        (stale(pod("a")), conflict),
        (Op::Replace(other(pod("a"))), Rejection::OtherUid(key.clone())),
        (Op::ReplaceStatus(other(pod("a"))), Rejection::OtherUid(key.clone())),
        (Op::Remove { key: key.clone(), uid: uid.clone() }, Rejection::OtherUid(key.clone())),
        (Op::Remove { key: pod_key("b"), uid: None }, Rejection::NotFound(pod_key("b"))),
        (Op::Replace(pod("b").into_object()), Rejection::NotFound(pod_key("b"))),
        (Op::ReplaceStatus(pod("b").into_object()), Rejection::NotFound(pod_key("b"))),
        (bind("b", "n"), Rejection::NotFound(pod_key("b"))),
        (
            Op::MarkDeleted { key: key.clone(), uid, at: at(0), grace_seconds: 1 },
            Rejection::OtherUid(key.clone()),
        ),
    ] {
        let mut snapshot = with_pod(false);
        let before = snapshot.clone();
        assert_eq!(one(&mut snapshot, op.clone()).unwrap_err(), expected, "{op:?}");
        assert_eq!(snapshot, before);
    }
}

#[test]
fn preconditions_hold_or_nothing_happens() {
    let (a, b) = (pod_key("a"), pod_key("b"));
    for (precondition, refused) in [
        (Precondition::Exists(a.clone()), None),
        (Precondition::Exists(b.clone()), Some(Rejection::NotFound(b.clone()))),
        (Precondition::Absent(b.clone()), None),
        (Precondition::Absent(a.clone()), Some(Rejection::AlreadyExists(a.clone()))),
        (Precondition::Revision(a.clone(), 1), None),
        (
            Precondition::Revision(a.clone(), 2),
            Some(Rejection::Conflict { key: a.clone(), expected: 2, found: 1 }),
        ),
        (Precondition::Uid(a.clone(), "uid-a".to_owned()), None),
        (Precondition::Uid(a.clone(), "x".to_owned()), Some(Rejection::OtherUid(a.clone()))),
    ] {
        let mut snapshot = with_pod(false);
        let ops = vec![Op::Create(pod("c").into_object())];
        let txn = Txn { preconditions: vec![precondition], ..Txn::of(ops) };
        assert_eq!(snapshot.apply(&txn).err(), refused);
        assert_eq!(snapshot.object(&pod_key("c")).is_some(), refused.is_none());
    }
}

#[test]
fn a_pod_is_bound_once_and_stays_where_it_is() {
    let mut snapshot = with_pod(true);
    let stored = snapshot.get::<Pod>("default", "a").unwrap().clone();
    let condition = &stored.status.as_ref().unwrap().conditions.as_ref().unwrap()[0];
    assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("PodScheduled", "True"));
    assert_eq!(snapshot.pods_on("n1").count(), 1);
    let bound = Rejection::AlreadyBound { key: pod_key("a"), node: "n1".to_owned() };
    assert_eq!(one(&mut snapshot, bind("a", "n2")).unwrap_err(), bound);
    // Neither a replacement nor an agent's status takes the binding away.
    one(&mut snapshot, Op::Replace(pod("a").into_object())).unwrap();
    let mut reported = pod("a");
    reported.status = Some(PodStatus { phase: Some("Running".to_owned()), ..Default::default() });
    one(&mut snapshot, Op::ReplaceStatus(reported.into_object())).unwrap();
    let stored = snapshot.get::<Pod>("default", "a").unwrap().clone();
    assert_eq!(node_of(&stored), Some("n1"));
    assert!(crate::object::has_condition(&stored, POD_SCHEDULED));
    assert_eq!(crate::object::phase(&stored), "Running");
    let mut moved = pod("a");
    moved.spec.as_mut().unwrap().node_name = Some("n2".to_owned());
    assert_eq!(one(&mut snapshot, Op::Replace(moved.into_object())).unwrap_err(), bound);
    // What is ending is not started any more.
    let mut snapshot = with_pod(false);
    let mark = Op::MarkDeleted { key: pod_key("a"), uid: None, at: at(0), grace_seconds: 30 };
    one(&mut snapshot, mark).unwrap();
    assert!(matches!(one(&mut snapshot, bind("a", "n1")), Err(Rejection::Invalid { .. })));
}

#[test]
fn an_event_is_counted() {
    let event = |message: &str, seconds| {
        let mut event = Event { metadata: pod("e").metadata, ..Default::default() };
        event.message = Some(message.to_owned());
        event.first_timestamp = Some(stored_time(at(seconds)));
        event.last_timestamp = Some(stored_time(at(seconds)));
        Op::RecordEvent(event.into_object())
    };
    let mut snapshot = Snapshot::default();
    for (message, seconds) in [("first", 1), ("second", 2), ("third", 3)] {
        one(&mut snapshot, event(message, seconds)).unwrap();
    }
    let stored = snapshot.get::<Event>("default", "e").unwrap();
    assert_eq!(stored.count, Some(3));
    assert_eq!(stored.message.as_deref(), Some("third"));
    assert_eq!(stored.first_timestamp, Some(stored_time(at(1))));
    assert_eq!(stored.last_timestamp, Some(stored_time(at(3))));
    let refused = one(&mut snapshot, Op::RecordEvent(pod("a").into_object()));
    assert!(matches!(refused, Err(Rejection::Invalid { .. })));
    let stored = snapshot.object(&ObjectKey::new(Kind::Event, "default", "e")).unwrap().clone();
    let no_status = one(&mut snapshot, Op::ReplaceStatus(stored));
    assert!(matches!(no_status, Err(Rejection::Invalid { .. })));
}

/// A transaction that does nothing, under an id of its own.
fn numbered(n: usize) -> Txn {
    Txn { id: Some(format!("t{n}")), ..Txn::default() }
}

fn creating_once() -> Txn {
    Txn { id: Some("once".to_owned()), ..Txn::of(vec![Op::Create(pod("a").into_object())]) }
}

fn timed() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.apply(&Txn::marking(Mark::Level(Level::TIMED_IDS))).unwrap();
    snapshot
}

#[test]
fn a_repeated_id_is_answered_while_it_is_remembered() {
    let mut snapshot = timed();
    let create = creating_once();
    let first = snapshot.apply(&create).unwrap();
    let again = snapshot.apply(&create).unwrap();
    assert_eq!((again.revision, again.repeated, again.changes), (first.revision, true, vec![]));
    // However many come after it.
    for n in 0..TXN_IDS_MAX - 1 {
        snapshot.apply(&numbered(n)).unwrap();
    }
    snapshot.apply(&Txn::marking(Mark::Elapsed(TXN_ID_KEPT_MS))).unwrap();
    assert!(snapshot.apply(&create).unwrap().repeated);
    // Past its time, all those of its time go with it.
    snapshot.apply(&Txn::marking(Mark::Elapsed(1))).unwrap();
    snapshot.apply(&numbered(TXN_IDS_MAX)).unwrap();
    assert_eq!(snapshot.answered().count(), 1);
    assert_eq!(snapshot.apply(&create), Err(Rejection::AlreadyExists(pod_key("a"))));
    // A refused one is judged anew.
    let refused = Txn { id: Some("no".to_owned()), ..create };
    assert!(snapshot.apply(&refused).is_err() && snapshot.apply(&refused).is_err());
}

#[test]
fn ids_are_bounded_however_fast_they_come() {
    let mut snapshot = timed();
    for n in 0..TXN_IDS_MAX + 10 {
        snapshot.apply(&numbered(n)).unwrap();
    }
    assert_eq!(snapshot.answered().count(), TXN_IDS_MAX);
    assert_eq!(snapshot.answered_at("t9"), None);
    assert_eq!(snapshot.answered_at("t10"), Some(0));
}

/// As the builds do that know no other level: on their masters the same is forgotten.
#[test]
fn at_the_first_level_ids_are_remembered_by_number() {
    let mut snapshot = Snapshot::default();
    let create = creating_once();
    snapshot.apply(&create).unwrap();
    for n in 0..9_999 {
        snapshot.apply(&numbered(n)).unwrap();
    }
    assert!(snapshot.apply(&create).unwrap().repeated);
    snapshot.apply(&numbered(9_999)).unwrap();
    assert_eq!(snapshot.answered_at("once"), None);
    assert_eq!(snapshot.answered().count(), 10_000);
}

#[test]
fn a_level_never_sinks_and_a_newer_one_is_not_read() {
    let mut snapshot = timed();
    let applied = snapshot.apply(&Txn::marking(Mark::Level(Level::FIRST))).unwrap();
    assert_eq!((snapshot.level, applied.changes), (Level::TIMED_IDS, vec![]));
    let newer = r#"{"ops":[],"mark":{"Level":99}}"#;
    let error = serde_json::from_str::<Txn>(newer).unwrap_err().to_string();
    assert!(error.contains("the cluster is at level 99, this build knows"), "{error}");
    let unknown = r#"{"ops":[],"mark":{"Colour":1}}"#;
    assert!(serde_json::from_str::<Txn>(unknown).is_err());
}

fn arbitrary_op() -> impl Strategy<Value = Op> {
    let name = "[a-f]";
    let owned = |name: String, owner: Option<String>| {
        let mut pod = pod(&name);
        pod.metadata.owner_references = owner.map(|owner| {
            let reference =
                OwnerReference { uid: owner, controller: Some(true), ..Default::default() };
            vec![reference]
        });
        pod.into_object()
    };
    let owner = proptest::option::of("[x-z]");
    let node = |name: String| {
        let mut node = Node::default();
        node.metadata.uid = Some(format!("uid-{name}"));
        node.metadata.name = Some(name);
        node.status = Some(NodeStatus::default());
        node.into_object()
    };
    prop_oneof![
        4 => (name, owner.clone()).prop_map(move |(n, o)| Op::Create(owned(n, o))),
        2 => (name, owner).prop_map(move |(n, o)| Op::Replace(owned(n, o))),
        1 => name.prop_map(move |n| Op::Create(node(n))),
        3 => (name, "n[1-3]").prop_map(|(n, node)| bind(&n, &node)),
        1 => (name, "[a-z]{1,3}").prop_map(|(n, phase)| {
            let mut pod = pod(&n);
            pod.status = Some(PodStatus { phase: Some(phase), ..Default::default() });
            Op::ReplaceStatus(pod.into_object())
        }),
        1 => name.prop_map(|n| {
            Op::MarkDeleted { key: pod_key(&n), uid: None, at: at(1), grace_seconds: 3 }
        }),
        2 => name.prop_map(|n| Op::Remove { key: pod_key(&n), uid: None }),
    ]
}

fn arbitrary_txn() -> impl Strategy<Value = Txn> {
    let id = proptest::option::weighted(0.3, "[a-d]");
    (id, proptest::collection::vec(arbitrary_op(), 0..4))
        .prop_map(|(id, ops)| Txn { id, ..Txn::of(ops) })
}

/// Through the form in which objects are stored.
fn stored_and_read(snapshot: &Snapshot) -> Snapshot {
    let objects: Vec<String> =
        snapshot.all_objects().map(|o| serde_json::to_string(o).unwrap()).collect();
    assert_eq!(objects.len(), snapshot.len());
    let objects = objects.iter().map(|json| serde_json::from_str(json).unwrap());
    let answered = snapshot.answered().map(|(id, answered)| (id.to_owned(), answered));
    Snapshot::rebuild(snapshot.revision, objects, answered)
}

proptest! {
    #[test]
    fn any_history_is_whole(txns in proptest::collection::vec(arbitrary_txn(), 0..60)) {
        let mut snapshot = Snapshot::default();
        // As the store does: readers hold older states, which must stay what they are.
        let mut older = Vec::new();
        for txn in &txns {
            let before = snapshot.clone();
            let text = format!("{before:?}");
            match snapshot.apply(txn) {
                Err(_) => prop_assert_eq!(&snapshot, &before),
                Ok(applied) => {
                    let revisions: Vec<u64> = applied.changes.iter().map(|c| c.revision).collect();
                    let expected: Vec<u64> = (before.revision + 1..=snapshot.revision).collect();
                    prop_assert_eq!(revisions, expected);
                    // The changes alone lead from one state to the next.
                    let mut replayed = before.clone();
                    for change in applied.changes {
                        let was = replayed.put(Arc::new(change.key.clone()), change.after);
                        prop_assert_eq!(was, change.before);
                    }
                    prop_assert_eq!(&replayed.objects, &snapshot.objects);
                    prop_assert_eq!(&replayed.by_owner, &snapshot.by_owner);
                    prop_assert_eq!(&replayed.pods_by_node, &snapshot.pods_by_node);
                }
            }
            older.push((before, text));
        }
        for (state, text) in older {
            prop_assert_eq!(format!("{state:?}"), text);
        }
        // Indexes and all: what is read back is the same.
        prop_assert_eq!(&stored_and_read(&snapshot), &snapshot);
    }

    #[test]
    fn many_objects_keep_their_count(names in proptest::collection::vec("[a-c]{1,5}", 0..400)) {
        let mut snapshot = Snapshot::default();
        for (n, name) in names.iter().enumerate() {
            let kept = snapshot.clone();
            let op = if n % 3 == 2 {
                Op::Remove { key: pod_key(name), uid: None }
            } else {
                Op::Create(pod(name).into_object())
            };
            let _ = one(&mut snapshot, op);
            prop_assert_eq!(kept.len(), kept.all_objects().count());
        }
        prop_assert_eq!(&stored_and_read(&snapshot), &snapshot);
    }
}

#[test]
fn what_is_given_away_is_given_once() {
    use crate::op::Claimed;
    let node = |name: &str| {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.metadata.uid = Some(name.to_owned());
        let pod_cidr = Some("10.244.1.0/24".to_owned());
        node.spec = Some(NodeSpec { pod_cidr, ..Default::default() });
        node.into_object()
    };
    let register = |name: &str| Txn {
        preconditions: vec![Precondition::Free {
            what: Claimed::PodRange("10.244.1.0/24".into()),
            by: node(name).key(),
        }],
        ..Txn::of(vec![Op::Create(node(name))])
    };
    let mut snapshot = Snapshot::default();
    snapshot.apply(&register("n1")).unwrap();
    let refused = snapshot.apply(&register("n2")).unwrap_err();
    assert_eq!(refused.to_string(), "pod range 10.244.1.0/24 was given to node n1 meanwhile");
}
