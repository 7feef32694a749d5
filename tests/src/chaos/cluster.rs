//! The cluster under test: three masters, each with a small disk, and three agents, all on hosts of
//! their own but for the machine's Docker, which the agents share; and the workloads that are looked
//! after.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};

use super::checks;
use super::claim::Claim;
use super::hosts::{Hosts, SmallDisk};
use super::objects::NAMESPACE;
use crate::cluster::{Cluster, Options};
use crate::docker;
use crate::masters::Place;

pub const MASTERS: usize = 3;
pub const AGENTS: usize = 3;
pub const WEB: &str = "web";
pub const UNIQUE: &str = "single";
pub const REPLICAS: usize = 6;
const PORT: u16 = 7443;
/// Enough to start, and for all that is written.
const DISK_MIB: u64 = 512;
/// An agent without a master stops its unique pods after this time.
const FENCE_AFTER: &str = "3s";
/// So few that a master that was away needs a snapshot.
const SNAPSHOT_EVERY: &str = "300";

pub struct ChaosCluster {
    /// Dropped first: it ends in order what the claim would end by force.
    pub cluster: Cluster,
    pub hosts: Hosts,
    disks: Vec<SmallDisk>,
    _claim: Claim,
}

impl ChaosCluster {
    /// Three masters, three Ready agents, and the two workloads.
    pub async fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "namespaces and agents need root");
        let claim = Claim::take()?;
        eprintln!("everything is in {}", claim.folder().display());
        let hosts = Hosts::make(&claim, MASTERS + AGENTS)?;
        let (mut disks, mut places) = (Vec::new(), Vec::new());
        for master in 0..MASTERS {
            let disk = SmallDisk::mount(claim.folder().join(format!("disk-{master}")), DISK_MIB)?;
            places.push(Place {
                address: format!("{}:{PORT}", hosts.address(master)),
                data_dir: disk.folder().join("data"),
                within: hosts.within(master),
            });
            disks.push(disk);
        }
        let options = Options {
            agents: AGENTS,
            masters: MASTERS,
            places,
            folder: Some(claim.folder()),
            master_args: ["--fence-after", FENCE_AFTER, "--snapshot-every", SNAPSHOT_EVERY]
                .map(str::to_owned)
                .to_vec(),
            agents_within: (0..AGENTS).map(|agent| hosts.within(host_of_agent(agent))).collect(),
            ..Options::default()
        };
        let cluster = Cluster::start(options).await?;
        cluster.ctl(&["create", "namespace", NAMESPACE]).await?.ok()?;
        for manifest in workloads() {
            cluster.apply(&manifest).await?;
        }
        let cluster = Self { cluster, hosts, disks, _claim: claim };
        checks::converged(&cluster).await?;
        Ok(cluster)
    }

    pub fn disk(&self, master: usize) -> &SmallDisk {
        &self.disks[master]
    }

    pub fn log_folder(&self, master: usize) -> PathBuf {
        self.cluster.data_dir_of(master).join("log")
    }

    pub fn nodes(&self) -> Vec<String> {
        (0..AGENTS).map(|agent| self.cluster.node_name(agent)).collect()
    }

    pub fn signal_agent(&self, agent: usize, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.cluster.agent_pid(agent))?;
        let pid = Pid::from_raw(pid).context("the agent has no process")?;
        rustix::process::kill_process(pid, signal).context("send a signal")
    }

    /// The agent whose node runs the unique pod, or the first one.
    pub async fn agent_of_unique(&self) -> Result<usize> {
        let labels = ["io.timonier.unique=true".to_owned()];
        let running = docker::running(&docker::connect()?, &labels).await?;
        let nodes: Vec<_> = running.values().filter_map(|l| l.get("io.timonier.node")).collect();
        let found = (0..AGENTS).find(|agent| nodes.contains(&&self.cluster.node_name(*agent)));
        Ok(found.unwrap_or(0))
    }

    /// Copies what the processes wrote to where it outlives the run.
    pub fn keep_logs(&self) {
        let kept = std::env::temp_dir().join(format!("timonier-chaos-logs-{}", std::process::id()));
        let copy = || -> Result<()> {
            std::fs::create_dir_all(&kept)?;
            for entry in std::fs::read_dir(self.cluster.dir())? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "log") {
                    std::fs::copy(&path, kept.join(path.file_name().unwrap_or_default()))?;
                }
            }
            Ok(())
        };
        match copy() {
            Ok(()) => eprintln!("the logs are kept in {}", kept.display()),
            Err(error) => eprintln!("keep the logs: {error:#}"),
        }
    }

    pub fn stop(&mut self) -> Result<()> {
        self.cluster.stop()
    }
}

/// The masters' hosts are the first ones.
pub fn host_of_agent(agent: usize) -> usize {
    MASTERS + agent
}

fn workloads() -> [String; 2] {
    let deployment = |name: &str, replicas: usize, annotations: serde_json::Value| {
        serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "strategy": {"type": "Recreate"}, "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": "web", "image": "timonier/web:v1"}]}}}
        })
        .to_string()
    };
    let unique = serde_json::json!({"timonier.io/unique": "true"});
    [deployment(WEB, REPLICAS, serde_json::json!({})), deployment(UNIQUE, 1, unique)]
}
