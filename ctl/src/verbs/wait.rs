//! `wait`: for a condition, a field's value, the creation or the end of objects.

use std::time::Duration;

use futures::future;
use serde_json::Value;
use timonier_proto::ObjectKey;
use tokio::time::Instant;

use crate::cli::duration::Span;
use crate::client::Seen;
use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::jsonpath::Template;
use crate::manifest;
use crate::output::progress::Spinner;
use crate::resolve::{self, Item, Target};
use crate::verbs::delete;

const EXAMPLES: &str = "\
Examples:
  timonctl wait --for=condition=Available deploy/web --timeout 60s
  timonctl wait --for=condition=Ready pod -l app=web
  timonctl wait --for=delete pod/web-1
  timonctl wait --for=jsonpath='{.status.phase}'=Running pod/web-1
  timonctl wait --for=create pod/web-1";

/// An object that does not exist yet is looked for again after this.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND NAME…, KIND/NAME…, or KIND with -l or --all
    #[arg(value_name = "OBJECTS")]
    pub words: Vec<String>,
    /// condition=NAME[=VALUE], jsonpath=PATH[=VALUE], delete or create
    #[arg(long = "for", value_name = "WHAT")]
    pub what: What,
    /// How long to wait; 0 looks once
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub timeout: Span,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// All objects of the kind
    #[arg(long)]
    pub all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The objects that a manifest names
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,
    /// With -f: look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Delete,
    Create,
    Condition {
        name: String,
        value: String,
    },
    /// Any value when none is named.
    Path {
        path: Template,
        value: Option<String>,
    },
}

impl std::str::FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "delete" => Ok(What::Delete),
            None if text == "create" => Ok(What::Create),
            Some(("condition", rest)) => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
                Ok(What::Condition { name: name.to_owned(), value: value.to_ascii_lowercase() })
            }
            Some(("jsonpath", rest)) => {
                let (path, value) = match rest.rfind('}').map(|end| rest.split_at(end + 1)) {
                    Some((path, "")) => (path, None),
                    Some((path, value)) => {
                        (path, Some(value.strip_prefix('=').ok_or("a value stands after =")?))
                    }
                    None => match rest.split_once('=') {
                        Some((path, value)) => (path, Some(value)),
                        None => (rest, None),
                    },
                };
                let value = value.map(|v| v.trim_matches(['\'', '"']).to_owned());
                Ok(What::Path { path: Template::parse(path)?, value })
            }
            _ => Err(format!(
                "{text:?} is none of condition=NAME, jsonpath='{{.path}}'=VALUE, delete, create"
            )),
        }
    }
}

