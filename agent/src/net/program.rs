//! Runs the host's own tools (nft, iptables) with a deadline.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(20);
/// How much of a tool's complaint is passed on.
const COMPLAINT_BYTES_MAX: usize = 600;

/// How a tool failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not installed.
    Missing,
    /// It ran and said no: its exit code and the start of its complaint.
    Refused(String),
    /// It could not be run, or did not end in time.
    Broken(String),
}

impl Failure {
    /// What to tell people, with the package to install where the tool is missing.
    pub(super) fn describe(self, program: &str, package: &str) -> String {
        match self {
            Self::Missing => format!("`{program}` is not there; hint: install package {package}"),
            Self::Refused(complaint) => complaint,
            Self::Broken(reason) => format!("running `{program}`: {reason}"),
        }
    }
}

/// Runs `program`, feeding it `input`; what it printed.
pub(super) async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failure> {
    let run = async {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no standard input"))?;
        let feed = async move {
            // A program that does not read to the end says why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let (_, output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    match tokio::time::timeout(DEADLINE, run).await {
        Err(_) => Err(Failure::Broken(format!("no end after {} s", DEADLINE.as_secs()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(Failure::Missing),
        Ok(Err(error)) => Err(Failure::Broken(error.to_string())),
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(Failure::Refused(complaint(&output))),
    }
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut text = text.trim().replace('\n', " / ");
    if text.len() > COMPLAINT_BYTES_MAX {
        let end = (0..=COMPLAINT_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    format!("{}: {text}", output.status)
}
