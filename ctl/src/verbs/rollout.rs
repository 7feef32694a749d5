//! `rollout`: status, history, undo, pause, resume and restart of deployments.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};
use timonier_proto::Kind;

use crate::cli::duration::Span;
use crate::client::Seen;
use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::describe;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::output::progress::Spinner;
use crate::output::tabs;
use crate::resolve::{self, Item, Target};

const EXAMPLES: &str = "\
Examples:
  timonctl rollout status deploy/web --timeout 60s   follow a rollout to its end
  timonctl rollout history deploy/web                revisions
  timonctl rollout history deploy/web --revision 2   the pods of one
  timonctl rollout undo deploy/web                   back to the revision before
  timonctl rollout undo deploy/web --to-revision 1
  timonctl rollout restart deploy/web                new pods of the same revision";

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
const TEMPLATE_HASH: &str = "pod-template-hash";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, clap::Args)]
pub struct Objects {
    /// deploy/NAME… or deploy NAME…
    #[arg(value_name = "OBJECTS", required = true)]
    pub words: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Follow a rollout until it is through or has failed
    Status {
        #[command(flatten)]
        objects: Objects,
        /// Follow it; false looks once
        #[arg(short, long, default_value_t = true, num_args = 0..=1, require_equals = true,
              default_missing_value = "true", action = clap::ArgAction::Set)]
        watch: bool,
        /// How long to follow; 0 is without end
        #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true)]
        timeout: Span,
        /// Fail when another revision takes over
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        revision: i64,
    },
    /// List the revisions, or show one
    History {
        #[command(flatten)]
        objects: Objects,
        /// Show this revision
        #[arg(long, value_name = "N")]
        revision: Option<i64>,
    },
    /// Go back to an earlier revision
    Undo {
        #[command(flatten)]
        objects: Objects,
        /// Which one; 0 is the one before
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        to_revision: i64,
    },
    /// Hold changes back until resume
    Pause {
        #[command(flatten)]
        objects: Objects,
    },
    /// Roll held back changes out
    Resume {
        #[command(flatten)]
        objects: Objects,
    },
    /// Replace all pods, a few at a time
    Restart {
        #[command(flatten)]
        objects: Objects,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.action {
        Action::Status { objects, watch, timeout, revision } => {
            for item in deployments(ctx, &objects).await? {
                status(ctx, &item, watch, timeout.0, revision).await?;
            }
            Ok(())
        }
        Action::History { objects, revision } => {
            for item in deployments(ctx, &objects).await? {
                history(ctx, &item, revision).await?;
            }
            Ok(())
        }
        Action::Undo { objects, to_revision } => {
            for item in deployments(ctx, &objects).await? {
                undo(ctx, &item, to_revision).await?;
            }
            Ok(())
        }
        Action::Pause { objects } => pause(ctx, &objects, true).await,
        Action::Resume { objects } => pause(ctx, &objects, false).await,
        Action::Restart { objects } => {
            for item in deployments(ctx, &objects).await? {
                restart(ctx, &item).await?;
            }
            Ok(())
        }
    }
}

async fn deployments(ctx: &Ctx, objects: &Objects) -> Outcome<Vec<Item>> {
    let targets = resolve::targets(&objects.words)?;
    for target in &targets {
        if target.kind() != Kind::Deployment {
            return bail(format!(
                "{} have no rollouts; deployments do",
                target.kind().info().plural
            ));
        }
    }
    if targets.iter().any(|t| matches!(t, Target::All(_))) {
        return Err(fail("no deployment was named").hint("deploy/NAME"));
    }
    let (items, failures) = resolve::fetch(ctx, &targets, &ctx.filter(false)).await?;
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(items),
    }
}

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    Waiting(String),
    Done,
    Failed(String),
}

