//! Getting a container's image: looked up, pulled if the policy says so.
//!
//! Lookups are remembered for a moment, so that a burst of pods of one image asks once. Pulls of
//! one image wait for each other, and few run at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timonier_agent_core::pod::{ImageFailure, Pull, PullPolicy};
use timonier_proto::secret::{self, RegistryCredentials};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::runtime::{ImageInfo, RegistryAuth, Runtime, RuntimeError};

/// How long a lookup is believed.
const LOOKUP_VALID: Duration = Duration::from_secs(1);
const CONCURRENT_PULLS_MAX: usize = 3;

pub(super) struct Images {
    runtime: Arc<dyn Runtime>,
    /// By reference: one lock each, so that only those who want the same wait.
    slots: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Lookup>>>>>,
    pulls: Semaphore,
}

struct Lookup {
    at: Instant,
    image: Arc<ImageInfo>,
}

/// The image, and how long pulling it took if that was done.
pub(super) type Found = (Arc<ImageInfo>, Option<Pull>);
pub(super) type Failed = (ImageFailure, String);

impl Images {
    pub(super) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            runtime,
            slots: Mutex::new(HashMap::new()),
            pulls: Semaphore::new(CONCURRENT_PULLS_MAX),
        }
    }

    /// `pulling` is called when a pull begins.
    pub(super) async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        registries: &[RegistryCredentials],
        pulling: impl AsyncFnOnce(),
    ) -> Result<Found, Failed> {
        check(reference).map_err(|why| (ImageFailure::InvalidName, why.to_owned()))?;
        let slot = self.slot(reference);
        let mut slot = slot.lock().await;
        if policy != PullPolicy::Always {
            if let Some(found) = slot.as_ref().filter(|found| found.at.elapsed() < LOOKUP_VALID) {
                return Ok((found.image.clone(), None));
            }
            if let Some(image) = self.runtime.image(reference).await.map_err(lookup_failed)? {
                let image = Arc::new(image);
                *slot = Some(Lookup { at: Instant::now(), image: image.clone() });
                return Ok((image, None));
            }
        }
        *slot = None;
        if policy == PullPolicy::Never {
            let text =
                format!("Container image \"{reference}\" is not present with pull policy of Never");
            return Err((ImageFailure::NeverPull, text));
        }
        pulling().await;
        // The semaphore is never closed.
        let _permit = self.pulls.acquire().await.ok();
        let begun = Instant::now();
        let pulled = self.pull(reference, registries).await.map_err(pull_failed)?;
        let image = Arc::new(pulled);
        *slot = Some(Lookup { at: Instant::now(), image: image.clone() });
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let bytes = image.size_bytes;
        Ok((image, Some(Pull { milliseconds, bytes })))
    }

    /// With each of the credentials that are meant for it, or with none where there are none.
    async fn pull(
        &self,
        reference: &str,
        registries: &[RegistryCredentials],
    ) -> Result<ImageInfo, RuntimeError> {
        let told = |line: &str| tracing::debug!(reference, line, "pulling");
        let mut refused = None;
        for one in secret::matching(registries, reference) {
            let auth = RegistryAuth {
                server: one.server.clone(),
                username: one.username.clone(),
                password: one.password.clone(),
            };
            match self.runtime.pull(reference, Some(auth), &told).await {
                Ok(image) => return Ok(image),
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) => Err(error),
            None => self.runtime.pull(reference, None, &told).await,
        }
    }

    fn slot(&self, reference: &str) -> Arc<tokio::sync::Mutex<Option<Lookup>>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds and nobody will believe.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|found| {
                    found.as_ref().is_some_and(|found| found.at.elapsed() < LOOKUP_VALID)
                })
        });
        slots.entry(reference.to_owned()).or_default().clone()
    }
}

fn lookup_failed(error: RuntimeError) -> Failed {
    let kind = if error.is_unavailable() { ImageFailure::Unavailable } else { ImageFailure::Pull };
    (kind, error.message)
}

fn pull_failed(error: RuntimeError) -> Failed {
    let kind = match &error {
        error if error.message.contains("invalid reference format") => ImageFailure::InvalidName,
        // A registry that cannot be reached is the pull's failure; an engine that cannot, not.
        error if error.is_unavailable() => ImageFailure::Unavailable,
        _ => ImageFailure::Pull,
    };
    (kind, error.message)
}

/// Whether Docker could mean anything by it.
fn check(reference: &str) -> Result<(), &'static str> {
    let bad = "invalid reference format";
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let word = |text: &str, extra: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.as_bytes().contains(&b))
    };
    if digest.is_some_and(|digest| !word(digest, ":+.-_")) {
        return Err(bad);
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    let last = parts.pop().unwrap_or_default();
    let (last, tag) = match last.split_once(':') {
        Some((last, tag)) => (last, Some(tag)),
        None => (last, None),
    };
    if tag.is_some_and(|tag| !word(tag, "._-") || tag.starts_with(['.', '-']) || tag.len() > 128) {
        return Err(bad);
    }
    let path = |part: &str| {
        word(part, "._-")
            && !part.bytes().any(|b| b.is_ascii_uppercase())
            && !part.starts_with(['.', '-', '_'])
            && !part.ends_with(['.', '-', '_'])
    };
    // The first part may be a registry, with a port and in any case.
    let registry = |part: &str| {
        word(part, ".-:")
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && (part.contains(['.', ':']) || part == "localhost")
    };
    let first = parts.first().is_none_or(|part| path(part) || registry(part));
    if first && parts.iter().skip(1).all(|part| path(part)) && path(last) {
        return Ok(());
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    Err(bad)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn references() {
        for good in [
            "web",
            "timonier/web:v1",
            "localhost:5000/a/b:1.0",
            "Registry.example.com/web",
            "web@sha256:0123",
            "a__b/c-d.e:V_1",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "Web", "a b", "web:", "web:-x", "/web", "a//b", "web@", "../x", "a:b:c"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
