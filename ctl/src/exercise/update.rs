//! `update NAME IMAGE`: moves a running Deployment to a new image and times the phases.
//!
//! The rollout itself is the master's; this patches the image, watches, and says how it went. What
//! is seen is judged by [`Rollout`], which knows no network.

mod rollout;

use std::time::Duration;

use serde_json::{Value, json};
use timonier_proto::{Kind, ObjectKey};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cli::duration::Span;
use crate::client::calls::Filter;
use crate::client::{Seen, Watch};
use crate::context::Ctx;
use crate::error::{Failure, Outcome, bail, fail};
use crate::fields::Fields;
use crate::output::progress::Spinner;
use crate::resolve;

use self::rollout::{Phases, Rollout};

const EXAMPLES: &str = "\
Examples:
  timonctl update web timonier/web:v2           move deployment web to a new image
  timonctl update web timonier/web:v2 -c web    the container, where pods have several
  timonctl update web nginx:1.29 --timeout 2m   give up waiting after two minutes

New pods start beside the old ones and take over once they are ready, as the deployment's strategy
says, so that no request fails. Of a name that does not run nothing happens. The printed seconds
count from the moment the change was sent. When it goes wrong the old pods go on serving:
timonctl rollout undo deployment/NAME goes back.";

/// Events between the watches and the judge.
const EVENTS_QUEUED_MAX: usize = 256;
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Deployment, as NAME or deployment/NAME
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Image to move to
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Container whose image changes; may be left out where there is one
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// How long to wait until the new image runs everywhere; 0 waits without end
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: Span,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let key = target(&args, ctx)?;
    let deployment = running(ctx, &key).await?;
    let (index, old_image) = container(&args, &deployment)?;
    let name = &key.name;
    if old_image == args.image {
        return ctx.out.line(format!("{name} runs {} already; nothing was changed", args.image));
    }
    if deployment.flag("spec.paused") {
        return Err(fail(format!("update {name}: its rollout is paused; nothing was changed"))
            .hint(format!("timonctl rollout resume deployment/{name}")));
    }
    let selector = resolve::selector_of(Kind::Deployment, &deployment)?;
    let own = Filter::namespace(key.namespace.as_str()).fields(format!("metadata.name={name}"));
    let of_pods = Filter::namespace(key.namespace.as_str()).labels(selector);
    let pods = ctx.client.watch(Kind::Pod, &of_pods).await?;
    let deployments = ctx.client.watch(Kind::Deployment, &own).await?;

    let container = format!("/spec/template/spec/containers/{index}");
    let named = deployment.list("spec.template.spec.containers")[index].text("name");
    let patch = json!([
        {"op": "test", "path": format!("{container}/name"), "value": named},
        {"op": "replace", "path": format!("{container}/image"), "value": args.image},
    ]);
    let sent = Instant::now();
    let patched = ctx.client.json_patch(&key, &patch).await?;
    let mut rollout = Rollout::new(&patched, index, &args.image);
    let wanted = rollout.wanted;
    ctx.out.line(format!(
        "{name}: {old_image} -> {}, {wanted} {}",
        args.image,
        pods_word(wanted)
    ))?;
    phase(ctx, "accepted", sent.elapsed(), "")?;
    let waited = tokio::select! {
        waited = follow(ctx, &mut rollout, deployments, pods, sent) => Some(waited),
        () = passed(args.timeout.0) => None,
        stop = crate::interrupted() => Some(stop.and_then(|()| {
            Err(fail(format!("interrupted; {name} goes on moving to {}", args.image))
                .hint(format!("timonctl rollout status deployment/{name} goes on watching")))
        })),
    };
    let waited =
        waited.unwrap_or_else(|| Err(rollout.late(&format!("not done after {}", args.timeout))));
    match waited {
        Err(failure @ Failure::Local { .. }) if !has_hint(&failure) => {
            Err(failure.hint(format!("timonctl rollout undo deployment/{name}{}", flag(ctx))))
        }
        other => other,
    }
}

