//! Docker Swarm beside us: `service create --replicas N` until N/N run, as its manager tells it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bollard::Docker;
use timonier_tests::{docker, wait};
use tokio::process::Command;

const SERVICE: &str = "timonier-bench";
const DEADLINE: Duration = Duration::from_secs(300);
/// How often the manager is asked; Swarm's own client shows the count about as often.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Seconds until `replicas/replicas`. Leaves no swarm behind, whatever happens.
pub async fn start_replicas(engine: &Docker, image: &str, replicas: usize) -> Result<f64> {
    docker_cli(&["swarm", "init", "--advertise-addr", "127.0.0.1"]).await?;
    let result = create_and_wait(image, replicas).await;
    let removed = docker_cli(&["service", "rm", SERVICE]).await;
    let gone = wait_gone(engine).await;
    docker_cli(&["swarm", "leave", "--force"]).await?;
    let seconds = result?;
    removed?;
    gone?;
    Ok(seconds)
}

async fn create_and_wait(image: &str, replicas: usize) -> Result<f64> {
    let start = Instant::now();
    let count = replicas.to_string();
    docker_cli(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        SERVICE,
        "--replicas",
        &count,
        image,
    ])
    .await?;
    let wanted = format!("{replicas}/{replicas}");
    loop {
        let shown = docker_cli(&[
            "service",
            "ls",
            "--filter",
            &format!("name={SERVICE}"),
            "--format",
            "{{.Replicas}}",
        ])
        .await?;
        if shown.trim() == wanted {
            return Ok(start.elapsed().as_secs_f64());
        }
        ensure!(start.elapsed() < DEADLINE, "swarm shows {} after {DEADLINE:?}", shown.trim());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn wait_gone(engine: &Docker) -> Result<()> {
    let label = format!("com.docker.swarm.service.name={SERVICE}");
    wait::until("swarm's containers to be gone", DEADLINE, || async {
        let left = docker::all(engine, std::slice::from_ref(&label)).await?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await
}

async fn docker_cli(args: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .context("start the docker client")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
