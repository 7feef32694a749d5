//! Why the agent is asked to stop: only itself, and its pods run on; or its whole host goes down.
//!
//! What follows from it is the program's.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// systemd answers within this time, or is not asked.
const SYSTEMCTL_DEADLINE: Duration = Duration::from_secs(2);
/// What `systemctl is-system-running` says of a host that goes down.
const GOES_DOWN: &[u8] = b"stopping";

/// What is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Agent,
    Host,
}

/// The signals that ask for it.
#[derive(Debug)]
pub struct Stops {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    power: tokio::signal::unix::Signal,
}

impl Stops {
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            power: signal(SignalKind::from_raw(Signal::POWER.as_raw()))?,
        })
    }

    /// SIGTERM stops the host when systemd is about to, SIGPWR always does.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => if host_goes_down().await { Stop::Host } else { Stop::Agent },
            _ = self.interrupt.recv() => Stop::Agent,
            _ = self.power.recv() => Stop::Host,
        }
    }
}

async fn host_goes_down() -> bool {
    let mut systemctl = Command::new("systemctl");
    let asking = systemctl.arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(SYSTEMCTL_DEADLINE, asking).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == GOES_DOWN,
        // A host without systemd says it by SIGPWR.
        Ok(Err(_)) | Err(_) => false,
    }
}
