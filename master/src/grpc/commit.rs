//! Commit: several writes at once, all or none. The fast way in: what comes back is one number.

use timonier_master_core::op::{Op, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::{CommitReply, CommitRequest, write_op};
use timonier_proto::{ApiError, Kind, Object, Reason};

use super::propose::{Scope, decode_into, named_key};
use super::repeat::{RequestId, commit_again, once};
use super::{Inner, delete, limits};

/// A write with its object decoded.
enum Write {
    Create(Object),
    Update { object: Object, status: bool },
    Delete(timonier_proto::v1::DeleteRequest),
}

impl Inner {
    /// Each operation sees the state before the commit; only namespaces that the commit makes can be
    /// used by its later operations.
    pub(super) async fn commit(
        &self,
        request: CommitRequest,
        id: &RequestId,
    ) -> Result<CommitReply, ApiError> {
        let id = RequestId::new(&request.id)?.or(id.clone());
        let work = || self.commit_all(request.clone(), &id);
        once(&self.store, &id, work, |state| commit_again(&id, state)).await
    }

    async fn commit_all(
        &self,
        request: CommitRequest,
        id: &RequestId,
    ) -> Result<CommitReply, ApiError> {
        if request.ops.len() > limits::COMMIT_OPERATIONS_MAX {
            let max = limits::COMMIT_OPERATIONS_MAX;
            return Err(bad(format!("commit: {} operations, at most {max}", request.ops.len())));
        }
        let mut writes = Vec::with_capacity(request.ops.len());
        for (index, write) in request.ops.into_iter().enumerate() {
            writes.push(decode(write.op).map_err(|error| at(index, error))?);
        }
        let _allocation = self.allocation(writes.iter().map(kind)).await;
        let snapshot = self.store.snapshot();
        let mut scope = Scope::default();
        let mut ops = Vec::with_capacity(writes.len());
        for (index, write) in writes.into_iter().enumerate() {
            self.propose(&snapshot, write, id.is_given(), &mut scope, &mut ops)
                .map_err(|error| at(index, error))?;
        }
        // An old state that is held makes the store copy what it changes.
        drop(snapshot);
        let preconditions = scope.taken.preconditions();
        let txn = Txn { id: id.change(), preconditions, ..Txn::of(ops) };
        let committed = self.store.commit(txn).await?;
        Ok(CommitReply { revision: committed.revision })
    }

    /// With an id, an object that is missing may be missing because this very commit was applied
    /// before: then the store is asked, which knows.
    fn propose(
        &self,
        snapshot: &Snapshot,
        write: Write,
        has_id: bool,
        scope: &mut Scope,
        ops: &mut Vec<Op>,
    ) -> Result<(), ApiError> {
        match write {
            Write::Create(object) => ops.push(self.creation(snapshot, object, scope)?),
            Write::Update { object, status } => {
                let key = named_key(&object, "update")?;
                let op = match snapshot.object(&key) {
                    None if has_id => Op::Replace(object),
                    None => return Err(ApiError::not_found(&key)),
                    Some(_) if status => Op::ReplaceStatus(object),
                    Some(old) => Op::Replace(self.replacement(snapshot, old, object, scope)?),
                };
                ops.push(op);
            }
            Write::Delete(request) => match delete::plan(snapshot, &request) {
                Err(error) if has_id && error.reason == Reason::NotFound => {
                    let key = super::select::parse_ref(request.r#ref)?;
                    ops.push(Op::Remove { key, uid: None });
                }
                deletion => ops.extend(deletion?.ops),
            },
        }
        Ok(())
    }
}

fn decode(op: Option<write_op::Op>) -> Result<Write, ApiError> {
    let dry = |dry_run: bool| match dry_run {
        true => Err(bad("a commit has no dry run of single operations".to_owned())),
        false => Ok(()),
    };
    match op {
        Some(write_op::Op::Create(create)) => {
            dry(create.dry_run)?;
            Ok(Write::Create(decode_into(&create.json, &create.default_namespace)?))
        }
        Some(write_op::Op::Update(update)) => {
            dry(update.dry_run)?;
            let object = decode_into(&update.json, &update.default_namespace)?;
            Ok(Write::Update { object, status: update.status })
        }
        Some(write_op::Op::Delete(delete)) => {
            dry(delete.dry_run)?;
            Ok(Write::Delete(delete))
        }
        None => Err(bad("the operation is empty".to_owned())),
    }
}

fn kind(write: &Write) -> Kind {
    match write {
        Write::Create(object) | Write::Update { object, .. } => object.kind(),
        // Deleting a service frees its address and takes none.
        Write::Delete(_) => Kind::ConfigMap,
    }
}

/// Which of the operations was refused.
fn at(index: usize, mut error: ApiError) -> ApiError {
    error.message = format!("operation {index}: {}", error.message);
    error
}

fn bad(message: String) -> ApiError {
    ApiError::new(Reason::BadRequest, message)
}
