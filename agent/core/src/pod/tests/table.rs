//! Every state against every event: what each pair leads to, as one table to be read.

use std::fmt::Write;

use expect_test::expect_file;

use super::*;

fn states() -> Vec<(&'static str, Tale)> {
    let fresh = || Tale::new(simple());
    let prepared = || {
        let mut tale = fresh();
        tale.prepared();
        tale
    };
    let starting = || {
        let mut tale = prepared();
        tale.image(C);
        tale
    };
    let after = |mut tale: Tale, events: Vec<Event>| {
        for event in events {
            tale.on(event);
        }
        tale
    };
    let id = || "id1".to_owned();
    let exited = |code| Event::Exited { slot: C, id: id(), exit: exit(code) };
    let delete = |grace_s| Event::Delete { grace_s };
    let never = || {
        let mut spec = simple();
        spec["restartPolicy"] = json!("Never");
        Tale::running(spec)
    };
    let crash_looping = || {
        let mut tale = after(Tale::running(simple()), vec![exited(1)]);
        tale.run(C);
        tale.exit(C, 1);
        tale
    };
    let mut draining = after(Tale::running(simple()), vec![delete(30)]);
    draining.asked.clear();
    let mut stopping = after(Tale::running(simple()), vec![delete(30)]);
    stopping.after_ms(DRAIN_MS);
    let no_image =
        Event::ImageFailed { slot: C, kind: ImageFailure::Pull, message: "why".to_owned() };
    let no_start = Event::StartFailed {
        slot: C,
        kind: StartFailure::Config,
        message: "why".to_owned(),
        id: None,
    };
    let no_volume =
        Event::PrepareFailed(Failure { reason: "FailedMount".into(), message: "why".into() });
    let lost = after(Tale::running(simple()), vec![Event::SandboxLost]);
    let torn = || after(Tale::running(simple()), vec![delete(0), exited(137)]);
    vec![
        ("preparing", fresh()),
        ("prepare failed", after(fresh(), vec![no_volume])),
        ("image", prepared()),
        ("image back-off", after(prepared(), vec![no_image])),
        ("starting", starting()),
        ("start back-off", after(starting(), vec![no_start])),
        ("running", Tale::running(simple())),
        ("crash back-off", crash_looping()),
        ("sandbox lost", lost),
        ("finished", after(never(), vec![exited(0)])),
        ("draining", draining),
        ("stopping", stopping),
        ("killing", after(Tale::running(simple()), vec![delete(0)])),
        ("tearing down", torn()),
        ("tear-down failed", after(torn(), vec![Event::TearDownFailed { message: "why".into() }])),
        ("gone", after(torn(), vec![Event::TornDown])),
    ]
}

fn events(id: &str) -> Vec<(&'static str, Event)> {
    let mut changed = simple();
    changed["containers"][0]["image"] = json!("web:v2");
    let failure = || Failure { reason: "FailedMount".into(), message: "why".into() };
    let id = id.to_owned();
    let text = || "why".to_owned();
    vec![
        ("tick", Event::Tick),
        ("updated", Event::Updated(Box::new(plan(changed)))),
        ("delete", Event::Delete { grace_s: 30 }),
        ("delete at once", Event::Delete { grace_s: 0 }),
        ("prepared", Event::Prepared { ip: Some("10.244.0.2".into()) }),
        ("prepare failed", Event::PrepareFailed(failure())),
        ("pulling", Event::Pulling { slot: C }),
        ("image ready", Event::ImageReady { slot: C, image_id: "sha256:ab".into(), pull: None }),
        ("image failed", Event::ImageFailed { slot: C, kind: ImageFailure::Pull, message: text() }),
        ("started", Event::Started { slot: C, id: "new".into() }),
        (
            "start failed",
            Event::StartFailed { slot: C, kind: StartFailure::Start, message: text(), id: None },
        ),
        ("exited 0", Event::Exited { slot: C, id: id.clone(), exit: exit(0) }),
        ("exited 1", Event::Exited { slot: C, id: id.clone(), exit: exit(1) }),
        ("another exited", Event::Exited { slot: C, id: "other".into(), exit: exit(1) }),
        (
            "hook failed",
            Event::HookDone { slot: C, id: id.clone(), hook: Hook::PostStart, result: Err(text()) },
        ),
        (
            "probe failed",
            Event::Probed { slot: C, id, kind: ProbeKind::Liveness, result: Err(text()) },
        ),
        ("no such slot", Event::Started { slot: Slot::Main(9), id: "x".into() }),
        ("sandbox lost", Event::SandboxLost),
        ("torn down", Event::TornDown),
        ("tear-down failed", Event::TearDownFailed { message: text() }),
    ]
}

fn brief(action: &Action) -> String {
    match action {
        Action::Prepare => "prepare".to_owned(),
        Action::EnsureImage { .. } => "image".to_owned(),
        Action::Start { attempt, .. } => format!("start {attempt}"),
        Action::Signal { kill, .. } => if *kill { "kill" } else { "term" }.to_owned(),
        Action::RunHook { hook, .. } => format!("hook {hook:?}"),
        Action::Probe { kind, .. } => format!("probe {kind:?}"),
        Action::RemoveContainer { .. } => "remove".to_owned(),
        Action::ReleaseNetwork => "release network".to_owned(),
        Action::TearDown => "tear down".to_owned(),
        Action::Tell(event) => event.reason.clone(),
    }
}

#[test]
fn every_state_and_every_event() {
    let mut table = String::new();
    for (state_name, tale) in states() {
        writeln!(table, "{state_name}: {} {}", tale.phase(), tale.shown()).unwrap();
        let id = tale.state.running_id(C).unwrap_or("id1").to_owned();
        for (event_name, event) in events(&id) {
            let mut tale =
                Tale { state: tale.state.clone(), now: tale.now, asked: Vec::new(), next_id: 9 };
            let before = tale.state.clone();
            tale.on(event);
            let asked: Vec<String> = tale.asked.iter().map(brief).collect();
            if tale.state == before && asked.is_empty() {
                continue;
            }
            let (phase, shown) = (tale.phase(), tale.shown());
            let shown = if tale.state.is_gone() { "gone".to_owned() } else { shown };
            let asked = asked.join(", ");
            writeln!(table, "  {event_name:<16} {phase:<9} {shown:<34} {asked}").unwrap();
        }
    }
    let table: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    expect_file!["table.txt"].assert_eq(&table);
}
