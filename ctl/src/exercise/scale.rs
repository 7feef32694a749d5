//! `scale NAME --latency MS --by N`: declares a `LatencyAutoscaler`, shows each measurement as it
//! comes in, and takes the autoscaler away at the end unless it is to stay.
//!
//! The agents measure and the master decides; this only declares and shows.

use std::time::Duration;

use serde_json::{Value, json};
use timonier_proto::latency::BEAT_INTERVAL_MS;
use timonier_proto::v1::{BeatsRequest, LatencyBeat, LatencyBeats};
use timonier_proto::{Kind, ObjectKey};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Streaming;

use crate::cli::duration::{Span, bare_is_ms, bare_is_s};
use crate::client::calls::{Deletion, Filter};
use crate::client::{Client, Seen, Watch};
use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};
use crate::fields::Fields;
use crate::resolve;

/// No beat for this long is worth a word.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// How long the autoscaler's removal is tried while no master answers.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Messages between the streams and the printer.
const NEWS_QUEUED_MAX: usize = 64;

/// Flags of `scale` that have it follow the latency. `--latency` switches it on.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Scaling on latency")]
pub struct LatencyArgs {
    /// Slower answers than this make the workload weak; a bare number is milliseconds
    #[arg(long, value_name = "MS", value_parser = bare_is_ms, requires = "by")]
    pub latency: Option<Span>,
    /// Replicas to add each time the workload turns weak
    #[arg(long, value_name = "N", requires = "latency", value_parser = clap::value_parser!(i32).range(1..))]
    pub by: Option<i32>,
    /// Never more replicas than this (10)
    #[arg(long, value_name = "N", requires = "latency", value_parser = clap::value_parser!(i32).range(1..))]
    pub max: Option<i32>,
    /// Never fewer replicas than this (what the workload has at the start)
    #[arg(long, value_name = "N", requires = "latency", value_parser = clap::value_parser!(i32).range(1..))]
    pub min: Option<i32>,
    /// Time before replicas are added again; a bare number is seconds (5s)
    #[arg(long, value_name = "TIME", requires = "latency", value_parser = bare_is_s)]
    pub cooldown: Option<Span>,
    /// Good for this long, the workload gives back a step; a bare number is seconds (60s)
    #[arg(long, value_name = "TIME", requires = "latency", value_parser = bare_is_s)]
    pub scale_down_after: Option<Span>,
    /// Path that is asked for by HTTP (/)
    #[arg(long, value_name = "PATH", requires = "latency", conflicts_with = "tcp")]
    pub path: Option<String>,
    /// Port that is measured (the first port of the pod's first container)
    #[arg(long, value_name = "PORT", requires = "latency")]
    pub port: Option<u16>,
    /// Measure a TCP connect instead of an HTTP request
    #[arg(long, requires = "latency")]
    pub tcp: bool,
    /// Language of the state: bon/faible or good/weak (the environment's)
    #[arg(long, value_name = "LANGUAGE", requires = "latency")]
    pub lang: Option<Lang>,
    /// Leave the autoscaler in the cluster at the end: it goes on by itself
    #[arg(long, requires = "latency")]
    pub declare: bool,
    /// End after this time instead of at Ctrl-C; 0 ends at once, of use with --declare
    #[arg(long, value_name = "TIME", requires = "latency", value_parser = bare_is_s)]
    pub duration: Option<Span>,
}

/// Examples for the help of `scale`.
pub const EXAMPLES: &str = "\
  timonctl scale web --latency 150 --by 3        print the latency ten times a second, and add 3
                                                 replicas whenever it is above 150 ms, until Ctrl-C
  timonctl scale web --latency 150 --by 3 --max 12 --cooldown 10s --scale-down-after 30s
                                                 within limits, and back when it is good again
  timonctl scale web --latency 150 --by 3 --declare --duration 0
                                                 have the cluster do it on its own from now on";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    Fr,
    En,
}

