//! `make chaos ROUNDS=30`: real faults on a real cluster, a checker after each.
//!
//! Prints its progress on standard error and one line of JSON on standard output: `rounds acked lost
//! violations`. The exit code is 1 when anything was lost or violated.
//! Ctrl-C ends it and removes what it made; what a run left that was killed, the next one removes.

use std::process::ExitCode;

use anyhow::{Context, Result};
use timonier_tests::chaos::{self, Fault, Plan};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        // First, so that signals are heard before there is anything to be removed.
        biased;
        asked = asked_to_end() => asked,
        outcome = run() => outcome,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    let mut plan = Plan::default();
    if let Some(rounds) = number("ROUNDS")? {
        plan.rounds = usize::try_from(rounds)?;
    }
    if let Some(seed) = number("SEED")? {
        plan.seed = seed;
    }
    if let Ok(names) = std::env::var("FAULTS") {
        let names = names.split(',').filter(|name| !name.is_empty());
        plan.faults = names
            .map(|name| Fault::named(name).with_context(|| format!("no fault is called {name:?}")))
            .collect::<Result<_>>()?;
    }
    let report = chaos::run(&plan).await?;
    print(&report.line());
    Ok(report.is_clean())
}

/// By Ctrl-C or SIGTERM.
async fn asked_to_end() -> Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("removing everything");
    anyhow::bail!("asked to end")
}

/// Of the environment.
fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{name} is not a number"))).transpose()
}

#[allow(clippy::print_stdout)] // the result line is this program's output
fn print(line: &str) {
    println!("{line}");
}
