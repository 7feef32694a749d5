//! What an agent is told on its command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser};
use timonier_agent_core::net::bridge_name;
use timonier_proto::{DEFAULT_MASTER_PORT, names, quantity};

use crate::telemetry::{CapacityOptions, PODS_MAX_DEFAULT};

/// What the agent is started for.
#[derive(Debug, Clone)]
pub enum Invocation {
    Run(RunConfig),
    Cleanup(CleanupConfig),
    /// Started by the agent itself; see [`crate::lease`].
    Watchdog(CleanupConfig),
}

impl Invocation {
    /// Reads a command line, the program's name first.
    pub fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        if args.get(1).is_some_and(|word| word == CLEANUP) {
            args.remove(1);
            return CleanupConfig::try_parse_from(args).map(Self::Cleanup);
        }
        if args.get(1).is_some_and(|word| word == WATCHDOG) {
            args.remove(1);
            return CleanupConfig::try_parse_from(args).map(Self::Watchdog);
        }
        RunConfig::try_parse_from(args).map(Self::Run)
    }

    pub fn log(&self) -> &str {
        match self {
            Self::Run(config) => &config.host.log,
            Self::Cleanup(config) | Self::Watchdog(config) => &config.host.log,
        }
    }
}

const CLEANUP: &str = "cleanup";
const WATCHDOG: &str = "watchdog";

/// Removes everything of a node from this host: containers, links, tables, files. Its agent must
/// not be running.
#[derive(Debug, Clone, Parser)]
#[command(name = "timonier-agent cleanup", version)]
pub struct CleanupConfig {
    #[command(flatten)]
    pub host: HostConfig,
}

/// Which node this is, and where it keeps its things.
#[derive(Debug, Clone, Args)]
pub struct HostConfig {
    /// Name of this node, unique in the cluster.
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub node_name: String,
    /// Folder of the pods' volumes and files; made when it does not exist.
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// The pods' bridge, at most 15 characters. Default: made from the node's name.
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Docker Engine's socket.
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub docker_socket: PathBuf,
    /// What to log: error, warn, info, debug, trace, or a filter as in RUST_LOG.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

impl HostConfig {
    pub fn bridge(&self) -> String {
        self.bridge.clone().unwrap_or_else(|| bridge_name(&self.node_name))
    }
}

/// Timonier's agent: runs this host's pods on Docker Engine and tells the masters how they and the
/// host are. It opens no port; it dials out only.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "timonier-agent",
    version,
    after_help = "`timonier-agent cleanup --node-name NAME --data-dir FOLDER` removes everything of a node from this host."
)]
pub struct RunConfig {
    #[command(flatten)]
    pub host: HostConfig,
    /// The masters; the port is 7443 where none is given.
    #[arg(
        long = "master",
        value_name = "HOST[:PORT]",
        value_delimiter = ',',
        required = true,
        env = "TIMONIER_MASTER"
    )]
    pub masters: Vec<String>,
    /// Join token, needed at the first start only: its text, or @ and a file that has it.
    #[arg(long, value_name = "TOKEN", env = "TIMONIER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Labels of the node, for node selectors. What a user has set on the node stays, and labels of
    /// kubernetes.io, k8s.io and timonier.io are not the agent's to give, but for
    /// topology.kubernetes.io/region and zone, and node.kubernetes.io/….
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Milliseconds between heartbeats, in place of what the master says.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(50..=60_000))]
    pub heartbeat: Option<u32>,
    /// Most pods on this node.
    #[arg(long, value_name = "PODS", default_value_t = PODS_MAX_DEFAULT)]
    pub max_pods: u32,
    /// Address by which others reach this host. Default: that of the default route.
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// CPU kept back from pods, such as 100m.
    #[arg(long, value_name = "CPU", default_value = "0", value_parser = millis)]
    pub reserved_cpu: u64,
    /// Memory kept back from pods, such as 256Mi.
    #[arg(long, value_name = "MEMORY", default_value = "0", value_parser = bytes)]
    pub reserved_memory: u64,
    /// CPU to offer in place of the host's: several agents on one machine share it so.
    #[arg(long, value_name = "CPU", value_parser = millis)]
    pub cpu: Option<u64>,
    /// Memory to offer in place of the host's.
    #[arg(long, value_name = "MEMORY", value_parser = bytes)]
    pub memory: Option<u64>,
    /// When the host goes down, has its pods replaced elsewhere and waits so many seconds at most
    /// until they have ended; without it, they are left to Docker. A mere restart of the agent
    /// leaves them running all the same.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub drain_on_shutdown: Option<u64>,
}

impl RunConfig {
    pub fn capacity(&self) -> CapacityOptions {
        CapacityOptions {
            cpu_millis: self.cpu,
            memory_bytes: self.memory,
            pods: Some(self.max_pods),
            reserved_cpu_millis: self.reserved_cpu,
            reserved_memory_bytes: self.reserved_memory,
        }
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// Each with its port.
    pub fn masters(&self) -> Vec<String> {
        self.masters.iter().map(|master| with_port(master.trim())).collect()
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn with_port(master: &str) -> String {
    let after_brackets = master.rsplit(']').next().unwrap_or(master);
    if after_brackets.contains(':') {
        master.to_owned()
    } else {
        format!("{master}:{DEFAULT_MASTER_PORT}")
    }
}

fn node_name(text: &str) -> Result<String, String> {
    names::dns_subdomain(text).map(|()| text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    names::label_key(key)?;
    names::label_value(value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn millis(text: &str) -> Result<u64, String> {
    quantity::parse_millis(text)
        .map_err(|error| error.to_string())
        .and_then(|millis| u64::try_from(millis).map_err(|_| "it cannot be negative".to_owned()))
}

fn bytes(text: &str) -> Result<u64, String> {
    quantity::parse_units(text)
        .map_err(|error| error.to_string())
        .and_then(|bytes| u64::try_from(bytes).map_err(|_| "it cannot be negative".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Invocation, clap::Error> {
        Invocation::try_parse(args.split(' ').map(OsString::from))
    }

    #[test]
    fn a_command_line_is_read() {
        let text = "timonier-agent --master m1,m2:9000,[::1] --node-name n1 --data-dir d --labels disk=fast,zone=a --reserved-memory 256Mi --cpu 1500m";
        let Ok(Invocation::Run(run)) = parse(text) else { panic!("not read") };
        assert_eq!(run.masters(), ["m1:7443", "m2:9000", "[::1]:7443"]);
        assert_eq!(run.labels()["disk"], "fast");
        assert_eq!(run.capacity().reserved_memory_bytes, 256 << 20);
        assert_eq!(run.capacity().cpu_millis, Some(1500));
        assert_eq!(run.host.bridge(), "tim-n1");
    }

    #[test]
    fn cleanup_needs_no_master() {
        let text = "timonier-agent cleanup --node-name n1 --data-dir d --bridge b";
        let Ok(Invocation::Cleanup(cleanup)) = parse(text) else { panic!("not read") };
        assert_eq!(cleanup.host.bridge(), "b");
        for text in [
            "timonier-agent --node-name n1 --data-dir d",
            "timonier-agent --master m --node-name N_1 --data-dir d",
            "timonier-agent cleanup --data-dir d",
            "timonier-agent",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
