//! A few of the faults of `make chaos`, on real processes, with its writers and its checks; and what
//! is left of a run that is cut short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use timonier_tests::chaos::{self, Claim, Fault, Hosts, Plan};
use timonier_tests::docker;
use timonier_tests::wait::until;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_a_few_faults() -> Result<()> {
    let faults = vec![
        Fault::KillLeader,
        Fault::CutLeaderFromMasters,
        Fault::TruncateFollowersLog,
        Fault::CutAgent,
        Fault::KillAllMasters,
    ];
    let report = chaos::run(&Plan { rounds: faults.len(), faults, ..Plan::default() }).await?;
    ensure!(report.is_clean(), "{}: {:?}", report.line(), report.violations);
    ensure!(report.acked > 100, "the writers wrote next to nothing: {}", report.line());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_asked_to_end_removes_what_it_made() -> Result<()> {
    let mut run = Run::start().await?;
    until("a master", DEADLINE, || run.has(&["mount", "link", "namespace", "process"])).await?;
    run.end(Signal::TERM).await?;
    run.has_left_nothing().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_left_is_removed_and_nothing_of_one_that_lives() -> Result<()> {
    let claim = Claim::take()?;
    let hosts = Hosts::make(&claim, 1)?;
    let within = hosts.within(0);
    let mut process = Command::new(&within[0])
        .args(&within[1..])
        .args(["sleep", "600"])
        .kill_on_drop(true)
        .spawn()?;
    let mut run = Run::start().await?;
    let all = ["folder", "mount", "link", "namespace", "process", "container"];
    until("a pod", DEADLINE, || run.has(&all)).await?;
    run.end(Signal::KILL).await?;
    // Another run that begins now may be at it in place of this one.
    until("it to be removed", DEADLINE, || async {
        drop(Claim::take()?);
        run.has_left_nothing().await
    })
    .await?;
    ensure!(process.try_wait()?.is_none(), "the process of the run that lives was killed");
    ensure!(claim.folder().is_dir(), "its folder was removed");
    ensure!(Path::new("/sys/class/net").join(claim.name()).exists(), "its bridge was removed");
    Ok(())
}

/// The program, and what is to be left of it.
struct Run {
    child: Child,
    /// Of which it must go on to read.
    _progress: Lines<BufReader<ChildStderr>>,
    folder: PathBuf,
    /// What its links and namespaces begin with.
    name: String,
    /// Those that were seen while the folder was there.
    nodes: Mutex<BTreeSet<String>>,
}

impl Run {
    async fn start() -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chaos"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut progress = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        loop {
            let line = progress.next_line().await?.context("it ended")?;
            if let Some(folder) = line.strip_prefix("everything is in ") {
                let number = folder.rsplit('-').next().context("the folder has no number")?;
                let (folder, name) = (folder.into(), format!("tmchaos{number}"));
                return Ok(Self {
                    child,
                    _progress: progress,
                    folder,
                    name,
                    nodes: Mutex::default(),
                });
            }
        }
    }

    async fn end(&mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id().context("it has ended")?)?;
        kill_process(Pid::from_raw(pid).context("it has no process")?, signal)?;
        tokio::time::timeout(DEADLINE, self.child.wait()).await.context("it does not end")??;
        Ok(())
    }

    async fn has(&self, wanted: &[&str]) -> Result<()> {
        let there = self.there().await?;
        let missing = wanted.iter().find(|what| !there.iter().any(|one| one.starts_with(*what)));
        ensure!(missing.is_none(), "no {missing:?}: {there:?}");
        Ok(())
    }

    async fn has_left_nothing(&self) -> Result<()> {
        let there = self.there().await?;
        ensure!(there.is_empty(), "left: {there:?}");
        Ok(())
    }

    /// What there is of it on the machine.
    async fn there(&self) -> Result<Vec<String>> {
        let mut there = Vec::new();
        if self.folder.exists() {
            there.push("folder".to_owned());
        }
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let in_folder = |word: &str| Path::new(word).starts_with(&self.folder);
        there.extend(
            mounts.lines().filter(|l| l.split(' ').any(in_folder)).map(|l| format!("mount {l}")),
        );
        for (what, folder) in [("link", "/sys/class/net"), ("namespace", "/run/netns")] {
            let names = names_in(folder).into_iter().filter(|name| name.starts_with(&self.name));
            there.extend(names.map(|name| format!("{what} {name}")));
        }
        for pid in names_in("/proc") {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.split('\0').any(in_folder) {
                there.push(format!("process {line:?}"));
            }
        }
        for cluster in names_in(&self.folder) {
            let names = names_in(self.folder.join(cluster)).into_iter();
            let logs = names.filter_map(|name| Some(name.strip_suffix(".log")?.to_owned()));
            self.nodes
                .lock()
                .expect("nobody panics with it")
                .extend(logs.filter(|name| name.contains("-node-")));
        }
        let nodes = self.nodes.lock().expect("nobody panics with it").clone();
        let docker = docker::connect()?;
        for node in nodes {
            let containers = docker::all(&docker, &[format!("io.timonier.node={node}")]).await?;
            there.extend(containers.into_keys().map(|id| format!("container {id} of {node}")));
        }
        Ok(there)
    }
}

fn names_in(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
