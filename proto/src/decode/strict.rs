//! A deserializer over a JSON tree that knows where it is: each error carries the path of its
//! field, and fields that the type does not have are collected with the names they may have meant.
//!
//! It accepts what Kubernetes accepts: `null` for an absent field, numbers for quantities.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde_json::Value;

use super::nearest;

/// Unknown fields reported of one manifest, at most.
const UNKNOWN_FIELDS_MAX: usize = 20;

/// A value of the wrong type, or one that its type refuses.
#[derive(Debug)]
pub(super) struct FieldError {
    /// Empty when the object itself is meant.
    pub path: String,
    pub message: String,
    pub hint: Option<String>,
    /// The message without the value that was found.
    discreet: String,
    placed: bool,
}

impl FieldError {
    /// For objects whose values nobody may read in an error: their types only.
    pub(super) fn discreet(self) -> Self {
        // Every hint quotes the value.
        Self { message: self.discreet.clone(), hint: None, ..self }
    }

    fn new(message: String, discreet: String) -> Self {
        Self { path: String::new(), message, hint: None, discreet, placed: false }
    }
}

/// A field that the type does not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownField {
    pub path: String,
    /// The field that was perhaps meant.
    pub meant: Option<&'static str>,
}

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub unknown: RefCell<Vec<UnknownField>>,
}

#[derive(Clone, Copy)]
enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => f.write_str(key),
            // Keys with dots or slashes (labels) would read as a path of their own.
            Path::Key(parent, key) if key.contains(['.', '/']) => write!(f, "{parent}[{key}]"),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

pub(super) struct Strict<'a, 'p> {
    value: &'a Value,
    path: Path<'p>,
    findings: &'p Findings,
}

impl<'a, 'p> Strict<'a, 'p> {
    pub(super) fn new(value: &'a Value, findings: &'p Findings) -> Self {
        Self { value, path: Path::Root, findings }
    }

    /// Where the error happened, and what to write instead if that is plain to see.
    fn place(&self, mut error: FieldError) -> FieldError {
        if !error.placed {
            error.path = self.path.to_string();
            error.placed = true;
            error.hint = error.hint.or_else(|| self.hint(&error.message));
        }
        error
    }

    fn hint(&self, message: &str) -> Option<String> {
        if !message.starts_with("invalid type") {
            return None;
        }
        let wants_text = message.ends_with("expected a string");
        match self.value {
            Value::Number(_) | Value::Bool(_) if wants_text => {
                Some(format!("quote it: \"{}\"", self.value))
            }
            Value::String(text) if !wants_text && text.parse::<i64>().is_ok() => {
                Some(format!("write it without quotes: {text}"))
            }
            Value::String(text) if !wants_text && matches!(text.as_str(), "true" | "false") => {
                Some(format!("write it without quotes: {text}"))
            }
            _ => None,
        }
    }

    fn note_unknown(&self, key: &str, fields: &'static [&'static str]) {
        let mut unknown = self.findings.unknown.borrow_mut();
        if unknown.len() < UNKNOWN_FIELDS_MAX {
            let path = Path::Key(&self.path, key).to_string();
            unknown.push(UnknownField { path, meant: nearest(key, fields.iter().copied()) });
        }
    }
}

impl<'de> de::Deserializer<'de> for Strict<'de, '_> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        let answer = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => {
                if let Some(value) = number.as_u64() {
                    visitor.visit_u64(value)
                } else if let Some(value) = number.as_i64() {
                    visitor.visit_i64(value)
                } else {
                    visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
                }
            }
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                path: &self.path,
                findings: self.findings,
            }),
            Value::Object(map) => visitor.visit_map(Entries {
                entries: map.iter(),
                current: None,
                path: &self.path,
                findings: self.findings,
            }),
        };
        answer.map_err(|error| self.place(error))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        if let Value::Object(map) = self.value {
            for key in map.keys().filter(|key| !fields.contains(&key.as_str())) {
                self.note_unknown(key, fields);
            }
        }
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    path: &'p Path<'p>,
    findings: &'p Findings,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.path, index);
        seed.deserialize(Strict { value, path, findings: self.findings }).map(Some)
    }
}

struct Entries<'de, 'p> {
    entries: serde_json::map::Iter<'de>,
    current: Option<(&'de String, &'de Value)>,
    path: &'p Path<'p>,
    findings: &'p Findings,
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FieldError> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, FieldError> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, FieldError> {
        let (key, value) = self.current.expect("serde asks for a value after its key");
        let path = Path::Key(self.path, key);
        seed.deserialize(Strict { value, path, findings: self.findings })
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // Whose words these are is not known: they may quote anything.
        Self::new(message.to_string(), "invalid value".to_owned())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let discreet = format!("invalid type: {}, expected {expected}", type_of(found));
        Self::new(format!("invalid type: {found}, expected {expected}"), discreet)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let discreet = format!("invalid value: {}, expected {expected}", type_of(found));
        Self::new(format!("invalid value: {found}, expected {expected}"), discreet)
    }

    fn missing_field(field: &'static str) -> Self {
        let message = format!("missing field `{field}`");
        Self::new(message.clone(), message)
    }
}

/// What was found, without its value.
fn type_of(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "integer",
        Unexpected::Float(_) => "floating point number",
        Unexpected::Char(_) | Unexpected::Str(_) => "string",
        Unexpected::Bytes(_) => "byte array",
        Unexpected::Unit => "null",
        Unexpected::Seq => "sequence",
        Unexpected::Map => "map",
        _ => "another type",
    }
}
