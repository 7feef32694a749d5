//! A few of the faults of `make chaos`, on real processes, with its writers and its checks.

use anyhow::{Result, ensure};
use timonier_tests::chaos::{self, Fault, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_a_few_faults() -> Result<()> {
    let faults = vec![
        Fault::KillLeader,
        Fault::CutLeaderFromMasters,
        Fault::TruncateFollowersLog,
        Fault::KillAllMasters,
    ];
    let report = chaos::run(&Plan { rounds: faults.len(), faults, ..Plan::default() }).await?;
    ensure!(report.is_clean(), "{}: {:?}", report.line(), report.violations);
    ensure!(report.acked > 100, "the writers wrote next to nothing: {}", report.line());
    Ok(())
}
