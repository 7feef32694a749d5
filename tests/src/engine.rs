//! A Docker engine of a test's own: stopping it stops nobody else's containers, and it begins
//! without images, as another host's would.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bollard::Docker;

use crate::wait;

const START_DEADLINE: Duration = Duration::from_secs(60);
const CALL_DEADLINE_S: u64 = 10;

pub struct Engine {
    dir: tempfile::TempDir,
    /// An engine told to have no bridge at all would remove the machine's `docker0`.
    bridge: String,
    child: Option<Child>,
}

impl Engine {
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("timonier-engine-").tempdir()?;
        let number: u8 = fastrand::u8(1..=254);
        let bridge = format!("tteng{number}");
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        let mut engine = Self { dir, bridge, child: None };
        run("ip", &["address", "add", &format!("198.18.{number}.1/24"), "dev", &engine.bridge])?;
        engine.start_daemon().await?;
        Ok(engine)
    }

    pub fn socket(&self) -> String {
        self.dir.path().join("docker.sock").display().to_string()
    }

    /// Runs the docker client against this engine.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.socket());
        run("docker", &[&["-H", &host], args].concat())
    }

    /// Copies an image of the machine's own engine into this one.
    pub fn copy_image(&self, image: &str) -> Result<()> {
        let archive = self.dir.path().join("image.tar").display().to_string();
        run("docker", &["save", "-o", &archive, image])?;
        self.docker(&["load", "-i", &archive]).map(|_| ())
    }

    pub async fn start_daemon(&mut self) -> Result<()> {
        let path = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["-H", &format!("unix://{}", self.socket()), "--bridge", &self.bridge])
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("dockerd.log"))?)
            .spawn()
            .context("start dockerd")?;
        self.child = Some(child);
        let socket = self.socket();
        let log = path("dockerd.log");
        wait::until("the test's own Docker to answer", START_DEADLINE, || async {
            let version = bollard::API_DEFAULT_VERSION;
            Docker::connect_with_unix(&socket, CALL_DEADLINE_S, version)?.ping().await?;
            Ok(())
        })
        .await
        .with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }

    /// SIGTERM: the daemon stops its containers and itself.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.stop();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if std::path::Path::new(target).starts_with(self.dir.path()) {
                let _ = run("umount", &["-l", target]);
            }
        }
        let _ = run("ip", &["link", "delete", &self.bridge]);
    }
}

/// The standard output of a program that must succeed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
