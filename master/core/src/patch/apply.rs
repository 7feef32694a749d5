//! Apply: create-or-merge, three ways. What the last manifest had and this one has not is removed;
//! what nobody's manifest ever said (replicas scaled by hand, an allocated address) stays.

use serde_json::{Map, Value};
use timonier_proto::decode::decode;
use timonier_proto::{ApiError, Object};

use super::schema::{List, Type};
use super::{same_object, to_value};

/// Where the manifest that was applied last is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Writes down, in the object itself, the manifest that is being applied.
pub fn annotate(object: &mut Object) -> Result<(), ApiError> {
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
    let mut manifest = to_value(object)?;
    if let Value::Object(fields) = &mut manifest {
        fields.shift_remove("status");
    }
    let annotations = object.meta_mut().annotations.get_or_insert_default();
    annotations.insert(LAST_APPLIED.to_owned(), format!("{manifest}\n"));
    Ok(())
}

/// `live` as `desired`, which is annotated, wants it.
pub fn merge_applied(live: &Object, desired: &Object) -> Result<Object, ApiError> {
    let kind = live.kind();
    // What cannot be read was written by somebody else; then nothing is known to be removed.
    let last = live
        .meta()
        .annotations
        .as_ref()
        .and_then(|all| all.get(LAST_APPLIED))
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let mut wanted = to_value(desired)?;
    if let Value::Object(fields) = &mut wanted {
        fields.shift_remove("status");
    }
    let mut merged = to_value(live)?;
    // The status is no manifest's.
    let status = merged.as_object_mut().and_then(|fields| fields.shift_remove("status"));
    merge(Type::of(kind), &last, &mut merged, wanted);
    if let (Value::Object(fields), Some(status)) = (&mut merged, status) {
        fields.insert("status".to_owned(), status);
    }
    same_object(&live.key(), decode(&merged)?)
}

fn merge(type_: Type, last: &Value, live: &mut Value, desired: Value) {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => merge_maps(type_, last, live, desired),
        (live, desired) => *live = desired,
    }
}

fn merge_maps(
    type_: Type,
    last: &Value,
    live: &mut Map<String, Value>,
    desired: Map<String, Value>,
) {
    let had = |key: &str| last.get(key).is_some_and(|value| !value.is_null());
    live.retain(|key, _| desired.contains_key(key) || !(had(key) || type_.is_union()));
    for (key, wanted) in desired {
        let (of, list) = type_.field(&key);
        let before = last.get(&key).unwrap_or(&Value::Null);
        match live.get_mut(&key) {
            Some(Value::Array(items)) if list != List::Atomic => {
                if let Value::Array(wanted) = wanted {
                    merge_elements(of, list, before, items, wanted);
                }
            }
            Some(value) => merge(of, before, value, wanted),
            None => {
                live.insert(key, wanted);
            }
        }
    }
}

fn merge_elements(of: Type, list: List, last: &Value, live: &mut Vec<Value>, desired: Vec<Value>) {
    let last = last.as_array().map(Vec::as_slice).unwrap_or_default();
    let (Some(live_keys), Some(wanted_keys)) = (list.keys_of(live), list.keys_of(&desired)) else {
        // Elements that cannot be told apart are one thing.
        *live = desired;
        return;
    };
    let before = |key: &str| last.iter().find(|e| list.key_of(e).as_deref() == Some(key));
    let mut found: Vec<(String, Value)> =
        live_keys.iter().cloned().zip(std::mem::take(live)).collect();
    found.retain(|(key, _)| wanted_keys.contains(key) || before(key).is_none());
    // The manifest's order, unless what is stored has that order already among its own elements.
    let stored: Vec<&String> =
        found.iter().map(|(key, _)| key).filter(|key| wanted_keys.contains(key)).collect();
    let in_order = stored.into_iter().eq(wanted_keys.iter());
    let mut merged: Vec<(String, Value)> = Vec::new();
    for (key, wanted) in wanted_keys.into_iter().zip(desired) {
        let value = match found.iter_mut().find(|(k, _)| *k == key) {
            Some((_, value)) => {
                merge(of, before(&key).unwrap_or(&Value::Null), value, wanted);
                value.take()
            }
            None => wanted,
        };
        merged.push((key, value));
    }
    if in_order {
        for (key, value) in merged {
            if let Some(place) = found.iter_mut().find(|(k, _)| *k == key) {
                place.1 = value;
            }
        }
        live.extend(found.into_iter().map(|(_, value)| value));
        return;
    }
    found.retain(|(key, _)| !merged.iter().any(|(k, _)| k == key));
    live.extend(merged.into_iter().chain(found).map(|(_, value)| value));
}
