//! The lab: masters and some agents as background processes of this machine, with data, logs and
//! process records under one folder.
//!
//! Each step looks at what is there rather than at what an earlier command meant to do, so `up` and
//! `down` can be repeated after any half-finished one.

pub mod down;
pub mod masters;
pub mod process;
pub mod show;
pub mod up;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::config::{Config, home};
use crate::error::{Outcome, fail};
use crate::login::{ADMIN_FILE, login};

pub const CONTEXT: &str = "lab";
pub const MASTER: &str = "master";

/// What the folder says about the lab.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub port: u16,
    pub agents: usize,
    /// 0 of a lab of the first builds: one.
    #[serde(default)]
    pub masters: usize,
    /// As given to the first `up`, so that a later one starts the same programs the same way.
    #[serde(default)]
    pub max_pods: u32,
    #[serde(default)]
    pub master_args: Vec<String>,
    #[serde(default)]
    pub agent_args: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Lab {
    pub dir: PathBuf,
    /// `None` before the first `up`.
    pub state: Option<State>,
}

impl Lab {
    pub fn open(dir: Option<PathBuf>) -> Outcome<Lab> {
        let chosen = dir
            .or_else(|| {
                std::env::var_os("TIMONIER_LAB_DIR").filter(|d| !d.is_empty()).map(PathBuf::from)
            })
            .unwrap_or_else(|| home().join(".local/share/timonier/lab"));
        // Processes are recognized by this path, so it must read the same from any folder.
        let dir = std::path::absolute(&chosen)
            .map_err(|error| fail(format!("find folder {}: {error}", chosen.display())))?;
        let state = match std::fs::read(dir.join("lab.json")) {
            // Half a file is as good as none: the folders below tell the rest.
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(_) => None,
        };
        Ok(Lab { dir, state })
    }

    pub fn save(&mut self, state: State) -> Outcome {
        let path = self.dir.join("lab.json");
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|error| fail(format!("write {}: {error}", path.display())))?;
        std::fs::write(&path, text)
            .map_err(|error| fail(format!("write {}: {error}", path.display())))?;
        self.state = Some(state);
        Ok(())
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The configuration of the lab's administrator, as its master wrote it.
    pub fn administrator(&self) -> Outcome<Config> {
        Config::load(&self.data(MASTER).join(ADMIN_FILE))
    }

    /// A client of the lab's administrator.
    pub fn client(&self, servers: &[String], timeout: Option<Duration>) -> Client {
        let login = self.administrator().and_then(|config| {
            let context = config.chosen(None)?;
            login(&config, context, servers)
        });
        Client::new(servers.to_vec(), login, timeout)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    fn record(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.json"))
    }

    /// The nodes that have left anything behind: data, a record or a log.
    pub fn nodes(&self) -> Vec<String> {
        let recorded = self.state.as_ref().map_or(0, |s| s.agents);
        let mut numbers: Vec<usize> = (1..=recorded).collect();
        for folder in [self.dir.clone(), self.dir.join("run"), self.dir.join("logs")] {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            numbers.extend(entries.flatten().filter_map(|e| node_number(&e.path())));
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(node_name).collect()
    }

    /// The last lines of a part's log, each indented, for messages.
    pub fn log_tail(&self, name: &str) -> String {
        const LINES: usize = 8;
        let text = show::tail(&self.log(name), LINES).unwrap_or_default();
        let lines: Vec<String> =
            text.lines().map(|line| format!("  {}", show::without_colours(line))).collect();
        if lines.is_empty() { "  (nothing)".into() } else { lines.join("\n") }
    }
}

pub fn node_name(number: usize) -> String {
    format!("lab-{number}")
}

/// The bridge of a node: `tim-lab1`. Interface names have 15 characters at most.
pub fn bridge_name(node: &str) -> String {
    format!("tim-{}", node.replace('-', ""))
}

/// 2 for `lab-2`, `lab-2.json` and `lab-2.log`.
fn node_number(path: &Path) -> Option<usize> {
    let stem = path.file_stem()?.to_str()?;
    stem.strip_prefix("lab-")?.parse().ok()
}

/// Refuses to go on without root.
pub fn need_root(action: &str) -> Outcome {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(fail(format!("lab {action} needs root: agents make network interfaces and containers"))
        .hint(format!("sudo -E timonctl lab {action}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_behind_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut lab = Lab::open(Some(folder.path().into())).unwrap();
        assert_eq!(lab.nodes(), Vec::<String>::new());
        std::fs::create_dir(folder.path().join("lab-3")).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        std::fs::write(folder.path().join("run/lab-5.json"), "{").unwrap();
        lab.save(State { port: 1, agents: 1, ..Default::default() }).unwrap();
        assert_eq!(lab.nodes(), ["lab-1", "lab-3", "lab-5"]);
        std::fs::write(folder.path().join("lab.json"), "{\"po").unwrap();
        assert_eq!(Lab::open(Some(folder.path().into())).unwrap().state, None);
    }
}
