//! The masters of a [`Cluster`]: where each runs, how it is started, struck and replaced, and who
//! leads. What a master is asked is the tests' own affair.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use timonier_proto::v1::{ClusterInfoReply, ClusterInfoRequest, MasterInfo};

use crate::cluster::{Cluster, command_in, kill};
use crate::wait::until;

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A master that is asked who leads answers within this time, or counts for nothing.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a master runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// `HOST:PORT` where it listens and is reached.
    pub address: String,
    pub data_dir: PathBuf,
    /// A program and its arguments that start what follows them on another host, as
    /// `nsenter --net=FILE` does; empty for this machine.
    pub within: Vec<String>,
}

impl Place {
    pub fn here(data_dir: PathBuf, port: u16) -> Self {
        Self { address: format!("127.0.0.1:{port}"), data_dir, within: Vec::new() }
    }
}

#[derive(Debug)]
pub(crate) struct MasterProcess {
    name: String,
    place: Place,
    log: PathBuf,
    child: Option<Child>,
}

impl MasterProcess {
    pub fn new(name: String, place: Place, log: PathBuf) -> Self {
        Self { name, place, log, child: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> String {
        self.place.address.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the master runs").id()
    }

    fn run(&mut self, args: &[String]) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = command_in(&self.place.within, "timonier-master")?;
        command
            .args(["--listen", &self.place.address, "--name", &self.name, "--data-dir"])
            .arg(&self.place.data_dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().context("start timonier-master")?);
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        kill(&mut self.child)
    }
}

impl Cluster {
    pub fn masters(&self) -> usize {
        self.masters.len()
    }

    pub fn master_address(&self, index: usize) -> String {
        self.masters[index].address()
    }

    pub fn master_pid_at(&self, index: usize) -> u32 {
        self.masters[index].pid()
    }

    /// Where a master keeps its data.
    pub fn data_dir_of(&self, index: usize) -> &Path {
        &self.masters[index].place.data_dir
    }

    /// The first start of a master: the first one makes the cluster, the others join it. Returns
    /// once it votes.
    pub(crate) async fn add_master(&mut self, index: usize) -> Result<()> {
        self.run_master(index)?;
        self.wait_master(index).await?;
        let votes = self.wait_voter(index).await;
        votes.with_context(|| self.log_tail(&format!("{}.log", self.masters[index].name())))
    }

    /// A join token of the first master's, kept for when its disk is lost.
    pub(crate) fn token(&self, name: &str) -> Result<String> {
        let kept = self.dir().join(name);
        if !kept.exists() {
            let made = self.data_dir_of(0).join(name);
            std::fs::copy(&made, &kept).with_context(|| format!("copy {}", made.display()))?;
        }
        Ok(kept.display().to_string())
    }

    /// Starts a master that does not run; does not wait for it.
    pub fn run_master(&mut self, index: usize) -> Result<()> {
        let mut args = self.master_command_args();
        if index > 0 || self.masters.len() > 1 {
            args.extend(["--advertise".to_owned(), self.masters[index].address()]);
        }
        let others = (0..self.masters.len()).filter(|other| *other != index);
        let others: Vec<String> = others.map(|other| self.masters[other].address()).collect();
        // The very first start of the first one makes the cluster.
        if self.masters.iter().any(|master| master.child.is_some()) {
            args.extend(["--join".to_owned(), others.join(",")]);
            args.extend(["--token".to_owned(), format!("@{}", self.token("master-token")?)]);
        }
        self.masters[index].run(&args)
    }

    /// Waits until a master answers.
    pub async fn wait_master(&self, index: usize) -> Result<()> {
        until("the master to answer", READY_DEADLINE, || async {
            self.ask(index).await.map(|_| ())
        })
        .await
        .with_context(|| self.log_tail(&format!("{}.log", self.masters[index].name())))
    }

    /// Waits until it counts for the quorum, as the leader sees it and it does itself: it serves nobody
    /// before.
    async fn wait_voter(&self, index: usize) -> Result<()> {
        let address = self.masters[index].address();
        until("the master to vote", READY_DEADLINE, || async {
            for asked in [self.leader().await?, index] {
                let known = self.ask(asked).await?.masters;
                let votes = known.iter().any(|master| master.address == address && master.voter);
                ensure!(votes, "the members are {known:?}");
            }
            Ok(())
        })
        .await
    }

    /// `kill -9` to one master, and reaps it.
    pub fn kill_master_at(&mut self, index: usize) -> Result<()> {
        self.masters[index].kill()
    }

    /// Sends a signal to one that runs.
    pub fn signal_master(&self, index: usize, signal: Signal) -> Result<()> {
        let child = self.masters[index].child.as_ref().context("the master does not run")?;
        rustix::process::kill_process(Pid::from_child(child), signal).context("send a signal")
    }

    /// Whether it has ended by itself.
    pub fn master_has_ended(&mut self, index: usize) -> Result<bool> {
        match &mut self.masters[index].child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// What a master says of the cluster.
    pub async fn ask(&self, index: usize) -> Result<ClusterInfoReply> {
        let asking = async {
            let mut client = self.client_of(index).await?;
            anyhow::Ok(client.cluster_info(ClusterInfoRequest {}).await?.into_inner())
        };
        tokio::time::timeout(ASK_TIMEOUT, asking).await.context("no answer")?
    }

    /// The index of the master that most of them hold for the leader; waits until there is one.
    pub async fn leader(&self) -> Result<usize> {
        until("a leader", READY_DEADLINE, || async {
            let answers =
                futures::future::join_all((0..self.masters.len()).map(|index| self.ask(index)));
            let mut held = BTreeMap::<String, usize>::new();
            for answer in answers.await.into_iter().flatten() {
                for MasterInfo { address, .. } in answer.masters.into_iter().filter(|m| m.leader) {
                    *held.entry(address).or_default() += 1;
                }
            }
            let running = self.masters.iter().filter(|master| master.child.is_some()).count();
            let most = held.into_iter().find(|(_, count)| *count > running / 2);
            let (address, _) = most.context("no master is held for the leader by most")?;
            let index = self.masters.iter().position(|master| master.address() == address);
            index.with_context(|| format!("the leader is at {address}, which is no master here"))
        })
        .await
    }

    /// Takes a master out of the cluster, as `timonctl master remove` does.
    pub async fn remove_master(&self, index: usize) -> Result<()> {
        let address = self.masters[index].address();
        until("the master to be removed", READY_DEADLINE, || async {
            let known = self.ask(self.leader().await?).await?.masters;
            let Some(gone) = known.into_iter().find(|m| m.address == address) else {
                return Ok(());
            };
            self.ctl(&["master", "remove", &gone.id.to_string()]).await?.ok().map(drop)
        })
        .await
    }

    /// What an operator does whose master lost its disk: removed from the cluster, its data gone,
    /// it joins again.
    pub async fn replace_master(&mut self, index: usize) -> Result<()> {
        self.kill_master_at(index)?;
        self.remove_master(index).await?;
        let data = self.masters[index].place.data_dir.clone();
        std::fs::remove_dir_all(&data).with_context(|| format!("remove {data:?}"))?;
        self.add_master(index).await
    }
}
