//! `lab down`: stops everything and removes what the lab made, however far it had come.

use std::path::Path;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::process::Command;

use super::{CONTEXT, Lab, bridge_name, need_root, process};
use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};
use crate::output::progress::Spinner;

/// Agents stopped and cleaned up at the same time.
const AT_ONCE_MAX: usize = 4;
/// How long one agent's clean-up may take.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(120);

pub async fn down(ctx: &Ctx, lab: Lab, keep_data: bool) -> Outcome {
    need_root("down")?;
    let nodes = lab.nodes();
    if !lab.dir.exists() {
        forget_context(ctx)?;
        return ctx.out.line(format!("no lab in {}", lab.dir.display()));
    }
    let spinner = Spinner::start(&ctx.out);
    spinner.say(format!("stopping {} agents", nodes.len()));
    // All agents first: one that still runs would bring back what another's clean-up removes.
    let stops = nodes.iter().map(|name| process::stop(&lab, name));
    let mut failures: Vec<Failure> =
        futures::future::join_all(stops).await.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() && !nodes.is_empty() {
        spinner.say("removing containers and network");
        let agent = process::program("timonier-agent")?;
        let results: Vec<Outcome> = stream::iter(&nodes)
            .map(|name| cleanup(&lab, &agent, name))
            .buffer_unordered(AT_ONCE_MAX)
            .collect()
            .await;
        failures.extend(results.into_iter().filter_map(Result::err));
    }
    spinner.say("stopping the masters");
    let masters = lab.masters();
    let stops = masters.iter().map(|name| process::stop(&lab, name));
    failures.extend(futures::future::join_all(stops).await.into_iter().filter_map(Result::err));
    drop(spinner);
    for failure in &failures {
        ctx.out.failure(failure);
    }
    if !failures.is_empty() {
        return Err(fail("the lab is not wholly down; its folder was kept")
            .hint("timonctl lab down goes on where this one ended"));
    }
    remove(&lab, &nodes, keep_data)?;
    forget_context(ctx)?;
    let kept = if keep_data {
        format!("; the masters' data is kept in {}", lab.dir.display())
    } else {
        String::new()
    };
    ctx.out.line(format!("lab is down{kept}"))
}

async fn cleanup(lab: &Lab, agent: &Path, name: &str) -> Outcome {
    let mut command = Command::new(agent);
    command
        .args(["cleanup", "--node-name", name, "--data-dir"])
        .arg(lab.data(name))
        .args(["--bridge", &bridge_name(name)])
        .kill_on_drop(true);
    let output = match tokio::time::timeout(CLEANUP_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(fail(format!("clean up {name}: run {}: {error}", agent.display())));
        }
        Err(_) => {
            return Err(fail(format!(
                "clean up {name}: not done after {} s",
                CLEANUP_DEADLINE.as_secs()
            )));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n  ");
    Err(fail(format!("clean up {name}: {}\n  {last}", output.status)))
}

fn remove(lab: &Lab, nodes: &[String], keep_data: bool) -> Outcome {
    let gone = |result: std::io::Result<()>, path: &Path| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(fail(format!("remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    };
    // Only what the lab made: the folder may be somebody's home by mistake.
    for name in nodes {
        let data = lab.data(name);
        gone(std::fs::remove_dir_all(&data), &data)?;
        let log = lab.log(name);
        gone(std::fs::remove_file(&log), &log)?;
    }
    if keep_data {
        return Ok(());
    }
    let masters = lab.masters().into_iter().map(|name| lab.data(&name));
    for folder in masters.chain([lab.dir.join("logs"), lab.dir.join("run")]) {
        gone(std::fs::remove_dir_all(&folder), &folder)?;
    }
    let state = lab.dir.join("lab.json");
    gone(std::fs::remove_file(&state), &state)?;
    // Stays when somebody else put something in.
    let _ = std::fs::remove_dir(&lab.dir);
    Ok(())
}

fn forget_context(ctx: &Ctx) -> Outcome {
    let mut config = ctx.config.clone();
    config.contexts.retain(|context| context.name != CONTEXT);
    config.clusters.retain(|cluster| cluster.name != CONTEXT);
    config.users.retain(|user| user.name != CONTEXT);
    if config.current_context.as_deref() == Some(CONTEXT) {
        config.current_context = None;
    }
    if config == ctx.config { Ok(()) } else { config.save(&ctx.config_path) }
}
