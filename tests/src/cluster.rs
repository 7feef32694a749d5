//! A cluster of real processes on this machine: one master or several, some agents, and `timonctl`.
//!
//! Each cluster has its own port, ranges, bridges, node names and folder, so several can run at the
//! same time, beside a lab too. Dropping it stops the processes and has the agents' own clean-up
//! remove what they made on the host.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_identity::{
    DialOptions, Identity, Lifetimes, Subject, Trust, dial, dial_lazy, unix_now,
};
use timonier_master::pki::Safe;
use timonier_master::store::Encryption;
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::{Kind, MESSAGE_BYTES_MAX, Object};
use tonic::transport::Channel;

use crate::masters::{MasterProcess, Place};
use crate::number::{NODE, Number, bridge};
use crate::wait::until;

const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub agents: usize,
    /// How many there are; 0 stands for one.
    pub masters: usize,
    /// Where each of them runs; on this machine, in folders of the cluster's own, by default.
    pub places: Vec<Place>,
    pub master_args: Vec<String>,
    pub agent_args: Vec<String>,
    /// A folder whose programs agents find before the host's.
    pub agent_programs: Option<PathBuf>,
    /// What starts each agent on a host of its own, as [`Place::within`] does; none are on this
    /// machine's.
    pub agents_within: Vec<Vec<String>>,
    /// Where its own folder is made; where all temporary ones are, by default.
    pub folder: Option<PathBuf>,
    /// Where the only master keeps its data; a folder of the cluster's own by default.
    pub master_dir: Option<PathBuf>,
    /// Addresses of all pods; a /16 of the cluster's own by default, which is 255 nodes.
    pub cluster_range: Option<String>,
}

pub struct Cluster {
    dir: tempfile::TempDir,
    number: Number,
    options: Options,
    pub(crate) masters: Vec<MasterProcess>,
    agents: Vec<Option<Child>>,
}

/// What a command answered.
#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// The standard error of a command that must have failed.
    pub fn failed(self) -> Result<String> {
        ensure!(self.code != 0, "it should have failed, but printed: {}", self.stdout);
        Ok(self.stderr)
    }
}

/// A binary of this workspace, built beside the running test or benchmark.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find the running executable")?;
    let found = exe.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.with_context(|| {
        format!("{name} is not built beside {}; run `cargo build --workspace` first", exe.display())
    })
}

