//! `timonier-master`: reads the command line, starts the master, and stops it when it is asked to.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use timonier_master::offline::Offline;
use timonier_master::{Config, Master};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Requests are many small allocations, made on one thread and freed on another: the C library's
/// allocator takes three times as long for them. Without huge pages (a feature of the dependency),
/// which cost an idle master 15 MiB and gain it nothing.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    timonier_identity::install_provider();
    let offline = std::env::args_os().nth(1).is_some_and(|word| Offline::is_meant(&word));
    let done = if offline { run_offline(Offline::parse()) } else { run(Config::parse()) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if offline => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            // The messages have their causes in them.
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// On a data folder that no master has open.
fn run_offline(offline: Offline) -> Result<()> {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    runtime()?.block_on(offline.run())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow!("start the runtime: {error}"))
}

fn run(config: Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log);
    let bad_filter = filter.as_ref().err().map(ToString::to_string);
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if let Some(why) = bad_filter {
        bail!("read the log filter {:?}: {why}", config.log);
    }
    runtime()?.block_on(until_stopped(config))
}

async fn until_stopped(config: Config) -> Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| anyhow!("listen for SIGTERM: {error}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| anyhow!("listen for SIGINT: {error}"))?;
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
