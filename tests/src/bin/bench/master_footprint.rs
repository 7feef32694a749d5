//! Memory, CPU and disk flushes of an idle master with three agents at the default heartbeat.

use std::time::{Duration, Instant};

use anyhow::Result;
use timonier_proto::v1::ClusterInfoRequest;
use timonier_tests::cluster::{Cluster, Options};
use timonier_tests::measure::{Figures, cpu_percent, rss_mib};

const AGENTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(10);

pub async fn run() -> Result<String> {
    super::set_up("")?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let mut cluster = Cluster::start(Options { agents: AGENTS, ..Options::default() }).await?;
        tokio::time::sleep(SETTLE).await;
        let pid = cluster.master_pid();
        let fsyncs_before = fsyncs(&cluster).await?;
        let start = Instant::now();
        let cpu = cpu_percent(pid, WINDOW).await?;
        let flushed = fsyncs(&cluster).await? - fsyncs_before;
        let rss = rss_mib(pid)?;
        eprintln!("round {round}: {rss:.1} MiB, {cpu:.2} %, {flushed} flushes in {WINDOW:?}");
        figures.add(&[
            ("idle_rss_mib", super::present(rss, "memory")?),
            ("idle_cpu_pct", cpu),
            ("idle_fsync_per_s", flushed as f64 / start.elapsed().as_secs_f64()),
        ]);
        cluster.stop()?;
    }
    Ok(figures.line("master-footprint", &[("agents", AGENTS as f64)]))
}

async fn fsyncs(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.client().await?.cluster_info(ClusterInfoRequest {}).await?.into_inner().fsyncs)
}
