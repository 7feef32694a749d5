//! `delete`: objects by name, label or manifest, and waiting until they are gone.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use timonier_proto::{Kind, ObjectKey};
use tokio::time::Instant;

use crate::cli::duration::Span;
use crate::client::calls::Deletion;
use crate::client::calls::Filter;
use crate::client::{Seen, Watch};
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::manifest;
use crate::output::objects::Format;
use crate::output::progress::Spinner;
use crate::resolve::{self, Item, Target};
use crate::verbs::apply::DryRun;

const EXAMPLES: &str = "\
Examples:
  timonctl delete pod web-1                      one pod; its replica set makes another
  timonctl delete deploy/web svc/web             several objects
  timonctl delete -f web.yaml                    what a manifest describes
  timonctl delete pods -l app=web --wait=false   by label, without waiting
  timonctl delete pod web-1 --force              without letting it end by itself
  timonctl delete namespace test                 a namespace and all that is in it";

/// How often an object is looked up beside the watch.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Requests on their way at the same time.
const REQUESTS_IN_FLIGHT_MAX: usize = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND NAME…, KIND/NAME…, or KIND with -l or --all
    #[arg(value_name = "OBJECTS")]
    pub words: Vec<String>,
    /// What a file or folder describes; - is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,
    /// With -f: look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Objects with these fields
    #[arg(long, value_name = "FIELDS", default_value = "", hide_default_value = true)]
    pub field_selector: String,
    /// All objects of the kinds in the namespace
    #[arg(long)]
    pub all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub wait: bool,
    /// How long to wait; 0 is without end
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true)]
    pub timeout: Span,
    /// Seconds that pods get to end by themselves
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub grace_period: Option<i64>,
    /// Remove pods at once, without waiting for their node
    #[arg(long)]
    pub force: bool,
    /// As --grace-period=1
    #[arg(long)]
    pub now: bool,
    /// What happens to objects that these own
    #[arg(long, value_name = "HOW", value_parser = ["background", "foreground", "orphan"],
          default_value = "background", num_args = 0..=1, require_equals = true,
          default_missing_value = "background")]
    pub cascade: String,
    /// Objects that do not exist are no error
    #[arg(long)]
    pub ignore_not_found: bool,
    #[command(flatten)]
    pub dry_run: DryRun,
    /// "name": print only kind/name
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let (items, mut failed) = chosen(&args, ctx).await?;
    if items.is_empty() && !failed {
        if !args.ignore_not_found {
            ctx.out.note("No resources found");
        }
        return Ok(());
    }
    let how = deletion(&args)?;
    if args.force {
        ctx.out.note("warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.");
    }
    let only_here = args.dry_run.client();
    let mut leaving = Vec::new();
    let mut requests = stream::iter(items)
        .map(|item| {
            let how = how.clone();
            async move {
                let result =
                    if only_here { Ok(true) } else { ctx.client.delete(&item.key(), &how).await };
                (item, result)
            }
        })
        .buffered(REQUESTS_IN_FLIGHT_MAX);
    while let Some((item, result)) = requests.next().await {
        match result {
            Ok(gone) => {
                said(&args, ctx, &item)?;
                if !gone {
                    leaving.push(item);
                }
            }
            Err(failure) if failure.is_not_found() && args.ignore_not_found => {}
            Err(failure) => {
                ctx.out.failure(&failure);
                failed = true;
            }
        }
    }
    drop(requests);
    let acted = !args.dry_run.client() && !args.dry_run.server();
    if args.wait && acted && !leaving.is_empty() {
        wait_gone(ctx, &leaving, args.timeout.0).await?;
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

fn said(args: &Args, ctx: &Ctx, item: &Item) -> Outcome {
    if args.output == Some(Format::Name) {
        return ctx.out.line(item.title());
    }
    let forced = if args.force { "force " } else { "" };
    let kind = item.kind.info().qualified_singular();
    ctx.out.line(format!("{kind} {:?} {forced}deleted{}", item.value.name(), args.dry_run.suffix()))
}

/// The objects meant, and whether some were not found.
async fn chosen(args: &Args, ctx: &Ctx) -> Outcome<(Vec<Item>, bool)> {
    if !args.files.is_empty() {
        return from_files(args, ctx);
    }
    let targets = resolve::targets(&args.words)?;
    resolve::check_names(&targets, args.all_namespaces, &args.selector)?;
    resolve::check_selector(&args.selector)?;
    let whole_kind = targets.iter().any(|t| matches!(t, Target::All(_)));
    let narrowed = args.all || !args.selector.is_empty() || !args.field_selector.is_empty();
    if whole_kind && !narrowed {
        return Err(fail("resource(s) were provided, but no name was specified")
            .hint("name the objects, choose by label with -l, or take --all"));
    }
    let filter = ctx
        .filter(args.all_namespaces)
        .labels(args.selector.clone())
        .fields(args.field_selector.clone());
    let (items, failures) = resolve::fetch(ctx, &targets, &filter).await?;
    if args.ignore_not_found {
        return Ok((items, false));
    }
    failures.iter().for_each(|failure| ctx.out.failure(failure));
    Ok((items, !failures.is_empty()))
}

/// Last first, so that what stands on something goes before it; a namespace goes last anyhow.
fn from_files(args: &Args, ctx: &Ctx) -> Outcome<(Vec<Item>, bool)> {
    if !args.words.is_empty() {
        return bail("name objects or a file, not both");
    }
    let mut items = Vec::new();
    for document in manifest::read(&args.files, args.recursive)? {
        crate::verbs::apply::check_namespace(ctx, &document)?;
        let mut item = crate::verbs::apply::item_of(&document, document.value.clone())?;
        if item.kind.info().namespaced && item.value.namespace().is_empty() {
            item.value["metadata"]["namespace"] = ctx.namespace().into();
        }
        if item.value.name().is_empty() {
            return bail(format!("{}: it has no name", document.place()));
        }
        items.push(item);
    }
    items.sort_by_key(|item| item.kind == Kind::Namespace);
    Ok((items, false))
}

fn deletion(args: &Args) -> Outcome<Deletion> {
    let grace = match (args.force, args.now, args.grace_period) {
        (true, _, Some(grace)) if grace > 0 => {
            return bail("--force and --grace-period greater than 0 cannot be specified together");
        }
        (true, ..) => Some(0),
        (_, true, Some(_)) => {
            return bail("--now and --grace-period cannot be specified together");
        }
        (_, true, None) => Some(1),
        (_, _, Some(0)) => {
            return Err(fail("--grace-period=0 removes a pod without waiting for its node")
                .hint("say --force as well if that is meant"));
        }
        (_, _, Some(grace)) if grace < 0 => None,
        (_, _, grace) => grace,
    };
    let propagation = match args.cascade.as_str() {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    Ok(Deletion {
        grace_seconds: grace,
        propagation: propagation.into(),
        dry_run: args.dry_run.server(),
        uid: String::new(),
    })
}

/// Waits until none of the objects is there, in the incarnation that was deleted. Zero waits
/// without end.
pub async fn wait_gone(ctx: &Ctx, items: &[Item], timeout: Duration) -> Outcome {
    let spinner = Spinner::start(&ctx.out);
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
    for (index, item) in items.iter().enumerate() {
        if ctx.out.lively {
            let left = items.len() - index;
            spinner.say(format!("waiting for {left} to go, {} first", item.title()));
        }
        let key = item.key();
        tokio::select! {
            gone = gone(ctx, &key, item.value.uid()) => gone?,
            () = at(deadline) => {
                return bail(format!("timed out waiting for the condition on {}", item.title()));
            }
            stop = crate::interrupted() => {
                stop?;
                return Err(fail(format!("interrupted while {} was still there", item.title()))
                    .hint("it goes on being deleted; timonctl get shows it"));
            }
        }
    }
    Ok(())
}

/// Ends at the deadline; never without one.
pub async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Returns when the object is gone or has become another one. Events make it quick; looking
/// beside them makes it sure.
async fn gone(ctx: &Ctx, key: &ObjectKey, uid: &str) -> Outcome {
    let filter = Filter::namespace(&key.namespace).fields(format!("metadata.name={}", key.name));
    let mut watch: Option<Watch> = None;
    loop {
        match ctx.client.get(key).await {
            Ok(object) if !uid.is_empty() && object.uid() != uid => return Ok(()),
            Ok(_) => {}
            Err(failure) if failure.is_not_found() => return Ok(()),
            Err(failure) => return Err(failure),
        }
        if watch.is_none() {
            watch = Some(ctx.client.watch(key.kind, &filter).await?);
        }
        let Some(watch) = &mut watch else { continue };
        // Either a deletion is seen, or it is time to look again.
        let _ = tokio::time::timeout(LOOK_INTERVAL, deleted(watch, uid)).await;
    }
}

async fn deleted(watch: &mut Watch, uid: &str) {
    loop {
        match watch.next().await {
            Ok(Seen::Deleted(object)) if uid.is_empty() || object.uid() == uid => return,
            Ok(Seen::Added(object)) if !uid.is_empty() && object.uid() != uid => return,
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}
