//! Which objects a list or a watch is about: kind, namespace, labels, fields.

use timonier_master_core::access::reserved::is_reserved;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::selector::{FieldSelector, Selector, SelectorError};
use timonier_proto::v1::ObjectRef;
use timonier_proto::{ApiError, Kind, Object, ObjectKey, Reason};

use super::guard::sees_reserved;

/// A list's or a watch's filter.
#[derive(Debug)]
pub(super) struct Selection {
    pub kind: Kind,
    /// `None`: all namespaces, or a cluster-wide kind.
    pub namespace: Option<String>,
    labels: Selector,
    fields: FieldSelector,
    /// Leaves out the cluster's own secrets.
    hides_reserved: bool,
}

impl Selection {
    /// In a request: what its caller does not see is not selected.
    pub fn parse(
        snapshot: &Snapshot,
        kind: &str,
        namespace: String,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiError> {
        let kind = parse_kind(kind)?;
        let refuse = |error: SelectorError| ApiError::new(Reason::BadRequest, error.to_string());
        let namespace = (kind.info().namespaced && !namespace.is_empty()).then_some(namespace);
        let labels = Selector::parse(labels).map_err(refuse)?;
        let fields = FieldSelector::parse(fields).map_err(refuse)?;
        let hides_reserved = kind == Kind::Secret && !sees_reserved(snapshot);
        Ok(Self { kind, namespace, labels, fields, hides_reserved })
    }

    /// Whether the kind and the namespace are the selection's: cheap, by key alone.
    pub fn covers(&self, key: &ObjectKey) -> bool {
        key.kind == self.kind && self.namespace.as_ref().is_none_or(|name| *name == key.namespace)
    }

    /// Whether an object that is covered is selected.
    pub fn matches(&self, object: &Object) -> bool {
        if self.hides_reserved && is_reserved(&object.key()) {
            return false;
        }
        let labels = object.meta().labels.as_ref();
        if !self.labels.is_empty() && !self.labels.matches(labels) {
            return false;
        }
        // Fields are looked up in the JSON, which costs; few requests name any.
        self.fields.is_empty() || object.to_value().is_ok_and(|value| self.fields.matches(&value))
    }
}

pub(super) fn parse_kind(kind: &str) -> Result<Kind, ApiError> {
    Kind::by_name(kind).ok_or_else(|| {
        ApiError::new(
            Reason::BadRequest,
            format!("the server doesn't have a resource type {kind:?}"),
        )
    })
}

/// The object that a request names. A namespaced kind without a namespace is in the default one.
pub(super) fn parse_ref(reference: Option<ObjectRef>) -> Result<ObjectKey, ApiError> {
    let ObjectRef { kind, namespace, name } = reference.unwrap_or_default();
    let kind = parse_kind(&kind)?;
    if name.is_empty() {
        let what = kind.info().singular;
        return Err(ApiError::new(Reason::BadRequest, format!("the request names no {what}")));
    }
    let namespace = match (kind.info().namespaced, namespace.is_empty()) {
        (false, _) => String::new(),
        (true, true) => timonier_proto::DEFAULT_NAMESPACE.to_owned(),
        (true, false) => namespace,
    };
    Ok(ObjectKey { kind, namespace, name })
}
