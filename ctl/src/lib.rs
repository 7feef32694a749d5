//! What a person types to steer a Timonier cluster: kubectl's verbs, and the exercise's own.
//!
//! Everything goes through one master's `Control` service; nothing here decides what the cluster
//! should do, and nothing talks to an agent. The binary is a shell around [`main`].

mod cli;
mod client;
mod config;
mod context;
mod describe;
mod error;
mod exercise;
mod fields;
mod image;
#[doc(hidden)]
pub mod jsonpath;
mod lab;
mod load;
mod login;
#[doc(hidden)]
pub mod manifest;
mod output;
mod resolve;
mod verbs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::client::Client;
use crate::config::Config;
use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};
use crate::output::Out;

pub use crate::output::Captured;

/// Threads of the runtime: the load generator and streams want a second one.
const THREADS: usize = 2;

/// Runs the program with its own arguments.
pub fn main() -> ExitCode {
    timonier_identity::install_provider();
    let out = Out::standard();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = usage_code(&error);
            // Nobody reading the message is no reason to fail differently.
            let _ = error.print();
            return code.into();
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli, out.clone(), None));
            // A read of standard input cannot be called back; it ends with the process.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(fail(format!("start the runtime: {error}"))),
    };
    finish(&out, result).into()
}

fn usage_code(error: &clap::Error) -> u8 {
    if error.use_stderr() { 1 } else { 0 }
}

fn finish(out: &Out, result: Outcome) -> u8 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            out.failure(&failure);
            failure.code()
        }
    }
}

/// Runs a command line (without the program's name) and collects what it prints: exit code and
/// outputs. `config` stands for the configuration file.
pub async fn run_captured<I, S>(args: I, config: Option<PathBuf>) -> (u8, Captured)
where
    I: IntoIterator<Item = S>,
    S: Into<OsString> + Clone,
{
    let (out, captured) = Out::captured();
    let words = std::iter::once(OsString::from("timonctl")).chain(args.into_iter().map(Into::into));
    let code = match cli::Cli::try_parse_from(words) {
        Ok(cli) => {
            let result = run(cli, out.clone(), config).await;
            finish(&out, result)
        }
        Err(error) => {
            out.note(error.to_string());
            usage_code(&error)
        }
    };
    let printed = captured.lock().expect("no writer panics").clone();
    (code, printed)
}

async fn run(cli: cli::Cli, out: Out, config: Option<PathBuf>) -> Outcome {
    let config_path = config.unwrap_or_else(config::default_path);
    let global = &cli.global;
    // A malformed file must not stand in the way of the command that mends it.
    let loaded = Config::load(&config_path);
    let config = match (&cli.command, loaded) {
        (_, Ok(config)) => config,
        (cli::Command::Completion(_) | cli::Command::HelpPages, Err(_)) => Config::default(),
        (_, Err(failure)) => return Err(failure),
    };
    // Who has no configuration of his own and is the administrator here needs none.
    let own = config.current_context.is_some() || global.context.is_some();
    let keeps = matches!(cli.command, cli::Command::Config(_) | cli::Command::Lab(_));
    let config = if own || keeps { config } else { login::stand_in().unwrap_or(config) };
    let context = global.context.as_deref();
    let server = global.server.as_deref();
    let needs_context = !matches!(
        cli.command,
        cli::Command::Config(_) | cli::Command::Lab(_) | cli::Command::Recover(_)
    );
    let target = match config::target(&config, context, server, global.namespace.as_deref()) {
        Ok(target) => target,
        Err(failure) if needs_context => return Err(failure),
        Err(_) => config::target(&Config::default(), None, server, global.namespace.as_deref())?,
    };
    let chosen = config.chosen(context).ok().flatten();
    let login = login::login(&config, chosen, &target.servers)
        .and_then(|login| login.acting(global.as_user.as_deref(), &global.as_group));
    let client = Client::new(target.servers.clone(), login, global.request_timeout.map(|d| d.0));
    let ctx = Ctx { client, target, out, config, config_path };
    let result = cli.command.run(&ctx).await;
    if own && context.is_none() && global.as_user.is_none() && !keeps {
        verbs::certificate::renew_in_time(&ctx).await;
    }
    if server.is_none() && own {
        config::keep_masters(&ctx.config_path, context, &ctx.client.told_masters());
    }
    result
}

/// The reference page of all commands, in Markdown, from their own help.
pub fn help_pages() -> String {
    cli::pages::markdown(&cli::Cli::command())
}

/// Waits for Ctrl-C or a request to end.
async fn interrupted() -> Outcome<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let told = |error: std::io::Error| fail(format!("listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(told)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(told)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A failure that has been told already.
fn told(code: u8) -> Failure {
    Failure::Exit(code)
}
