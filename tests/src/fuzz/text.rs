//! The small languages that people type: selectors, quantities, JSONPath.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};
use timonier_proto::quantity::{parse_millis, parse_units};
use timonier_proto::selector::{FieldSelector, Selector};

/// Largest quantity, in thousandths, of which nothing is capped.
const MILLIS_MAX: i64 = i64::MAX - 1000;

static OBJECT: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "kind": "List",
        "items": [
            {"metadata": {"name": "a", "labels": {"app.io/x": "1"}}, "n": 5, "status": {"phase": "Running"}},
            {"metadata": {"name": "b"}, "n": 10.5, "status": {"ready": true, "list": [[1, 2], [], null]}},
        ],
    })
});

/// A selector that parses prints as one that selects the same.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = Selector::parse(text) {
        let printed = selector.to_string();
        let again = Selector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?}: {e}"));
        assert_eq!(again, selector, "printed as {printed:?}");
        let labels: BTreeMap<String, String> = [("app", "web"), ("tier", "a"), ("x", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        assert_eq!(again.matches(Some(&labels)), selector.matches(Some(&labels)));
        let _ = selector.matches(None);
    }
    if let Ok(fields) = FieldSelector::parse(text) {
        let _ = fields.matches(&OBJECT);
    }
}

/// Both readings of a quantity agree.
pub fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (millis, units) = (parse_millis(text), parse_units(text));
    let (Ok(millis), Ok(units)) = (millis, units) else { return };
    if (-MILLIS_MAX..MILLIS_MAX).contains(&millis) {
        let away = millis.signum() * (millis.abs() + 999).div_euclid(1000);
        assert_eq!(units, away, "{text:?} is {millis} thousandths");
    }
}

/// A template, then perhaps a line break and a document.
pub fn jsonpath(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (template, document) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(template) = timonctl::jsonpath::Template::parse(template) else { return };
    let document: Option<Value> = serde_json::from_str(document).ok();
    let document = document.as_ref().unwrap_or(&OBJECT);
    let _ = template.render(document);
    let _ = template.find(document);
}
