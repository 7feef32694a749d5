//! Strict decoding of manifests: a JSON tree in, an [`Object`] out, or an error that names the
//! field by its path and says what was perhaps meant.
//!
//! Does not parse YAML (that is timonctl's), and applies no defaults and no validation (that is
//! admission's): what comes out is what was written.

mod strict;

use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

use crate::kinds::{KINDS, Kind, KindInfo, Object};
use crate::status::{ApiError, Reason};
use strict::{Findings, Strict};

/// A longer word is nobody's slip, and comparing it would cost as much as it is long.
const WORD_BYTES_MAX: usize = 128;
/// Lists within lists that [`flatten`] follows.
const LIST_DEPTH_MAX: usize = 4;

/// The part of a manifest that says what it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head<'a> {
    #[serde(borrow)]
    api_version: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<std::borrow::Cow<'a, str>>,
}

/// Decodes one manifest. Unknown and mistyped fields are an error of reason `BadRequest` whose
/// causes name them.
pub fn decode(value: &Value) -> Result<Object, ApiError> {
    let Value::Object(map) = value else {
        return Err(bad(format!(
            "a manifest must be a map with apiVersion and kind, found {}",
            what(value)
        )));
    };
    let text = |field: &str| match map.get(field) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            Err(bad(format!("{field}: invalid type: {}, expected a string", what(other))))
        }
    };
    let name = map
        .get("metadata")
        .and_then(|meta| meta.get("name").or_else(|| meta.get("generateName")))
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = resolve(text("apiVersion")?, text("kind")?, name)?;
    let findings = Findings::default();
    let decoded = Object::deserialize_as(kind, Strict::new(value, &findings));
    let unknown = findings.unknown.into_inner();
    if !unknown.is_empty() {
        return Err(unknown_fields(kind, name, &unknown));
    }
    let decoded = decoded.map_err(|error| match kind {
        Kind::Secret => error.discreet(),
        _ => error,
    });
    decoded.map(|object| as_stored(object, has_fraction(value))).map_err(|error| {
        let mut refusal = bad(format!("{} {error}", subject(kind, name)));
        if let Some(hint) = &error.hint {
            let _ = write!(refusal.message, "\nhint: {hint}");
        }
        refusal.causes.push((error.path, error.message));
        refusal
    })
}

/// As [`decode`], from JSON text. The common case, a good manifest, is parsed straight into its
/// type; only a bad one is parsed again to find out what is wrong with it.
pub fn decode_json(json: &[u8]) -> Result<Object, ApiError> {
    if let Some(object) = decode_well_formed(json) {
        return Ok(object);
    }
    let value: Value = serde_json::from_slice(json)
        .map_err(|error| bad(format!("decode the object: malformed JSON: {error}")))?;
    decode(&value)
}

fn decode_well_formed(json: &[u8]) -> Option<Object> {
    let head: Head = serde_json::from_slice(json).ok()?;
    let kind = Kind::by_api(head.api_version.as_deref()?, head.kind.as_deref()?)?;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut ignored = false;
    let mut note = |_: serde_ignored::Path<'_>| ignored = true;
    let strict = serde_ignored::Deserializer::new(&mut deserializer, &mut note);
    let object = Object::deserialize_as(kind, strict).ok()?;
    deserializer.end().ok()?;
    (!ignored).then(|| as_stored(object, json.windows(4).any(is_fraction)))
}

/// Times are stored in whole seconds. One that was written more exactly is cut here already, so that
/// what is in the memory of the master that took it is what all others read.
fn as_stored(object: Object, has_fraction: bool) -> Object {
    if !has_fraction {
        return object;
    }
    let stored = serde_json::to_vec(&object).and_then(|json| serde_json::from_slice(&json));
    stored.unwrap_or(object)
}

