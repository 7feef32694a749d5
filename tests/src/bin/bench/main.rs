//! `make bench NAME=…`: each benchmark prints its progress on stderr and one line of JSON on
//! stdout. Peers run in the same process run, interleaved with ours; figures are medians of rounds.

mod agent_footprint;
mod etcd;
mod failover;
mod master_footprint;
mod node_loss;
mod simulated;
mod start_200;
mod store_writes;
mod swarm;
mod telemetry;
mod tls_storm;

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

const NAMES: &str = "start-200, agent-footprint, master-footprint, telemetry, store-writes, \
                     node-loss, failover, tls-storm";

#[tokio::main]
async fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let line = match name.as_str() {
        "start-200" => start_200::run().await,
        "agent-footprint" => agent_footprint::run().await,
        "master-footprint" => master_footprint::run().await,
        "telemetry" => telemetry::run().await,
        "store-writes" => store_writes::run().await,
        "node-loss" => node_loss::run().await,
        "failover" => failover::run().await,
        "tls-storm" => tls_storm::run().await,
        other => {
            eprintln!("error: no benchmark is called {other:?}\nhint: one of {NAMES}");
            return ExitCode::from(2);
        }
    };
    match line {
        Ok(line) => {
            print(&line);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout)] // the result line is this program's output
fn print(line: &str) {
    println!("{line}");
}

/// How many rounds to run: `ROUNDS`, 3 by default.
fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Installs what a benchmark's peers need, by the project's own set-up script.
fn set_up(with: &str) -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new("bash");
    command.arg(format!("{root}/deploy/setup.sh"));
    if !with.is_empty() {
        command.args(["--with", with]);
    }
    run_quietly(command, "deploy/setup.sh")
}

/// Builds the small image that the container benchmarks start.
fn build_web_image() -> Result<()> {
    let mut command = Command::new("bash");
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/images/build.sh"), "web"]);
    run_quietly(command, "deploy/images/build.sh web")
}

fn run_quietly(mut command: Command, what: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {what}"))?;
    ensure!(
        output.status.success(),
        "{what} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Fails where a figure could not be taken, rather than print a zero.
fn present(value: f64, what: &str) -> Result<f64> {
    if value > 0.0 && value.is_finite() { Ok(value) } else { bail!("{what} was not measured") }
}
