//! Pods that must be unique run only under the lease.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Bed, simple};
use crate::lease::Lease;

const FENCE_MS: u64 = 10_000;

fn unique(uid: &str) -> Value {
    let mut pod = simple(uid);
    pod["pod"]["metadata"]["annotations"] = serde_json::json!({"timonier.io/unique": "true"});
    pod
}

/// A lease on the paused clock, which a master renews when the test says so.
fn lease() -> Lease {
    let start = Instant::now();
    let clock = Box::new(move || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
    Lease::on_clock(clock, FENCE_MS)
}

fn renew(lease: &Lease, sequence: u64) {
    lease.beat(sequence);
    lease.granted(sequence);
}

fn is_fenced(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Fenced")
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_lease_and_stops_without_one() {
    let lease = lease();
    let mut bed = Bed::with_lease(lease.clone()).await;
    bed.assign(true, &[unique("a"), simple("b")], &[]).await;
    bed.ready("b").await;
    assert_eq!(bed.containers().await, 1, "one of them waits");
    lease.until(false).await;
    assert!(lease.is_wanted());
    renew(&lease, 1);
    bed.ready("a").await;
    for sequence in 2..8 {
        sleep(Duration::from_secs(5)).await;
        renew(&lease, sequence);
    }
    assert_eq!(bed.containers().await, 2);
    let silent = Instant::now();
    bed.terminated("a").await;
    let waited = silent.elapsed();
    assert!(waited >= Duration::from_millis(FENCE_MS), "{waited:?}");
    assert!(waited <= Duration::from_millis(FENCE_MS + 2_500), "{waited:?}");
    assert!(is_fenced(&bed.statuses["a"].0), "{:?}", bed.statuses["a"]);
    assert_eq!(bed.containers().await, 1, "the other one goes on");
    assert!(!lease.is_wanted(), "nothing needs it any more");
    // The master comes back and still has it: it learns what became of it.
    bed.statuses.clear();
    bed.assign(true, &[unique("a"), simple("b")], &[]).await;
    bed.terminated("a").await;
    assert!(is_fenced(&bed.statuses["a"].0));
}

#[tokio::test(start_paused = true)]
async fn what_dies_without_a_lease_is_not_started_again() {
    let lease = lease();
    let mut bed = Bed::with_lease(lease.clone()).await;
    bed.assign(true, &[unique("a")], &[]).await;
    bed.until(|_| lease.is_wanted().then_some(())).await;
    renew(&lease, 1);
    bed.ready("a").await;
    // As the watchdog does while the agent is frozen.
    sleep(Duration::from_millis(FENCE_MS)).await;
    let id = bed.runtime.world.lock().unwrap().containers.keys().next().unwrap().clone();
    bed.runtime.die(&id, 137);
    bed.terminated("a").await;
    assert!(is_fenced(&bed.statuses["a"].0));
    let starts = bed.runtime.calls("start");
    assert_eq!(starts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_late_stops_what_it_finds() {
    let lease = lease();
    let mut bed = Bed::with_lease(lease.clone()).await;
    bed.assign(true, &[unique("a"), simple("b")], &[]).await;
    bed.until(|_| lease.is_wanted().then_some(())).await;
    renew(&lease, 1);
    bed.ready("a").await;
    bed.ready("b").await;
    bed.pods.shutdown().await;
    sleep(Duration::from_millis(FENCE_MS)).await;
    // No master is there: only what it finds tells it.
    bed.restart().await;
    bed.until_containers(1).await;
    // A master that is back, and still wants it here, gets it: under a lease.
    bed.assign(true, &[unique("a"), simple("b")], &[]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.containers().await, 1);
    renew(&lease, 2);
    bed.ready("a").await;
    assert_eq!(bed.containers().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_restart_within_the_lease_changes_nothing() {
    let lease = lease();
    let mut bed = Bed::with_lease(lease.clone()).await;
    bed.assign(true, &[unique("a")], &[]).await;
    bed.until(|_| lease.is_wanted().then_some(())).await;
    renew(&lease, 1);
    bed.ready("a").await;
    bed.restart().await;
    bed.assign(true, &[unique("a")], &[]).await;
    bed.ready("a").await;
    let creates = bed.runtime.calls("create");
    assert_eq!(creates, 1);
    // And it can be deleted without one.
    sleep(Duration::from_millis(FENCE_MS)).await;
    bed.terminated("a").await;
    assert_eq!(bed.containers().await, 0);
}
