//! How much one caller may ask a second: a bucket of tokens for each, in a table of bounded size.
//!
//! Superusers and masters are not bounded, so that a storm of others never keeps out those who could
//! end it; what one connection may have open at a time is bounded for all (`grpc::limits`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use timonier_identity::network;
use timonier_master_core::access::{ANONYMOUS, MASTERS, UserInfo};
use timonier_proto::{ApiError, Reason};

/// Callers that are told apart; when there are more, those who have not asked for longest begin anew.
const CALLERS_MAX: usize = 16_384;

/// A bucket's size and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub burst: f64,
    pub per_second: f64,
}

/// Of each user, node and service account.
pub const KNOWN: Rate = Rate { burst: 1_000.0, per_second: 500.0 };
/// Of each address from which callers come without credentials.
pub const UNKNOWN: Rate = Rate { burst: 50.0, per_second: 20.0 };

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Every caller's bucket.
#[derive(Debug, Default)]
pub struct Buckets {
    of: Mutex<HashMap<String, Bucket>>,
}

impl Buckets {
    /// `user` is who asks, also where he asks to act as another: it costs him his own.
    pub(super) fn take(
        &self,
        user: &UserInfo,
        acts_as_another: bool,
        source: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(), ApiError> {
        if !acts_as_another && (user.is_superuser() || user.in_group(MASTERS)) {
            return Ok(());
        }
        let name = &user.name;
        let (key, rate) = match name == ANONYMOUS {
            true => (source.map(|s| network(s.ip()).to_string()).unwrap_or_default(), UNKNOWN),
            false => (format!("user {name}"), KNOWN),
        };
        let wait = self.take_from(key, rate, now);
        match wait {
            None => Ok(()),
            Some(wait) => {
                let ms = wait.as_millis() + 1;
                let why = format!(
                    "too many requests of {name:?}: more than {} a second\nhint: ask again in {ms} ms",
                    rate.per_second
                );
                Err(ApiError::new(Reason::TooManyRequests, why))
            }
        }
    }

    /// How long to wait for a token, or `None` when there was one.
    pub fn take_from(&self, key: String, rate: Rate, now: Instant) -> Option<Duration> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= CALLERS_MAX && !of.contains_key(&key) {
            forget_idlest(&mut of);
        }
        let bucket = of.entry(key).or_insert(Bucket { tokens: rate.burst, filled: now });
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * rate.per_second).min(rate.burst);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - bucket.tokens) / rate.per_second))
    }

    /// Callers in the table.
    pub fn len(&self) -> usize {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Half of the table goes at once, so that this is done seldom.
fn forget_idlest(of: &mut HashMap<String, Bucket>) {
    let mut times: Vec<Instant> = of.values().map(|bucket| bucket.filled).collect();
    let middle = times.len() / 2;
    let (_, middle, _) = times.select_nth_unstable(middle);
    let middle = *middle;
    of.retain(|_, bucket| bucket.filled > middle);
}
