//! Rows of secrets, quotas, disruption budgets and role bindings.

use serde_json::{Map, Value};

use super::or_none;
use crate::fields::Fields;

/// The values of a secret are never shown, only how many there are.
pub(super) fn secret(object: &Value, age: String) -> Vec<String> {
    let count = object.at("data").as_object().map_or(0, Map::len);
    vec![object.name().into(), object.text("type").into(), count.to_string(), age]
}

pub(super) fn resource_quota(object: &Value, age: String) -> Vec<String> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in object.pairs("spec.hard") {
        let used = object.at("status.used").get(resource).and_then(Value::as_str).unwrap_or("0");
        let cell = format!("{resource}: {used}/{hard}");
        if resource.starts_with("limits.") { limits.push(cell) } else { requests.push(cell) }
    }
    vec![object.name().into(), requests.join(", "), limits.join(", "), age]
}

pub(super) fn disruption_budget(object: &Value, age: String) -> Vec<String> {
    let or_na = |path| match object.at(path) {
        Value::Null => "N/A".to_owned(),
        Value::String(text) => text.clone(),
        number => number.to_string(),
    };
    vec![
        object.name().into(),
        or_na("spec.minAvailable"),
        or_na("spec.maxUnavailable"),
        object.int("status.disruptionsAllowed").to_string(),
        age,
    ]
}

pub(super) fn role_binding(object: &Value, age: String) -> Vec<String> {
    let subjects = |kind: &str| {
        let of_kind = object.list("subjects").iter().filter(|s| s.text("kind") == kind);
        let names: Vec<String> = of_kind
            .map(|subject| match subject.text("namespace") {
                "" => subject.text("name").to_owned(),
                namespace => format!("{namespace}/{}", subject.text("name")),
            })
            .collect();
        or_none(&names.join(", "))
    };
    vec![
        object.name().into(),
        format!("{}/{}", object.text("roleRef.kind"), object.text("roleRef.name")),
        age,
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
