//! From a manifest to an operation: decode, place in a namespace, admit, allocate, stamp. Reads the
//! state, changes nothing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use timonier_master_core::admission;
use timonier_master_core::object::is_ending;
use timonier_master_core::op::Op;
use timonier_master_core::policy;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::decode::decode_json;
use timonier_proto::{ApiError, DEFAULT_NAMESPACE, Kind, Object, ObjectKey, Reason};
use tokio::sync::MutexGuard;

use super::Inner;
use super::allocate::{Taken, allocate};
use super::guard::may_write;
use crate::stamp::stamp;

/// What the operations of one request know of each other.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub taken: Taken,
    /// Namespaces that the same request makes.
    pub namespaces: Vec<String>,
}

/// Decodes a manifest; a namespaced object that names no namespace goes to the default one.
pub(super) fn decode_into(json: &[u8], default_namespace: &str) -> Result<Object, ApiError> {
    let mut object = decode_json(json)?;
    if object.kind().info().namespaced
        && object.meta().namespace.as_deref().unwrap_or_default().is_empty()
    {
        let namespace =
            if default_namespace.is_empty() { DEFAULT_NAMESPACE } else { default_namespace };
        object.meta_mut().namespace = Some(namespace.to_owned());
    }
    Ok(object)
}

/// The key of an object that must have a name.
pub(super) fn named_key(object: &Object, verb: &str) -> Result<ObjectKey, ApiError> {
    let key = object.key();
    if key.name.is_empty() {
        let why = format!("{verb} {}: the object has no metadata.name", key.kind.info().singular);
        return Err(ApiError::new(Reason::BadRequest, why));
    }
    Ok(key)
}

impl Inner {
    /// Held while services are written; other kinds need nobody to wait.
    pub(super) async fn allocation(
        &self,
        kinds: impl IntoIterator<Item = Kind>,
    ) -> Option<MutexGuard<'_, ()>> {
        if kinds.into_iter().any(|kind| kind == Kind::Service) {
            return Some(self.allocating.lock().await);
        }
        None
    }

    /// The operation that creates `object`, stamped.
    pub(super) fn creation(
        &self,
        snapshot: &Snapshot,
        object: Object,
        scope: &mut Scope,
    ) -> Result<Op, ApiError> {
        if object.resource_version() != 0 {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(ApiError::new(
                Reason::BadRequest,
                format!("create {}: {why}", object.key()),
            ));
        }
        may_write(snapshot, None, &object)?;
        check_namespace(snapshot, &object, scope)?;
        let mut object = admission::admit_new(object)?;
        check_account(snapshot, &object)?;
        policy::admit(snapshot, None, &mut object)?;
        allocate(snapshot, &self.settings.service_range, None, &mut object, &mut scope.taken)?;
        if object.kind() == Kind::Namespace {
            scope.namespaces.extend(object.meta().name.clone());
        }
        Ok(stamp(Op::Create(object), Timestamp::now()))
    }

    /// `new` as it may replace `old`.
    pub(super) fn replacement(
        &self,
        snapshot: &Snapshot,
        old: &Object,
        new: Object,
        scope: &mut Scope,
    ) -> Result<Object, ApiError> {
        let mut new = admission::admit_change(old, new)?;
        may_write(snapshot, Some(old), &new)?;
        policy::admit(snapshot, Some(old), &mut new)?;
        allocate(snapshot, &self.settings.service_range, Some(old), &mut new, &mut scope.taken)?;
        Ok(new)
    }
}

/// A pod runs as a service account that is there. `default` is made a moment after its namespace.
fn check_account(snapshot: &Snapshot, object: &Object) -> Result<(), ApiError> {
    let Object::Pod(pod) = object else { return Ok(()) };
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match name.filter(|name| !matches!(*name, "" | "default")) {
        Some(name) if snapshot.get::<ServiceAccount>(namespace, name).is_none() => {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            let why = format!(
                "pods {pod:?} is forbidden: error looking up service account {namespace}/{name}: serviceaccount {name:?} not found\nhint: timonctl create serviceaccount {name} -n {namespace}"
            );
            Err(ApiError::new(Reason::Forbidden, why))
        }
        _ => Ok(()),
    }
}

/// An object goes into a namespace that exists and is not being deleted.
fn check_namespace(snapshot: &Snapshot, object: &Object, scope: &Scope) -> Result<(), ApiError> {
    let name = object.meta().namespace.as_deref().unwrap_or_default();
    if !object.kind().info().namespaced || scope.namespaces.iter().any(|made| made == name) {
        return Ok(());
    }
    let Some(namespace) = snapshot.get::<Namespace>("", name) else {
        return Err(ApiError::not_found(&ObjectKey::cluster(Kind::Namespace, name)));
    };
    if is_ending(&namespace.metadata) {
        let why = format!(
            "create {}: unable to create new content in namespace {name} because it is being terminated",
            object.key()
        );
        return Err(ApiError::new(Reason::Forbidden, why));
    }
    Ok(())
}

/// Whether storing `new` would change nothing. Its resourceVersion may be unset.
pub(super) fn is_unchanged(old: &Object, new: &mut Object) -> bool {
    let asked = std::mem::replace(
        &mut new.meta_mut().resource_version,
        old.meta().resource_version.clone(),
    );
    let same = new == old;
    let stale = asked
        .as_deref()
        .is_some_and(|v| !v.is_empty() && Some(v) != old.meta().resource_version.as_deref());
    new.meta_mut().resource_version = asked;
    same && !stale
}
