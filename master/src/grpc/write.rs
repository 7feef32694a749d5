//! Create, Update, Patch, Apply: one object a request.

use timonier_master_core::op::{Op, Rejection, Txn};
use timonier_master_core::patch::{PatchType, annotate, merge_applied, patch};
use timonier_proto::v1::apply_reply::Result as Applied;
use timonier_proto::v1::{
    ApplyReply, ApplyRequest, CreateRequest, ObjectReply, PatchRequest, UpdateRequest,
    patch_request,
};
use timonier_proto::{ApiError, Kind, Object, ObjectKey, Reason};

use super::propose::{Scope, decode_into, is_unchanged, named_key};
use super::read::reply;
use super::repeat::{RequestId, apply_again, change_again, create_again, once};
use super::select::parse_ref;
use super::{Inner, limits};
use crate::store::CommitError;

/// An object as it is now, and the revision of the state it was written in.
type Written = (Object, u64);

impl Inner {
    pub(super) async fn create(
        &self,
        request: CreateRequest,
        id: &RequestId,
    ) -> Result<ObjectReply, ApiError> {
        let object = decode_into(&request.json, &request.default_namespace)?;
        let work = || async {
            let (object, revision) =
                self.create_object(object.clone(), request.dry_run, id).await?;
            reply(&object, revision)
        };
        once(&self.store, id, work, |state| create_again(id, state, &object)).await
    }

