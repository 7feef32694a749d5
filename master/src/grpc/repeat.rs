//! Writes that are sent again: a request that carries an id is done once, however often and at
//! whichever masters it is asked for.
//!
//! The id becomes the transaction's, and the state remembers the last ones that were applied; so the
//! verdict is the state's, not this master's. What is here only tries again what was refused by a copy of
//! the state that was behind, and answers a repeated request as its first answer would have been, where
//! the state has moved on meanwhile: the object that it created is there, the one that it deleted is gone.

use std::future::Future;

use timonier_master_core::hash::{fnv64, name_suffix};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::apply_reply::Result as Applied;
use timonier_proto::v1::{ApplyReply, CommitReply, DeleteReply, ObjectReply};
use timonier_proto::{
    ApiError, Object, ObjectKey, REQUEST_ID_BYTES_MAX, REQUEST_ID_HEADER, Reason,
};
use tonic::Request;

use super::limits::GENERATED_NAMES_MAX;
use super::read::{encode, reply};
use crate::store::Store;

/// Characters that a generated name gets after its prefix.
const SUFFIX_LENGTH: usize = 5;

/// A write's id, or none: then it is done as often as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RequestId(Option<String>);

impl RequestId {
    pub fn of<T>(request: &Request<T>) -> Result<Self, ApiError> {
        let Some(value) = request.metadata().get(REQUEST_ID_HEADER) else {
            return Ok(Self::default());
        };
        let text = value.to_str().map_err(|_| bad("is not plain text".to_owned()))?;
        Self::new(text)
    }

    /// An empty text is no id.
    pub fn new(text: &str) -> Result<Self, ApiError> {
        if text.len() > REQUEST_ID_BYTES_MAX {
            return Err(bad(format!("has more than {REQUEST_ID_BYTES_MAX} bytes")));
        }
        Ok(Self((!text.is_empty()).then(|| text.to_owned())))
    }

    pub fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }

    pub fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Of the transaction that changes or removes what is there.
    pub fn change(&self) -> Option<String> {
        self.0.clone()
    }

    /// Of the transaction that creates the object, under the name of this attempt.
    pub fn creation(&self, attempt: usize) -> Option<String> {
        self.0.as_ref().map(|id| format!("{id}/{attempt}"))
    }

    /// Names an object that has none, the same each time it is asked for. Without an id, its name
    /// is left to chance.
    pub fn name(&self, object: &mut Object, attempt: usize) {
        let key = named(self, object, attempt);
        if !key.name.is_empty() {
            object.meta_mut().name = Some(key.name);
        }
    }

    fn suffix(&self, attempt: usize) -> Option<String> {
        self.creation(attempt).map(|id| name_suffix(fnv64(&[id.as_bytes()]), SUFFIX_LENGTH))
    }

    /// The revision of the state after the write that was done under this id before.
    fn answered(&self, snapshot: &Snapshot) -> Option<u64> {
        snapshot.answered_at(self.0.as_deref()?)
    }

    /// The attempt at which the object was created, and the revision.
    fn created(&self, snapshot: &Snapshot) -> Option<(usize, u64)> {
        let attempts = if self.is_given() { GENERATED_NAMES_MAX } else { 0 };
        (0..attempts)
            .find_map(|attempt| Some((attempt, snapshot.answered_at(&self.creation(attempt)?)?)))
    }
}

fn bad(why: String) -> ApiError {
    ApiError::new(Reason::BadRequest, format!("the request's {REQUEST_ID_HEADER} {why}"))
}

/// Does the work, unless it was done under this id before: then `again` answers, out of a state that
/// has it.
///
/// What is refused was perhaps refused because this master's copy is behind: one that has just joined
/// has none of the cluster's namespaces. So the copy is brought up to date, and if it was behind, the
/// work is tried once more.
pub(super) async fn once<T, F>(
    store: &Store,
    id: &RequestId,
    work: impl Fn() -> F,
    again: impl Fn(&Snapshot) -> Option<Result<T, ApiError>>,
) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    if !id.is_given() {
        return work().await;
    }
    // No state is held while it works: the store would copy what it changes.
    let answered = || {
        let snapshot = store.snapshot();
        again(&snapshot).ok_or(snapshot.revision)
    };
    let before = match answered() {
        Ok(answer) => return answer,
        Err(revision) => revision,
    };
    let refused = match work().await {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    if matches!(refused.reason, Reason::Unavailable | Reason::Timeout)
        || store.linearize().await.is_err()
    {
        return Err(refused);
    }
    match answered() {
        Ok(answer) => answer,
        Err(revision) if revision > before => work().await,
        Err(_) => Err(refused),
    }
}

/// What a repeated Create is answered; `key` is of the object as it was sent.
pub(super) fn create_again(
    id: &RequestId,
    snapshot: &Snapshot,
    object: &Object,
) -> Option<Result<ObjectReply, ApiError>> {
    let (attempt, revision) = id.created(snapshot)?;
    let key = named(id, object, attempt);
    Some(found(snapshot, &key).and_then(|object| reply(object, revision)))
}

