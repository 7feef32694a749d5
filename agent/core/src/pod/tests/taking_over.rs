use super::*;

fn found(attempt: u32, id: &str, state: FoundState) -> Found {
    let spec_hash = plan(simple()).main[0].spec_hash.clone();
    Found {
        slot: C,
        attempt,
        id: id.to_owned(),
        image_id: "sha256:ab".to_owned(),
        spec_hash,
        state,
    }
}

fn adopt(spec: Value, found: Vec<Found>) -> Tale {
    adopt_plan(plan(spec), found)
}

fn adopt_plan(plan: PodPlan, found: Vec<Found>) -> Tale {
    let now = START.parse().unwrap();
    let (state, asked) = PodState::adopt(plan, found, true, Some("10.244.0.9".to_owned()), now);
    Tale { state, now, asked, next_id: 100 }
}

fn running() -> FoundState {
    FoundState::Running { started_at: "2025-12-31T23:00:00Z".parse().unwrap() }
}

#[test]
fn what_runs_goes_on() {
    let mut tale = adopt(
        simple(),
        vec![found(1, "old", FoundState::Exited(exit(3))), found(2, "new", running())],
    );
    assert_eq!(tale.work(), []);
    assert_eq!((tale.phase().as_str(), tale.shown()), ("Running", "running".into()));
    let status = tale.container();
    assert_eq!((status.restart_count, status.ready), (2, true));
    assert_eq!(status.container_id.as_deref(), Some("docker://new"));
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 3);
    assert_eq!(tale.state.status().pod_ip.as_deref(), Some("10.244.0.9"));
}

#[test]
fn what_died_meanwhile_is_restarted() {
    let mut tale = adopt(simple(), vec![found(0, "dead", FoundState::Exited(exit(1)))]);
    assert_eq!(tale.work(), [Action::Prepare]);
    tale.prepared();
    assert_eq!(tale.work(), [ensure_image()]);
    tale.image(C);
    assert_eq!(tale.work(), [start(1)]);
}

/// The engine noted its times before the host's clock was set back.
#[test]
fn what_is_dated_later_than_now_is_not_waited_for() {
    let later = "2026-01-01T01:00:00Z".parse().unwrap();
    let dead = Exit { started_at: Some(later), finished_at: Some(later), ..exit(255) };
    let mut tale = adopt(simple(), vec![found(0, "dead", FoundState::Exited(dead))]);
    tale.work();
    tale.prepared();
    assert_eq!(tale.work(), [ensure_image()]);
    let ended = tale.container().state.unwrap().terminated.unwrap();
    assert_eq!(ended.finished_at.unwrap().0, tale.now);

    let mut spec = simple();
    spec["containers"][0]["startupProbe"] = json!({});
    spec["containers"][0]["readinessProbe"] = json!({});
    let spec_hash = plan(spec.clone()).main[0].spec_hash.clone();
    let runs = FoundState::Running { started_at: later };
    let mut tale = adopt(spec, vec![Found { spec_hash, ..found(0, "new", runs) }]);
    tale.probed(C, ProbeKind::Startup, true);
    let probe = Action::Probe { slot: C, id: "new".into(), kind: ProbeKind::Readiness };
    assert_eq!(tale.work().last(), Some(&probe));
}

#[test]
fn what_was_never_started_is_removed() {
    let mut tale = adopt(simple(), vec![found(0, "made", FoundState::Created)]);
    let remove = Action::RemoveContainer { id: "made".into() };
    assert_eq!(tale.work(), [remove, Action::Prepare]);
    tale.prepared();
    tale.image(C);
    assert_eq!(tale.work().last(), Some(&start(0)));
}

#[test]
fn readiness_is_kept_as_the_master_knew_it() {
    let mut spec = simple();
    spec["containers"][0]["readinessProbe"] = json!({});
    for (id, ready) in [("docker://new", true), ("docker://another", false)] {
        let mut plan = plan(spec.clone());
        plan.prior = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "restartCount": 0,
            "ready": true, "containerID": id,
        }]}))
        .unwrap();
        let hash = plan.main[0].spec_hash.clone();
        let one = Found { spec_hash: hash, ..found(0, "new", running()) };
        assert_eq!(adopt_plan(plan, vec![one]).state.is_ready(), ready);
    }
}

#[test]
fn another_spec_replaces_it() {
    let one = Found { spec_hash: "other".into(), ..found(0, "old", running()) };
    let mut tale = adopt(simple(), vec![one]);
    assert_eq!(tale.work(), [signal("old", false)]);
}

#[test]
fn a_finished_pod_stays_finished() {
    let mut finished = plan(simple());
    finished.prior = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    let mut tale =
        adopt_plan(finished.clone(), vec![found(0, "dead", FoundState::Exited(exit(0)))]);
    assert_eq!(tale.work(), []);
    assert_eq!(tale.phase(), "Succeeded");
    assert_eq!(tale.state.container_ids(), ["dead"]);
    tale.on(Event::Delete { grace_s: 30 });
    assert_eq!(tale.work(), [Action::TearDown]);
    let mut none = Tale { state: PodState::new(finished, tale.now), ..tale };
    none.on(Event::Tick);
    assert_eq!(none.work(), []);
}

#[test]
fn init_containers_that_are_through_are_not_run_again() {
    let spec = json!({
        "initContainers": [{"name": "i", "image": "web:v1"}],
        "containers": [{"name": "c", "image": "web:v1"}],
    });
    let mut tale = adopt(spec, vec![found(0, "main", running())]);
    assert_eq!(tale.work(), []);
    assert!(tale.holds("Initialized"));
}
