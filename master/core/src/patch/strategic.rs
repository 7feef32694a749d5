//! Strategic merge patch, with Kubernetes' directives: `$patch`, `$setElementOrder/…`,
//! `$deleteFromPrimitiveList/…` and `$retainKeys`.

use serde_json::{Map, Value};

use super::schema::{List, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Merges `patch` into `target`, or says why it cannot.
pub fn merge(type_: Type, target: &mut Value, patch: Value) -> Result<(), String> {
    let Value::Object(patch) = patch else {
        *target = patch;
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return Ok(()) };
    merge_maps(type_, target, patch)
}

fn merge_maps(
    type_: Type,
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    match directive(&mut patch)? {
        Directive::Merge => {}
        Directive::Replace => target.clear(),
        Directive::Delete => {
            target.clear();
            return Ok(());
        }
    }
    if let Some(keep) = patch.remove(RETAIN_KEYS) {
        let keep = list(keep, RETAIN_KEYS)?;
        target.retain(|key, _| keep.iter().any(|kept| kept.as_str() == Some(key)));
    }
    let mut orders = Vec::new();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
            orders.push((field.to_owned(), list(value, &key)?));
        } else if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            let gone = list(value, &key)?;
            if let Some(Value::Array(items)) = target.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            return Err(format!("unknown directive {key:?}"));
        } else {
            merge_field(type_, target, key, value)?;
        }
    }
    for (field, order) in orders {
        let (_, list) = type_.field(&field);
        if let Some(Value::Array(items)) = target.get_mut(&field) {
            sort(list, items, &order);
        }
    }
    Ok(())
}

fn merge_field(
    type_: Type,
    target: &mut Map<String, Value>,
    key: String,
    value: Value,
) -> Result<(), String> {
    let (of, list) = type_.field(&key);
    match value {
        Value::Null => {
            target.shift_remove(&key);
        }
        Value::Object(patch) if is_delete(&patch) => {
            target.shift_remove(&key);
        }
        Value::Object(_) => merge(of, target.entry(key).or_insert(Value::Null), value)?,
        Value::Array(patch) => match list {
            List::Atomic => {
                target.insert(key, Value::Array(patch));
            }
            List::Set => {
                let items = items_of(target, key);
                for item in patch {
                    if !items.contains(&item) {
                        items.push(item);
                    }
                }
            }
            List::Keyed(name, _) => {
                merge_elements(of, list, items_of(target, key), patch)
                    .map_err(|why| if why.is_empty() { missing_key(name) } else { why })?;
            }
        },
        scalar => {
            target.insert(key, scalar);
        }
    }
    Ok(())
}

fn missing_key(name: &str) -> String {
    format!("an element of the list does not contain its merge key {name:?}")
}

fn items_of(target: &mut Map<String, Value>, key: String) -> &mut Vec<Value> {
    let entry = target.entry(key).or_insert(Value::Null);
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    entry.as_array_mut().expect("it was just made one")
}

/// An empty error means that an element has no merge key.
fn merge_elements(
    of: Type,
    list: List,
    items: &mut Vec<Value>,
    patch: Vec<Value>,
) -> Result<(), String> {
    let is_replace = |element: &Value| {
        element.as_object().is_some_and(|map| {
            map.len() == 1 && map.get(PATCH).and_then(Value::as_str) == Some("replace")
        })
    };
    if patch.iter().any(is_replace) {
        items.clear();
        items.extend(patch.into_iter().filter(|element| !is_replace(element)));
        return Ok(());
    }
    for element in patch {
        let key = list.key_of(&element).ok_or_else(String::new)?;
        let at = items.iter().position(|item| list.key_of(item).as_ref() == Some(&key));
        let delete = element.as_object().is_some_and(is_delete);
        match (at, delete) {
            (Some(at), true) => {
                items.remove(at);
            }
            (None, true) => {}
            (Some(at), false) => merge(of, &mut items[at], element)?,
            (None, false) => {
                let mut made = Value::Null;
                merge(of, &mut made, element)?;
                items.push(made);
            }
        }
    }
    Ok(())
}

/// Puts the listed elements in the listed order; each other one stays behind the element that it
/// stood behind.
fn sort(list: List, items: &mut Vec<Value>, order: &[Value]) {
    let Some(wanted) = order.iter().map(|e| list.key_of(e)).collect::<Option<Vec<_>>>() else {
        return;
    };
    let mut sorted: Vec<Value> = Vec::with_capacity(items.len());
    let mut others: Vec<(Option<Value>, Value)> = Vec::new();
    let mut before: Option<Value> = None;
    for item in std::mem::take(items) {
        let listed = list.key_of(&item).is_some_and(|key| wanted.contains(&key));
        if listed {
            sorted.push(item.clone());
        } else {
            others.push((before, item.clone()));
        }
        before = Some(item);
    }
    let place = |item: &Value| {
        let key = list.key_of(item);
        wanted.iter().position(|w| Some(w) == key.as_ref()).unwrap_or(usize::MAX)
    };
    sorted.sort_by_key(place);
    for (before, item) in others {
        let at = before.and_then(|b| sorted.iter().position(|s| *s == b)).map_or(0, |at| at + 1);
        sorted.insert(at, item);
    }
    *items = sorted;
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &mut Map<String, Value>) -> Result<Directive, String> {
    match patch.remove(PATCH) {
        None => Ok(Directive::Merge),
        Some(value) => match value.as_str() {
            Some("merge") => Ok(Directive::Merge),
            Some("replace") => Ok(Directive::Replace),
            Some("delete") => Ok(Directive::Delete),
            _ => Err(format!("{PATCH} must be one of merge, replace, delete")),
        },
    }
}

fn is_delete(patch: &Map<String, Value>) -> bool {
    patch.get(PATCH).and_then(Value::as_str) == Some("delete")
}

fn list(value: Value, what: &str) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        // What it is instead may be a secret's.
        _ => Err(format!("{what} must be a list")),
    }
}
