//! `logs`: of one pod, of a workload's pod, or of all pods with a label.

use std::time::Duration;

use futures::future;
use jiff::Timestamp;
use serde_json::Value;
use timonier_proto::Kind;
use timonier_proto::v1::{LogsRequest, StreamFrame, StreamRequest, stream_frame, stream_request};

use crate::cli::duration::Span;
use crate::client::CALL_TIMEOUT;
use crate::context::Ctx;
use crate::error::{Failure, Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve;

const EXAMPLES: &str = "\
Examples:
  timonctl logs web-1                        the logs of a pod
  timonctl logs -f deploy/web                follow those of one pod of a deployment
  timonctl logs -l app=web --tail 5          the last lines of all pods with a label
  timonctl logs web-1 -c proxy --since 10m   one container, the last ten minutes
  timonctl logs web-1 --previous             what it said before its last restart";

/// Lines of each pod by label, as kubectl has it.
const TAIL_BY_LABEL: i64 = 10;
/// Streams at the same time unless --max-log-requests says otherwise.
const STREAMS_MAX: usize = 50;
/// Frames waiting to be sent to the master.
const FRAMES_QUEUED_MAX: usize = 4;
/// A followed log that broke off is opened again after this.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// POD, or deploy/NAME, rs/NAME, svc/NAME for one of its pods; a container's name may follow
    #[arg(value_name = "POD", num_args = 0..=2)]
    pub words: Vec<String>,
    /// All pods with these labels, each line with its pod's name in front
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Container, where a pod has several
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// All containers of the pod
    #[arg(long)]
    pub all_containers: bool,
    /// Go on printing what is logged
    #[arg(short, long)]
    pub follow: bool,
    /// Of the run before the last restart
    #[arg(short, long)]
    pub previous: bool,
    /// Only what is younger than this: 10s, 5m, 1h
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Only what is younger than this moment (RFC 3339)
    #[arg(long, value_name = "MOMENT", conflicts_with = "since")]
    pub since_time: Option<Timestamp>,
    /// Only this many of the last lines; -1 is all
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    pub tail: Option<i64>,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<i64>,
    /// With the time of each line
    #[arg(long)]
    pub timestamps: bool,
    /// With the pod and container in front of each line
    #[arg(long)]
    pub prefix: bool,
    /// Streams to follow at the same time
    #[arg(long, value_name = "N", default_value_t = STREAMS_MAX)]
    pub max_log_requests: usize,
}

