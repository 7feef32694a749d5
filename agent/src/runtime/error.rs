//! Why a call to the engine failed, in the few kinds that the agent treats differently.

use thiserror::Error;

/// `what` names the attempt and its object: `start container web (1f3c…)`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot {what}: {message}")]
pub struct RuntimeError {
    pub kind: RuntimeErrorKind,
    pub what: String,
    /// The engine's words.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeErrorKind {
    /// The engine does not answer: try again, nobody's fault.
    Unavailable,
    NotFound,
    /// Exists already, or is in the wrong state.
    Conflict,
    /// The engine refuses what it was asked for.
    Refused,
}

impl RuntimeError {
    pub fn new(
        kind: RuntimeErrorKind,
        what: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, what: what.into(), message: message.into() }
    }

    pub fn is_unavailable(&self) -> bool {
        self.kind == RuntimeErrorKind::Unavailable
    }
}
