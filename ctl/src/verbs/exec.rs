//! `exec`: a command in a container, with a real terminal where one is asked for.

use std::io::IsTerminal;

use timonier_proto::v1::{
    ExecRequest, StreamEnd, StreamFrame, TerminalSize, stream_frame, stream_request,
};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Sender;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve;
use crate::verbs::logs;

const EXAMPLES: &str = "\
Examples:
  timonctl exec web-1 -- date                    run a command, print its output
  timonctl exec -it web-1 -- sh                  a shell
  timonctl exec deploy/web -c proxy -- env       in a container of one of a deployment's pods
  echo hello | timonctl exec -i web-1 -- cat     with standard input

The exit code is the command's own.";

/// Bytes of standard input a frame.
const CHUNK_BYTES: usize = 32 << 10;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// POD, or deploy/NAME, rs/NAME, svc/NAME for one of its pods
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The command and its arguments, after --
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<String>,
    /// Container; default: the pod's first
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Print nothing but what the command prints
    #[arg(short, long)]
    pub quiet: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let pods = resolve::pods_of(ctx, &args.pod).await?;
    let pod = &pods[0];
    let phase = pod.text("status.phase");
    if matches!(phase, "Succeeded" | "Failed") {
        return bail(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        ));
    }
    let terminal = std::io::stdin().is_terminal();
    let tty = args.tty && terminal;
    if args.tty && !terminal && !args.quiet {
        ctx.out.note("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let request = ExecRequest {
        namespace: ctx.namespace().to_owned(),
        pod: pod.name().to_owned(),
        container: container(pod, args.container.as_deref(), &args, ctx)?,
        command: args.command.clone(),
        stdin: args.stdin,
        tty,
        pod_uid: String::new(),
        size: tty.then(terminal_size).flatten(),
    };
    let end = converse(ctx, request).await?;
    if !end.error.is_empty() && end.exit_code == 0 {
        return bail(format!("exec in pod {}: {}", pod.name(), end.error));
    }
    match end.exit_code {
        0 => Ok(()),
        code => {
            if !args.quiet {
                let why =
                    if end.error.is_empty() { String::new() } else { format!(": {}", end.error) };
                ctx.out.note(format!("command terminated with exit code {code}{why}"));
            }
            Err(crate::told(u8::try_from(code).unwrap_or(1)))
        }
    }
}

fn container(
    pod: &serde_json::Value,
    wanted: Option<&str>,
    args: &Args,
    ctx: &Ctx,
) -> Outcome<String> {
    let names: Vec<&str> = pod.list("spec.containers").iter().map(|c| c.text("name")).collect();
    if let Some(name) = wanted {
        if !names.contains(&name) {
            return Err(fail(format!("container {name} not found in pod {}", pod.name()))
                .hint(format!("its containers are: {}", names.join(", "))));
        }
        return Ok(name.to_owned());
    }
    let annotated = pod.annotation("kubectl.kubernetes.io/default-container");
    if names.contains(&annotated) {
        return Ok(annotated.to_owned());
    }
    let first = names.first().copied().unwrap_or_default();
    if names.len() > 1 && !args.quiet {
        ctx.out.note(format!("Defaulted container {first:?} out of: {}", names.join(", ")));
    }
    Ok(first.to_owned())
}

async fn converse(ctx: &Ctx, request: ExecRequest) -> Outcome<StreamEnd> {
    let (stdin, tty) = (request.stdin, request.tty);
    let (sender, mut frames) = logs::open(ctx, stream_request::Request::Exec(request)).await?;
    // Put back when this function is left, whichever way.
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let input = stdin.then(|| tokio::spawn(send_input(sender.clone())));
    let resizes = tty.then(|| tokio::spawn(send_sizes(sender.clone())));
    let told = |error: std::io::Error| fail(format!("listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(told)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(told)?;
    let end = loop {
        let message = tokio::select! {
            message = frames.message() => message,
            _ = terminate.recv() => break Err(crate::told(143)),
            _ = hangup.recv() => break Err(crate::told(129)),
        };
        match message {
            Ok(Some(StreamFrame { frame: Some(frame) })) => match frame {
                stream_frame::Frame::Data(bytes) => ctx.out.bytes(&bytes)?,
                stream_frame::Frame::Stderr(bytes) => ctx.out.error_bytes(&bytes),
                stream_frame::Frame::End(end) => break Ok(end),
                _ => {}
            },
            Ok(Some(_)) => {}
            Ok(None) => break bail("the stream ended before the command did"),
            Err(status) => break Err(ctx.client.explained(status)),
        }
    };
    for task in [input, resizes].into_iter().flatten() {
        task.abort();
    }
    drop(sender);
    end
}

async fn send_input(sender: Sender<StreamFrame>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let frame = match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => stream_frame::Frame::HalfClose(true),
            Ok(count) => stream_frame::Frame::Data(buffer[..count].to_vec().into()),
        };
        let last = matches!(frame, stream_frame::Frame::HalfClose(_));
        if sender.send(StreamFrame { frame: Some(frame) }).await.is_err() || last {
            return;
        }
    }
}

async fn send_sizes(sender: Sender<StreamFrame>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let Some(size) = terminal_size() else { continue };
        let frame = StreamFrame { frame: Some(stream_frame::Frame::Resize(size)) };
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

fn terminal_size() -> Option<TerminalSize> {
    let (columns, rows) = crossterm::terminal::size().ok()?;
    Some(TerminalSize { columns: columns.into(), rows: rows.into() })
}

/// The terminal passes every key on; it is put back when this is dropped.
struct RawTerminal;

impl RawTerminal {
    fn enter() -> Outcome<Self> {
        crossterm::terminal::enable_raw_mode()
            .map(|()| RawTerminal)
            .map_err(|error| fail(format!("set the terminal up: {error}")))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}
