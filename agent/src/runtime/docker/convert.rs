//! Docker's errors and times as the agent's.

use bollard::container::LogOutput;
use bollard::errors::Error;
use jiff::Timestamp;

use crate::runtime::{Output, RuntimeError, RuntimeErrorKind};

/// What was attempted, and Docker's answer.
pub(super) fn failed(what: impl Into<String>, error: Error) -> RuntimeError {
    let (kind, message) = match error {
        Error::DockerResponseServerError { status_code, message } => {
            let kind = match status_code {
                404 => RuntimeErrorKind::NotFound,
                409 | 304 => RuntimeErrorKind::Conflict,
                503 => RuntimeErrorKind::Unavailable,
                _ => RuntimeErrorKind::Refused,
            };
            (kind, message.trim().to_owned())
        }
        Error::DockerStreamError { error } => (RuntimeErrorKind::Refused, error),
        Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. }
        | Error::HttpClientError { .. }
        | Error::StrParseError { .. } => (RuntimeErrorKind::Refused, error.to_string()),
        Error::SocketNotFoundError(path) => {
            let text = format!("{path} does not exist; hint: is docker running?");
            (RuntimeErrorKind::Unavailable, text)
        }
        // hyper's and bollard's own words say less than the system's.
        other => (RuntimeErrorKind::Unavailable, root_cause(&other)),
    };
    RuntimeError::new(kind, what, message)
}

/// The innermost cause of an error.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Docker's zero time (year 1) is none.
pub(super) fn time(text: Option<&str>) -> Option<Timestamp> {
    let time: Timestamp = text?.parse().ok()?;
    (time > Timestamp::UNIX_EPOCH).then_some(time)
}

pub(super) fn output(log: LogOutput) -> Output {
    match log {
        LogOutput::StdErr { message } => Output::Stderr(message),
        LogOutput::StdOut { message }
        | LogOutput::StdIn { message }
        | LogOutput::Console { message } => Output::Stdout(message),
    }
}
