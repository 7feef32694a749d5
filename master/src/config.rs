//! What a master is told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use timonier_identity::Lifetimes;
use timonier_master_core::ipam::Range;
use timonier_proto::unique::FENCE_AFTER_MS_DEFAULT;
use timonier_proto::{DEFAULT_CLUSTER_RANGE, DEFAULT_SERVICE_RANGE};

use crate::store::Encryption;

/// The consensus tells of each step of its own; only its troubles are of interest.
const LOG_DEFAULT: &str = "info,openraft=error";

/// Timonier's master: the replicated object store, the control loops, and the door that agents and
/// timonctl dial.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "timonier-master",
    version,
    after_help = "While it does not run:\n  timonier-master restore FILE --data-dir FOLDER     \
                  a new cluster out of a backup\n  timonier-master recover --from-this-master \
                  --data-dir FOLDER\n                                                     \
                  the only master, when most are lost"
)]
pub struct Config {
    /// Folder of the store; made when it does not exist.
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// Address to answer on; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    pub listen: SocketAddr,
    /// Joins the cluster that these masters belong to, where the data folder is empty; else it goes
    /// on as what it was.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Vec<String>,
    /// What a master that joins shows the first time: a token for masters, or `@` and a file with
    /// one.
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "join",
        hide_env_values = true,
        env = "TIMONIER_TOKEN"
    )]
    pub token: Option<String>,
    /// Where the other masters reach this one, if not where it listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Of this master; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Addresses of all pods; every node gets a /24 of it.
    #[arg(long, value_name = "RANGE", default_value = DEFAULT_CLUSTER_RANGE, value_parser = range)]
    pub cluster_range: String,
    /// Addresses of services.
    #[arg(long, value_name = "RANGE", default_value = DEFAULT_SERVICE_RANGE, value_parser = range)]
    pub service_range: String,
    /// A node that has not been heard of for so long is NotReady.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub node_grace: Duration,
    /// Pods of a node that has been NotReady for so long are replaced on other nodes.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub eviction_after: Duration,
    /// An agent that has reached no master for so long stops the pods that must be unique; only
    /// after that are they replaced.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub fence_after: Duration,
    /// Time between two heartbeats of an agent.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub heartbeat: Duration,
    /// Writes a snapshot of the store after so many log entries.
    #[arg(long, value_name = "ENTRIES", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_every: u64,
    #[command(flatten)]
    pub encryption: EncryptionArgs,
    /// The key file that the keys were sealed with until now: they are sealed anew at this start.
    #[arg(
        long,
        value_name = "FILE",
        requires = "encryption",
        conflicts_with = "encryption_previous_passphrase_file"
    )]
    pub encryption_previous_key_file: Option<PathBuf>,
    /// The passphrase file that they were sealed with until now.
    #[arg(long, value_name = "FILE", requires = "encryption")]
    pub encryption_previous_passphrase_file: Option<PathBuf>,
    /// Slows every fsync of the log by so many milliseconds, to see what a slow disk does.
    #[arg(long, value_name = "MS", hide_short_help = true)]
    pub log_fsync_delay: Option<u64>,
    /// Certificates of agents and masters are valid for so long; they renew themselves at two
    /// thirds of it.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration)]
    pub certificate_lifetime: Duration,
    /// People's certificates are valid for so long.
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration)]
    pub person_certificate_lifetime: Duration,
    /// The cluster's CA is valid for so long; it is renewed at two thirds of it.
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration)]
    pub ca_lifetime: Duration,
    /// What to log: error, warn, info, debug, trace, or a filter as in RUST_LOG.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = LOG_DEFAULT)]
    pub log: String,
}

/// What the store's keys are sealed with.
#[derive(Debug, Clone, Default, Args)]
#[group(id = "encryption", multiple = false)]
pub struct EncryptionArgs {
    /// Seals the keys that the store is encrypted with with the 32-byte key in this file; without
    /// it, they lie in the data folder.
    #[arg(long, value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Seals them with the passphrase in this file.
    #[arg(long, value_name = "FILE")]
    pub encryption_passphrase_file: Option<PathBuf>,
}

impl EncryptionArgs {
    /// As the store is told it.
    pub fn keeper(&self) -> Encryption {
        match (&self.encryption_key_file, &self.encryption_passphrase_file) {
            (Some(path), _) => Encryption::KeyFile(path.clone()),
            (None, Some(path)) => Encryption::Passphrase(path.clone()),
            (None, None) => Encryption::DataFolder,
        }
    }
}

impl Config {
    /// The defaults, with data in `data_dir` and on a free port: for tests and benchmarks.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            join: Vec::new(),
            token: None,
            advertise: None,
            name: None,
            cluster_range: DEFAULT_CLUSTER_RANGE.to_owned(),
            service_range: DEFAULT_SERVICE_RANGE.to_owned(),
            node_grace: Duration::from_secs(3),
            eviction_after: Duration::from_millis(500),
            fence_after: Duration::from_millis(FENCE_AFTER_MS_DEFAULT.into()),
            heartbeat: Duration::from_secs(1),
            snapshot_every: 20_000,
            encryption: EncryptionArgs::default(),
            encryption_previous_key_file: None,
            encryption_previous_passphrase_file: None,
            log_fsync_delay: None,
            certificate_lifetime: Lifetimes::default().machine,
            person_certificate_lifetime: Lifetimes::default().person,
            ca_lifetime: Lifetimes::default().authority,
            log: LOG_DEFAULT.to_owned(),
        }
    }

    pub(crate) fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            authority: self.ca_lifetime,
            machine: self.certificate_lifetime,
            person: self.person_certificate_lifetime,
        }
    }
}

impl Config {
    /// This master's name.
    pub fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(host)
    }

    /// What keeps the store's keys.
    pub fn encryption(&self) -> Encryption {
        let to = self.encryption.keeper();
        let previous = EncryptionArgs {
            encryption_key_file: self.encryption_previous_key_file.clone(),
            encryption_passphrase_file: self.encryption_previous_passphrase_file.clone(),
        };
        match previous.keeper() {
            Encryption::DataFolder => to,
            from => Encryption::Changed { to: to.into(), from: from.into() },
        }
    }
}

fn range(text: &str) -> Result<String, String> {
    Range::parse(text).map(|range| range.to_string()).map_err(|error| error.to_string())
}

/// `3s`, `500ms`, `2m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{text:?} is not a time like 500ms, 3s or 2m")),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * scale).ok())
        .ok_or_else(|| format!("{text:?} is not a time like 500ms, 3s or 2m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, millis) in [
            ("3s", Some(3000)),
            ("500ms", Some(500)),
            ("1.5m", Some(90_000)),
            ("2", Some(2000)),
            ("x", None),
            ("3d", Some(3 * 86_400_000)),
            ("3w", None),
            ("", None),
        ] {
            assert_eq!(duration(text).ok(), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn the_command_line_has_the_defaults_of_new() {
        let parsed = Config::try_parse_from(["timonier-master", "--data-dir", "d"]).unwrap();
        let new = Config { listen: parsed.listen, log: parsed.log.clone(), ..Config::new("d") };
        assert_eq!(format!("{parsed:?}"), format!("{new:?}"));
        let args = ["timonier-master", "--data-dir", "d", "--service-range", "10.96.0.0/99"];
        assert!(Config::try_parse_from(args).is_err());
    }
}
