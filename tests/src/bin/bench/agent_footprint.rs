//! Memory and CPU of one agent at the default heartbeat: idle, and with 100 pods.

use std::time::Duration;

use anyhow::{Result, ensure};
use timonier_proto::Kind;
use timonier_tests::cluster::{Cluster, Options, condition};
use timonier_tests::measure::{Figures, cpu_percent, rss_mib};
use timonier_tests::wait;

const PODS: usize = 100;
const WINDOW: Duration = Duration::from_secs(20);
/// What starting leaves behind (page-ins, first samples) is not the idle state.
const SETTLE: Duration = Duration::from_secs(10);

pub async fn run() -> Result<String> {
    super::set_up("")?;
    super::build_web_image()?;
    let mut figures = Figures::default();
    for round in 1..=super::rounds() {
        let mut cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
        let pid = cluster.agent_pid(0);
        tokio::time::sleep(SETTLE).await;
        let idle_cpu = cpu_percent(pid, WINDOW).await?;
        let idle_rss = rss_mib(pid)?;
        eprintln!("round {round}: idle {idle_rss:.1} MiB, {idle_cpu:.2} %");
        start_pods(&cluster).await?;
        tokio::time::sleep(SETTLE).await;
        let pods_cpu = cpu_percent(pid, WINDOW).await?;
        let pods_rss = rss_mib(pid)?;
        eprintln!("round {round}: {PODS} pods {pods_rss:.1} MiB, {pods_cpu:.2} %");
        figures.add(&[
            ("idle_rss_mib", super::present(idle_rss, "memory")?),
            ("idle_cpu_pct", idle_cpu),
            ("pods100_rss_mib", super::present(pods_rss, "memory")?),
            ("pods100_cpu_pct", pods_cpu),
        ]);
        cluster.stop()?;
    }
    Ok(figures.line("agent-footprint", &[]))
}

async fn start_pods(cluster: &Cluster) -> Result<()> {
    let count = PODS.to_string();
    let image = super::start_200::IMAGE;
    cluster
        .ctl(&["create", "deployment", "bench", "--image", image, "--replicas", &count])
        .await?
        .ok()?;
    wait::until("100 pods to be Ready", Duration::from_secs(120), || async {
        let pods = cluster.list(Kind::Pod, "default").await?;
        let ready = pods.iter().filter(|pod| condition(pod, "Ready") == "True").count();
        ensure!(ready == PODS, "{ready} of {PODS} are");
        Ok(())
    })
    .await
}