    async fn create_object(
        &self,
        object: Object,
        dry_run: bool,
        id: &RequestId,
    ) -> Result<Written, ApiError> {
        let _allocation = self.allocation([object.kind()]).await;
        let (is_named, is_service) =
            (!object.key().name.is_empty(), object.kind() == Kind::Service);
        // Kept only where another generated name or address may have to be tried.
        let mut spare = (!is_named || is_service).then(|| object.clone());
        let mut object = Some(object);
        let mut names = 0;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let Some(mut next) = object.take().or_else(|| spare.clone()) else { break };
            id.name(&mut next, names);
            let snapshot = self.store.snapshot();
            let mut scope = Scope::default();
            let op = self.creation(&snapshot, next, &mut scope)?;
            let key = op.key();
            if dry_run {
                return match (snapshot.object(&key), op) {
                    (None, Op::Create(object)) => Ok((object, snapshot.revision)),
                    _ => Err(ApiError::already_exists(&key)),
                };
            }
            match self.commit_one(op, id.creation(names), scope).await {
                Err(CommitError::Rejected(Rejection::AlreadyExists(_)))
                    if !is_named && names + 1 < limits::GENERATED_NAMES_MAX =>
                {
                    names += 1;
                }
                Err(CommitError::Rejected(Rejection::Taken { .. })) => {}
                outcome => return Ok(outcome?),
            }
        }
        let object = spare.take().map(|o| o.key().to_string()).unwrap_or_default();
        let tries = limits::CONFLICT_RETRIES_MAX;
        let why = format!("create {object}: what {tries} tries chose for it is all taken");
        Err(ApiError::new(Reason::AlreadyExists, why))
    }

    pub(super) async fn update(
        &self,
        request: UpdateRequest,
        id: &RequestId,
    ) -> Result<ObjectReply, ApiError> {
        let object = decode_into(&request.json, &request.default_namespace)?;
        let key = named_key(&object, "update")?;
        let work = || self.replace(&request, object.clone(), key.clone(), id);
        once(&self.store, id, work, |state| change_again(id, state, &key)).await
    }

    async fn replace(
        &self,
        request: &UpdateRequest,
        object: Object,
        key: ObjectKey,
        id: &RequestId,
    ) -> Result<ObjectReply, ApiError> {
        let _allocation = self.allocation([key.kind]).await;
        let snapshot = self.store.snapshot();
        let old = snapshot.object(&key).ok_or_else(|| ApiError::not_found(&key))?;
        if request.status {
            if request.dry_run {
                return reply(&object, snapshot.revision);
            }
            let asked = object.resource_version();
            let stale = asked != 0 && asked != old.resource_version();
            if stale {
                let found = old.resource_version();
                return Err(CommitError::Rejected(Rejection::Conflict {
                    key,
                    expected: asked,
                    found,
                })
                .into());
            }
            let op = Op::ReplaceStatus(object);
            let (object, revision) = self.commit_one(op, id.change(), Scope::default()).await?;
            return reply(&object, revision);
        }
        let mut scope = Scope::default();
        let mut new = self.replacement(&snapshot, old, object, &mut scope)?;
        if is_unchanged(old, &mut new) {
            return reply(old, snapshot.revision);
        }
        if request.dry_run {
            return reply(&new, snapshot.revision);
        }
        let (object, revision) = self.commit_one(Op::Replace(new), id.change(), scope).await?;
        reply(&object, revision)
    }

    pub(super) async fn patch(
        &self,
        request: PatchRequest,
        id: &RequestId,
    ) -> Result<ObjectReply, ApiError> {
        let key = parse_ref(request.r#ref.clone())?;
        let work = || self.patch_object(request.clone(), &key, id);
        once(&self.store, id, work, |state| change_again(id, state, &key)).await
    }

    async fn patch_object(
        &self,
        request: PatchRequest,
        key: &ObjectKey,
        id: &RequestId,
    ) -> Result<ObjectReply, ApiError> {
        let type_ = match request.r#type() {
            patch_request::Type::Merge => PatchType::Merge,
            patch_request::Type::Strategic => PatchType::Strategic,
            patch_request::Type::Json => PatchType::Json,
            patch_request::Type::Unspecified => {
                return Err(ApiError::new(Reason::BadRequest, "the patch has no type"));
            }
        };
        let _allocation = self.allocation([key.kind]).await;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let old = snapshot.object(key).ok_or_else(|| ApiError::not_found(key))?;
            let patched = patch(old, type_, &request.patch)?;
            // The patched object carries the version it was read at, unless the patch names another.
            let insists = patched.resource_version() != old.resource_version();
            let mut scope = Scope::default();
            let mut new = self.replacement(&snapshot, old, patched, &mut scope)?;
            if is_unchanged(old, &mut new) {
                return reply(old, snapshot.revision);
            }
            if request.dry_run {
                return reply(&new, snapshot.revision);
            }
            match self.commit_one(Op::Replace(new), id.change(), scope).await {
                Err(CommitError::Rejected(Rejection::Conflict { .. })) if !insists => {}
                Err(CommitError::Rejected(Rejection::Taken { .. })) => {}
                outcome => {
                    let (object, revision) = outcome?;
                    return reply(&object, revision);
                }
            }
        }
        Err(busy("patch", key))
    }

    pub(super) async fn apply(
        &self,
        request: ApplyRequest,
        id: &RequestId,
    ) -> Result<ApplyReply, ApiError> {
        let desired = decode_into(&request.json, &request.default_namespace)?;
        let key = named_key(&desired, "apply")?;
        let work = || self.apply_object(desired.clone(), &key, request.dry_run, id);
        once(&self.store, id, work, |state| apply_again(id, state, &key)).await
    }

    async fn apply_object(
        &self,
        mut desired: Object,
        key: &ObjectKey,
        dry_run: bool,
        id: &RequestId,
    ) -> Result<ApplyReply, ApiError> {
        annotate(&mut desired)?;
        let insists = desired.resource_version() != 0;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let Some(old) = snapshot.object(key) else {
                match self.create_object(desired.clone(), dry_run, id).await {
                    Err(error) if error.reason == Reason::AlreadyExists => continue,
                    outcome => {
                        let (object, revision) = outcome?;
                        return applied(Applied::Created, &object, revision);
                    }
                }
            };
            let _allocation = self.allocation([key.kind]).await;
            let mut merged = merge_applied(old, &desired)?;
            if !insists {
                merged.meta_mut().resource_version.clone_from(&old.meta().resource_version);
            }
            // With the lock held, addresses are chosen from the state as it is now.
            let latest = self.store.snapshot();
            let mut scope = Scope::default();
            let mut new = self.replacement(&latest, old, merged, &mut scope)?;
            if is_unchanged(old, &mut new) {
                return applied(Applied::Unchanged, old, snapshot.revision);
            }
            if dry_run {
                return applied(Applied::Configured, &new, snapshot.revision);
            }
            match self.commit_one(Op::Replace(new), id.change(), scope).await {
                Err(CommitError::Rejected(Rejection::Conflict { .. })) if !insists => {}
                Err(CommitError::Rejected(Rejection::Taken { .. })) => {}
                // Removed meanwhile: it is created again.
                Err(CommitError::Rejected(Rejection::NotFound(_) | Rejection::OtherUid(_)))
                    if !insists => {}
                outcome => {
                    let (object, revision) = outcome?;
                    return applied(Applied::Configured, &object, revision);
                }
            }
        }
        Err(busy("apply", key))
    }

    /// Commits one operation that leaves an object behind, and answers it as stored.
    async fn commit_one(
        &self,
        op: Op,
        id: Option<String>,
        mut scope: Scope,
    ) -> Result<Written, CommitError> {
        let key = op.key();
        let preconditions = scope.taken.preconditions();
        let committed = self.store.commit(Txn { id, preconditions, ..Txn::of(vec![op]) }).await?;
        let object = committed.objects.into_iter().next().flatten();
        object
            .map(|object| (object, committed.revision))
            .ok_or_else(|| Rejection::NotFound(key).into())
    }
}

fn busy(verb: &str, key: &ObjectKey) -> ApiError {
    let tries = limits::CONFLICT_RETRIES_MAX;
    let why =
        format!("{verb} {key}: it was changed meanwhile, {tries} times in a row; hint: try again");
    ApiError::new(Reason::Conflict, why)
}

fn applied(result: Applied, object: &Object, revision: u64) -> Result<ApplyReply, ApiError> {
    let ObjectReply { json, revision } = reply(object, revision)?;
    Ok(ApplyReply { result: result.into(), json, revision })
}
