//! What a namespace may hold and how large its pods may be: ResourceQuota and LimitRange.
//!
//! Pure. The doors and the control loops ask before they propose; a quota is asked again where a
//! transaction is applied, so that no race between two masters or loops goes beyond it.

mod limits;
mod quota;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{LimitRange, Pod};
use timonier_proto::{ApiError, Object, Reason};

use crate::admission::qos_class;
use crate::object::namespace_of;
use crate::snapshot::Snapshot;

pub use quota::{Exceeded, admits, room, status_of};

/// Fills in what the namespace's limit ranges give by default and checks what they bound.
pub fn fit(snapshot: &Snapshot, pod: &mut Pod) -> Result<(), String> {
    let namespace = namespace_of(&pod.metadata).to_owned();
    let ranges: Vec<&Arc<LimitRange>> = snapshot.list::<LimitRange>(Some(&namespace)).collect();
    let Some(spec) = &mut pod.spec else { return Ok(()) };
    if ranges.is_empty() {
        return Ok(());
    }
    for range in &ranges {
        limits::fill(range, spec);
    }
    let broken: Vec<String> = ranges.iter().flat_map(|range| limits::broken(range, spec)).collect();
    let qos = qos_class(Some(spec)).to_owned();
    if let Some(status) = &mut pod.status {
        status.qos_class = Some(qos);
    }
    match broken.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// As the doors ask: the object as its namespace's limits leave it, or Kubernetes' refusal.
pub fn admit(
    snapshot: &Snapshot,
    old: Option<&Object>,
    object: &mut Object,
) -> Result<(), ApiError> {
    if let (Object::Pod(pod), None) = (&mut *object, old) {
        // Copied only where there is something to fill in.
        let namespace = namespace_of(&pod.metadata).to_owned();
        if snapshot.list::<LimitRange>(Some(&namespace)).next().is_some()
            && let Err(why) = fit(snapshot, Arc::make_mut(pod))
        {
            return Err(forbidden(object, &why));
        }
    }
    admits(snapshot, old, object).map_err(|exceeded| forbidden(object, &exceeded.0))
}

fn forbidden(object: &Object, why: &str) -> ApiError {
    let key = object.key();
    let info = key.kind.info();
    let group = if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
    let name = match key.name.as_str() {
        "" => object.meta().generate_name.as_deref().unwrap_or_default(),
        name => name,
    };
    let why = format!("{}{group} {name:?} is forbidden: {why}", info.plural);
    ApiError::new(Reason::Forbidden, why)
}