impl Lang {
    /// From the first of `LC_ALL`, `LC_MESSAGES` and `LANG` that says something.
    fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let told = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(variable);
        match told.into_iter().find(|text| !text.is_empty()) {
            Some(text) if text.to_ascii_lowercase().starts_with("fr") => Lang::Fr,
            _ => Lang::En,
        }
    }

    fn state(self, weak: bool) -> &'static str {
        match (self, weak) {
            (Lang::Fr, false) => "bon",
            (Lang::Fr, true) => "faible",
            (Lang::En, false) => "good",
            (Lang::En, true) => "weak",
        }
    }
}

/// `word` is `web`, `deployment/web` or `rs/web`.
pub async fn run(word: &str, args: &LatencyArgs, ctx: &Ctx) -> Outcome {
    let (kind, name) = resolve::kind_and_name(word, Kind::Deployment)?;
    if !matches!(kind, Kind::Deployment | Kind::ReplicaSet) {
        return Err(fail(format!("a {} cannot be scaled", kind.info().singular))
            .hint(format!("only deployments and replica sets can: deployment/{name}")));
    }
    let target = ctx.key(kind, &name);
    let policy = policy(args, &target)?;
    let workload =
        ctx.client.get(&target).await.map_err(|failure| absent(ctx, failure, &target))?;
    let lang = args.lang.unwrap_or_else(|| Lang::of_environment(|name| std::env::var(name).ok()));
    let key = ctx.key(Kind::LatencyAutoscaler, &name);
    // From here on Ctrl-C must not leave the autoscaler behind.
    let stop = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(crate::interrupted()));
    let made = ctx.client.create(&policy, ctx.namespace(), false).await;
    let made = made.map_err(|failure| exists(failure, &name))?;
    let shown = tokio::select! {
        shown = show(ctx, &target, &key, lang, replicas(&workload)) => shown,
        () = ended(args.duration) => Ok(()),
        stop = stop => stop.unwrap_or(Ok(())),
    };
    if args.declare {
        let command = format!("timonctl delete latencyautoscaler/{name} -n {}", key.namespace);
        ctx.out.note(format!("{name}: the autoscaler goes on; {command} ends it"));
        return shown;
    }
    remove(ctx, &key, made.uid()).await?;
    shown
}

async fn ended(duration: Option<Span>) {
    match duration {
        Some(span) => sleep(span.0).await,
        None => std::future::pending().await,
    }
}

fn absent(ctx: &Ctx, failure: Failure, target: &ObjectKey) -> Failure {
    if !failure.is_not_found() {
        return failure;
    }
    fail(format!(
        "scale {}: there is no {} of that name in namespace {}; nothing was changed",
        target.name,
        target.kind.info().singular,
        ctx.namespace()
    ))
    .hint("timonctl get deployments -A lists what runs")
}

fn exists(failure: Failure, name: &str) -> Failure {
    if !failure.is_reason(timonier_proto::Reason::AlreadyExists) {
        return failure;
    }
    fail(format!("scale {name}: {name} has a latency autoscaler already; nothing was changed"))
        .hint(format!(
            "timonctl get latencyautoscaler {name} shows it, timonctl delete latencyautoscaler/{name} takes it away"
        ))
}

/// The autoscaler's manifest.
fn policy(args: &LatencyArgs, target: &ObjectKey) -> Outcome<Value> {
    let latency_ms = whole(args.latency, 1, "--latency", "1 ms")?;
    if let (Some(min), Some(max)) = (args.min, args.max)
        && min > max
    {
        return Err(fail(format!("--min {min} is above --max {max}")));
    }
    let mut spec = json!({
        "scaleTargetRef": {
            "apiVersion": target.kind.info().api_version(),
            "kind": target.kind.info().name,
            "name": target.name,
        },
        "latencyMilliseconds": latency_ms,
        "step": args.by.unwrap_or(1),
    });
    let optional = [
        ("minReplicas", args.min.map(Value::from)),
        ("maxReplicas", args.max.map(Value::from)),
        ("cooldownSeconds", seconds(args.cooldown, "--cooldown")?),
        ("scaleDownSeconds", seconds(args.scale_down_after, "--scale-down-after")?),
        ("probe", probe(args)),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            spec[field] = value;
        }
    }
    let info = Kind::LatencyAutoscaler.info();
    Ok(json!({
        "apiVersion": info.api_version(),
        "kind": info.name,
        "metadata": {"name": target.name, "namespace": target.namespace},
        "spec": spec,
    }))
}

