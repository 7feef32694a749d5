//! Get and List: from this master's own copy, or from one that has every acknowledged write.

use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::{GetRequest, ListReply, ListRequest, ObjectReply};
use timonier_proto::{ApiError, Object, Reason};

use super::select::{Selection, parse_ref};
use super::{Inner, limits};

impl Inner {
    pub(super) async fn get(&self, request: GetRequest) -> Result<ObjectReply, ApiError> {
        let key = parse_ref(request.r#ref)?;
        let snapshot = self.read(request.linearizable).await?;
        let object = snapshot.object(&key).ok_or_else(|| ApiError::not_found(&key))?;
        reply(object, snapshot.revision)
    }

    pub(super) async fn list(&self, request: ListRequest) -> Result<ListReply, ApiError> {
        let selection = Selection::parse(
            &self.store.snapshot(),
            &request.kind,
            request.namespace,
            &request.label_selector,
            &request.field_selector,
        )?;
        let after = parse_continue(&request.continue_token)?;
        let snapshot = self.read(request.linearizable).await?;
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        page(&snapshot, &selection, after.as_ref(), limit)
    }

    /// The state to read from.
    pub(super) async fn read(&self, linearizable: bool) -> Result<Snapshot, ApiError> {
        if linearizable {
            tokio::time::timeout(limits::LINEARIZE_DEADLINE, self.store.linearize())
                .await
                .map_err(|_| {
                    let ms = limits::LINEARIZE_DEADLINE.as_millis();
                    let why = format!("read the current state: not confirmed within {ms} ms");
                    ApiError::new(Reason::Timeout, why)
                })??;
        }
        Ok(self.store.snapshot())
    }
}

pub(super) fn reply(object: &Object, revision: u64) -> Result<ObjectReply, ApiError> {
    Ok(ObjectReply { json: encode(object)?.into(), revision })
}

pub(super) fn encode(object: &Object) -> Result<Vec<u8>, ApiError> {
    object.to_json().map_err(|error| {
        let why = format!("encode {}: {error}", object.key());
        ApiError::new(Reason::InternalError, why)
    })
}

/// Up to `limit` objects (and no more bytes than fit a message) after that name. Pages are read
/// from the state as it is at each request: an object that is made or removed between two pages may
/// or may not be seen, one that stays is seen once.
fn page(
    snapshot: &Snapshot,
    selection: &Selection,
    after: Option<&(String, String)>,
    limit: usize,
) -> Result<ListReply, ApiError> {
    let mut reply = ListReply { revision: snapshot.revision, ..Default::default() };
    let mut bytes = 0;
    let mut last: Option<&Object> = None;
    for object in snapshot.objects_of(selection.kind, selection.namespace.as_deref()) {
        let seen = after.is_some_and(|(namespace, name)| {
            let meta = object.meta();
            let place = (
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            );
            place <= (namespace.as_str(), name.as_str())
        });
        if seen || !selection.matches(object) {
            continue;
        }
        let full = reply.items.len() >= limit || bytes > limits::LIST_BYTES_MAX;
        if full {
            reply.remaining += 1;
            continue;
        }
        let json = encode(object)?;
        if bytes + json.len() > limits::LIST_BYTES_MAX && !reply.items.is_empty() {
            bytes = usize::MAX;
            reply.remaining += 1;
            continue;
        }
        bytes += json.len();
        reply.items.push(json.into());
        last = Some(object);
    }
    if let Some(last) = last.filter(|_| reply.remaining > 0) {
        let key = last.key();
        reply.continue_token = format!("{}/{}", key.namespace, key.name);
    }
    Ok(reply)
}

/// `namespace/name` of the last object of the page before.
fn parse_continue(token: &str) -> Result<Option<(String, String)>, ApiError> {
    if token.is_empty() {
        return Ok(None);
    }
    let (namespace, name) = token.split_once('/').ok_or_else(|| {
        ApiError::new(Reason::BadRequest, format!("{token:?} is not a continue token of a list"))
    })?;
    Ok(Some((namespace.to_owned(), name.to_owned())))
}