fn has_hint(failure: &Failure) -> bool {
    matches!(failure, Failure::Local { hint: Some(_), .. })
}

/// ` -n NAMESPACE` where it was typed, for commands in hints.
fn flag(ctx: &Ctx) -> String {
    if ctx.target.namespace_typed { format!(" -n {}", ctx.namespace()) } else { String::new() }
}

fn pods_word(count: i64) -> &'static str {
    if count == 1 { "pod" } else { "pods" }
}

fn target(args: &Args, ctx: &Ctx) -> Outcome<ObjectKey> {
    let (kind, name) = resolve::kind_and_name(&args.name, Kind::Deployment)?;
    match kind {
        Kind::Deployment => Ok(ctx.key(kind, &name)),
        Kind::Pod => Err(lone_pod(&name)),
        _ => Err(fail(format!("a {} cannot be moved to another image", kind.info().singular))
            .hint("name its deployment")),
    }
}

fn lone_pod(name: &str) -> Failure {
    fail(format!("update {name}: it is a pod, and a pod keeps its image; nothing was changed"))
        .hint("name the deployment it belongs to; a lone pod is deleted and made again")
}

/// The deployment, which must be there and want pods.
async fn running(ctx: &Ctx, key: &ObjectKey) -> Outcome<Value> {
    let name = &key.name;
    let not_running = |why: String| fail(format!("update {name}: {why}; nothing was changed"));
    match ctx.client.get(key).await {
        Ok(found) if found.at("spec.replicas").as_i64() == Some(0) => {
            Err(not_running(format!("deployment {name} is not running: it has no replicas"))
                .hint(format!("timonctl scale deployment/{name} --replicas 1{}", flag(ctx))))
        }
        Ok(found) => Ok(found),
        Err(failure) if failure.is_not_found() => {
            if ctx.client.get(&ctx.key(Kind::Pod, name)).await.is_ok() {
                return Err(lone_pod(name));
            }
            let namespace = ctx.namespace();
            let why = format!("no deployment of that name is running in namespace {namespace}");
            Err(not_running(why).hint("timonctl get deployments -A lists what runs"))
        }
        Err(failure) => Err(failure),
    }
}

/// Index and image of the container to change.
fn container<'a>(args: &Args, deployment: &'a Value) -> Outcome<(usize, &'a str)> {
    let containers = deployment.list("spec.template.spec.containers");
    let names = || containers.iter().map(|c| c.text("name")).collect::<Vec<_>>().join(", ");
    let index = match &args.container {
        Some(wanted) => {
            containers.iter().position(|c| c.text("name") == wanted).ok_or_else(|| {
                fail(format!("update {}: it has no container {wanted}", args.name))
                    .hint(format!("its containers are: {}", names()))
            })?
        }
        None if containers.len() == 1 => 0,
        None => {
            return Err(fail(format!("update {}: it has several containers", args.name))
                .hint(format!("choose one with -c: {}", names())));
        }
    };
    Ok((index, containers[index].text("image")))
}

/// Zero never passes.
async fn passed(timeout: Duration) {
    if timeout.is_zero() {
        std::future::pending::<()>().await;
    }
    sleep(timeout).await;
}

fn phase(ctx: &Ctx, name: &str, at: Duration, remark: &str) -> Outcome {
    let line = format!("{name:<20} {:>8.3} s   {remark}", at.as_secs_f64());
    ctx.out.line(line.trim_end())
}

/// An event of either watch.
enum Event {
    Deployment(Seen),
    Pod(Seen),
}

