use expect_test::expect;

use super::*;

#[test]
fn a_simple_pod_step_by_step() {
    let mut tale = Tale::new(simple());
    assert_eq!(tale.work(), [Action::Prepare]);
    assert_eq!(
        (tale.phase().as_str(), tale.shown()),
        ("Pending", "waiting ContainerCreating".into())
    );
    tale.prepared();
    assert_eq!(tale.work(), [ensure_image()]);
    tale.on(Event::Pulling { slot: C });
    let pull = Some(Pull { milliseconds: 1204, bytes: 1234 });
    tale.on(Event::ImageReady { slot: C, image_id: "sha256:ab".into(), pull });
    tale.after_ms(100);
    tale.on(Event::Started { slot: C, id: "id1".into() });
    assert_eq!((tale.phase().as_str(), tale.shown()), ("Running", "running".into()));
    assert!(tale.state.is_ready() && tale.holds("Ready"));
    let told: Vec<String> = tale.told();
    expect![[r#"
        [
            "Pulling: Pulling image \"web:v1\"",
            "Pulled: Successfully pulled image \"web:v1\" in 1.204s. Image size: 1234 bytes.",
            "Created: Created container: c",
            "Started: Started container c",
        ]
    "#]]
    .assert_debug_eq(&told);
    assert_eq!(tale.state.next_wake(), None, "nothing to wait for");
}

#[test]
fn the_status_is_kubernetes() {
    let tale = Tale::running(simple());
    let status = serde_json::to_string_pretty(&tale.state.status()).unwrap();
    expect![[r#"
        {
          "conditions": [
            {
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "status": "True",
              "type": "PodReadyToStartContainers"
            },
            {
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "status": "True",
              "type": "Initialized"
            },
            {
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "status": "True",
              "type": "Ready"
            },
            {
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "status": "True",
              "type": "ContainersReady"
            },
            {
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "status": "True",
              "type": "PodScheduled"
            }
          ],
          "containerStatuses": [
            {
              "containerID": "docker://id1",
              "image": "web:v1",
              "imageID": "docker://sha256:ab",
              "name": "c",
              "ready": true,
              "restartCount": 0,
              "started": true,
              "state": {
                "running": {
                  "startedAt": "2026-01-01T00:00:00Z"
                }
              }
            }
          ],
          "hostIP": "192.0.2.1",
          "hostIPs": [
            {
              "ip": "192.0.2.1"
            }
          ],
          "phase": "Running",
          "podIP": "10.244.0.2",
          "podIPs": [
            {
              "ip": "10.244.0.2"
            }
          ],
          "qosClass": "BestEffort",
          "startTime": "2026-01-01T00:00:00Z"
        }"#]]
    .assert_eq(&status);
}

#[test]
fn init_containers_run_one_after_another() {
    let init = |name: &str| json!({"name": name, "image": "web:v1"});
    let mut tale = Tale::new(json!({
        "initContainers": [init("a"), init("b")],
        "containers": [{"name": "c", "image": "web:v1"}],
    }));
    tale.prepared();
    tale.work();
    assert_eq!(tale.shown(), "waiting PodInitializing");
    tale.run(Slot::Init(0));
    assert!(!tale.holds("Initialized"));
    tale.work();
    // A failure is tried again, at once the first time, and nothing else goes on.
    tale.exit(Slot::Init(0), 1);
    assert_eq!(tale.work(), [Action::EnsureImage { slot: Slot::Init(0) }]);
    tale.run(Slot::Init(0));
    tale.work();
    tale.exit(Slot::Init(0), 0);
    assert_eq!(tale.work(), [Action::EnsureImage { slot: Slot::Init(1) }]);
    tale.run(Slot::Init(1));
    tale.work();
    tale.exit(Slot::Init(1), 0);
    assert_eq!(tale.work(), [ensure_image()]);
    assert!(tale.holds("Initialized"));
    tale.run(C);
    assert_eq!(tale.phase(), "Running");
    let init = tale.state.status().init_container_statuses.unwrap();
    assert!(init.iter().all(|status| status.ready));
    assert_eq!((init[0].restart_count, init[1].restart_count), (1, 0));
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut tale = Tale::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "a", "image": "web:v1"}],
        "containers": [{"name": "c", "image": "web:v1"}],
    }));
    tale.prepared();
    tale.run(Slot::Init(0));
    tale.work();
    tale.exit(Slot::Init(0), 2);
    assert_eq!(tale.work(), [Action::ReleaseNetwork]);
    assert_eq!(tale.phase(), "Failed");
}

