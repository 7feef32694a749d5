//! The cluster on a simulated network, disk and clock: real masters and agents, one thread, everything
//! that is left to chance from one seed. A seed that fails is replayed by `make sim SEED=…`.
//!
//! Each seed runs in a process of its own, so that nothing of one run reaches another.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod agents;
mod availability;
mod cluster;
mod complaints;
mod consensus;
mod engine;
mod faults;
mod invariants;
mod linear;
mod lines;
mod masters;
mod membership;
mod network;
mod os;
mod rollouts;
mod transport;
mod workload;
mod world;

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use timonier_identity::Subject;

use crate::cluster::Plan;

/// Seeds of an ordinary run of the tests.
const SEEDS_DEFAULT: u64 = 12;
/// Hosts with an agent. With 0 there are no control loops either.
const AGENTS_DEFAULT: usize = 3;
const SEED: &str = "SEED";
const AGENTS: &str = "AGENTS";
const TRACE: &str = "TRACE";
const ISLANDS: &str = "ISLANDS";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty())?.parse().ok()
}

fn agents() -> usize {
    number(AGENTS).and_then(|n| usize::try_from(n).ok()).unwrap_or(AGENTS_DEFAULT)
}

/// For the command that replays a seed.
fn with_agents() -> String {
    if agents() == AGENTS_DEFAULT { String::new() } else { format!(" {AGENTS}={}", agents()) }
}

/// Runs one seed in a process of its own.
fn run(seed: u64) -> Output {
    run_with(seed, &[])
}

fn run_with(seed: u64, plan: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().expect("this program has a path");
    Command::new(program)
        .args(["one_seed", "--exact", "--ignored", "--nocapture"])
        .env(SEED, seed.to_string())
        .envs(plan.iter().copied())
        .output()
        .expect("this program can be started again")
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The line that sums a run up, which is the same whenever the run is.
fn summary(text: &str) -> &str {
    // On one processor the test's name is on the same line.
    text.lines().find_map(|line| Some(&line[line.find("seed ")?..])).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn seeds() {
    let first = number("FIRST").unwrap_or(1);
    let seeds = number("SEEDS").unwrap_or(SEEDS_DEFAULT);
    if let Some(seed) = number(SEED) {
        let output = run(seed);
        println!("{}", text(&output));
        assert!(output.status.success(), "seed {seed} fails");
        return;
    }
    let next = AtomicU64::new(first);
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = number("STOP").is_some() && !lock(&failed).is_empty();
                    if seed >= first + seeds || enough {
                        return;
                    }
                    let output = run(seed);
                    let text = text(&output);
                    if output.status.success() {
                        println!("{}", summary(&text));
                    } else {
                        println!(
                            "{text}\nseed {seed} fails; to replay: make sim SEED={seed}{}",
                            with_agents()
                        );
                        lock(&failed).push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "{} of {seeds} seeds fail: {failed:?}", failed.len());
}

#[test]
fn a_seed_replays_exactly() {
    let [first, second] = [run(1), run(1)].map(|output| text(&output));
    assert_eq!(summary(&first), summary(&second));
    assert!(summary(&first).contains("trace"), "{first}");
}

#[test]
fn a_master_that_is_cut_off_from_the_others_costs_no_node() {
    for seed in 1..=2 {
        let output = run_with(seed, &[(ISLANDS, "1")]);
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn one_seed() {
    let seed = number(SEED).expect("SEED says which");
    timonier_identity::install_provider();
    let (identity, _) = timonier_identity::throwaway(&Subject::node("any"));
    // A thread on which nobody has thrown dice yet: a map's order is one of the seed's chances.
    let plan = if number(ISLANDS).is_some() { Plan::Islands } else { Plan::Faults };
    let running = std::thread::spawn(move || cluster::run(seed, agents(), identity, plan));
    let outcome = running.join().expect("the world goes on");
    if number(TRACE).is_some() || outcome.failure.is_some() {
        for line in &outcome.trace {
            println!("{line}");
        }
    }
    println!("seed {seed}: {}, trace {:016x}", outcome.summary, outcome.fingerprint());
    if let Some(failure) = outcome.failure {
        panic!("{failure}");
    }
}