fn probe(args: &LatencyArgs) -> Option<Value> {
    let mut probe = serde_json::Map::new();
    if let Some(port) = args.port {
        probe.insert("port".into(), port.into());
    }
    if let Some(path) = &args.path {
        let slash = if path.starts_with('/') { "" } else { "/" };
        probe.insert("path".into(), format!("{slash}{path}").into());
    }
    if args.tcp {
        probe.insert("tcp".into(), true.into());
    }
    (!probe.is_empty()).then(|| probe.into())
}

/// A whole number of units of `unit_ms`, at least one.
fn whole(span: Option<Span>, unit_ms: u128, flag: &str, least: &str) -> Outcome<u32> {
    let ms = span.unwrap_or_default().0.as_millis();
    match u32::try_from(ms / unit_ms) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(fail(format!("{flag} is out of range; it must be at least {least}"))),
    }
}

fn seconds(span: Option<Span>, flag: &str) -> Outcome<Option<Value>> {
    match span {
        None => Ok(None),
        Some(span) if span.0.is_zero() => Ok(Some(0.into())),
        Some(_) => whole(span, 1000, flag, "1 s").map(|count| Some(count.into())),
    }
}

/// What the streams have to say.
enum News {
    Beats(LatencyBeats),
    Replicas(i64),
    Told(String),
}

/// Prints until the output is closed or the target is gone.
async fn show(
    ctx: &Ctx,
    target: &ObjectKey,
    policy: &ObjectKey,
    lang: Lang,
    mut replicas: i64,
) -> Outcome {
    let (sender, mut news) = mpsc::channel(NEWS_QUEUED_MAX);
    let request = BeatsRequest { namespace: policy.namespace.clone(), name: policy.name.clone() };
    let filter = Filter::namespace(target.namespace.as_str())
        .fields(format!("metadata.name={}", target.name));
    let watch = ctx.client.watch(target.kind, &filter).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_beats(ctx.client.clone(), request, sender.clone()));
    tasks.spawn(follow_replicas(watch, target.name.clone(), sender));
    let mut silent_since = Instant::now();
    let mut has_moaned = false;
    loop {
        tokio::select! {
            ended = tasks.join_next() => {
                return ended.and_then(Result::ok).unwrap_or(Ok(()));
            }
            () = sleep_until(silent_since + SILENCE_MAX), if !has_moaned => {
                has_moaned = true;
                ctx.out.note(format!(
                    "{}: no measurement for {} s; timonctl get pods tells whether a pod of it runs",
                    target.name,
                    SILENCE_MAX.as_secs()
                ));
            }
            told = news.recv() => match told {
                Some(News::Beats(beats)) => {
                    (silent_since, has_moaned) = (Instant::now(), false);
                    let lines: String =
                        beats.beats.iter().map(|beat| line(&target.name, beat, lang)).collect();
                    ctx.out.bytes(lines.as_bytes())?;
                }
                Some(News::Replicas(now)) if now != replicas => {
                    let how = if now > replicas { "scaled up" } else { "scaled down" };
                    ctx.out.note(format!("{}: {how} from {replicas} to {now} replicas", target.name));
                    replicas = now;
                }
                Some(News::Told(text)) => ctx.out.note(text),
                Some(News::Replicas(_)) | None => {}
            }
        }
    }
}

/// The exercise's line: `<name>  <latency in ms>  <state>`.
fn line(name: &str, beat: &LatencyBeat, lang: Lang) -> String {
    let weak = beat.weak || beat.failed;
    format!("{name}  {:.1}  {}\n", f64::from(beat.latency_us) / 1000.0, lang.state(weak))
}

fn replicas(workload: &Value) -> i64 {
    workload.at("spec.replicas").as_i64().unwrap_or(1)
}

