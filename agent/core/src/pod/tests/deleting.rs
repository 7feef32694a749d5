use super::*;

const DELETE: Event = Event::Delete { grace_s: 30 };

#[test]
fn a_ready_pod_drains_before_it_is_told_to_stop() {
    let mut tale = Tale::running(simple());
    tale.on(DELETE);
    assert_eq!(tale.work(), []);
    assert!(tale.state.is_terminating());
    tale.after_ms(DRAIN_MS - 1);
    assert_eq!(tale.work(), []);
    tale.after_ms(1);
    assert_eq!(tale.work(), [signal("id1", false)]);
    tale.after_ms(29_999);
    assert_eq!(tale.work(), []);
    tale.after_ms(1);
    assert_eq!(tale.work(), [signal("id1", true)]);
    tale.after_ms(10_000);
    assert_eq!(tale.work(), [signal("id1", true)], "again, should it have been lost");
    tale.exit(C, 137);
    assert_eq!(tale.work(), [Action::TearDown]);
    assert!(!tale.state.is_gone());
    tale.on(Event::TornDown);
    assert!(tale.state.is_gone());
    assert_eq!(tale.phase(), "Failed");
}

#[test]
fn what_is_not_ready_is_told_at_once_and_without_grace_killed_at_once() {
    let mut spec = simple();
    spec["containers"][0]["readinessProbe"] = json!({});
    let mut tale = Tale::running(spec);
    tale.on(DELETE);
    assert_eq!(tale.work(), [signal("id1", false)]);
    let mut tale = Tale::running(simple());
    tale.on(Event::Delete { grace_s: 0 });
    assert_eq!(tale.work(), [signal("id1", true)]);
}

#[test]
fn a_second_deletion_may_only_shorten_the_grace() {
    let mut tale = Tale::running(simple());
    tale.on(DELETE);
    tale.after_ms(DRAIN_MS);
    tale.work();
    tale.on(Event::Delete { grace_s: 60 });
    tale.on(Event::Delete { grace_s: 2 });
    tale.after_ms(2_000);
    assert_eq!(tale.work(), [signal("id1", true)]);
}

#[test]
fn a_hook_runs_before_the_signal_within_the_grace() {
    let mut spec = simple();
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    let hook = Action::RunHook { slot: C, id: "id1".into(), hook: Hook::PreStop };
    let mut tale = Tale::running(spec.clone());
    tale.on(DELETE);
    tale.after_ms(DRAIN_MS);
    assert_eq!(tale.work(), std::slice::from_ref(&hook));
    let result = Ok(());
    tale.on(Event::HookDone { slot: C, id: "id1".into(), hook: Hook::PreStop, result });
    assert_eq!(tale.work(), [signal("id1", false)]);

    let mut tale = Tale::running(spec);
    tale.on(DELETE);
    tale.after_ms(DRAIN_MS);
    assert_eq!(tale.work(), [hook]);
    tale.after_ms(30_000);
    assert_eq!(tale.work(), [signal("id1", false)], "the hook had all the time");
    tale.after_ms(2_000);
    assert_eq!(tale.work(), [signal("id1", true)]);
}

#[test]
fn a_pod_that_is_still_starting_waits_for_what_is_under_way() {
    let mut tale = Tale::new(simple());
    tale.work();
    tale.on(DELETE);
    assert_eq!(tale.work(), [], "what is being prepared must be there to be removed");
    tale.prepared();
    assert_eq!(tale.work(), [Action::TearDown]);

    let mut tale = Tale::new(simple());
    tale.prepared();
    tale.work();
    tale.on(DELETE);
    assert_eq!(tale.work(), [Action::TearDown], "a pull is given up");

    let mut tale = Tale::new(simple());
    tale.prepared();
    tale.image(C);
    tale.work();
    tale.on(DELETE);
    assert_eq!(tale.work(), []);
    tale.on(Event::Started { slot: C, id: "id1".into() });
    assert_eq!(tale.work(), [signal("id1", false)]);
    tale.exit(C, 143);
    assert_eq!(tale.work(), [Action::TearDown]);

    let mut tale = Tale::new(simple());
    tale.prepared();
    tale.image(C);
    tale.on(DELETE);
    tale.work();
    let kind = StartFailure::Create;
    tale.on(Event::StartFailed { slot: C, kind, message: String::new(), id: None });
    assert_eq!(tale.work(), [Action::TearDown]);
}

#[test]
fn sidecars_end_last() {
    let mut tale = Tale::new(json!({
        "initContainers": [{"name": "s", "image": "web:v1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "web:v1"}],
    }));
    tale.prepared();
    let sidecar = tale.run(Slot::Init(0));
    let main = tale.run(C);
    tale.on(DELETE);
    tale.work();
    tale.after_ms(DRAIN_MS);
    assert_eq!(tale.work(), [signal(&main, false)]);
    tale.exit(C, 0);
    let slot = Slot::Init(0);
    assert_eq!(tale.work(), [Action::Signal { slot, id: sidecar, kill: false }]);
    tale.exit(slot, 0);
    assert_eq!(tale.work(), [Action::TearDown]);
}

#[test]
fn taking_down_is_tried_until_it_is_done() {
    let mut tale = Tale::running(simple());
    tale.on(Event::Delete { grace_s: 0 });
    tale.exit(C, 137);
    tale.work();
    tale.on(Event::TearDownFailed { message: "busy".into() });
    assert_eq!(tale.told(), ["FailedKillPod: error killing pod: busy"]);
    tale.after_ms(1_000);
    assert_eq!(tale.work(), [Action::TearDown]);
}