/// `:00.` as in a time with parts of a second.
fn is_fraction(text: &[u8]) -> bool {
    matches!(text, [b':', b'0'..=b'9', b'0'..=b'9', b'.'])
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::String(text) => text.as_bytes().windows(4).any(is_fraction),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The manifests in a document: itself, or the items of a `v1 List` (and of lists such as
/// `ConfigMapList`, whose items may leave out apiVersion and kind). Empty documents give none.
pub fn flatten(document: Value) -> Result<Vec<Value>, ApiError> {
    let mut manifests = Vec::new();
    flatten_into(document, 0, &mut manifests)?;
    Ok(manifests)
}

fn flatten_into(document: Value, depth: usize, into: &mut Vec<Value>) -> Result<(), ApiError> {
    if depth > LIST_DEPTH_MAX {
        return Err(bad(format!("decode the list: more than {LIST_DEPTH_MAX} lists within lists")));
    }
    let mut map = match document {
        Value::Null => return Ok(()),
        Value::Object(map) => map,
        other => {
            into.push(other);
            return Ok(());
        }
    };
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let item_kind = kind.strip_suffix("List").unwrap_or_default();
    let is_list = kind == "List" && api_version == "v1"
        || !item_kind.is_empty() && Kind::by_api(&api_version, item_kind).is_some();
    if !is_list {
        into.push(Value::Object(map));
        return Ok(());
    }
    let items = match map.remove("items") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(items)) => items,
        Some(other) => {
            let why = format!("invalid type: {}, expected a list", what(&other));
            let mut error = bad(format!("{kind} items: {why}"));
            error.causes.push(("items".to_owned(), why));
            return Err(error);
        }
    };
    for mut item in items {
        if let Value::Object(fields) = &mut item
            && !item_kind.is_empty()
        {
            fields.entry("apiVersion").or_insert_with(|| api_version.clone().into());
            fields.entry("kind").or_insert_with(|| item_kind.into());
        }
        flatten_into(item, depth + 1, into)?;
    }
    Ok(())
}

/// The kind that a manifest names, or why there is none.
fn resolve(api_version: &str, kind: &str, name: &str) -> Result<Kind, ApiError> {
    if let Some(kind) = Kind::by_api(api_version, kind) {
        return Ok(kind);
    }
    let of = if name.is_empty() { String::new() } else { format!(" {name:?}") };
    if kind.is_empty() {
        return Err(bad(format!(
            "decode the manifest{of}: the field kind is missing\nhint: begin with apiVersion and kind, for example `apiVersion: v1` and `kind: Pod`"
        )));
    }
    let near = near_kind(kind);
    if api_version.is_empty() {
        let hint = near.map_or_else(String::new, |info| {
            format!("\nhint: {} is served as apiVersion {}", info.name, info.api_version())
        });
        return Err(bad(format!("decode {kind}{of}: the field apiVersion is missing{hint}")));
    }
    let hint = match near {
        Some(info) if info.name == kind => {
            format!("{kind} is served as apiVersion {}", info.api_version())
        }
        Some(info) => format!("did you mean {} (apiVersion {})?", info.name, info.api_version()),
        None => {
            let served: Vec<&str> = KINDS.iter().map(|info| info.name).collect();
            format!("the kinds served here are {}", served.join(", "))
        }
    };
    Err(bad(format!("no matches for kind {kind:?} in version {api_version:?}\nhint: {hint}")))
}

fn near_kind(kind: &str) -> Option<&'static KindInfo> {
    let by_word = Kind::by_typed(kind).map(Kind::info);
    by_word.or_else(|| {
        let name = nearest(kind, KINDS.iter().map(|info| info.name))?;
        KINDS.iter().find(|info| info.name == name)
    })
}

fn unknown_fields(kind: Kind, name: &str, unknown: &[strict::UnknownField]) -> ApiError {
    let list: Vec<String> =
        unknown.iter().map(|field| format!("unknown field \"{}\"", field.path)).collect();
    let mut error =
        bad(format!("{} strict decoding error: {}", subject(kind, name), list.join(", ")));
    for field in unknown {
        if let Some(meant) = field.meant {
            let last = field.path.rsplit('.').next().unwrap_or_default();
            let _ = write!(error.message, "\nhint: did you mean {meant} instead of {last}?");
        }
        error.causes.push((field.path.clone(), "unknown field".to_owned()));
    }
    error
}

/// `Deployment.apps "web":`
fn subject(kind: Kind, name: &str) -> String {
    let info = kind.info();
    let group = if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
    format!("{}{group} {name:?}:", info.name)
}

/// Without what it says: it may be a secret that stands where a manifest should.
fn what(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

fn bad(message: String) -> ApiError {
    ApiError::new(Reason::BadRequest, message)
}

/// The candidate that `word` is most likely a slip of: at most a third of it differs.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let lower = word.to_lowercase();
    candidates
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance * 3 <= word.chars().count().max(candidate.chars().count())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words, a swap of neighbours being one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut least =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests;