#[test]
fn a_sidecar_lets_the_others_start_and_ends_with_them() {
    let mut tale = Tale::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "image": "web:v1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "web:v1"}],
    }));
    tale.prepared();
    let sidecar = tale.run(Slot::Init(0));
    tale.run(C);
    assert!(tale.state.is_ready());
    tale.work();
    tale.exit(C, 0);
    let slot = Slot::Init(0);
    assert_eq!(tale.work(), [Action::Signal { slot, id: sidecar, kill: false }]);
    assert_eq!(tale.phase(), "Running", "not over before its sidecar is");
    tale.exit(slot, 143);
    assert_eq!(tale.work(), [Action::ReleaseNetwork]);
    assert_eq!(tale.phase(), "Succeeded");
}

#[test]
fn images_that_cannot_be_pulled() {
    let mut tale = Tale::new(simple());
    tale.prepared();
    tale.asked.clear();
    let failed = |kind| Event::ImageFailed { slot: C, kind, message: "no such host".into() };
    tale.on(failed(ImageFailure::Pull));
    assert_eq!(tale.shown(), "waiting ErrImagePull");
    assert_eq!(
        tale.told(),
        ["Failed: Failed to pull image \"web:v1\": no such host", "Failed: Error: ErrImagePull"]
    );
    tale.after_ms(2000);
    assert_eq!(tale.shown(), "waiting ImagePullBackOff");
    assert_eq!(
        tale.told(),
        ["BackOff: Back-off pulling image \"web:v1\"", "Failed: Error: ImagePullBackOff"]
    );
    let mut delays = Vec::new();
    for _ in 0..7 {
        let before = tale.now;
        while tale.work() != [ensure_image()] {
            tale.now = tale.state.next_wake().expect("a retry is planned");
            tale.on(Event::Tick);
        }
        delays.push(tale.now.duration_since(before).as_secs());
        tale.on(failed(ImageFailure::Pull));
    }
    assert_eq!(delays, [8, 20, 40, 80, 160, 300, 300]);

    for (kind, reason) in [
        (ImageFailure::NeverPull, "waiting ErrImageNeverPull"),
        (ImageFailure::InvalidName, "waiting InvalidImageName"),
        (ImageFailure::Unavailable, "waiting ContainerCreating"),
    ] {
        let mut tale = Tale::new(simple());
        tale.prepared();
        tale.on(failed(kind));
        assert_eq!(tale.shown(), reason);
    }
}

#[test]
fn what_cannot_be_prepared_is_tried_again_and_at_once_after_a_change() {
    let mut tale = Tale::new(simple());
    tale.work();
    let failed =
        || Event::PrepareFailed(Failure { reason: "FailedMount".into(), message: "no map".into() });
    tale.on(failed());
    assert_eq!(tale.told(), ["FailedMount: no map"]);
    tale.after_ms(1000);
    assert_eq!(tale.work(), [Action::Prepare]);
    tale.on(failed());
    tale.asked.clear();
    tale.after_ms(1000);
    assert_eq!(tale.work(), [], "the second wait is longer");
    tale.on(Event::Updated(Box::new(plan(simple()))));
    assert_eq!(tale.work(), [Action::Prepare]);
}

#[test]
fn starts_that_fail() {
    let failed = |kind| Event::StartFailed { slot: C, kind, message: "why".into(), id: None };
    for (kind, state) in [
        (StartFailure::Config, "waiting CreateContainerConfigError"),
        (StartFailure::Create, "waiting CreateContainerError"),
        (StartFailure::Unavailable, "waiting ContainerCreating"),
    ] {
        let mut tale = Tale::new(simple());
        tale.prepared();
        tale.image(C);
        tale.asked.clear();
        tale.on(failed(kind));
        assert_eq!(tale.shown(), state);
        let quiet = kind == StartFailure::Unavailable;
        assert_eq!(tale.told().is_empty(), quiet);
        tale.after_ms(10_000);
        assert_eq!(tale.work(), [ensure_image()]);
        tale.image(C);
        assert_eq!(tale.work(), [start(0)], "it is still the first attempt");
    }
    // A program that cannot be started counts as an exit.
    let mut tale = Tale::new(simple());
    tale.prepared();
    tale.image(C);
    tale.on(failed(StartFailure::Start));
    tale.image(C);
    tale.work();
    tale.on(failed(StartFailure::Start));
    assert_eq!(tale.shown(), "waiting CrashLoopBackOff");
    let last = tale.container().last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
}