impl Cluster {
    /// Starts the processes and waits until every node is Ready.
    pub async fn start(options: Options) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "agents need root: run this as root");
        let number = Number::take(free_port()?)?;
        let agents = (0..options.agents).map(|_| None).collect();
        let folder = options.folder.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("timonier-cluster-").tempdir_in(folder)?;
        let mut masters = Vec::new();
        for index in 0..options.masters.max(1) {
            let place = options.places.get(index).cloned();
            let name =
                if index == 0 { "master".to_owned() } else { format!("master-{}", index + 1) };
            let log = dir.path().join(format!("{name}.log"));
            let own = options.master_dir.clone().unwrap_or(dir.path().join(&name));
            let place = match place {
                Some(place) => place,
                None => Place::here(own, free_port()?),
            };
            masters.push(MasterProcess::new(name, place, log));
        }
        let mut cluster = Self { dir, number, options, masters, agents };
        for index in 0..cluster.masters.len() {
            cluster.add_master(index).await?;
        }
        for index in 0..cluster.agents.len() {
            cluster.start_agent(index)?;
        }
        cluster.wait_nodes_ready().await?;
        Ok(cluster)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Of the first master.
    pub fn address(&self) -> String {
        self.masters[0].address()
    }

    /// Of all of them, with commas between.
    pub fn addresses(&self) -> String {
        self.masters.iter().map(MasterProcess::address).collect::<Vec<_>>().join(",")
    }

    pub fn node_name(&self, index: usize) -> String {
        self.number.node_name(index)
    }

    pub fn master_pid(&self) -> u32 {
        self.masters[0].pid()
    }

    pub fn agent_pid(&self, index: usize) -> u32 {
        self.agents[index].as_ref().expect("the agent runs").id()
    }

    /// Starts the first master again, and waits until it answers.
    pub async fn start_master(&mut self) -> Result<()> {
        self.run_master(0)?;
        self.wait_master(0).await
    }

    /// What every master is started with, beside its place.
    pub(crate) fn master_command_args(&self) -> Vec<String> {
        let own_range = format!("10.{}.0.0/16", 128 + self.number.get());
        let cluster_range = self.options.cluster_range.clone().unwrap_or(own_range);
        let mut args = vec!["--cluster-range".to_owned(), cluster_range];
        args.extend(["--service-range".to_owned(), format!("10.97.{}.0/24", self.number.get())]);
        args.extend(self.options.master_args.iter().cloned());
        args
    }

    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let name = self.node_name(index);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{name}.log")))?;
        let mut command = command_in(self.agent_within(index), "timonier-agent")?;
        command
            .args(["--master", &self.addresses(), "--node-name", &name, "--data-dir"])
            .arg(self.dir.path().join(&name))
            .args(["--bridge", &bridge(&name)])
            .arg("--token")
            .arg(format!("@{}", self.token("node-token")?))
            .args(&self.options.agent_args)
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(folder) = &self.options.agent_programs {
            let hosts = std::env::var_os("PATH").unwrap_or_default();
            let folders = [folder.clone()].into_iter().chain(std::env::split_paths(&hosts));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        self.agents[index] = Some(command.spawn().context("start timonier-agent")?);
        Ok(())
    }

    fn agent_within(&self, index: usize) -> &[String] {
        self.options.agents_within.get(index).map_or(&[], Vec::as_slice)
    }

    /// `kill -9` to the first master, and reaps it.
    pub fn kill_master(&mut self) -> Result<()> {
        self.masters[0].kill()
    }

    /// `kill -9`, and reaps it. Its pods keep running.
    pub fn kill_agent(&mut self, index: usize) -> Result<()> {
        kill(&mut self.agents[index])
    }

    /// A client of the first master that answers.
    pub async fn client(&self) -> Result<ControlClient<Channel>> {
        let mut refusal = None;
        for index in 0..self.masters.len() {
            match self.client_of(index).await {
                Ok(client) => return Ok(client),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.context("there is no master")?)
    }

    /// A client of one master.
    pub async fn client_of(&self, master: usize) -> Result<ControlClient<Channel>> {
        let channel = self.dial(master, &self.admin()?).await?;
        Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// A new connection to a master, as somebody.
    pub async fn dial(&self, master: usize, who: &Identity) -> Result<Channel> {
        Ok(dial(&self.master_address(master), who, &DialOptions::default()).await?)
    }

    /// One that connects when it is used, and again whenever it was lost.
    pub fn dial_lazily(&self, master: usize, who: &Identity) -> Result<Channel> {
        Ok(dial_lazy(&self.master_address(master), who, &DialOptions::default())?)
    }

    /// The cluster's administrator.
    pub fn admin(&self) -> Result<Identity> {
        self.identity(&Subject::admin())
    }

    /// Somebody of this cluster, certified with the CA in a master's data folder.
    pub fn identity(&self, subject: &Subject) -> Result<Identity> {
        let folder = self.folder_with("pki");
        let kept = Safe::peek(&folder, &Encryption::DataFolder)?;
        let authority = kept.context("the master has no CA yet")?;
        let validity = Lifetimes::default().machine;
        let credentials = authority.issue(subject, unix_now(), validity)?;
        Ok(Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem()))?)
    }

    /// Where the first master keeps its data.
    pub fn master_dir(&self) -> PathBuf {
        self.data_dir_of(0).to_owned()
    }

    /// The data folder of the first master that has this in it.
    fn folder_with(&self, name: &str) -> PathBuf {
        let folders = (0..self.masters.len()).map(|index| self.data_dir_of(index));
        folders
            .into_iter()
            .find(|folder| folder.join(name).exists())
            .map_or_else(|| self.master_dir(), Path::to_owned)
    }

    /// Runs timonctl against this cluster.
    pub async fn ctl(&self, args: &[&str]) -> Result<Output> {
        self.ctl_with(args, None).await
    }

    /// As [`Self::ctl`], with `input` on its standard input.
    pub async fn ctl_with(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let config = self.folder_with("admin.yaml").join("admin.yaml");
        self.run_ctl(args, &config, input).await
    }

    /// As [`Self::ctl`], by whoever's configuration it is; relative to the cluster's folder.
    pub async fn ctl_by(&self, config: &str, args: &[&str]) -> Result<Output> {
        self.run_ctl(args, Path::new(config), None).await
    }

    async fn run_ctl(&self, args: &[&str], config: &Path, input: Option<&str>) -> Result<Output> {
        use tokio::io::AsyncWriteExt;
        let mut command = tokio::process::Command::new(binary("timonctl")?);
        command
            .args(args)
            .env("TIMONIER_SERVER", self.addresses())
            .env("TIMONIER_CONFIG", config)
            .env("NO_COLOR", "1")
            .env("LANG", "C")
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("start timonctl")?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        if let Some(text) = input {
            stdin.write_all(text.as_bytes()).await?;
        }
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(180), child.wait_with_output())
            .await
            .with_context(|| format!("timonctl {args:?} did not end"))??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Applies a manifest that must be accepted.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.ctl_with(&["apply", "-f", "-"], Some(manifest)).await?.ok()
    }

    /// All objects of a kind in a namespace (all namespaces when empty).
    pub async fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Object>> {
        let request = timonier_proto::v1::ListRequest {
            kind: kind.to_string(),
            namespace: namespace.to_owned(),
            ..Default::default()
        };
        let reply = self.client().await?.list(request).await?.into_inner();
        reply.items.iter().map(|json| Ok(Object::from_json(kind, json)?)).collect()
    }

    pub async fn wait_nodes_ready(&self) -> Result<()> {
        let wanted = self.agents.len();
        until("all nodes to be Ready", READY_DEADLINE, || async {
            let nodes = self.list(Kind::Node, "").await?;
            let ready = nodes.iter().filter(|node| condition(node, "Ready") == "True").count();
            ensure!(ready >= wanted, "{ready} of {wanted} nodes are Ready");
            Ok(())
        })
        .await
        .with_context(|| {
            let logs = (0..wanted).map(|i| self.log_tail(&format!("{}.log", self.node_name(i))));
            logs.collect::<Vec<_>>().join("\n")
        })
    }

    /// The last lines of a log in the cluster's folder.
    pub fn log_tail(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        format!("{name}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Stops everything and removes what the agents made on the host.
    pub fn stop(&mut self) -> Result<()> {
        for index in 0..self.agents.len() {
            kill(&mut self.agents[index])?;
        }
        for master in &mut self.masters {
            master.kill()?;
        }
        for index in 0..self.agents.len() {
            clean_up(self.dir.path(), &self.node_name(index), self.agent_within(index))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for master in &self.masters {
                eprintln!("{}", self.log_tail(&format!("{}.log", master.name())));
            }
            for index in 0..self.agents.len() {
                eprintln!("{}", self.log_tail(&format!("{}.log", self.node_name(index))));
            }
        }
        if let Err(error) = self.stop() {
            eprintln!("stop the cluster: {error:#}");
        }
    }
}

/// A binary of this workspace, to be started by what `within` says; by nothing where that is empty.
pub(crate) fn command_in(within: &[String], name: &str) -> Result<Command> {
    let program = binary(name)?;
    Ok(match within.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    })
}

