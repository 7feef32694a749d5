use super::*;

#[test]
fn policies() {
    for (policy, code, again, phase) in [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ] {
        let mut spec = simple();
        spec["restartPolicy"] = json!(policy);
        let mut tale = Tale::running(spec);
        tale.exit(C, code);
        let work = tale.work();
        assert_eq!(work == [ensure_image()], again, "{policy} {code}: {work:?}");
        assert_eq!(work == [Action::ReleaseNetwork], !again, "{policy} {code}: {work:?}");
        assert_eq!(tale.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn the_crash_loop_slows_down_and_forgets_after_a_long_run() {
    let mut tale = Tale::running(simple());
    let mut delays = Vec::new();
    for round in 1..=7 {
        tale.exit(C, 1);
        let before = tale.now;
        while tale.work() != [ensure_image()] {
            assert_eq!(tale.shown(), "waiting CrashLoopBackOff");
            tale.now = tale.state.next_wake().expect("a restart is planned");
            tale.on(Event::Tick);
        }
        delays.push(tale.now.duration_since(before).as_secs());
        tale.image(C);
        assert_eq!(tale.work().last(), Some(&start(round)));
        tale.on(Event::Started { slot: C, id: format!("r{round}") });
        assert_eq!(tale.container().restart_count, round as i32);
        tale.asked.clear();
    }
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300]);
    assert_eq!(tale.phase(), "Running", "all along");

    tale.after_ms(600_000);
    tale.exit(C, 1);
    assert_eq!(tale.work(), [ensure_image()], "at once again");
}

/// The engine's clock was set back while the lifecycle's goes on.
#[test]
fn the_crash_loop_slows_down_whatever_the_engines_clock_says() {
    let mut tale = Tale::running(simple());
    tale.exit(C, 1);
    let id = tale.run(C);
    tale.asked.clear();
    let before = Some(tale.now - SignedDuration::from_hours(1));
    let exit = Exit { started_at: before, finished_at: before, ..exit(1) };
    tale.on(Event::Exited { slot: C, id, exit });
    tale.after_ms(9_999);
    assert_eq!(tale.work(), []);
    tale.after_ms(1);
    assert_eq!(tale.work(), [ensure_image()]);
}

#[test]
fn only_the_last_dead_container_is_kept() {
    let mut tale = Tale::running(simple());
    tale.exit(C, 1);
    tale.run(C);
    assert_eq!(tale.state.dead_ids(C), ["id1"]);
    tale.exit(C, 1);
    tale.after_ms(10_000);
    tale.work();
    tale.run(C);
    assert!(tale.work().contains(&Action::RemoveContainer { id: "id1".into() }));
    assert_eq!(tale.state.dead_ids(C), ["id2"]);
    assert_eq!(tale.state.container_ids(), ["id2", "id3"]);
}

#[test]
fn memory_kills_and_vanished_containers_are_named() {
    let mut tale = Tale::running(simple());
    let killed = Exit { oom_killed: true, ..exit(137) };
    tale.on(Event::Exited { slot: C, id: "id1".into(), exit: killed });
    let last = tale.container().state.unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("OOMKilled"));
    tale.run(C);
    let gone = Exit { vanished: true, ..exit(137) };
    tale.on(Event::Exited { slot: C, id: "id2".into(), exit: gone });
    assert_eq!(tale.state.dead_ids(C), ["id1"], "there is nothing of it to be kept");
    let stale = Event::Exited { slot: C, id: "id1".into(), exit: exit(0) };
    let before = tale.state.clone();
    tale.on(stale);
    assert_eq!(tale.state, before, "told twice is told once");
}

fn probed_spec(kind: &str, probe: Value) -> Value {
    let mut spec = simple();
    spec["containers"][0][kind] = probe;
    spec
}