impl What {
    fn met(&self, object: &Value) -> bool {
        match self {
            What::Delete => false,
            What::Create => true,
            What::Condition { name, value } => {
                let conditions = object.list("status.conditions");
                let found = conditions.iter().find(|c| c.text("type").eq_ignore_ascii_case(name));
                let generation = object.int("metadata.generation");
                let observed = object.at("status.observedGeneration").as_i64();
                // A condition about an older spec says nothing yet.
                let fresh = observed.is_none_or(|o| o >= generation);
                fresh && found.is_some_and(|c| c.text("status").eq_ignore_ascii_case(value))
            }
            What::Path { path, value } => match value {
                Some(value) => path.render(object) == *value,
                None => !path.find(object).is_empty(),
            },
        }
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let deadline = Instant::now() + args.timeout.0;
    let targets = targets(&args)?;
    resolve::check_names(&targets, args.all_namespaces, &args.selector)?;
    resolve::check_selector(&args.selector)?;
    let whole_kind = targets.iter().any(|t| matches!(t, Target::All(_)));
    if whole_kind && args.selector.is_empty() && !args.all {
        return Err(fail("no name was specified")
            .hint("name the objects, choose by label with -l, or take --all"));
    }
    let filter = ctx.filter(args.all_namespaces).labels(args.selector.clone());
    if args.what == What::Create {
        return created(&args, ctx, &targets, deadline).await;
    }
    let (items, failures) = resolve::fetch(ctx, &targets, &filter).await?;
    if args.what != What::Delete {
        if let Some(failure) = failures.into_iter().next() {
            return Err(failure);
        }
        if items.is_empty() {
            return bail("no matching resources found");
        }
    }
    let spinner = Spinner::start(&ctx.out);
    if ctx.out.lively {
        spinner.say(format!("waiting for {} objects", items.len()));
    }
    let waits = items.iter().map(|item| wait_one(&args, ctx, item, deadline, &spinner));
    let results = tokio::select! {
        results = future::join_all(waits) => results,
        stop = crate::interrupted() => { stop?; return Err(crate::told(130)); }
    };
    drop(spinner);
    let mut failed = false;
    for failure in results.into_iter().filter_map(Result::err) {
        ctx.out.failure(&failure);
        failed = true;
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

fn targets(args: &Args) -> Outcome<Vec<Target>> {
    if args.files.is_empty() {
        return resolve::targets(&args.words);
    }
    let documents = manifest::read(&args.files, args.recursive)?;
    let target = |d: &manifest::Document| {
        let kind = resolve::kind_of(&d.value)
            .ok_or_else(|| fail(format!("{}: the kind is not known", d.place())))?;
        Ok(Target::Named(kind, d.value.name().to_owned()))
    };
    documents.iter().map(target).collect()
}

async fn created(args: &Args, ctx: &Ctx, targets: &[Target], deadline: Instant) -> Outcome {
    for target in targets {
        let Target::Named(kind, name) = target else {
            return bail("--for=create needs the names of the objects");
        };
        let key = ctx.key(*kind, name);
        loop {
            match ctx.client.get(&key).await {
                Ok(value) => {
                    ctx.out
                        .line(format!("{} condition met", Item { kind: *kind, value }.title()))?;
                    break;
                }
                Err(failure) if failure.is_not_found() && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                Err(failure) if failure.is_not_found() => return Err(timed_out(&key, args)),
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(())
}

fn timed_out(key: &ObjectKey, args: &Args) -> crate::error::Failure {
    let plural = key.kind.info().plural;
    let failure = fail(format!("timed out waiting for the condition on {plural}/{}", key.name));
    match args.what {
        What::Create => failure,
        _ => failure.hint(format!(
            "timonctl describe {} {} tells what it is doing",
            key.kind.info().singular,
            key.name
        )),
    }
}

async fn wait_one(
    args: &Args,
    ctx: &Ctx,
    item: &Item,
    deadline: Instant,
    spinner: &Spinner,
) -> Outcome {
    let key = item.key();
    let work = async {
        if args.what == What::Delete {
            let one = std::slice::from_ref(item);
            return delete::wait_gone(ctx, one, Duration::ZERO).await;
        }
        until_met(args, ctx, &key, &item.value).await
    };
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result?,
        Err(_) => return Err(timed_out(&key, args)),
    }
    spinner.suspend(|| ctx.out.line(format!("{} condition met", item.title())))
}

async fn until_met(args: &Args, ctx: &Ctx, key: &ObjectKey, now: &Value) -> Outcome {
    if args.what.met(now) {
        return Ok(());
    }
    let filter = Filter::namespace(&key.namespace).fields(format!("metadata.name={}", key.name));
    let mut watch = ctx.client.watch(key.kind, &filter).await?;
    loop {
        match watch.next().await? {
            Seen::Added(object) | Seen::Modified(object) if args.what.met(&object) => return Ok(()),
            Seen::Deleted(_) => {
                return bail(format!(
                    "{} {:?} was deleted while it was waited for",
                    key.kind.info().singular,
                    key.name
                ));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_waited_for_is_recognized() {
        let object = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "phase": "Running", "n": 3,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Bad", "status": "False"}]}});
        for (text, met) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Bad", false),
            ("condition=Bad=false", true),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Running", true),
            ("jsonpath={.status.n}=3", true),
            ("jsonpath={.status.n}=4", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath=.status.phase=Running", true),
            ("create", true),
            ("delete", false),
        ] {
            let text = text.replace('\'', "");
            assert_eq!(text.parse::<What>().unwrap().met(&object), met, "{text}");
        }
        assert!("ready".parse::<What>().is_err());
        let stale = json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(!"condition=Ready".parse::<What>().unwrap().met(&stale));
    }
}
