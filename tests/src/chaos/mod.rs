//! Real faults on real processes: three masters and three agents, each on a host of its own, a fault
//! a round, writers that record what was acknowledged, and a checker after each.
//!
//! The seed gives the order of the faults and whom they strike; what the processes make of it is
//! not replayed, as the simulation's is.

mod checks;
mod claim;
mod cluster;
mod containers;
mod damage;
mod faults;
mod flood;
mod hosts;
mod objects;
mod record;
mod writers;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use self::claim::Claim;
use self::cluster::ChaosCluster;
use self::containers::Watcher;
pub use self::faults::Fault;
pub use self::hosts::Hosts;
use self::writers::Writers;

const ROUNDS: usize = 30;
/// Undisturbed writing before each fault.
const STEADY: Duration = Duration::from_secs(2);

/// What is done to the cluster.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rounds: usize,
    pub seed: u64,
    /// In this order, again and again; all of them, shuffled, by default.
    pub faults: Vec<Fault>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { rounds: ROUNDS, seed: fastrand::u64(..), faults: Vec::new() }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    pub rounds: usize,
    pub seed: u64,
    /// Writes that were acknowledged.
    pub acked: usize,
    /// Of these, how many are not there.
    pub lost: usize,
    pub violations: Vec<String>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.violations.is_empty()
    }

    /// As one line of JSON.
    pub fn line(&self) -> String {
        serde_json::json!({
            "name": "chaos", "rounds": self.rounds, "acked": self.acked, "lost": self.lost,
            "violations": self.violations.len(), "seed": self.seed,
        })
        .to_string()
    }
}

/// Runs all rounds. An error is the harness's; what the cluster does wrong is in the report. Dropped
/// before its end, it stops everything and removes it.
pub async fn run(plan: &Plan) -> Result<Report> {
    eprintln!("seed {}", plan.seed);
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let faults = order(plan, &mut random);
    let mut cluster = ChaosCluster::start().await?;
    let writers = Writers::start(&cluster)?;
    let watcher = Watcher::start(cluster.nodes())?;
    let mut report =
        Report { rounds: 0, seed: plan.seed, acked: 0, lost: 0, violations: Vec::new() };
    for fault in faults {
        tokio::time::sleep(STEADY).await;
        report.rounds += 1;
        let (before, start) = (writers.acked(), Instant::now());
        writers.longest_pause();
        let struck = fault.strike(&mut cluster, &mut random).await;
        let strike_s = start.elapsed().as_secs_f64();
        let mut wrong = Vec::new();
        match struck {
            Ok(whom) => {
                let found = checks::all(&cluster, &writers).await;
                report.lost += found.lost.len();
                wrong.extend(found.violations);
                eprintln!(
                    "round {}: {fault:?} on {whom}: {} acknowledged, none for {:.1} s at most; {strike_s:.1} s \
                     and {:.1} s to be whole",
                    report.rounds,
                    writers.acked() - before,
                    writers.longest_pause().as_secs_f64(),
                    start.elapsed().as_secs_f64() - strike_s,
                );
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
        wrong.extend(watcher.violations());
        wrong.extend(writers.violations());
        for what in wrong {
            let violation = format!("round {}, {fault:?}: {what}", report.rounds);
            eprintln!("violation: {violation}");
            report.violations.push(violation);
        }
        if report.violations.len() > VIOLATIONS_MAX {
            break;
        }
    }
    report.acked = writers.stop().await.context("stop the writers")?;
    watcher.stop().await;
    if !report.is_clean() {
        cluster.keep_logs();
    }
    cluster.stop()?;
    Ok(report)
}

/// A cluster that is broken is not struck again and again.
const VIOLATIONS_MAX: usize = 5;

fn order(plan: &Plan, random: &mut fastrand::Rng) -> Vec<Fault> {
    let mut order = Vec::new();
    while order.len() < plan.rounds {
        if plan.faults.is_empty() {
            let mut all = faults::ALL.to_vec();
            random.shuffle(&mut all);
            order.extend(all);
        } else {
            order.extend(plan.faults.iter().copied());
        }
    }
    order.truncate(plan.rounds);
    order
}
