//! Create, Update, Patch, Apply: one object a request.

use timonier_master_core::op::{Op, Rejection, Txn};
use timonier_master_core::patch::{PatchType, annotate, merge_applied, patch};
use timonier_proto::v1::apply_reply::Result as Applied;
use timonier_proto::v1::{
    ApplyReply, ApplyRequest, CreateRequest, ObjectReply, PatchRequest, UpdateRequest,
    patch_request,
};
use timonier_proto::{ApiError, Object, Reason};

use super::propose::{Scope, decode_into, is_unchanged, named_key};
use super::read::reply;
use super::select::parse_ref;
use super::{Inner, limits};
use crate::store::CommitError;

/// An object as it is now, and the revision of the state it was written in.
type Written = (Object, u64);

impl Inner {
    pub(super) async fn create(&self, request: CreateRequest) -> Result<ObjectReply, ApiError> {
        let object = decode_into(&request.json, &request.default_namespace)?;
        let (object, revision) = self.create_object(object, request.dry_run).await?;
        reply(&object, revision)
    }

    async fn create_object(&self, object: Object, dry_run: bool) -> Result<Written, ApiError> {
        let _allocation = self.allocation([object.kind()]).await;
        // Kept only where another generated name may have to be tried.
        let mut spare = object.key().name.is_empty().then(|| object.clone());
        let mut object = Some(object);
        for _ in 0..limits::GENERATED_NAMES_MAX {
            let Some(next) = object.take().or_else(|| spare.clone()) else { break };
            let snapshot = self.store.snapshot();
            let op = self.creation(&snapshot, next, &mut Scope::default())?;
            let key = op.key();
            if dry_run {
                return match (snapshot.object(&key), op) {
                    (None, Op::Create(object)) => Ok((object, snapshot.revision)),
                    _ => Err(ApiError::already_exists(&key)),
                };
            }
            match self.commit_one(op).await {
                Err(CommitError::Rejected(Rejection::AlreadyExists(_))) if spare.is_some() => {}
                outcome => return Ok(outcome?),
            }
        }
        let object = spare.take().map(|o| o.key().to_string()).unwrap_or_default();
        let tries = limits::GENERATED_NAMES_MAX;
        let why = format!("create {object}: {tries} generated names are all taken");
        Err(ApiError::new(Reason::AlreadyExists, why))
    }

    pub(super) async fn update(&self, request: UpdateRequest) -> Result<ObjectReply, ApiError> {
        let object = decode_into(&request.json, &request.default_namespace)?;
        let key = named_key(&object, "update")?;
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
            let (object, revision) = self.commit_one(Op::ReplaceStatus(object)).await?;
            return reply(&object, revision);
        }
        let mut new = self.replacement(&snapshot, old, object, &mut Scope::default())?;
        if is_unchanged(old, &mut new) {
            return reply(old, snapshot.revision);
        }
        if request.dry_run {
            return reply(&new, snapshot.revision);
        }
        let (object, revision) = self.commit_one(Op::Replace(new)).await?;
        reply(&object, revision)
    }

    pub(super) async fn patch(&self, request: PatchRequest) -> Result<ObjectReply, ApiError> {
        let type_ = match request.r#type() {
            patch_request::Type::Merge => PatchType::Merge,
            patch_request::Type::Strategic => PatchType::Strategic,
            patch_request::Type::Json => PatchType::Json,
            patch_request::Type::Unspecified => {
                return Err(ApiError::new(Reason::BadRequest, "the patch has no type"));
            }
        };
        let key = parse_ref(request.r#ref)?;
        let _allocation = self.allocation([key.kind]).await;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let old = snapshot.object(&key).ok_or_else(|| ApiError::not_found(&key))?;
            let patched = patch(old, type_, &request.patch)?;
            // The patched object carries the version it was read at, unless the patch names another.
            let insists = patched.resource_version() != old.resource_version();
            let mut new = self.replacement(&snapshot, old, patched, &mut Scope::default())?;
            if is_unchanged(old, &mut new) {
                return reply(old, snapshot.revision);
            }
            if request.dry_run {
                return reply(&new, snapshot.revision);
            }
            match self.commit_one(Op::Replace(new)).await {
                Err(CommitError::Rejected(Rejection::Conflict { .. })) if !insists => {}
                outcome => {
                    let (object, revision) = outcome?;
                    return reply(&object, revision);
                }
            }
        }
        Err(busy("patch", &key))
    }

    pub(super) async fn apply(&self, request: ApplyRequest) -> Result<ApplyReply, ApiError> {
        let mut desired = decode_into(&request.json, &request.default_namespace)?;
        let key = named_key(&desired, "apply")?;
        annotate(&mut desired)?;
        let insists = desired.resource_version() != 0;
        for _ in 0..limits::CONFLICT_RETRIES_MAX {
            let snapshot = self.store.snapshot();
            let Some(old) = snapshot.object(&key) else {
                match self.create_object(desired.clone(), request.dry_run).await {
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
            let mut new = self.replacement(&latest, old, merged, &mut Scope::default())?;
            if is_unchanged(old, &mut new) {
                return applied(Applied::Unchanged, old, snapshot.revision);
            }
            if request.dry_run {
                return applied(Applied::Configured, &new, snapshot.revision);
            }
            match self.commit_one(Op::Replace(new)).await {
                Err(CommitError::Rejected(Rejection::Conflict { .. })) if !insists => {}
                // Removed meanwhile: it is created again.
                Err(CommitError::Rejected(Rejection::NotFound(_) | Rejection::OtherUid(_)))
                    if !insists => {}
                outcome => {
                    let (object, revision) = outcome?;
                    return applied(Applied::Configured, &object, revision);
                }
            }
        }
        Err(busy("apply", &key))
    }

    /// Commits one operation that leaves an object behind, and answers it as stored.
    async fn commit_one(&self, op: Op) -> Result<Written, CommitError> {
        let key = op.key();
        let committed = self.store.commit(Txn::of(vec![op])).await?;
        let object = committed.objects.into_iter().next().flatten();
        object
            .map(|object| (object, committed.revision))
            .ok_or_else(|| Rejection::NotFound(key).into())
    }
}

fn busy(verb: &str, key: &timonier_proto::ObjectKey) -> ApiError {
    let tries = limits::CONFLICT_RETRIES_MAX;
    let why =
        format!("{verb} {key}: it was changed meanwhile, {tries} times in a row; hint: try again");
    ApiError::new(Reason::Conflict, why)
}

fn applied(result: Applied, object: &Object, revision: u64) -> Result<ApplyReply, ApiError> {
    let ObjectReply { json, revision } = reply(object, revision)?;
    Ok(ApplyReply { result: result.into(), json, revision })
}
