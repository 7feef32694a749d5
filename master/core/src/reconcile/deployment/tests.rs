//! Deployments in a cluster that lives: what people see, and what must hold at every moment.

use std::cell::RefCell;
use std::rc::Rc;

use expect_test::expect;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::harness::Cluster;
use crate::hash::Random;
use crate::object::{is_active, is_ready};
use crate::op::{Op, Txn};

fn status(cluster: &Cluster, name: &str) -> String {
    let status = cluster.get::<Deployment>(name).unwrap().status.clone().unwrap_or_default();
    let count = |n: Option<i32>| n.unwrap_or(0);
    format!(
        "replicas {} updated {} ready {} available {} unavailable {} observed {}",
        count(status.replicas),
        count(status.updated_replicas),
        count(status.ready_replicas),
        count(status.available_replicas),
        count(status.unavailable_replicas),
        status.observed_generation.unwrap_or(0),
    )
}

fn revisions(cluster: &Cluster) -> Vec<(i32, String)> {
    let annotation = |set: &ReplicaSet| {
        set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).cloned().unwrap_or_default()
    };
    let mut sets: Vec<_> = cluster
        .sets()
        .iter()
        .map(|set| (set.spec.as_ref().unwrap().replicas.unwrap(), annotation(set)))
        .collect();
    sets.sort_by_key(|(_, revision)| revision.parse::<i64>().unwrap_or(0));
    sets
}

