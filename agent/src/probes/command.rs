//! `exec`: a command in the container; exit code 0 is yes.

use futures::StreamExt;

use crate::runtime::{ExecSpec, Output, Runtime};

/// As much of the command's output is kept for the message.
const OUTPUT_BYTES_MAX: usize = 1024;

pub(super) async fn run(
    runtime: &dyn Runtime,
    container_id: &str,
    command: Vec<String>,
) -> Result<(), String> {
    let spec = ExecSpec { command, ..Default::default() };
    let failed = |error: crate::runtime::RuntimeError| error.to_string();
    let mut session = runtime.exec(container_id, spec).await.map_err(failed)?;
    let mut said = Vec::new();
    while let Some(item) = session.output.next().await {
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) = item.map_err(failed)?;
        let room = OUTPUT_BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    match runtime.exec_exit_code(&session.id).await.map_err(failed)? {
        Some(0) => Ok(()),
        code => {
            let text = String::from_utf8_lossy(&said);
            let code = code.map_or("unknown".to_owned(), |code| code.to_string());
            Err(format!("command exited with code {code}: {}", text.trim()))
        }
    }
}
