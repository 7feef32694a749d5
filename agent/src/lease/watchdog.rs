//! The watchdog: a small process beside the agent, there while the node has unique pods. When the
//! lease has run out and those pods still run, the agent is dead or frozen: it kills them.
//!
//! It outlives the agent, talks to no master, and ends when the lease file is gone. It cannot help
//! where the whole host stands still; nothing on the host can.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use timonier_proto::unique::FENCE_GRACE_MS;

use super::file::LeaseFile;
use super::{boot_ms, pause};
use crate::runtime::{Runtime, Signal};

/// In the data folder: one watchdog a node.
pub const LOCK_FILE: &str = "watchdog.lock";
/// What an agent that lives gets, beyond the pods' grace, before the watchdog does its work.
const AGENT_MS: u64 = 500;

/// How to start it.
#[derive(Debug, Default)]
pub struct Watchdog {
    /// The program and its arguments; empty where there is to be none.
    command: Vec<PathBuf>,
    started: Mutex<Option<Child>>,
}

impl Watchdog {
    /// This very program, with the arguments of its watchdog.
    pub fn new(node: &str, data_dir: &Path, docker_socket: &Path) -> Self {
        let program = std::env::current_exe().unwrap_or_else(|_| "timonier-agent".into());
        let mut command = vec![program];
        for (flag, value) in [
            ("--node-name", Path::new(node)),
            ("--data-dir", data_dir),
            ("--docker-socket", docker_socket),
        ] {
            command.extend([PathBuf::from(flag), value.to_owned()]);
        }
        command.insert(1, "watchdog".into());
        Self { command, started: Mutex::default() }
    }

    /// For tests.
    pub fn none() -> Self {
        Self::default()
    }

    /// Starts it unless the one that this agent started runs. One of an earlier agent holds the
    /// lock, and a second one ends by itself.
    pub(super) fn ensure(&self) -> Result<(), String> {
        let Some((program, arguments)) = self.command.split_first() else { return Ok(()) };
        let mut started = self.started.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(child) = started.as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            return Ok(());
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // What ends the agent's group must not end it.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("start the watchdog {}: {error}", program.display()))?;
        *started = Some(child);
        Ok(())
    }
}

/// The watchdog itself, until the lease file is gone. `Ok` at once where another one watches.
pub async fn run(
    runtime: &dyn Runtime,
    node: &str,
    data_dir: &Path,
    boot_id: &str,
) -> std::io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    let lock =
        File::options().create(true).truncate(false).write(true).open(data_dir.join(LOCK_FILE))?;
    // The agent looks after the one it started; while an older one watches, this one waits.
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if LeaseFile::new(data_dir, boot_id).read().is_none() {
            return Ok(());
        }
        pause().await;
    }
    let file = LeaseFile::new(data_dir, boot_id);
    while let Some(lease) = file.read() {
        let end_ms = lease.renewed_ms + lease.fence_after_ms + FENCE_GRACE_MS + AGENT_MS;
        if lease.fence_after_ms > 0 && boot_ms() > end_ms {
            kill(runtime, node).await;
        }
        pause().await;
    }
    Ok(())
}

async fn kill(runtime: &dyn Runtime, node: &str) {
    let found = match runtime.list(node).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "the watchdog cannot see which unique pods run");
            return;
        }
    };
    for one in found.iter().filter(|one| one.running && one.labels.unique) {
        let (pod, namespace) = (&one.labels.pod_name, &one.labels.pod_namespace);
        tracing::warn!(pod, namespace, "no master answered and the agent did nothing: killed");
        if let Err(error) = runtime.signal(&one.id, Signal::Kill).await {
            tracing::error!(pod, namespace, %error, "a unique pod cannot be killed");
        }
    }
}