#[test]
fn a_failing_liveness_probe_kills_and_restarts() {
    let probe = json!({"periodSeconds": 5, "failureThreshold": 2, "initialDelaySeconds": 3,
                       "terminationGracePeriodSeconds": 7});
    let mut tale = Tale::running(probed_spec("livenessProbe", probe));
    assert!(tale.state.is_ready(), "liveness holds until it fails");
    let look = Action::Probe { slot: C, id: "id1".into(), kind: ProbeKind::Liveness };
    tale.after_ms(2_999);
    assert_eq!(tale.work(), []);
    tale.after_ms(1);
    assert_eq!(tale.work(), std::slice::from_ref(&look));
    tale.probed(C, ProbeKind::Liveness, false);
    assert_eq!(tale.told(), ["Unhealthy: Liveness probe failed: no"]);
    tale.after_ms(5_000);
    assert_eq!(tale.work(), [look]);
    tale.probed(C, ProbeKind::Liveness, false);
    assert_eq!(tale.work(), [signal("id1", false)]);
    tale.after_ms(6_999);
    assert_eq!(tale.work(), []);
    tale.after_ms(1);
    assert_eq!(tale.work(), [signal("id1", true)]);
    tale.exit(C, 137);
    assert_eq!(tale.work(), [ensure_image()]);
}

#[test]
fn readiness_comes_and_goes_without_a_restart() {
    let probe = json!({"periodSeconds": 1, "failureThreshold": 3});
    let mut tale = Tale::running(probed_spec("readinessProbe", probe));
    assert!(!tale.state.is_ready());
    tale.after_ms(0);
    tale.probed(C, ProbeKind::Readiness, true);
    assert!(tale.state.is_ready() && tale.holds("Ready"));
    for round in 0..3 {
        assert!(tale.state.is_ready(), "{round}");
        tale.after_ms(1_000);
        tale.probed(C, ProbeKind::Readiness, false);
    }
    assert!(!tale.state.is_ready());
    assert!(tale.holds("Initialized") && !tale.holds("ContainersReady"));
    assert_eq!(tale.container().restart_count, 0);
}

#[test]
fn a_startup_probe_keeps_the_others_waiting() {
    let mut spec = probed_spec("startupProbe", json!({"periodSeconds": 1, "failureThreshold": 2}));
    spec["containers"][0]["livenessProbe"] = json!({"periodSeconds": 1});
    let mut tale = Tale::running(spec.clone());
    assert_eq!(tale.container().started, Some(false));
    let look = |kind| Action::Probe { slot: C, id: "id1".into(), kind };
    tale.after_ms(0);
    tale.probed(C, ProbeKind::Startup, true);
    assert_eq!(tale.container().started, Some(true));
    assert!(tale.work().contains(&look(ProbeKind::Liveness)));

    let mut tale = Tale::running(spec);
    for _ in 0..20 {
        if tale.work().contains(&signal("id1", false)) {
            return;
        }
        tale.probed(C, ProbeKind::Startup, false);
        tale.now = tale.state.next_wake().unwrap();
        tale.on(Event::Tick);
    }
    panic!("a startup probe that fails has no effect");
}

#[test]
fn a_changed_spec_replaces_the_container_at_once() {
    let mut tale = Tale::running(simple());
    let mut changed = simple();
    changed["containers"][0]["image"] = json!("web:v2");
    tale.on(Event::Updated(Box::new(plan(changed))));
    assert_eq!(tale.work(), [signal("id1", false)]);
    tale.exit(C, 143);
    assert_eq!(tale.work(), [ensure_image()]);
    assert_eq!(tale.container().image, "web:v2");
    tale.on(Event::Updated(Box::new(tale.state.plan().clone())));
    assert_eq!(tale.work(), [], "the same again changes nothing");
}

#[test]
fn a_lost_sandbox_takes_its_containers_along() {
    let two = json!({"containers": [
        {"name": "c", "image": "web:v1"}, {"name": "d", "image": "web:v1"}
    ]});
    let mut tale = Tale::running(two);
    tale.on(Event::SandboxLost);
    let other = Action::Signal { slot: Slot::Main(1), id: "id2".into(), kill: false };
    assert_eq!(tale.work(), [signal("id1", false), other]);
    tale.exit(C, 143);
    assert_eq!(tale.work(), []);
    tale.exit(Slot::Main(1), 143);
    assert_eq!(tale.work(), [Action::Prepare]);
    tale.prepared();
    assert_eq!(tale.work().len(), 2, "both images, at once");
}
