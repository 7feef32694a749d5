//! The master's calls with objects as JSON trees.

use serde_json::Value;
use timonier_proto::v1::{self, apply_reply, patch_request};
use timonier_proto::{Kind, ObjectKey};

use super::Client;
use crate::error::{Outcome, fail};

/// Objects a page of a list.
const PAGE_OBJECTS: u32 = 500;
/// Pages of one list; more is a loop in the master.
const PAGES_MAX: usize = 10_000;

/// Which objects of a kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Empty: all namespaces.
    pub namespace: String,
    pub labels: String,
    pub fields: String,
}

impl Filter {
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..Default::default() }
    }
    pub fn labels(mut self, labels: impl Into<String>) -> Self {
        self.labels = labels.into();
        self
    }
    pub fn fields(mut self, fields: impl Into<String>) -> Self {
        self.fields = fields.into();
        self
    }
}

pub(super) fn reference(key: &ObjectKey) -> Option<v1::ObjectRef> {
    Some(v1::ObjectRef {
        kind: key.kind.to_string(),
        namespace: if key.kind.info().namespaced { key.namespace.clone() } else { String::new() },
        name: key.name.clone(),
    })
}

pub(super) fn tree(json: &[u8]) -> Outcome<Value> {
    serde_json::from_slice(json).map_err(|error| fail(format!("read the master's answer: {error}")))
}

fn bytes(value: &Value) -> bytes::Bytes {
    value.to_string().into_bytes().into()
}

impl Client {
    pub async fn get(&self, key: &ObjectKey) -> Outcome<Value> {
        let request = v1::GetRequest { r#ref: reference(key), linearizable: true };
        let reply = self
            .read(request, |mut control, request| async move { control.get(request).await })
            .await?;
        tree(&reply.json)
    }

    /// All pages.
    pub async fn list(&self, kind: Kind, filter: &Filter) -> Outcome<Vec<Value>> {
        let mut request = v1::ListRequest {
            kind: kind.to_string(),
            namespace: if kind.info().namespaced {
                filter.namespace.clone()
            } else {
                String::new()
            },
            label_selector: filter.labels.clone(),
            field_selector: filter.fields.clone(),
            limit: PAGE_OBJECTS,
            continue_token: String::new(),
            linearizable: true,
        };
        let mut items = Vec::new();
        for _ in 0..PAGES_MAX {
            let reply =
                self.read(request.clone(), |mut control, request| async move {
                    control.list(request).await
                })
                .await?;
            for json in &reply.items {
                items.push(tree(json)?);
            }
            if reply.continue_token.is_empty() {
                return Ok(items);
            }
            request.continue_token = reply.continue_token;
        }
        Err(fail(format!("list {}: the master's list does not end", kind.info().plural)))
    }

    pub async fn create(&self, object: &Value, namespace: &str, dry_run: bool) -> Outcome<Value> {
        let request = v1::CreateRequest {
            json: bytes(object),
            default_namespace: namespace.to_owned(),
            dry_run,
        };
        let reply = self
            .write(request, |mut control, request| async move { control.create(request).await })
            .await?;
        tree(&reply.json)
    }

    pub async fn update(&self, object: &Value, namespace: &str) -> Outcome<Value> {
        let request = v1::UpdateRequest {
            json: bytes(object),
            default_namespace: namespace.to_owned(),
            dry_run: false,
            status: false,
        };
        let reply = self
            .write(request, |mut control, request| async move { control.update(request).await })
            .await?;
        tree(&reply.json)
    }

    pub async fn apply(
        &self,
        object: &Value,
        namespace: &str,
        dry_run: bool,
    ) -> Outcome<(apply_reply::Result, Value)> {
        let request = v1::ApplyRequest {
            json: bytes(object),
            default_namespace: namespace.to_owned(),
            dry_run,
        };
        let reply = self
            .write(request, |mut control, request| async move { control.apply(request).await })
            .await?;
        Ok((reply.result(), tree(&reply.json)?))
    }

    pub async fn merge_patch(&self, key: &ObjectKey, patch: &Value) -> Outcome<Value> {
        self.patch(key, patch_request::Type::Merge, patch).await
    }

    pub async fn json_patch(&self, key: &ObjectKey, patch: &Value) -> Outcome<Value> {
        self.patch(key, patch_request::Type::Json, patch).await
    }

    async fn patch(
        &self,
        key: &ObjectKey,
        kind: patch_request::Type,
        patch: &Value,
    ) -> Outcome<Value> {
        let request = v1::PatchRequest {
            r#ref: reference(key),
            r#type: kind as i32,
            patch: bytes(patch),
            dry_run: false,
        };
        let reply = self
            .write(request, |mut control, request| async move { control.patch(request).await })
            .await?;
        tree(&reply.json)
    }

    /// True when the object is gone already, false when it is on its way out.
    pub async fn delete(&self, key: &ObjectKey, how: &Deletion) -> Outcome<bool> {
        let request = how.request(key);
        let reply = self
            .write(request, |mut control, request| async move { control.delete(request).await })
            .await?;
        Ok(reply.gone)
    }

    pub async fn evict(&self, key: &ObjectKey, how: &Deletion) -> Outcome<bool> {
        let request = how.request(key);
        let reply = self
            .write(request, |mut control, request| async move { control.evict(request).await })
            .await?;
        Ok(reply.gone)
    }

    pub async fn cluster_info(&self) -> Outcome<v1::ClusterInfoReply> {
        let request = v1::ClusterInfoRequest {};
        self.read(
            request,
            |mut control, request| async move { control.cluster_info(request).await },
        )
        .await
    }

    /// Of the master that answers.
    pub async fn encryption_status(&self) -> Outcome<v1::EncryptionReply> {
        let request = v1::EncryptionStatusRequest {};
        self.read(request, |mut control, request| async move {
            control.encryption_status(request).await
        })
        .await
    }

    pub async fn rotate_encryption(&self) -> Outcome<v1::EncryptionReply> {
        let request = v1::RotateEncryptionRequest {};
        self.write(request, |mut control, request| async move {
            control.rotate_encryption(request).await
        })
        .await
    }

    /// One frame of usage.
    pub async fn usage(&self, nodes: &[String], with_pods: bool) -> Outcome<v1::MonitorFrame> {
        let request = v1::MonitorRequest { nodes: nodes.to_vec(), interval_ms: 0, with_pods };
        let mut stream = self.monitor(request).await?;
        let frame = stream.message().await.map_err(|status| self.explained(status))?;
        frame.ok_or_else(|| fail("the master sent no usage").hint("ask again in a second"))
    }

    pub async fn monitor(
        &self,
        request: v1::MonitorRequest,
    ) -> Outcome<tonic::Streaming<v1::MonitorFrame>> {
        self.open(request, |mut control, request| async move { control.monitor(request).await })
            .await
    }
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct Deletion {
    pub grace_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`; empty is the master's default.
    pub propagation: String,
    pub dry_run: bool,
    /// When set, only this incarnation.
    pub uid: String,
}

impl Deletion {
    fn request(&self, key: &ObjectKey) -> v1::DeleteRequest {
        v1::DeleteRequest {
            r#ref: reference(key),
            grace_period_seconds: self.grace_seconds,
            propagation: self.propagation.clone(),
            uid: self.uid.clone(),
            dry_run: self.dry_run,
        }
    }
}