/// Ends when nobody listens any more, or with a refusal.
async fn follow_beats(
    client: Client,
    request: BeatsRequest,
    sender: mpsc::Sender<News>,
) -> Outcome {
    let mut pause = BACKOFF_FIRST;
    let mut is_lost = false;
    loop {
        let opened = client
            .open(
                request.clone(),
                |mut control, request| async move { control.beats(request).await },
            )
            .await;
        let why = match opened {
            Ok(stream) => {
                let (count, status) = forward(stream, &sender).await;
                if sender.is_closed() {
                    return Ok(());
                }
                if count > 0 {
                    (pause, is_lost) = (BACKOFF_FIRST, false);
                }
                status.map(|status| match status.details() {
                    [] => fail("the connection to the master broke"),
                    _ => client.explained(status),
                })
            }
            Err(failure @ Failure::Server { .. }) if !transient(&failure) => return Err(failure),
            Err(failure) => Some(failure),
        };
        if !std::mem::replace(&mut is_lost, true) {
            let why = why.map_or_else(|| "the master ended the stream".into(), |f| f.to_string());
            let first = why.lines().next().unwrap_or_default();
            let text = format!("{}; trying again", first.trim_start_matches("error: "));
            let _ = sender.send(News::Told(text)).await;
        }
        sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

fn transient(failure: &Failure) -> bool {
    failure.is_reason(timonier_proto::Reason::Unavailable)
        || failure.is_reason(timonier_proto::Reason::Timeout)
}

/// How many batches came before the stream broke, and why it did.
async fn forward(
    mut stream: Streaming<LatencyBeats>,
    sender: &mpsc::Sender<News>,
) -> (u64, Option<tonic::Status>) {
    let mut count = 0;
    loop {
        match stream.message().await {
            Ok(Some(beats)) => {
                count += 1;
                if sender.send(News::Beats(beats)).await.is_err() {
                    return (count, None);
                }
            }
            Ok(None) => return (count, None),
            Err(status) => return (count, Some(status)),
        }
    }
}

async fn follow_replicas(mut watch: Watch, name: String, sender: mpsc::Sender<News>) -> Outcome {
    loop {
        let now = match watch.next().await? {
            Seen::Added(object) | Seen::Modified(object) => replicas(&object),
            Seen::Deleted(_) => return Err(fail(format!("{name} was deleted"))),
            Seen::Reset => continue,
        };
        if sender.send(News::Replicas(now)).await.is_err() {
            return Ok(());
        }
    }
}

/// Takes away the autoscaler that was made, and no other of that name.
async fn remove(ctx: &Ctx, key: &ObjectKey, uid: &str) -> Outcome {
    let how = Deletion { uid: uid.to_owned(), ..Default::default() };
    let removed = timeout(REMOVAL_TIMEOUT, async {
        let mut pause = BACKOFF_FIRST;
        loop {
            match ctx.client.delete(key, &how).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.is_not_found() => return Ok(()),
                Err(failure @ Failure::Server { .. }) if !transient(&failure) => {
                    return Err(failure);
                }
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    });
    removed.await.unwrap_or_else(|_| {
        Err(fail(format!("take the latency autoscaler {} away: no master answers", key.name)).hint(
            format!("it goes on; timonctl delete latencyautoscaler/{} ends it later", key.name),
        ))
    })
}

/// The pace of the lines, for the help of those who read them.
const _: () = assert!(BEAT_INTERVAL_MS == 100, "the help says ten times a second");

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::exercise::script::{Script, ctx_of, printed};

    fn args() -> LatencyArgs {
        LatencyArgs {
            latency: Some(Span(Duration::from_millis(50))),
            by: Some(2),
            lang: Some(Lang::Fr),
            duration: Some(Span(Duration::from_millis(1500))),
            ..Default::default()
        }
    }

    fn deployment(replicas: i64) -> Value {
        json!({"kind": "Deployment", "metadata": {"name": "slow"}, "spec": {"replicas": replicas}})
    }

    fn beat(latency_us: u32, weak: bool) -> LatencyBeat {
        LatencyBeat {
            latency_us,
            weak,
            pod: "slow-1".into(),
            target: "slow".into(),
            ..Default::default()
        }
    }

    #[test]
    fn flags_become_the_policy() {
        let target = ObjectKey::new(Kind::Deployment, "team", "web");
        let args = LatencyArgs {
            max: Some(6),
            cooldown: Some(Span(Duration::from_secs(1))),
            scale_down_after: Some(Span(Duration::from_secs(30))),
            path: Some("healthz".into()),
            port: Some(8080),
            ..args()
        };
        let spec = policy(&args, &target).unwrap()["spec"].to_string();
        expect![[r#"{"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"web"},"latencyMilliseconds":50,"step":2,"maxReplicas":6,"cooldownSeconds":1,"scaleDownSeconds":30,"probe":{"port":8080,"path":"/healthz"}}"#]].assert_eq(&spec);
        let zero = LatencyArgs { latency: Some(Span(Duration::ZERO)), ..args.clone() };
        assert!(policy(&zero, &target).is_err());
        assert!(policy(&LatencyArgs { min: Some(7), ..args }, &target).is_err());
    }

    #[test]
    fn the_language_is_the_environments() {
        let of = |pairs: &[(&str, &str)]| {
            Lang::of_environment(|name| {
                pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned())
            })
        };
        assert_eq!(of(&[("LANG", "fr_FR.UTF-8")]), Lang::Fr);
        assert_eq!(of(&[("LANG", "fr_FR.UTF-8"), ("LC_ALL", "C")]), Lang::En);
        assert_eq!(of(&[("LC_ALL", ""), ("LANG", "fr")]), Lang::Fr);
        assert_eq!(of(&[]), Lang::En);
    }

    #[tokio::test]
    async fn beats_and_steps_are_printed_and_the_policy_goes_at_the_end() {
        let beats = |list: Vec<LatencyBeat>| LatencyBeats { beats: list };
        let script = Script {
            beats: vec![
                vec![beats(vec![beat(12_340, false)])],
                vec![beats(vec![beat(180_060, true), beat(49_999, false)])],
            ],
            ..Script::default()
        };
        let master = script.serve().await;
        master.put(Kind::Deployment, deployment(1));
        let (ctx, captured) = ctx_of(&master);
        let scaling = async {
            while !printed(&captured).0.contains("180.1") {
                tokio::task::yield_now().await;
            }
            assert!(master.get(Kind::LatencyAutoscaler, "slow").is_some());
            master.put(Kind::Deployment, deployment(3));
        };
        let args = args();
        let (result, ()) = tokio::join!(run("slow", &args, &ctx), scaling);
        result.unwrap();
        let (out, err) = printed(&captured);
        expect![[r#"
            slow  12.3  bon
            slow  180.1  faible
            slow  50.0  bon
        "#]]
        .assert_eq(&out);
        expect![[r#"
            the master ended the stream; trying again
            slow: scaled up from 1 to 3 replicas
        "#]]
        .assert_eq(&err);
        assert_eq!(*master.deleted.lock().unwrap(), ["LatencyAutoscaler/slow"]);
    }

    #[tokio::test]
    async fn declared_it_stays_and_a_second_one_is_refused() {
        let master = Script::default().serve().await;
        master.put(Kind::Deployment, deployment(1));
        let (ctx, captured) = ctx_of(&master);
        let declared =
            LatencyArgs { declare: true, duration: Some(Span(Duration::ZERO)), ..args() };
        run("deployment/slow", &declared, &ctx).await.unwrap();
        assert!(printed(&captured).1.contains("timonctl delete latencyautoscaler/slow"));
        let refused = run("slow", &args(), &ctx).await.unwrap_err().to_string();
        expect![[r#"
            error: scale slow: slow has a latency autoscaler already; nothing was changed
            hint: timonctl get latencyautoscaler slow shows it, timonctl delete latencyautoscaler/slow takes it away"#]]
        .assert_eq(&refused);
        assert!(
            master.get(Kind::LatencyAutoscaler, "slow").is_some(),
            "the first one is left alone"
        );
    }

    #[tokio::test]
    async fn of_a_name_that_is_not_there_nothing_happens() {
        let master = Script::default().serve().await;
        let (ctx, _) = ctx_of(&master);
        let refused = run("ghost", &args(), &ctx).await.unwrap_err().to_string();
        expect![[r#"
            error: scale ghost: there is no deployment of that name in namespace default; nothing was changed
            hint: timonctl get deployments -A lists what runs"#]]
        .assert_eq(&refused);
        assert!(master.get(Kind::LatencyAutoscaler, "ghost").is_none());
        assert!(run("pod/x", &args(), &ctx).await.is_err());
    }
}