/// Prints each phase as it is reached.
async fn follow(
    ctx: &Ctx,
    rollout: &mut Rollout,
    deployments: Watch,
    pods: Watch,
    sent: Instant,
) -> Outcome {
    let (sender, mut events) = mpsc::channel(EVENTS_QUEUED_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(forward(deployments, sender.clone(), Event::Deployment));
    tasks.spawn(forward(pods, sender, Event::Pod));
    let spinner = ctx.out.lively.then(|| Spinner::start(&ctx.out));
    let mut reached = Phases::default();
    loop {
        let event = tokio::select! {
            ended = tasks.join_next() => {
                return ended.and_then(Result::ok).unwrap_or_else(|| bail("the watches ended"));
            }
            event = events.recv() => event,
        };
        let at = sent.elapsed();
        match event {
            Some(Event::Deployment(seen)) => rollout.deployment(seen)?,
            Some(Event::Pod(seen)) => rollout.pod(seen),
            None => continue,
        }
        let now = rollout.phases();
        let print = || -> Outcome {
            if now.first_ready && !reached.first_ready {
                phase(ctx, "first new pod ready", at, rollout.first_ready_pod())?;
            }
            if now.all_ready && !reached.all_ready {
                phase(ctx, "last new pod ready", at, &rollout.count())?;
            }
            if now.old_gone && !reached.old_gone {
                phase(ctx, "last old pod gone", at, "")?;
            }
            Ok(())
        };
        match &spinner {
            Some(spinner) => spinner.suspend(print)?,
            None => print()?,
        }
        reached = reached.and(now);
        if reached.first_ready && now.all_ready && now.old_gone {
            drop(spinner);
            return phase(ctx, "total", at, "");
        }
        rollout.check()?;
        if let Some(spinner) = &spinner {
            spinner.say(rollout.count());
        }
    }
}

async fn forward(
    mut watch: Watch,
    sender: mpsc::Sender<Event>,
    wrap: fn(Seen) -> Event,
) -> Outcome {
    loop {
        let seen = watch.next().await?;
        if sender.send(wrap(seen)).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::exercise::script::{Script, Scripted, ctx_of, printed};

    fn args(name: &str, image: &str) -> Args {
        let timeout = Span(Duration::from_secs(20));
        Args { name: name.into(), image: image.into(), container: None, timeout }
    }

    fn deployment(image: &str, replicas: i64) -> Value {
        json!({
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "c", "image": image}]}},
            },
            "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas},
        })
    }

    fn pod(name: &str, image: &str, ready: bool) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"containers": [{"name": "c", "image": image}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
        })
    }

    /// Waits until the patch is in.
    async fn patched(master: &Scripted) -> Value {
        loop {
            let deployment = master.get(Kind::Deployment, "web").unwrap();
            if deployment.int("metadata.generation") > 1 {
                return deployment;
            }
            tokio::task::yield_now().await;
        }
    }

    fn without_figures(text: &str) -> String {
        let digits = |line: &str| {
            line.split_whitespace()
                .map(
                    |word| {
                        if word.parse::<f64>().is_ok() && word.contains('.') { "N" } else { word }
                    },
                )
                .collect::<Vec<_>>()
                .join(" ")
        };
        text.lines().map(|line| digits(line) + "\n").collect()
    }

    #[tokio::test]
    async fn phases_are_told_as_they_are_reached() {
        let master = Script::default().serve().await;
        master.put(Kind::Deployment, deployment("web:v1", 1));
        master.put(Kind::Pod, pod("old", "web:v1", true));
        let (ctx, captured) = ctx_of(&master);
        let rollout = async {
            let mut deployment = patched(&master).await;
            master.put(Kind::Pod, pod("new", "web:v2", false));
            master.put(Kind::Pod, pod("new", "web:v2", true));
            deployment["status"] =
                json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1});
            master.put(Kind::Deployment, deployment.clone());
            while !printed(&captured).0.contains("last new pod ready") {
                tokio::task::yield_now().await;
            }
            assert!(!printed(&captured).0.contains("old pod gone"));
            master.remove(Kind::Pod, "old");
            deployment["status"]["replicas"] = json!(1);
            master.put(Kind::Deployment, deployment);
        };
        let (result, ()) = tokio::join!(run(args("web", "web:v2"), &ctx), rollout);
        result.unwrap();
        expect![[r#"
            web: web:v1 -> web:v2, 1 pod
            accepted N s
            first new pod ready N s new
            last new pod ready N s 1 of 1 new pods ready
            last old pod gone N s
            total N s
        "#]]
        .assert_eq(&without_figures(&printed(&captured).0));
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_pulled_is_named_with_a_way_back() {
        let master = Script::default().serve().await;
        master.put(Kind::Deployment, deployment("web:v1", 1));
        master.put(Kind::Pod, pod("old", "web:v1", true));
        let (ctx, _) = ctx_of(&master);
        let rollout = async {
            patched(&master).await;
            let mut broken = pod("new", "web:v9", false);
            broken["status"]["containerStatuses"] = json!([{"name": "c", "state": {"waiting":
                {"reason": "ErrImagePull", "message": "manifest unknown"}}}]);
            master.put(Kind::Pod, broken);
        };
        let (result, ()) = tokio::join!(run(args("web", "web:v9"), &ctx), rollout);
        expect![[r#"
            error: update web: pod new is in ErrImagePull: manifest unknown
            hint: timonctl rollout undo deployment/web"#]]
        .assert_eq(&result.unwrap_err().to_string());
    }

    #[tokio::test]
    async fn a_deadline_names_the_pod_that_is_late() {
        let master = Script::default().serve().await;
        master.put(Kind::Deployment, deployment("web:v1", 1));
        let mut unplaced = pod("new", "web:v2", false);
        unplaced["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]});
        master.put(Kind::Pod, unplaced);
        let (ctx, _) = ctx_of(&master);
        let mut args = args("deploy/web", "web:v2");
        args.timeout = Span(Duration::from_millis(300));
        expect![[r#"
            error: update web: not done after 300ms; pod new is not ready: Unschedulable: 0/1 nodes are available
            hint: timonctl rollout undo deployment/web"#]]
        .assert_eq(&run(args, &ctx).await.unwrap_err().to_string());
    }

    #[tokio::test]
    async fn what_does_not_run_is_left_alone() {
        let master = Script::default().serve().await;
        master.put(Kind::Deployment, deployment("web:v1", 0));
        master.put(Kind::Pod, pod("alone", "web:v1", true));
        let (ctx, captured) = ctx_of(&master);
        let mut told = Vec::new();
        for name in ["ghost", "web", "alone", "pod/alone", "svc/web"] {
            told.push(run(args(name, "web:v2"), &ctx).await.unwrap_err().to_string());
        }
        expect![[r#"
            error: update ghost: no deployment of that name is running in namespace default; nothing was changed
            hint: timonctl get deployments -A lists what runs
            error: update web: deployment web is not running: it has no replicas; nothing was changed
            hint: timonctl scale deployment/web --replicas 1
            error: update alone: it is a pod, and a pod keeps its image; nothing was changed
            hint: name the deployment it belongs to; a lone pod is deleted and made again
            error: update alone: it is a pod, and a pod keeps its image; nothing was changed
            hint: name the deployment it belongs to; a lone pod is deleted and made again
            error: a service cannot be moved to another image
            hint: name its deployment"#]]
        .assert_eq(&told.join("\n"));
        assert_eq!(master.get(Kind::Deployment, "web").unwrap(), deployment("web:v1", 0));

        master.put(Kind::Deployment, deployment("web:v1", 2));
        run(args("web", "web:v1"), &ctx).await.unwrap();
        assert_eq!(printed(&captured).0, "web runs web:v1 already; nothing was changed\n");
    }

    #[test]
    fn of_several_containers_one_is_chosen() {
        let mut object = deployment("web:v1", 1);
        object["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]);
        let error = container(&args("web", "z"), &object).unwrap_err().to_string();
        assert!(error.contains("choose one with -c: a, b"), "{error}");
        let chosen = Args { container: Some("b".into()), ..args("web", "z") };
        assert_eq!(container(&chosen, &object).unwrap(), (1, "y"));
    }
}
