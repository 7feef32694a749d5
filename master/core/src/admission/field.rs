//! Where in an object something is wrong, and what: Kubernetes' field errors in its words.

use std::fmt::{self, Debug, Display};

use timonier_proto::{ApiError, Object};

/// Problems told of one object; more are not collected.
const PROBLEMS_MAX: usize = 30;

/// A path such as `spec.containers[0].image`, put together only when it is printed.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Field<'a> {
    pub fn root(name: &'a str) -> Self {
        Self { parent: None, part: Part::Name(name) }
    }

    pub fn name(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Name(name) }
    }

    pub fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), part: Part::Index(index) }
    }

    /// An entry of a map.
    pub fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Key(key) }
    }
}

impl Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}")?;
        }
        match (self.part, self.parent) {
            (Part::Name(name), None) => f.write_str(name),
            (Part::Name(name), Some(_)) => write!(f, ".{name}"),
            (Part::Index(index), _) => write!(f, "[{index}]"),
            (Part::Key(key), _) => write!(f, "[{key}]"),
        }
    }
}

/// What is wrong with one object.
#[derive(Debug, Default)]
pub struct Problems {
    causes: Vec<(String, String)>,
}

impl Problems {
    pub fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    pub fn required(&mut self, field: &Field<'_>, why: &str) {
        self.add(
            field,
            if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") },
        );
    }

    pub fn invalid(&mut self, field: &Field<'_>, value: impl Debug, why: impl Display) {
        self.add(field, format!("Invalid value: {value:?}: {why}"));
    }

    pub fn duplicate(&mut self, field: &Field<'_>, value: impl Debug) {
        self.add(field, format!("Duplicate value: {value:?}"));
    }

    pub fn not_found(&mut self, field: &Field<'_>, value: impl Debug) {
        self.add(field, format!("Not found: {value:?}"));
    }

    pub fn forbidden(&mut self, field: &Field<'_>, why: impl Display) {
        self.add(field, format!("Forbidden: {why}"));
    }

    /// Kubernetes has it and this program does not: better refused than silently left out.
    pub fn not_supported(&mut self, field: &Field<'_>, instead: &str) {
        let instead = if instead.is_empty() { String::new() } else { format!(" ({instead})") };
        self.add(field, format!("Forbidden: not supported here{instead}"));
    }

    pub fn one_of(&mut self, field: &Field<'_>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            let list: Vec<String> = supported.iter().map(|v| format!("{v:?}")).collect();
            let list = list.join(", ");
            self.add(field, format!("Unsupported value: {value:?}: supported values: {list}"));
        }
    }

    pub fn at_least(&mut self, field: &Field<'_>, value: Option<i64>, least: i64) {
        if let Some(value) = value.filter(|value| *value < least) {
            self.invalid(field, value, format_args!("must be greater than or equal to {least}"));
        }
    }

    pub fn port(&mut self, field: &Field<'_>, port: i32) {
        if !(1..=65535).contains(&port) {
            self.invalid(field, port, "must be between 1 and 65535, inclusive");
        }
    }

    /// The outcome of a rule out of [`timonier_proto::names`].
    pub fn name(&mut self, field: &Field<'_>, value: &str, outcome: Result<(), String>) {
        if value.is_empty() {
            self.required(field, "");
        } else if let Err(why) = outcome {
            self.invalid(field, value, why);
        }
    }

    fn add(&mut self, field: &Field<'_>, what: String) {
        if self.causes.len() < PROBLEMS_MAX {
            self.causes.push((field.to_string(), what));
        }
    }

    pub fn into_result(self, object: &Object) -> Result<(), ApiError> {
        if self.causes.is_empty() {
            return Ok(());
        }
        let mut key = object.key();
        if key.name.is_empty() {
            key.name = object.meta().generate_name.clone().unwrap_or_default();
        }
        Err(ApiError::invalid(&key, self.causes))
    }
}
