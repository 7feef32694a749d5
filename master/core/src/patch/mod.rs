//! Changes to an object that are written as less than the object: JSON merge patch (RFC 7396), JSON
//! patch (RFC 6902), Kubernetes' strategic merge patch, and apply, the merge three ways of what was
//! applied last, what is stored, and what is applied now.
//!
//! Answers the changed object as written: defaults and validation are admission's.

mod apply;
mod schema;
mod strategic;

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::Value;
use timonier_proto::decode::decode;
use timonier_proto::{ApiError, Object, ObjectKey, Reason};

pub use apply::{LAST_APPLIED, annotate, merge_applied};

/// JSON patch operations in one request, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;
/// Levels of a patched value; as many as the JSON of a request may have.
const DEPTH_MAX: usize = 128;
/// What one request's `copy` operations may copy; objects of this size are refused anyway.
const COPIED_BYTES_MAX: usize = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Merge,
    Strategic,
    Json,
}

/// `object` with the patch applied. The result is decoded as strictly as a manifest, and is still
/// the same object: a patch that changes its kind, name or namespace is refused.
pub fn patch(object: &Object, type_: PatchType, patch: &[u8]) -> Result<Object, ApiError> {
    let key = object.key();
    let refuse = |reason, why: String| ApiError::new(reason, format!("patch {key}: {why}"));
    let mut value = to_value(object)?;
    match type_ {
        PatchType::Merge => {
            let patch = parse_map(patch).map_err(|why| refuse(Reason::BadRequest, why))?;
            json_patch::merge(&mut value, &patch);
        }
        PatchType::Strategic => {
            let patch = parse_map(patch).map_err(|why| refuse(Reason::BadRequest, why))?;
            strategic::merge(schema::Type::of(key.kind), &mut value, patch)
                .map_err(|why| refuse(Reason::BadRequest, why))?;
        }
        PatchType::Json => {
            let operations: json_patch::Patch = serde_json::from_slice(patch).map_err(|error| {
                refuse(Reason::BadRequest, format!("the JSON patch is malformed: {error}"))
            })?;
            if operations.0.len() > OPERATIONS_MAX {
                let why = format!("more than {OPERATIONS_MAX} operations");
                return Err(refuse(Reason::BadRequest, why));
            }
            operate(&mut value, &operations).map_err(|why| refuse(Reason::Invalid, why))?;
        }
    }
    same_object(&key, decode(&value)?)
}

/// One after the other. A `copy` can double the value, in size and in depth, and the next one can
/// double that: both are bounded.
fn operate(value: &mut Value, operations: &[PatchOperation]) -> Result<(), String> {
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if let Some((place, source)) = placed(value, operation) {
            if place.tokens().count() + depth(source) > DEPTH_MAX {
                return Err(format!("operation '/{index}': more than {DEPTH_MAX} levels"));
            }
            if matches!(operation, PatchOperation::Copy(_)) {
                copied += source.to_string().len();
            }
            if copied > COPIED_BYTES_MAX {
                let max = COPIED_BYTES_MAX;
                return Err(format!("operation '/{index}': more than {max} bytes are copied"));
            }
        }
        json_patch::patch(value, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            error.to_string()
        })?;
    }
    Ok(())
}

/// Where the operation puts what.
fn placed<'a>(value: &'a Value, operation: &'a PatchOperation) -> Option<(&'a Pointer, &'a Value)> {
    match operation {
        PatchOperation::Add(add) => Some((&add.path, &add.value)),
        PatchOperation::Replace(replace) => Some((&replace.path, &replace.value)),
        PatchOperation::Copy(copy) => Some((&copy.path, copy.from.resolve(value).ok()?)),
        PatchOperation::Move(move_) => Some((&move_.path, move_.from.resolve(value).ok()?)),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    }
}

/// Levels of a value; values have [`DEPTH_MAX`] of them at most.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

fn same_object(key: &ObjectKey, patched: Object) -> Result<Object, ApiError> {
    let found = patched.key();
    if found != *key {
        let why =
            format!("patch {key}: the patch makes it {found}; kind, namespace and name are fixed");
        return Err(ApiError::new(Reason::BadRequest, why));
    }
    Ok(patched)
}

fn parse_map(patch: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(patch) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("the patch must be a map".to_owned()),
        Err(error) => Err(format!("the patch is malformed: {error}")),
    }
}

fn to_value(object: &Object) -> Result<Value, ApiError> {
    object.to_value().map_err(|error| {
        ApiError::new(Reason::InternalError, format!("encode {}: {error}", object.key()))
    })
}

#[cfg(test)]
mod tests;
