//! `scale`: a number of replicas now, or, with `--latency`, as many as answers in time take.

use serde_json::json;
use timonier_proto::Kind;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::exercise::scale::{self as on_latency, LatencyArgs};
use crate::output::printers::replicas;
use crate::resolve::{self, Target};

const PLAIN_EXAMPLES: &str = "\
Examples:
  timonctl scale deploy/web --replicas 5         five pods from now on
  timonctl scale deploy/a deploy/b --replicas 0  stop both, keep what they are
  timonctl scale deploy/web --current-replicas 3 --replicas 5";

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{PLAIN_EXAMPLES}\n  {}", on_latency::EXAMPLES))]
pub struct Args {
    /// KIND/NAME… or KIND NAME… of deployments or replica sets; with --latency, the NAME of one
    #[arg(value_name = "OBJECTS", required = true)]
    pub words: Vec<String>,
    /// How many pods
    #[arg(long, value_name = "N", required_unless_present = "latency", conflicts_with = "latency")]
    pub replicas: Option<u32>,
    /// Only when it has this many now
    #[arg(long, value_name = "N", conflicts_with = "latency")]
    pub current_replicas: Option<u32>,
    #[command(flatten, next_help_heading = "Scaling on measured latency")]
    pub on_latency: LatencyArgs,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    if args.on_latency.latency.is_some() {
        let word = match args.words.as_slice() {
            [word] => word.clone(),
            [kind, name] if !name.contains('/') => format!("{kind}/{name}"),
            _ => return bail("--latency takes one workload"),
        };
        return on_latency::run(&word, &args.on_latency, ctx).await;
    }
    let Some(wanted) = args.replicas else {
        return Err(fail("the number of replicas is missing").hint("--replicas N"));
    };
    let targets = match args.words.as_slice() {
        [word] if !word.contains('/') => {
            return Err(
                fail(format!("{word:?} is not KIND/NAME")).hint(format!("deployment/{word}"))
            );
        }
        words => resolve::targets(words)?,
    };
    for target in &targets {
        let kind = target.kind();
        if matches!(target, Target::All(_)) || !matches!(kind, Kind::Deployment | Kind::ReplicaSet)
        {
            return Err(fail(format!("cannot scale {}", kind.info().plural))
                .hint("name deployments or replica sets, as deployment/NAME"));
        }
    }
    let (items, failures) = resolve::fetch(ctx, &targets, &ctx.filter(false)).await?;
    let mut failed = !failures.is_empty();
    failures.iter().for_each(|failure| ctx.out.failure(failure));
    for item in &items {
        let current = replicas(&item.value);
        if let Some(expected) = args.current_replicas
            && current != i64::from(expected)
        {
            ctx.out.failure(&fail(format!(
                "{} has {current} replicas, not the expected {expected}",
                item.title()
            )));
            failed = true;
            continue;
        }
        ctx.client.merge_patch(&item.key(), &json!({"spec": {"replicas": wanted}})).await?;
        ctx.out.line(format!("{} scaled", item.title()))?;
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}