/// One container whose log is read.
struct Source {
    pod: String,
    container: String,
    prefix: String,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let sources = sources(&args, ctx).await?;
    if sources.len() > args.max_log_requests && args.follow {
        return Err(fail(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}",
            sources.len(),
            args.max_log_requests
        ))
        .hint("use --max-log-requests to increase the limit"));
    }
    if args.follow {
        let all = future::try_join_all(sources.iter().map(|source| read(&args, ctx, source)));
        return tokio::select! {
            done = all => done.map(|_| ()),
            stop = crate::interrupted() => stop,
        };
    }
    let mut failed = false;
    for source in &sources {
        match read(&args, ctx, source).await {
            Ok(()) => {}
            Err(failure @ Failure::OutputClosed) => return Err(failure),
            Err(failure) => {
                ctx.out.failure(&failure);
                failed = true;
            }
        }
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

async fn sources(args: &Args, ctx: &Ctx) -> Outcome<Vec<Source>> {
    let by_label = args.selector.is_some();
    let (pods, container) = match (&args.selector, args.words.as_slice()) {
        (Some(selector), []) => {
            resolve::check_selector(selector)?;
            let filter = ctx.filter(false).labels(selector.clone());
            (ctx.client.list(Kind::Pod, &filter).await?, args.container.clone())
        }
        (Some(_), _) => return bail("name a pod or a label, not both"),
        (None, []) => {
            return Err(
                fail("no pod was named").hint("timonctl logs POD, or -l LABELS for several")
            );
        }
        (None, [pod, rest @ ..]) => {
            let pods = resolve::pods_of(ctx, pod).await?;
            if pods.len() > 1 {
                ctx.out.note(format!("Found {} pods, using pod/{}", pods.len(), pods[0].name()));
            }
            (vec![pods[0].clone()], args.container.clone().or(rest.first().cloned()))
        }
    };
    if pods.is_empty() {
        ctx.out.note(format!("No resources found in {} namespace.", ctx.namespace()));
    }
    let prefixed = args.prefix || (by_label && pods.len() > 1);
    let mut sources = Vec::new();
    for pod in &pods {
        for name in containers(args, pod, container.as_deref())? {
            let prefix =
                if prefixed { format!("[pod/{}/{name}] ", pod.name()) } else { String::new() };
            sources.push(Source { pod: pod.name().to_owned(), container: name, prefix });
        }
    }
    Ok(sources)
}

fn containers(args: &Args, pod: &Value, wanted: Option<&str>) -> Outcome<Vec<String>> {
    let names = |path: &str| -> Vec<String> {
        pod.list(path).iter().map(|c| c.text("name").to_owned()).collect()
    };
    let (main, init) = (names("spec.containers"), names("spec.initContainers"));
    if args.all_containers {
        return Ok(init.into_iter().chain(main).collect());
    }
    if let Some(name) = wanted {
        if main.iter().chain(&init).any(|c| c == name) {
            return Ok(vec![name.to_owned()]);
        }
        let known = main.join(", ");
        return Err(fail(format!("container {name} is not valid for pod {}", pod.name()))
            .hint(format!("its containers are: {known}")));
    }
    let annotated = pod.annotation("kubectl.kubernetes.io/default-container");
    if main.iter().any(|c| c == annotated) {
        return Ok(vec![annotated.to_owned()]);
    }
    Ok(main.into_iter().take(1).collect())
}

async fn read(args: &Args, ctx: &Ctx, source: &Source) -> Outcome {
    let now = Timestamp::now();
    let since = args.since.and_then(|span| now.checked_sub(span.0).ok()).or(args.since_time);
    let by_label = args.selector.is_some();
    let tail = args.tail.or(by_label.then_some(TAIL_BY_LABEL)).filter(|n| *n >= 0);
    let mut request = LogsRequest {
        namespace: ctx.namespace().to_owned(),
        pod: source.pod.clone(),
        container: source.container.clone(),
        follow: args.follow,
        previous: args.previous,
        timestamps: args.timestamps,
        tail_lines: tail,
        since_unix_ms: since.map(Timestamp::as_millisecond),
        limit_bytes: args.limit_bytes,
        pod_uid: String::new(),
    };
    loop {
        match stream(ctx, source, &request).await {
            // The master went away in the middle: go on where it broke off, if it comes back.
            Err(Broken::Lost(at)) if args.follow => {
                request.tail_lines = None;
                request.since_unix_ms = Some(at.as_millisecond());
                tokio::time::sleep(REOPEN_PAUSE).await;
            }
            Err(Broken::Lost(_)) => {
                return bail(format!("the log of pod {} broke off", source.pod));
            }
            Err(Broken::Failed(failure)) => return Err(failure),
            Ok(()) => return Ok(()),
        }
    }
}

enum Broken {
    Lost(Timestamp),
    Failed(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Broken::Failed(failure)
    }
}

async fn stream(ctx: &Ctx, source: &Source, request: &LogsRequest) -> Result<(), Broken> {
    let (_keep_open, mut frames) =
        open(ctx, stream_request::Request::Logs(request.clone())).await?;
    let mut lines = Lines::default();
    loop {
        let frame = match frames.message().await {
            Ok(Some(frame)) => frame.frame,
            Ok(None) => break,
            Err(status)
                if status.details().is_empty() && status.code() == tonic::Code::Unavailable =>
            {
                return Err(Broken::Lost(Timestamp::now()));
            }
            Err(status) => return Err(ctx.client.explained(status).into()),
        };
        match frame {
            Some(stream_frame::Frame::Data(bytes) | stream_frame::Frame::Stderr(bytes)) => {
                if source.prefix.is_empty() {
                    ctx.out.bytes(&bytes)?;
                } else {
                    lines.push(&bytes, &source.prefix, |text| ctx.out.bytes(text))?;
                }
            }
            Some(stream_frame::Frame::End(end)) if !end.error.is_empty() => {
                return Err(fail(format!("logs of pod {}: {}", source.pod, end.error)).into());
            }
            Some(stream_frame::Frame::End(_)) => break,
            _ => {}
        }
    }
    lines.finish(&source.prefix, |text| ctx.out.bytes(text))?;
    Ok(())
}

/// Opens a stream and sends the request; the sender keeps our half open.
pub async fn open(
    ctx: &Ctx,
    request: stream_request::Request,
) -> Outcome<(tokio::sync::mpsc::Sender<StreamFrame>, tonic::Streaming<StreamFrame>)> {
    let first = StreamFrame {
        frame: Some(stream_frame::Frame::Request(StreamRequest { request: Some(request) })),
    };
    ctx.client
        .converse(first, FRAMES_QUEUED_MAX, CALL_TIMEOUT, |mut control, frames| async move {
            control.open(frames).await
        })
        .await
}

/// Puts a prefix in front of whole lines, so that those of several pods do not mix.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(
        &mut self,
        bytes: &[u8],
        prefix: &str,
        mut write: impl FnMut(&[u8]) -> Outcome,
    ) -> Outcome {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let mut text = Vec::new();
        for line in self.rest[..=end].split_inclusive(|b| *b == b'\n') {
            text.extend_from_slice(prefix.as_bytes());
            text.extend_from_slice(line);
        }
        self.rest.drain(..=end);
        write(&text)
    }

    fn finish(&mut self, prefix: &str, mut write: impl FnMut(&[u8]) -> Outcome) -> Outcome {
        if self.rest.is_empty() {
            return Ok(());
        }
        let mut text = prefix.as_bytes().to_vec();
        text.append(&mut self.rest);
        text.push(b'\n');
        write(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_stand_before_whole_lines() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for piece in ["a", "b\nc\nd", "e"] {
            lines
                .push(piece.as_bytes(), "> ", |t| {
                    out.extend_from_slice(t);
                    Ok(())
                })
                .unwrap();
        }
        lines
            .finish("> ", |t| {
                out.extend_from_slice(t);
                Ok(())
            })
            .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "> ab\n> c\n> de\n");
    }
}
