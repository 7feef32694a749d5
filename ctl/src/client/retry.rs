//! The one place where a call is sent again: on the next master, after a pause that grows and has
//! some chance in it, as long as the call's time lasts.
//!
//! What may be sent again: reads always; writes, because each carries an id under which it is done
//! once; a two-way stream only where a master said that it did not begin.

use std::future::Future;
use std::time::Duration;

use timonier_proto::{REQUEST_ID_HEADER, REQUEST_ID_KEPT};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::{Client, Control};
use crate::error::Outcome;

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Where there are other masters, one that says nothing for so long is left for the next.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a call that had reached a master waits for any to come back.
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Pauses that grow, up to a bound, each with some chance in it: many that lost the same master do
/// not come back at the same moment.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSE_FIRST)
    }
}

impl Backoff {
    pub fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        pause
    }
}

/// A write is not sent again after so long: it may lie with a master for a while, and its id must
/// still be remembered when it is done.
const WRITE_AGAIN_MAX: Duration = REQUEST_ID_KEPT.checked_div(2).expect("not by zero");

/// How a call is sent again.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Sent with it, so that it is done once.
    id: Option<String>,
    /// In all.
    total: Duration,
    /// While no master can be reached.
    away: Duration,
    /// While masters answer that they cannot do it now.
    refused: Duration,
    /// One that says nothing for so long is left, where there are others.
    silence: Duration,
    /// It is not sent again after this time.
    again: Duration,
    /// It is not known to be harmless twice: only what a master refused is sent again.
    only_refused: bool,
}

impl Policy {
    pub fn read(total: Duration) -> Self {
        Self {
            id: None,
            total,
            away: AWAY_MAX,
            refused: total,
            silence: SILENCE_MAX,
            again: total,
            only_refused: false,
        }
    }

    pub fn write(total: Duration) -> Self {
        let id = Some(uuid::Uuid::new_v4().to_string());
        Self { id, again: total.min(WRITE_AGAIN_MAX), ..Self::read(total) }
    }

    pub fn stream(total: Duration, refused: Duration) -> Self {
        Self { refused, only_refused: true, ..Self::read(total) }
    }

    /// For what takes its time, and must not be done twice.
    pub fn once(total: Duration) -> Self {
        Self { silence: total, only_refused: true, ..Self::read(total) }
    }

    /// For what has been under way and is to go on.
    pub fn resume(away: Duration, total: Duration) -> Self {
        Self { away, ..Self::read(total) }
    }

    fn allows(&self, status: &Status, since: Instant) -> bool {
        if !status.details().is_empty() && since.elapsed() > self.refused {
            return false;
        }
        match status.code() {
            Code::Unavailable if self.only_refused => !status.details().is_empty(),
            Code::Unavailable => true,
            _ if self.only_refused => false,
            // The master does not know whether it was done.
            Code::DeadlineExceeded => true,
            _ => is_broken(status),
        }
    }
}

/// The connection broke under the call; no master answered.
pub(super) fn is_broken(status: &Status) -> bool {
    status.details().is_empty() && std::error::Error::source(status).is_some()
}

impl Client {
    /// Calls until an answer comes that another try would not change, or the time is over.
    pub(super) async fn tried<Q, A, F, R>(&self, policy: &Policy, message: Q, call: F) -> Outcome<A>
    where
        Q: Clone,
        F: Fn(Control, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let started = Instant::now();
        let deadline = started + policy.total;
        let mut backoff = Backoff::default();
        // Since when no master can be reached, where one was before.
        let mut away_since = self.was_connected().then_some(started);
        loop {
            let (link, control) = match self.connected().await {
                Ok(connected) => connected,
                Err(failure) => {
                    let pause = backoff.next();
                    let patient = away_since.is_some_and(|since| since.elapsed() < policy.away);
                    if !patient || Instant::now() + pause >= deadline {
                        return Err(failure);
                    }
                    sleep(pause).await;
                    continue;
                }
            };
            let others = self.knows_others();
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if others { left.min(policy.silence) } else { left };
            let mut request = Request::new(message.clone());
            if let Some(id) = &policy.id {
                let id = MetadataValue::try_from(id).expect("a UUID is plain text");
                request.metadata_mut().insert(REQUEST_ID_HEADER, id);
            }
            let status = match timeout(patience, call(control, request)).await {
                Ok(Ok(response)) => {
                    self.learn(response.metadata());
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => Some(status),
                Err(_) => None,
            };
            let pause = backoff.next();
            let again = match &status {
                Some(status) => policy.allows(status, started),
                None => others && !policy.only_refused,
            };
            let is_late = Instant::now() + pause >= started + policy.again;
            if !again || is_late {
                return Err(status.map_or_else(|| self.too_late(), |status| self.explained(status)));
            }
            if others || status.as_ref().is_none_or(|s| s.details().is_empty()) {
                self.leave(link).await;
            }
            away_since = Some(Instant::now());
            sleep(pause).await;
        }
    }
}