/// What a repeated Update or Patch is answered.
pub(super) fn change_again(
    id: &RequestId,
    snapshot: &Snapshot,
    key: &ObjectKey,
) -> Option<Result<ObjectReply, ApiError>> {
    let revision = id.answered(snapshot)?;
    Some(found(snapshot, key).and_then(|object| reply(object, revision)))
}

/// What a repeated Apply is answered.
pub(super) fn apply_again(
    id: &RequestId,
    snapshot: &Snapshot,
    key: &ObjectKey,
) -> Option<Result<ApplyReply, ApiError>> {
    let (result, revision) = match id.created(snapshot) {
        Some((_, revision)) => (Applied::Created, revision),
        None => (Applied::Configured, id.answered(snapshot)?),
    };
    Some(found(snapshot, key).and_then(|object| {
        let ObjectReply { json, revision } = reply(object, revision)?;
        Ok(ApplyReply { result: result.into(), json, revision })
    }))
}

/// What a repeated Delete is answered: the object on its way out, or nothing of it any more.
pub(super) fn delete_again(
    id: &RequestId,
    snapshot: &Snapshot,
    key: &ObjectKey,
) -> Option<Result<DeleteReply, ApiError>> {
    let revision = id.answered(snapshot)?;
    let ending = snapshot.object(key).filter(|object| object.meta().deletion_timestamp.is_some());
    let json = match ending {
        Some(object) => match encode(object) {
            Ok(json) => json,
            Err(error) => return Some(Err(error)),
        },
        None => serde_json::json!({
            "apiVersion": key.kind.info().api_version(),
            "kind": key.kind.to_string(),
            "metadata": {"name": key.name, "namespace": key.namespace},
        })
        .to_string()
        .into_bytes(),
    };
    Some(Ok(DeleteReply { json: json.into(), revision, gone: ending.is_none() }))
}

/// What a repeated Commit is answered.
pub(super) fn commit_again(
    id: &RequestId,
    snapshot: &Snapshot,
) -> Option<Result<CommitReply, ApiError>> {
    Some(Ok(CommitReply { revision: id.answered(snapshot)? }))
}

fn named(id: &RequestId, object: &Object, attempt: usize) -> ObjectKey {
    let mut key = object.key();
    if key.name.is_empty()
        && let (Some(prefix), Some(suffix)) = (&object.meta().generate_name, id.suffix(attempt))
    {
        key.name = format!("{prefix}{suffix}");
    }
    key
}

/// The object that was written; somebody may have removed it since.
fn found<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Result<&'a Object, ApiError> {
    snapshot.object(key).ok_or_else(|| ApiError::not_found(key))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use jiff::Timestamp;
    use serde_json::json;
    use timonier_master_core::op::{Op, Txn};
    use timonier_proto::Kind;

    use super::*;
    use crate::stamp::stamp;
    use crate::store::StoreConfig;

    fn refused() -> ApiError {
        ApiError::new(Reason::NotFound, "not there")
    }

    #[tokio::test]
    async fn what_a_state_that_is_behind_refused_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(folder.path())).await.unwrap();
        let id = RequestId::new("a").unwrap();
        let tries = Cell::new(0);
        let count = || tries.set(tries.get() + 1);
        let never = || async {
            count();
            Err::<(), _>(refused())
        };
        let answer = once(&store, &id, never, |_| None).await;
        assert_eq!((answer.unwrap_err().reason, tries.take()), (Reason::NotFound, 1));
        // As if it had heard of a change only after the first time.
        let second = || async {
            count();
            if tries.get() == 2 {
                return Ok(());
            }
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
            let namespace = Object::from_json(Kind::Namespace, namespace.to_string().as_bytes());
            let create = stamp(Op::Create(namespace.unwrap()), Timestamp::now());
            store.commit(Txn::of(vec![create])).await.unwrap();
            Err(refused())
        };
        once(&store, &id, second, |_| None).await.unwrap();
        assert_eq!(tries.take(), 2);
        store.shutdown().await.unwrap();
    }

    #[test]
    fn an_id_is_read_and_bounded() {
        let mut request = Request::new(());
        assert_eq!(RequestId::of(&request).unwrap(), RequestId::default());
        request.metadata_mut().insert(REQUEST_ID_HEADER, "a".parse().unwrap());
        let id = RequestId::of(&request).unwrap();
        assert_eq!(id.change().as_deref(), Some("a"));
        assert_eq!(id.creation(1).as_deref(), Some("a/1"));
        assert_eq!(id.suffix(0), id.suffix(0));
        assert_ne!(id.suffix(0), id.suffix(1));
        let long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
        request.metadata_mut().insert(REQUEST_ID_HEADER, long.parse().unwrap());
        assert_eq!(RequestId::of(&request).unwrap_err().reason, Reason::BadRequest);
    }
}
