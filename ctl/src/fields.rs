//! Reading Kubernetes JSON by path: `object.text("status.phase")`.
//!
//! Printers must show whatever a master sends, half-filled objects included, so a missing or
//! mistyped field is an empty value here, never an error.

use jiff::Timestamp;
use serde_json::Value;

pub trait Fields {
    /// The value at a dotted path; null where there is none.
    fn at(&self, path: &str) -> &Value;

    /// Empty where absent.
    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }
    /// 0 where absent.
    fn int(&self, path: &str) -> i64 {
        self.at(path).as_i64().unwrap_or(0)
    }
    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or(false)
    }
    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }
    /// Key and value pairs of a map of strings.
    fn pairs(&self, path: &str) -> Vec<(&str, &str)> {
        let map = self.at(path).as_object();
        map.into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect()
    }
    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }
    fn time(&self, path: &str) -> Option<Timestamp> {
        self.text(path).parse().ok()
    }

    fn name(&self) -> &str {
        self.text("metadata.name")
    }
    fn namespace(&self) -> &str {
        self.text("metadata.namespace")
    }
    fn uid(&self) -> &str {
        self.text("metadata.uid")
    }
    /// An annotation, whose key may hold dots.
    fn annotation(&self, key: &str) -> &str {
        self.at("metadata.annotations").get(key).and_then(Value::as_str).unwrap_or_default()
    }
    /// The condition of this type, null where there is none.
    fn condition(&self, kind: &str) -> &Value {
        self.list("status.conditions")
            .iter()
            .find(|c| c.text("type") == kind)
            .unwrap_or(&Value::Null)
    }
    /// UID of the owner that controls this object.
    fn controller(&self) -> &Value {
        self.list("metadata.ownerReferences")
            .iter()
            .find(|o| o.flag("controller"))
            .unwrap_or(&Value::Null)
    }
}

impl Fields for Value {
    fn at(&self, path: &str) -> &Value {
        path.split('.').try_fold(self, |value, key| value.get(key)).unwrap_or(&Value::Null)
    }
}
