//! `drain`: cordon a node and move its pods off, politely, through eviction.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::Value;
use timonier_proto::{Kind, Reason};
use tokio::time::Instant;

use crate::cli::duration::Span;
use crate::client::calls::{Deletion, Filter};
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve::Item;
use crate::verbs::cordon::{self, Nodes};
use crate::verbs::delete;

const EXAMPLES: &str = "\
Examples:
  timonctl drain lab-2                        its pods start elsewhere; then it is free
  timonctl drain lab-2 --force                also pods that nothing would start again
  timonctl drain lab-2 --grace-period 5 --timeout 2m
  timonctl uncordon lab-2                     when maintenance is over";

/// Pods on their way out at the same time.
const EVICTIONS_IN_FLIGHT_MAX: usize = 16;
/// An eviction that is not allowed now is asked for again after this.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub nodes: Nodes,
    /// Also pods that no controller would start again
    #[arg(long)]
    pub force: bool,
    /// Leave pods of daemon sets where they are
    #[arg(long)]
    pub ignore_daemonsets: bool,
    /// Also pods with emptyDir volumes, whose contents are lost
    #[arg(long)]
    pub delete_emptydir_data: bool,
    /// Seconds that pods get to end by themselves; -1 is each pod's own
    #[arg(long, value_name = "SECONDS", default_value_t = -1, allow_negative_numbers = true)]
    pub grace_period: i64,
    /// How long to try; 0 is without end
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true)]
    pub timeout: Span,
    /// Say what would be moved, change nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "client",
          value_name = "MODE", value_parser = ["none", "client", "server"])]
    pub dry_run: Option<String>,
}

impl Args {
    fn dry(&self) -> bool {
        self.dry_run.as_deref().is_some_and(|mode| mode != "none")
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let deadline = (!args.timeout.0.is_zero()).then(|| Instant::now() + args.timeout.0);
    for node in args.nodes.fetch(ctx).await? {
        if args.dry() {
            ctx.out.line(format!("{} cordoned (dry run)", node.title()))?;
        } else {
            cordon::set(ctx, &node, true).await?;
        }
        let work = drain(&args, ctx, &node);
        tokio::select! {
            done = work => done?,
            () = delete::at(deadline) => {
                return Err(fail(format!("timed out draining {}", node.title()))
                    .hint("it stays cordoned; timonctl drain goes on where this ended, timonctl uncordon takes it back"));
            }
            stop = crate::interrupted() => {
                stop?;
                return Err(fail(format!("interrupted while draining {}", node.title()))
                    .hint("it stays cordoned; timonctl uncordon takes it back"));
            }
        }
        let suffix = if args.dry() { " (dry run)" } else { "" };
        ctx.out.line(format!("{} drained{suffix}", node.title()))?;
    }
    Ok(())
}

async fn drain(args: &Args, ctx: &Ctx, node: &Item) -> Outcome {
    let filter = Filter::default().fields(format!("spec.nodeName={}", node.value.name()));
    let pods = ctx.client.list(Kind::Pod, &filter).await?;
    let pods = movable(args, ctx, node, pods)?;
    let mut evictions = stream::iter(pods)
        .map(|value| evict(args, ctx, Item { kind: Kind::Pod, value }))
        .buffer_unordered(EVICTIONS_IN_FLIGHT_MAX);
    while let Some(done) = evictions.next().await {
        done?;
    }
    Ok(())
}

/// The pods to move; refuses when some would be lost without a word.
fn movable(args: &Args, ctx: &Ctx, node: &Item, pods: Vec<Value>) -> Outcome<Vec<Value>> {
    let (mut bare, mut with_data, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let over = matches!(pod.text("status.phase"), "Succeeded" | "Failed");
        let owner = pod.controller().text("kind").to_owned();
        if owner == "DaemonSet" {
            if !args.ignore_daemonsets {
                return Err(fail(format!(
                    "cannot drain {}: pod {name} belongs to a daemon set",
                    node.title()
                ))
                .hint("--ignore-daemonsets leaves such pods where they are"));
            }
            ctx.out.note(format!("warning: ignoring DaemonSet-managed pod {name}"));
            continue;
        }
        if owner.is_empty() && !over && !args.force {
            bare.push(name.clone());
        }
        let has_data = pod.list("spec.volumes").iter().any(|v| v.has("emptyDir"));
        if has_data && !over && !args.delete_emptydir_data {
            with_data.push(name);
        }
        chosen.push(pod);
    }
    let mut reasons = Vec::new();
    if !bare.is_empty() {
        reasons.push(format!(
            "cannot delete Pods that declare no controller (use --force to override): {}",
            bare.join(", ")
        ));
    }
    if !with_data.is_empty() {
        reasons.push(format!(
            "cannot delete Pods with local storage (use --delete-emptydir-data to override): {}",
            with_data.join(", ")
        ));
    }
    if reasons.is_empty() {
        return Ok(chosen);
    }
    bail(format!("unable to drain {}: {}", node.title(), reasons.join("; ")))
}

async fn evict(args: &Args, ctx: &Ctx, pod: Item) -> Outcome {
    let (namespace, name) = (pod.value.namespace(), pod.value.name());
    if args.dry() {
        return ctx.out.line(format!("evicting pod {namespace}/{name} (dry run)"));
    }
    ctx.out.line(format!("evicting pod {namespace}/{name}"))?;
    let how = Deletion {
        grace_seconds: (args.grace_period >= 0).then_some(args.grace_period),
        uid: pod.value.uid().to_owned(),
        ..Default::default()
    };
    let mut told = String::new();
    loop {
        match ctx.client.evict(&pod.key(), &how).await {
            Ok(_) => break,
            Err(failure) if failure.is_not_found() || failure.is_reason(Reason::Conflict) => break,
            Err(failure) if failure.is_reason(Reason::TooManyRequests) => {
                // Said again only when the reason is another one.
                let why = failure.to_string();
                if told != why {
                    ctx.out.note(format!(
                        "pod {namespace}/{name} may not go yet, asking again until it may: {why}"
                    ));
                    told = why;
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    delete::wait_gone(ctx, std::slice::from_ref(&pod), Duration::ZERO).await?;
    ctx.out.line(format!("pod/{name} evicted"))
}
