//! `timonier-master`: reads the command line, starts the master, and stops it when it is asked to.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use timonier_master::{Config, Master};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log)
        .with_context(|| format!("read the log filter {:?}", config.log));
    let is_valid = filter.is_ok();
    tracing_subscriber::fmt()
        .with_env_filter(filter.as_ref().ok().cloned().unwrap_or_else(|| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    if !is_valid {
        filter?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(until_stopped(config))
}

async fn until_stopped(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let master = Master::start(config).await?;
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        why = master.failed() => Some(why),
    };
    info!("stopping");
    master.shutdown().await?;
    match failure {
        Some(why) => bail!("{why}"),
        None => Ok(()),
    }
}
