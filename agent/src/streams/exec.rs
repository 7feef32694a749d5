//! A command in a running container, with its input, outputs, terminal and exit code.
//!
//! When the person goes away, the command's input ends; the command itself is not killed, as with
//! kubectl.

use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use timonier_proto::v1::stream_frame::Frame;
use timonier_proto::v1::{ExecRequest, TerminalSize as WireSize};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::peer::{Ended, Peer, Replies};
use super::{Streams, container, data};
use crate::runtime::{ExecSession, ExecSpec, Items, Output, Runtime, TerminalSize};

/// An engine may close a command's output shortly before it knows how the command ended.
const EXIT_CODE_DEADLINE: Duration = Duration::from_secs(5);
const EXIT_CODE_INTERVAL: Duration = Duration::from_millis(20);

type Input = Pin<Box<dyn AsyncWrite + Send>>;

pub(super) async fn serve(
    streams: &Streams,
    request: ExecRequest,
    peer: &mut Peer,
) -> Result<i32, Ended> {
    let pod = streams.pod(&request.pod_uid, &request.namespace, &request.pod)?;
    let id = container::for_exec(&pod, &request.container)?;
    let spec = ExecSpec {
        command: request.command,
        stdin: request.stdin,
        tty: request.tty,
        size: request.size.map(size),
    };
    let runtime = &*streams.runtime;
    let ExecSession { id: exec, input, output } = runtime.exec(&id, spec).await?;
    let replies = peer.replies();
    let input = request.stdin.then_some(input);
    tokio::select! {
        done = send_output(output, &replies) => done?,
        ended = take_input(runtime, &exec, input, peer) => return Err(ended),
        // Also while the command does not take what it was sent.
        ended = replies.gone() => return Err(ended),
    }
    exit_code(runtime, &exec).await
}

async fn send_output(mut output: Items<Output>, replies: &Replies) -> Result<(), Ended> {
    while let Some(piece) = output.next().await {
        let frame = match piece? {
            Output::Stdout(bytes) => data(bytes),
            Output::Stderr(bytes) => Frame::Stderr(bytes),
        };
        replies.send(frame).await?;
    }
    Ok(())
}

/// Until the peer goes; that its input has ended is no reason to.
async fn take_input(
    runtime: &dyn Runtime,
    exec: &str,
    mut input: Option<Input>,
    peer: &mut Peer,
) -> Ended {
    loop {
        let frame = match peer.next().await {
            Ok(frame) => frame,
            Err(ended) => {
                if let Some(mut input) = input {
                    let _ = input.shutdown().await;
                }
                return ended;
            }
        };
        match (frame, &mut input) {
            (Frame::Data(bytes), Some(to_command)) => {
                let written = async {
                    to_command.write_all(&bytes).await?;
                    to_command.flush().await
                };
                // A command may close its input and go on.
                if written.await.is_err() {
                    input = None;
                }
            }
            (Frame::HalfClose(true), Some(to_command)) => {
                let _ = to_command.shutdown().await;
                input = None;
            }
            (Frame::Resize(to), _) => {
                if let Err(error) = runtime.exec_resize(exec, size(to)).await {
                    tracing::debug!(%error, "the terminal keeps its size");
                }
            }
            _ => {}
        }
    }
}

async fn exit_code(runtime: &dyn Runtime, exec: &str) -> Result<i32, Ended> {
    let start = Instant::now();
    loop {
        if let Some(code) = runtime.exec_exit_code(exec).await? {
            return Ok(code);
        }
        if start.elapsed() > EXIT_CODE_DEADLINE {
            let text = "the command closed its output, but goes on; how it ends is not known";
            return Err(Ended::Failed(text.to_owned()));
        }
        sleep(EXIT_CODE_INTERVAL).await;
    }
}

fn size(size: WireSize) -> TerminalSize {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    TerminalSize { columns: cells(size.columns), rows: cells(size.rows) }
}