/// kubectl's judgement of a deployment, in its words.
pub fn progress(deployment: &Value) -> Progress {
    let name = deployment.name();
    if deployment.int("metadata.generation") > deployment.int("status.observedGeneration") {
        return Progress::Waiting("Waiting for deployment spec update to be observed...".into());
    }
    if deployment.condition("Progressing").text("reason") == "ProgressDeadlineExceeded" {
        return Progress::Failed(format!("deployment {name:?} exceeded its progress deadline"));
    }
    let wanted = deployment.at("spec.replicas").as_i64().unwrap_or(1);
    let (total, updated) =
        (deployment.int("status.replicas"), deployment.int("status.updatedReplicas"));
    let available = deployment.int("status.availableReplicas");
    let waiting = |what: String| {
        Progress::Waiting(format!("Waiting for deployment {name:?} rollout to finish: {what}..."))
    };
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if total > updated {
        return waiting(format!("{} old replicas are pending termination", total - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Progress::Done
}

async fn status(ctx: &Ctx, item: &Item, follow: bool, timeout: Duration, revision: i64) -> Outcome {
    let name = item.value.name();
    if !follow {
        return match progress(&item.value) {
            Progress::Waiting(text) => ctx.out.line(text),
            Progress::Done => ctx.out.line(format!("deployment {name:?} successfully rolled out")),
            Progress::Failed(why) => Err(failed_rollout(ctx, &item.value, why).await),
        };
    }
    let deadline = (!timeout.is_zero()).then(|| tokio::time::Instant::now() + timeout);
    tokio::select! {
        done = followed(ctx, &item.value, revision) => done,
        () = crate::verbs::delete::at(deadline) => {
            let why = stuck_pods(ctx, &item.value).await.unwrap_or_default();
            let because = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
            Err(fail(format!("timed out waiting for the rollout of deployment {name:?}{because}"))
                .hint(format!("timonctl describe deployment {name}")))
        }
        stop = crate::interrupted() => { stop?; Err(crate::told(130)) }
    }
}

async fn followed(ctx: &Ctx, deployment: &Value, revision: i64) -> Outcome {
    let name = deployment.name();
    let filter = Filter::namespace(deployment.namespace()).fields(format!("metadata.name={name}"));
    let mut watch = ctx.client.watch(Kind::Deployment, &filter).await?;
    let spinner = Spinner::start(&ctx.out);
    let mut last = String::new();
    loop {
        let object = match watch.next().await? {
            Seen::Added(object) | Seen::Modified(object) => object,
            Seen::Deleted(_) => return bail(format!("deployment {name:?} was deleted")),
            Seen::Reset => continue,
        };
        let current: i64 = object.annotation(REVISION).parse().unwrap_or(0);
        if revision > 0 && current != revision {
            return bail(format!(
                "desired revision ({revision}) is different from the running revision ({current})"
            ));
        }
        match progress(&object) {
            Progress::Done => {
                drop(spinner);
                return ctx.out.line(format!("deployment {name:?} successfully rolled out"));
            }
            Progress::Failed(why) => {
                drop(spinner);
                return Err(failed_rollout(ctx, &object, why).await);
            }
            Progress::Waiting(text) if ctx.out.lively => spinner.say(text),
            Progress::Waiting(text) if text != last => {
                ctx.out.line(&text)?;
                last = text;
            }
            Progress::Waiting(_) => {}
        }
    }
}

async fn failed_rollout(ctx: &Ctx, deployment: &Value, why: String) -> crate::error::Failure {
    let name = deployment.name();
    let pods = stuck_pods(ctx, deployment).await.unwrap_or_default();
    let because = if pods.is_empty() { String::new() } else { format!(" ({})", pods.join("; ")) };
    fail(format!("{why}{because}"))
        .hint(format!("timonctl rollout undo deployment/{name} goes back to the revision before"))
}

/// `pod web-1: ErrImagePull: …` of each pod that does not get ready, at most three.
pub async fn stuck_pods(ctx: &Ctx, deployment: &Value) -> Outcome<Vec<String>> {
    const SHOWN: usize = 3;
    let labels = resolve::selector_of(Kind::Deployment, deployment)?;
    let filter = Filter::namespace(deployment.namespace()).labels(labels);
    let pods = ctx.client.list(Kind::Pod, &filter).await?;
    Ok(pods.iter().filter_map(stuck).take(SHOWN).collect())
}

/// Why a pod does not get ready, when it says so.
pub fn stuck(pod: &Value) -> Option<String> {
    let name = pod.name();
    let statuses = ["status.initContainerStatuses", "status.containerStatuses"];
    for status in statuses.iter().flat_map(|path| pod.list(path)) {
        let waiting = status.at("state.waiting");
        let reason = waiting.text("reason");
        if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            let message = waiting.text("message");
            return Some(match message {
                "" => format!("pod {name}: {reason}"),
                _ => format!("pod {name}: {reason}: {message}"),
            });
        }
    }
    let scheduled = pod.condition("PodScheduled");
    (scheduled.text("status") == "False")
        .then(|| format!("pod {name}: {}", scheduled.text("message")))
}

/// The replica sets of a deployment by revision, oldest first.
async fn revisions(ctx: &Ctx, deployment: &Value) -> Outcome<Vec<(i64, Value)>> {
    let labels = resolve::selector_of(Kind::Deployment, deployment)?;
    let filter = Filter::namespace(deployment.namespace()).labels(labels);
    let sets = ctx.client.list(Kind::ReplicaSet, &filter).await?;
    let mut revisions: Vec<(i64, Value)> = sets
        .into_iter()
        .filter(|set| set.controller().text("uid") == deployment.uid())
        .filter_map(|set| Some((set.annotation(REVISION).parse().ok()?, set)))
        .collect();
    revisions.sort_by_key(|(revision, _)| *revision);
    Ok(revisions)
}

async fn history(ctx: &Ctx, item: &Item, wanted: Option<i64>) -> Outcome {
    let revisions = revisions(ctx, &item.value).await?;
    let Some(wanted) = wanted.filter(|n| *n > 0) else {
        let mut text = String::from("REVISION\tCHANGE-CAUSE\n");
        for (revision, set) in &revisions {
            let cause = match set.annotation(CHANGE_CAUSE) {
                "" => "<none>",
                cause => cause,
            };
            text.push_str(&format!("{revision}\t{cause}\n"));
        }
        ctx.out.line(item.title())?;
        return ctx.out.line(tabs::layout(&text, 0, 2));
    };
    let found = revisions.iter().find(|(revision, _)| *revision == wanted);
    let (_, set) = found.ok_or_else(|| no_revision(wanted, &revisions))?;
    ctx.out.line(format!("{} with revision #{wanted}", item.title()))?;
    ctx.out.bytes(describe::template_page(set, Timestamp::now()).as_bytes())
}

fn no_revision(wanted: i64, revisions: &[(i64, Value)]) -> crate::error::Failure {
    let known: Vec<String> = revisions.iter().map(|(r, _)| r.to_string()).collect();
    fail(format!("unable to find specified revision {wanted} in history"))
        .hint(format!("revisions that are kept: {}", known.join(", ")))
}

async fn undo(ctx: &Ctx, item: &Item, to: i64) -> Outcome {
    if item.value.flag("spec.paused") {
        return Err(fail(format!("cannot undo the paused {}", item.title()))
            .hint(format!("timonctl rollout resume {}", item.title())));
    }
    let revisions = revisions(ctx, &item.value).await?;
    let current: i64 = item.value.annotation(REVISION).parse().unwrap_or(0);
    let target = match to {
        0 => revisions.iter().rev().find(|(revision, _)| *revision < current),
        _ => revisions.iter().find(|(revision, _)| *revision == to),
    };
    let (revision, set) = match (target, to) {
        (Some(found), _) => found,
        (None, 0) => return bail(format!("no rollout history found for {}", item.title())),
        (None, _) => return Err(no_revision(to, &revisions)),
    };
    let template = without_hash(set.at("spec.template"));
    if template == without_hash(item.value.at("spec.template")) {
        return ctx.out.line(format!(
            "{} skipped rollback (current template already matches revision {revision})",
            item.title()
        ));
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    ctx.client.json_patch(&item.key(), &patch).await?;
    ctx.out.line(format!("{} rolled back", item.title()))
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
    }
    template
}

async fn pause(ctx: &Ctx, objects: &Objects, paused: bool) -> Outcome {
    let word = if paused { "paused" } else { "resumed" };
    for item in deployments(ctx, objects).await? {
        if item.value.flag("spec.paused") == paused {
            let state = if paused { "already paused" } else { "is not paused" };
            return bail(format!("{} {state}", item.title()));
        }
        let value = if paused { json!(true) } else { Value::Null };
        ctx.client.merge_patch(&item.key(), &json!({"spec": {"paused": value}})).await?;
        ctx.out.line(format!("{} {word}", item.title()))?;
    }
    Ok(())
}

async fn restart(ctx: &Ctx, item: &Item) -> Outcome {
    if item.value.flag("spec.paused") {
        return Err(fail(format!("cannot restart the paused {}", item.title()))
            .hint(format!("timonctl rollout resume {}", item.title())));
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}});
    ctx.client.merge_patch(&item.key(), &patch).await?;
    ctx.out.line(format!("{} restarted", item.title()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_kubectls_words() {
        let deployment = |generation: i64, total: i64, updated: i64, available: i64| {
            json!({"metadata": {"name": "web", "generation": generation}, "spec": {"replicas": 3},
                "status": {"observedGeneration": 1, "replicas": total, "updatedReplicas": updated, "availableReplicas": available}})
        };
        let text = |value: Value| match progress(&value) {
            Progress::Waiting(text) | Progress::Failed(text) => text,
            Progress::Done => "done".into(),
        };
        for (value, expected) in [
            (deployment(2, 3, 3, 3), "Waiting for deployment spec update to be observed..."),
            (
                deployment(1, 3, 1, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                deployment(1, 4, 3, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
            ),
            (
                deployment(1, 3, 3, 2),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
            ),
            (deployment(1, 3, 3, 3), "done"),
        ] {
            assert_eq!(text(value), expected);
        }
    }
}