#[test]
fn from_nothing_to_an_update() {
    let mut cluster = Cluster::with_nodes(7, 3);
    cluster.deployment("web", 3, json!({"type": "RollingUpdate"}));
    cluster.settle_wholly();
    assert_eq!(
        status(&cluster, "web"),
        "replicas 3 updated 3 ready 0 available 0 unavailable 3 observed 1"
    );
    cluster.live(3);
    assert_eq!(
        status(&cluster, "web"),
        "replicas 3 updated 3 ready 3 available 3 unavailable 0 observed 1"
    );
    cluster.set_image("web", "web:2");
    cluster.live(10);
    assert_eq!(
        status(&cluster, "web"),
        "replicas 3 updated 3 ready 3 available 3 unavailable 0 observed 2"
    );
    assert_eq!(revisions(&cluster), [(0, "1".into()), (3, "2".into())]);
    cluster.settle_wholly();
    expect![[r#"
        Available=True MinimumReplicasAvailable: Deployment has minimum availability.
        Progressing=True NewReplicaSetAvailable: ReplicaSet "web-HASH" has successfully progressed."#]]
    .assert_eq(&without_names(&cluster.conditions("web").join("\n")));
    let scaling: Vec<String> =
        cluster.events.iter().filter(|e| e.starts_with("Scal")).cloned().collect();
    expect![[r#"
        ScalingReplicaSet: Scaled up replica set web-HASH from 0 to 3
        ScalingReplicaSet: Scaled up replica set web-HASH from 0 to 1
        ScalingReplicaSet: Scaled down replica set web-HASH from 3 to 2
        ScalingReplicaSet: Scaled up replica set web-HASH from 1 to 2
        ScalingReplicaSet: Scaled down replica set web-HASH from 2 to 1
        ScalingReplicaSet: Scaled up replica set web-HASH from 2 to 3
        ScalingReplicaSet: Scaled down replica set web-HASH from 1 to 0"#]]
    .assert_eq(&without_names(&scaling.join("\n")));
}

/// Hashes are stable, but say nothing to a reader.
fn without_names(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let is_name = word.trim_start_matches('"').starts_with("web-");
        let quoted = word.starts_with('"');
        words.push(match (is_name, quoted) {
            (true, true) => "\"web-HASH\"".to_owned(),
            (true, false) => "web-HASH".to_owned(),
            _ => word.to_owned(),
        });
    }
    words.join(" ")
}

#[test]
fn undo_takes_the_old_set_again_with_a_new_revision() {
    let mut cluster = Cluster::with_nodes(1, 2);
    cluster.deployment("web", 2, json!({"type": "RollingUpdate"}));
    cluster.live(3);
    cluster.set_image("web", "web:2");
    cluster.live(8);
    cluster.set_image("web", "web:1");
    cluster.live(8);
    assert_eq!(revisions(&cluster), [(0, "2".into()), (2, "3".into())]);
    let first = cluster.sets().into_iter().find(|s| s.spec.as_ref().unwrap().replicas == Some(2));
    let annotations = first.unwrap().metadata.annotations.clone().unwrap();
    assert_eq!(annotations.get(REVISION_HISTORY).map(String::as_str), Some("1"));
    let web = cluster.get::<Deployment>("web").unwrap();
    assert_eq!(web.metadata.annotations.as_ref().unwrap()[REVISION], "3");
}

#[test]
fn a_broken_image_stops_the_rollout_and_misses_its_deadline() {
    let mut cluster = Cluster::with_nodes(3, 3);
    cluster.deployment("web", 4, json!({"type": "RollingUpdate"}));
    cluster.edit::<Deployment>("web", |d| {
        d.spec.as_mut().unwrap().progress_deadline_seconds = Some(30);
    });
    cluster.live(3);
    cluster.broken_images.insert("web:2".into());
    cluster.set_image("web", "web:2");
    cluster.live(20);
    assert!(cluster.ready() >= 3, "{} ready", cluster.ready());
    assert!(
        cluster.conditions("web")[1].contains("ReplicaSetUpdated"),
        "{:?}",
        cluster.conditions("web")
    );
    cluster.live(20);
    expect![[r#"
        Available=True MinimumReplicasAvailable: Deployment has minimum availability.
        Progressing=False ProgressDeadlineExceeded: ReplicaSet "web-HASH" has timed out progressing."#]]
    .assert_eq(&without_names(&cluster.conditions("web").join("\n")));
    cluster.settle_wholly();
    // Its way out: back to what worked.
    cluster.set_image("web", "web:1");
    cluster.live(8);
    assert_eq!(cluster.ready(), 4);
    assert!(cluster.conditions("web")[1].contains("NewReplicaSetAvailable"));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = Cluster::with_nodes(4, 2);
    cluster.deployment("web", 2, json!({"type": "RollingUpdate"}));
    cluster.live(3);
    cluster.edit::<Deployment>("web", |d| d.spec.as_mut().unwrap().paused = Some(true));
    cluster.set_image("web", "web:2");
    cluster.scale("web", 5);
    cluster.live(4);
    assert_eq!(revisions(&cluster), [(5, "1".into())]);
    assert!(cluster.conditions("web")[1].contains("DeploymentPaused"));
    cluster.edit::<Deployment>("web", |d| d.spec.as_mut().unwrap().paused = None);
    cluster.live(12);
    assert_eq!(revisions(&cluster), [(0, "1".into()), (5, "2".into())]);
}

#[test]
fn recreate_never_mixes_the_two_versions() {
    let mut cluster = Cluster::with_nodes(5, 2);
    cluster.deployment("web", 3, json!({"type": "Recreate"}));
    cluster.live(3);
    cluster.watch = Box::new(|snapshot| {
        let mut images: Vec<_> = snapshot
            .list::<Pod>(None)
            .map(|p| p.spec.as_ref().unwrap().containers[0].image.clone())
            .collect();
        images.dedup();
        images.sort();
        images.dedup();
        assert!(images.len() <= 1, "{images:?}");
    });
    cluster.set_image("web", "web:2");
    cluster.settle_wholly();
    assert_eq!(cluster.active(), 0);
    cluster.live(4);
    assert_eq!(cluster.ready(), 3);
    cluster.settle_wholly();
}

#[test]
fn min_ready_seconds_hold_up_the_rollout() {
    let mut cluster = Cluster::with_nodes(6, 2);
    cluster.deployment("web", 2, json!({"type": "RollingUpdate"}));
    cluster.edit::<Deployment>("web", |d| d.spec.as_mut().unwrap().min_ready_seconds = Some(10));
    cluster.live(3);
    assert_eq!(cluster.ready(), 2);
    assert!(status(&cluster, "web").contains("available 0"), "{}", status(&cluster, "web"));
    cluster.live(12);
    assert!(status(&cluster, "web").contains("available 2"), "{}", status(&cluster, "web"));
}

#[test]
fn history_is_bounded() {
    let mut cluster = Cluster::with_nodes(8, 2);
    cluster.deployment("web", 1, json!({"type": "RollingUpdate"}));
    cluster.edit::<Deployment>("web", |d| {
        d.spec.as_mut().unwrap().revision_history_limit = Some(2);
    });
    for version in 2..8 {
        cluster.live(4);
        cluster.set_image("web", &format!("web:{version}"));
    }
    cluster.live(6);
    assert_eq!(revisions(&cluster), [(0, "5".into()), (0, "6".into()), (1, "7".into())]);
    cluster.settle_wholly();
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_shared_out() {
    let mut cluster = Cluster::with_nodes(9, 3);
    cluster.deployment("web", 10, json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}));
    cluster.live(3);
    cluster.broken_images.insert("web:2".into());
    cluster.set_image("web", "web:2");
    cluster.live(3);
    assert_eq!(revisions(&cluster), [(8, "1".into()), (5, "2".into())]);
    cluster.scale("web", 15);
    cluster.live(3);
    // Kubernetes' own example of proportional scaling.
    assert_eq!(revisions(&cluster), [(11, "1".into()), (7, "2".into())]);
    cluster.scale("web", 0);
    cluster.live(3);
    assert_eq!(cluster.pods().len(), 0);
    cluster.settle_wholly();
}

#[test]
fn what_a_deployment_owns_goes_with_it() {
    let mut cluster = Cluster::with_nodes(10, 2);
    cluster.deployment("web", 3, json!({"type": "RollingUpdate"}));
    cluster.live(3);
    cluster.remove(Kind::Deployment, "web");
    cluster.settle_wholly();
    assert_eq!((cluster.sets().len(), cluster.active()), (0, 0));
    cluster.live(1);
    assert_eq!(cluster.pods().len(), 0);
}

/// One of the things that happen to a deployment.
#[derive(Debug, Clone)]
enum Happening {
    Image(u8),
    Scale(i32),
    Pause(bool),
    PodFails(usize),
    PodDeleted(usize),
    Break(u8, bool),
    Rest(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (1_u8..5).prop_map(Happening::Image),
        2 => (0..8).prop_map(Happening::Scale),
        1 => any::<bool>().prop_map(Happening::Pause),
        1 => any::<usize>().prop_map(Happening::PodFails),
        1 => any::<usize>().prop_map(Happening::PodDeleted),
        1 => ((2_u8..5), any::<bool>()).prop_map(|(v, b)| Happening::Break(v, b)),
        4 => (1_usize..30).prop_map(Happening::Rest),
    ]
}

/// What holds at every moment while nothing but the rollout itself takes pods away.
#[derive(Debug, Default)]
struct Bound {
    pods_max: usize,
    available_min: usize,
}

fn bound() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![(0..4).prop_map(|n| json!(n)), (0..=100).prop_map(|n| json!(format!("{n}%")))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens, and in whatever order the loops and the agents get to work: the linter
    /// finds no fault, everything comes to rest, and then the deployment is what its spec says.
    #[test]
    fn every_deployment_comes_to_rest(
        seed in any::<u64>(),
        replicas in 0..6,
        surge in bound(),
        unavailable in bound(),
        recreate in prop::bool::weighted(0.2),
        happenings in prop::collection::vec(happening(), 1..12),
    ) {
        let strategy = if recreate {
            json!({"type": "Recreate"})
        } else {
            json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
        };
        let mut cluster = Cluster::with_nodes(seed, 3);
        let mut random = Random::new(seed);
        cluster.deployment("web", replicas, strategy);
        for happening in happenings {
            happen(&mut cluster, &mut random, happening);
        }
        cluster.broken_images.clear();
        cluster.edit::<Deployment>("web", |d| d.spec.as_mut().unwrap().paused = None);
        cluster.live(25);
        cluster.settle_wholly();
        let web = cluster.get::<Deployment>("web").unwrap();
        let wanted = web.spec.as_ref().unwrap().replicas.unwrap();
        prop_assert_eq!(cluster.ready() as i32, wanted);
        let updated = web.status.as_ref().unwrap().updated_replicas;
        prop_assert_eq!(updated, Some(wanted));
        let image = &web.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image;
        for pod in cluster.pods().iter().filter(|p| is_active(p)) {
            prop_assert_eq!(&pod.spec.as_ref().unwrap().containers[0].image, image);
        }
    }

    /// A rollout alone, step by step in random order: never more pods than replicas and surge, never
    /// fewer available than replicas less unavailable.
    #[test]
    fn a_rollout_stays_within_its_bounds(
        seed in any::<u64>(),
        replicas in 1..8,
        surge in bound(),
        unavailable in bound(),
        broken in prop::bool::weighted(0.3),
        versions in 1_u8..4,
    ) {
        let strategy = json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        let mut cluster = Cluster::with_nodes(seed, 3);
        cluster.deployment("web", replicas, strategy);
        cluster.live(3);
        let bounds = crate::rollout::Bounds::of(cluster.get::<Deployment>("web").unwrap());
        let limits = Rc::new(RefCell::new(Bound {
            pods_max: (replicas + bounds.max_surge) as usize,
            available_min: (replicas - bounds.max_unavailable).max(0) as usize,
        }));
        cluster.watch = Box::new(move |snapshot| {
            let limits = limits.borrow();
            let active = snapshot.list::<Pod>(None).filter(|p| is_active(p)).count();
            let ready = snapshot.list::<Pod>(None).filter(|p| is_active(p) && is_ready(p)).count();
            assert!(active <= limits.pods_max, "{active} pods, {limits:?}");
            assert!(ready >= limits.available_min, "{ready} available, {limits:?}");
        });
        let mut random = Random::new(seed);
        for version in 2..2 + versions {
            let image = format!("web:{version}");
            if broken && version == 2 {
                cluster.broken_images.insert(image.clone());
            }
            cluster.set_image("web", &image);
            interleave(&mut cluster, &mut random, 120);
        }
    }
}

/// The loops and single agents take steps in random order.
fn interleave(cluster: &mut Cluster, random: &mut Random, steps: usize) {
    for _ in 0..steps {
        if !random.next_u64().is_multiple_of(4) {
            cluster.step();
            continue;
        }
        let pods = cluster.pods();
        if !pods.is_empty() {
            let pod = &pods[random.next_u64() as usize % pods.len()];
            cluster.agent(pod);
        }
    }
}

fn happen(cluster: &mut Cluster, random: &mut Random, happening: Happening) {
    match happening {
        Happening::Image(version) => cluster.set_image("web", &format!("web:{version}")),
        Happening::Scale(replicas) => cluster.scale("web", replicas),
        Happening::Pause(paused) => {
            cluster.edit::<Deployment>("web", |d| d.spec.as_mut().unwrap().paused = Some(paused));
        }
        Happening::PodFails(which) => {
            let Some(mut pod) = nth_pod(cluster, which) else { return };
            pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
            cluster.commit(Txn::of(vec![Op::ReplaceStatus(pod.into_object())])).unwrap();
        }
        Happening::PodDeleted(which) => {
            let Some(pod) = nth_pod(cluster, which) else { return };
            if let Some(op) = crate::object::end_pod(&pod, cluster.now) {
                cluster.commit(Txn::of(vec![op])).unwrap();
            }
        }
        Happening::Break(version, broken) => {
            let image = format!("web:{version}");
            if broken {
                cluster.broken_images.insert(image);
            } else {
                cluster.broken_images.remove(&image);
            }
        }
        Happening::Rest(steps) => {
            interleave(cluster, random, steps);
            cluster.pass(1_000);
        }
    }
}

fn nth_pod(cluster: &Cluster, which: usize) -> Option<Pod> {
    let pods = cluster.pods();
    (!pods.is_empty()).then(|| Pod::clone(&pods[which % pods.len()]))
}
