//! [`Failure`]: why a command ended badly, as the person reads it.
//!
//! Texts are lower-case, name what was attempted, on which object and why, and carry a hint where
//! there is something to do about it.

use std::fmt;

use timonier_proto::{ApiError, Reason};

pub type Outcome<T = ()> = Result<T, Failure>;

#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// Found out here, or told by the machine this runs on.
    Local { message: String, hint: Option<String> },
    /// The master refused. `place` says where in the input the refused object stood.
    Server { error: ApiError, place: Option<String>, hint: Option<String> },
    /// All has been said already; only the exit code is left.
    Exit(u8),
    /// Whoever read our output is gone: `timonctl get pods | head`.
    OutputClosed,
}

/// A failure found out here.
pub fn fail(message: impl Into<String>) -> Failure {
    Failure::Local { message: message.into(), hint: None }
}

/// [`fail`] as a result.
pub fn bail<T>(message: impl Into<String>) -> Outcome<T> {
    Err(fail(message))
}

impl Failure {
    /// Adds what to do about it.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Failure::Local { hint, .. } | Failure::Server { hint, .. } => *hint = Some(text.into()),
            Failure::Exit(_) | Failure::OutputClosed => {}
        }
        self
    }

    /// Says where in the input the object stood.
    pub fn at(mut self, text: impl Into<String>) -> Self {
        if let Failure::Server { place, .. } = &mut self {
            *place = Some(text.into());
        }
        self
    }

    pub fn is_reason(&self, wanted: Reason) -> bool {
        matches!(self, Failure::Server { error, .. } if error.reason == wanted)
    }

    pub fn is_not_found(&self) -> bool {
        self.is_reason(Reason::NotFound)
    }

    /// Exit code of the program: 1, or the code of the command that ran in the pod.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Exit(code) => *code,
            Failure::OutputClosed => 0,
            _ => 1,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Server { error, place: None, hint: None }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        ApiError::from_grpc(&status).into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self {
            Failure::Exit(_) | Failure::OutputClosed => return Ok(()),
            Failure::Local { message, hint } => {
                write!(f, "error: {message}")?;
                hint.clone()
            }
            Failure::Server { error, place, hint } => {
                write_refusal(f, error, place.as_deref())?;
                hint.clone().or_else(|| default_hint(error))
            }
        };
        match hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

fn write_refusal(f: &mut fmt::Formatter<'_>, error: &ApiError, place: Option<&str>) -> fmt::Result {
    let bad_input = matches!(error.reason, Reason::BadRequest | Reason::Invalid);
    match place {
        Some(place) if bad_input => write!(f, "error: {place}: {}", error.message),
        Some(place) => {
            write!(f, "Error from server ({}): {place}: {}", error.reason.as_str(), error.message)
        }
        None if error.reason == Reason::Invalid => write!(f, "error: {}", error.message),
        None => write!(f, "Error from server ({}): {}", error.reason.as_str(), error.message),
    }
}

fn default_hint(error: &ApiError) -> Option<String> {
    // The master knows better.
    if error.message.contains("\nhint: ") {
        return None;
    }
    match error.reason {
        Reason::StorageFailure => Some(
            "free some space in the master's data folder; what was acknowledged is safe".into(),
        ),
        Reason::BadRequest if error.message.contains("unknown field") => Some(
            "field names are Kubernetes' own; look for a misspelling or a wrong indentation".into(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_like_kubectls() {
        let missing = ApiError::new(Reason::NotFound, "pods \"x\" not found");
        assert_eq!(
            Failure::from(missing).to_string(),
            "Error from server (NotFound): pods \"x\" not found"
        );
        let strict =
            ApiError::new(Reason::BadRequest, "strict decoding error: unknown field \"spec.x\"");
        assert_eq!(
            Failure::from(strict).at("web.yaml, document 2 (Deployment web)").to_string(),
            "error: web.yaml, document 2 (Deployment web): strict decoding error: unknown field \
             \"spec.x\"\nhint: field names are Kubernetes' own; look for a misspelling or a wrong \
             indentation"
        );
    }
}
