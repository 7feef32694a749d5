//! `timonctl lab`: up, status, down, and nothing of it left on the machine.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use timonier_tests::cluster::binary;

/// Labs on one machine share the names of their nodes and interfaces.
static ONE_LAB: Mutex<()> = Mutex::new(());

struct Lab<'a> {
    dir: &'a Path,
}

impl Lab<'_> {
    fn ctl(&self, args: &[&str]) -> Result<(i32, String)> {
        let output = Command::new(binary("timonctl")?)
            .args(args)
            .env("TIMONIER_LAB_DIR", self.dir.join("lab"))
            .env("TIMONIER_CONFIG", self.dir.join("config.yaml"))
            .env_remove("TIMONIER_SERVER")
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let (code, text) = self.ctl(args)?;
        ensure!(code == 0, "timonctl {}: {text}", args.join(" "));
        Ok(text)
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = self.ctl(&["lab", "down"]);
    }
}

/// The machine's links, routes and tables, as far as they could be ours.
fn host_state() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (program, args) in
        [("ip", vec!["-o", "link"]), ("ip", vec!["route"]), ("nft", vec!["list", "tables"])]
    {
        let output = Command::new(program).args(&args).output().with_context(|| program)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // A lab's bridges, and what is named after its nodes; other clusters may come and go.
        lines.extend(text.lines().filter(|l| l.contains("lab")).map(str::to_owned));
    }
    Ok(lines)
}

/// The first of three ports in a row that are free.
fn three_free_ports() -> Result<u16> {
    for _ in 0..100 {
        let first = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first < u16::MAX - 2 && is_free(first + 1) && is_free(first + 2) {
            return Ok(first);
        }
    }
    anyhow::bail!("no three free ports in a row")
}

#[test]
fn a_lab_of_three_masters_goes_on_without_one() -> Result<()> {
    let _alone = ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let lab = Lab { dir: dir.path() };
    let port = three_free_ports()?.to_string();
    ensure!(host_state()?.is_empty(), "a lab is up on this machine: {:?}", host_state()?);
    lab.ok(&["lab", "up", "--masters", "3", "--agents", "3", "--port", &port])?;
    let list = lab.ok(&["master", "list"])?;
    assert!(list.contains("quorum 2 of 3, tolerates 1 failure"), "{list}");
    let status = lab.ok(&["lab", "status"])?;
    assert!(["master ", "master-2 ", "master-3 "].iter().all(|n| status.contains(n)), "{status}");
    lab.ok(&["create", "deployment", "web", "--image", "timonier/web:v1", "--replicas", "3"])?;
    lab.ok(&["rollout", "status", "deployment/web", "--timeout", "30s"])?;

    // The first one, which every command would ask first, is killed.
    let row = status.lines().find(|line| line.starts_with("master ")).context("its row")?;
    let pid = row.split_whitespace().nth(1).context("its process")?.to_owned();
    ensure!(Command::new("kill").args(["-9", &pid]).status()?.success(), "kill {pid}");
    lab.ok(&["scale", "deployment/web", "--replicas", "4"])?;
    lab.ok(&["rollout", "status", "deployment/web", "--timeout", "30s"])?;
    let (code, status) = lab.ctl(&["lab", "status"])?;
    assert!(code == 1 && status.contains("Stopped"), "{status}");
    let logs = lab.ok(&["lab", "logs", "master-2", "--tail", "1"])?;
    assert!(!logs.is_empty());
    lab.ok(&["lab", "up"]).context("up starts what was killed")?;
    lab.ok(&["lab", "status"])?;
    lab.ok(&["lab", "down"])?;
    assert_eq!(host_state()?, Vec::<String>::new());
    assert!(!dir.path().join("lab").exists(), "the lab's folder is left");
    Ok(())
}

#[test]
fn a_lab_comes_up_runs_a_pod_and_leaves_nothing() -> Result<()> {
    let _alone = ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let lab = Lab { dir: dir.path() };
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    ensure!(host_state()?.is_empty(), "a lab is up on this machine: {:?}", host_state()?);
    lab.ok(&["lab", "up", "--agents", "2", "--port", &port])?;
    let nodes = lab.ok(&["get", "nodes", "--no-headers"])?;
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 2, "{nodes}");
    let status = lab.ok(&["lab", "status"])?;
    assert!(status.contains("lab-1") && status.contains("lab-2"), "{status}");
    lab.ok(&["create", "deployment", "web", "--image", "timonier/web:v1", "--replicas", "2"])?;
    lab.ok(&["rollout", "status", "deployment/web", "--timeout", "30s"])?;
    lab.ok(&["lab", "up", "--agents", "2", "--port", &port]).context("up is repeatable")?;
    lab.ok(&["lab", "down"])?;
    lab.ok(&["lab", "down"]).context("down is repeatable")?;
    assert_eq!(host_state()?, Vec::<String>::new());
    for node in ["lab-1", "lab-2"] {
        let output = Command::new("docker")
            .args(["ps", "-aq", "--filter", &format!("label=io.timonier.node={node}")])
            .output()?;
        assert!(output.stdout.is_empty(), "containers of {node} are left");
    }
    Ok(())
}
