//! `load`: requests at a fixed pace, and what became of them.
//!
//! The pace is open-loop: request `i` is due at `start + i × interval` whatever the earlier ones
//! do, and its latency counts from when it was due, so a server that stalls cannot hide it by
//! holding the client back.

mod pace;
mod report;
mod send;
mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::report::Report;
use self::send::{Answer, Sender};
use crate::cli::duration::{Span, bare_is_ms, bare_is_s};
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::output::progress::Bar;

const EXAMPLES: &str = "\
Examples:
  timonctl load http://10.0.0.1:30080/                 1000 requests, one each 10 ms
  timonctl load svc/web --requests 5000 --interval 2   a service of the cluster, 500 a second
  timonctl load svc/web:http/work?ms=5 -n team         a port by its name, and a path
  timonctl load svc/web --interval 500us --keepalive   connections are kept and used again
  timonctl load svc/web -o json --fail-on-error        for a script

Each request is sent when it is due, whatever became of the earlier ones, and its latency counts
from that moment. It has failed when no whole answer came in time or its status is 400 or above.
Answers are counted by server when their first line holds \"pod NAME\".";

/// Time between two lines of progress where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two moves of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Most requests of one run, and most in flight.
const REQUESTS_MAX: u64 = 1_000_000_000;
const CONCURRENCY_MAX: u64 = 60_000;
/// Results that wait to be counted.
const RESULTS_QUEUED_MAX: usize = 4096;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// http://HOST[:PORT][/PATH], or svc/NAME[:PORT][/PATH] for a service of the cluster
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many requests to send
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=REQUESTS_MAX))]
    pub requests: u64,
    /// Time from one request to the next; a bare number is milliseconds
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = bare_is_ms)]
    pub interval: Span,
    /// Most requests in flight; beyond it the next ones wait, and their latency counts the wait
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=CONCURRENCY_MAX))]
    pub concurrency: u64,
    /// How long a request may take, connecting included; a bare number is seconds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = bare_is_s)]
    pub timeout: Span,
    /// Keep connections and use them again, instead of a fresh one for each request
    #[arg(long)]
    pub keepalive: bool,
    /// HTTP method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Exit with 1 when a request failed
    #[arg(long)]
    pub fail_on_error: bool,
    /// json instead of text
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    pub output: Option<String>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let method = args.method.to_ascii_uppercase().parse();
    let method = method.map_err(|_| fail(format!("{:?} is no HTTP method", args.method)))?;
    if args.timeout.0.is_zero() {
        return Err(fail("--timeout must be above zero"));
    }
    let target = target::resolve(ctx, &args.url).await?;
    raise_file_limit(args.concurrency);
    let sender = Arc::new(Sender::new(target, method, args.keepalive, args.timeout.0));
    let mut report = Report::new();
    let started = Instant::now();
    let ended = tokio::select! {
        ended = drive(&args, ctx, &sender, started, &mut report) => ended,
        stop = crate::interrupted() => {
            stop?;
            false
        }
    };
    report.finish(started.elapsed());
    if !ended {
        ctx.out.note("interrupted; this is what came of the requests so far");
    }
    let text = if args.output.is_some() { report.json() } else { report.text() };
    ctx.out.bytes(text.as_bytes())?;
    if args.fail_on_error && report.failed() > 0 { Err(crate::told(1)) } else { Ok(()) }
}

/// Sends everything and takes in all answers; true when it came to the end.
async fn drive(
    args: &Args,
    ctx: &Ctx,
    sender: &Arc<Sender>,
    started: Instant,
    report: &mut Report,
) -> bool {
    let bar = Bar::start(&ctx.out, "requests", args.requests, false);
    let (results, mut answers) = mpsc::channel(RESULTS_QUEUED_MAX);
    let due = pace::start(started, args.interval.0, args.requests);
    let room = Arc::new(Semaphore::new(usize::try_from(args.concurrency).unwrap_or(usize::MAX)));
    let mut dispatcher = JoinSet::new();
    dispatcher.spawn(dispatch(due, room, sender.clone(), results));
    let every = if ctx.out.lively { BAR_INTERVAL } else { PROGRESS_INTERVAL };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    loop {
        tokio::select! {
            answer = answers.recv() => match answer {
                Some((answer, latency)) => report.add(answer, latency),
                None => return true,
            },
            _ = ticks.tick() => {
                bar.set(report.requests());
                if !ctx.out.lively {
                    ctx.out.note(report.progress(args.requests, started.elapsed()));
                }
            }
        }
    }
}

/// Ends when the last answer is in; dropped, it takes what is in flight along.
async fn dispatch(
    mut due: mpsc::Receiver<Instant>,
    room: Arc<Semaphore>,
    sender: Arc<Sender>,
    results: mpsc::Sender<(Answer, Duration)>,
) {
    let mut in_flight = JoinSet::new();
    while let Some(due) = due.recv().await {
        while in_flight.try_join_next().is_some() {}
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (sender, results) = (sender.clone(), results.clone());
        in_flight.spawn(async move {
            let answer = sender.send().await;
            let latency = due.elapsed();
            drop(permit);
            // Nobody counts any more after an interruption.
            let _ = results.send((answer, latency)).await;
        });
    }
    while in_flight.join_next().await.is_some() {}
}

/// Each connection is a file; the usual limit of 1024 would count as failures of the server.
fn raise_file_limit(concurrency: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const OTHER_FILES: u64 = 64;
    let now = getrlimit(Resource::Nofile);
    let wanted = concurrency + OTHER_FILES;
    if now.current.is_some_and(|current| current < wanted) {
        let raised = now.maximum.map_or(wanted, |maximum| wanted.min(maximum));
        // Without it, requests beyond the limit fail and are counted as such.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: now.maximum });
    }
}

#[cfg(test)]
mod tests;