/// Removes what agents made on the host whose cluster was never stopped: those that have data in its
/// folder. They run no more, and a network of their own is gone with its namespace.
pub fn clean_up_all(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(node) = name.to_str().filter(|name| name.contains(NODE))
            && entry.file_type()?.is_dir()
        {
            clean_up(dir, node, &[])?;
        }
    }
    Ok(())
}

fn clean_up(dir: &Path, node: &str, within: &[String]) -> Result<()> {
    let output = command_in(within, "timonier-agent")?
        .args(["cleanup", "--node-name", node, "--data-dir"])
        .arg(dir.join(node))
        .args(["--bridge", &bridge(node)])
        // Whoever presses Ctrl-C while it works does not mean it.
        .process_group(0)
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "clean up {node}: {complaint}");
    Ok(())
}

/// `kill -9`, and reaps it.
pub(crate) fn kill(child: &mut Option<Child>) -> Result<()> {
    if let Some(mut process) = child.take() {
        process.kill()?;
        let start = std::time::Instant::now();
        while process.try_wait()?.is_none() {
            ensure!(start.elapsed() < STOP_DEADLINE, "process {} does not end", process.id());
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Status (`True`, `False`, `Unknown`, or empty) of a node's or pod's condition.
pub fn condition(object: &Object, name: &str) -> String {
    let value = object.to_value().unwrap_or_default();
    value["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == name)
        .and_then(|c| c["status"].as_str())
        .unwrap_or_default()
        .to_owned()
}
