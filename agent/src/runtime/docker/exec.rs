//! Commands in running containers.

use bollard::Docker;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures::StreamExt;

use super::convert::{failed, output};
use crate::runtime::{ExecSession, ExecSpec, RuntimeError, RuntimeErrorKind, TerminalSize};

pub(super) async fn start(
    docker: &Docker,
    id: &str,
    spec: ExecSpec,
) -> Result<ExecSession, RuntimeError> {
    let what = format!("run {:?} in container {id}", spec.command.first());
    let options = CreateExecOptions {
        attach_stdin: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(spec.tty),
        cmd: Some(spec.command),
        ..Default::default()
    };
    let exec = docker.create_exec(id, options).await.map_err(|error| failed(&what, error))?.id;
    let options = StartExecOptions { detach: false, tty: spec.tty, output_capacity: None };
    let started =
        docker.start_exec(&exec, Some(options)).await.map_err(|error| failed(&what, error))?;
    let StartExecResults::Attached { output: stream, input } = started else {
        let text = "docker detached it";
        return Err(RuntimeError::new(RuntimeErrorKind::Refused, what, text));
    };
    if let Some(size) = spec.size.filter(|_| spec.tty) {
        // The command runs all the same; the size is told again when it changes.
        if let Err(error) = resize(docker, &exec, size).await {
            tracing::debug!(%error, "the terminal keeps its default size");
        }
    }
    let stream = stream.map(move |item| match item {
        Ok(item) => Ok(output(item)),
        Err(error) => Err(failed(&what, error)),
    });
    Ok(ExecSession { id: exec, input, output: Box::pin(stream) })
}

pub(super) async fn resize(
    docker: &Docker,
    exec: &str,
    size: TerminalSize,
) -> Result<(), RuntimeError> {
    let options = ResizeExecOptions { height: size.rows, width: size.columns };
    let done = docker.resize_exec(exec, options).await;
    done.map_err(|error| failed("resize the terminal", error))
}

pub(super) async fn exit_code(docker: &Docker, exec: &str) -> Result<Option<i32>, RuntimeError> {
    let found = docker
        .inspect_exec(exec)
        .await
        .map_err(|error| failed("ask how the command ended", error))?;
    if found.running == Some(true) {
        return Ok(None);
    }
    Ok(found.exit_code.and_then(|code| i32::try_from(code).ok()))
}
