//! What each request asks for, by the objects that it names, and the one way into the door's
//! methods: ask, work in the caller's name, write it down.

use std::future::Future;

use serde::Deserialize;
use timonier_master_core::access::{Attributes, UserInfo, escalation, require, reserved};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::stream_request::Request as Stream;
use timonier_proto::v1::{
    ApplyRequest, BeatsRequest, CommitRequest, CreateRequest, CreateTokenRequest, DeleteRequest,
    GetRequest, ListRequest, MonitorRequest, PatchRequest, StreamRequest, UpdateRequest,
    WatchRequest, write_op,
};
use timonier_proto::{ApiError, DEFAULT_NAMESPACE, Kind, Object};
use tonic::Request;

use super::propose::decode_into;
use super::select::{parse_kind, parse_ref};
use super::{Answer, Inner, limits};
use crate::guard::{Acting, Record, source};

type Asked = Result<Vec<Attributes>, ApiError>;

tokio::task_local! {
    /// In whose name the request that this task answers acts.
    static ACTING: Acting;
}

/// A request, with what it asks for and what the audit log says of it.
pub(super) trait Asks {
    const METHOD: &'static str;
    /// What its caller must be allowed, by its whole contents.
    fn asks(&self) -> Asked;
    /// The same for the log, from what can be read at little cost.
    fn summary(&self) -> Vec<Attributes> {
        self.asks().unwrap_or_default()
    }
    /// Whether it is written down when it is allowed.
    fn is_audited(&self) -> bool {
        true
    }
}

impl Inner {
    /// Does `work` if the caller may do what the request asks for.
    pub(super) async fn guarded<T: Asks, R, F>(
        &self,
        request: Request<T>,
        work: impl FnOnce(T) -> F,
    ) -> Answer<R>
    where
        F: Future<Output = Result<R, ApiError>>,
    {
        let (metadata, extensions, message) = request.into_parts();
        let acting = acting(&extensions);
        let is_audited = message.is_audited();
        let mut asked = Vec::new();
        let outcome = match self.allowed(&acting, &message) {
            Ok(()) => {
                if is_audited {
                    asked = message.summary();
                }
                ACTING.scope(acting.clone(), work(message)).await
            }
            Err(error) => {
                asked = message.summary();
                Err(error)
            }
        };
        let denied =
            matches!(&outcome, Err(error) if error.reason == timonier_proto::Reason::Forbidden);
        if is_audited || denied || acting.by.is_some() {
            let id = metadata.get("timonier-request-id").and_then(|id| id.to_str().ok());
            let result = outcome.as_ref().map(|_| &());
            let from = source(&extensions);
            let record =
                Record::new(&acting, T::METHOD, &asked, result, from, id.unwrap_or_default());
            self.guard.audit().write(record).await;
        }
        self.answer(outcome)
    }

    fn allowed<T: Asks>(&self, acting: &Acting, message: &T) -> Result<(), ApiError> {
        // Of superusers nothing is asked, so that their requests are decoded once only.
        if acting.user.is_superuser() {
            return Ok(());
        }
        let asked = message.asks()?;
        self.guard.require(&acting.user, &asked)?;
        let snapshot = self.store.snapshot();
        asked.iter().try_for_each(|asked| reserved::require(&snapshot, &acting.user, asked))
    }

    /// The first frame of a stream says what it is about.
    pub(super) async fn stream_allowed(
        &self,
        acting: &Acting,
        from: Option<std::net::SocketAddr>,
        request: &StreamRequest,
    ) -> Result<(), ApiError> {
        let asked = stream_asks(request);
        let result = self.guard.require(&acting.user, &asked);
        let is_plain = matches!(request.request, Some(Stream::Logs(_)));
        if !is_plain || result.is_err() {
            let outcome = result.as_ref().map(|()| &());
            let record = Record::new(acting, "Open", &asked, outcome, from, "");
            self.guard.audit().write(record).await;
        }
        result
    }
}

/// In whose name a request acts; the guard has established it.
pub(super) fn acting(extensions: &tonic::Extensions) -> Acting {
    extensions
        .get::<Acting>()
        .cloned()
        .unwrap_or_else(|| Acting { user: UserInfo::anonymous(), by: None })
}

/// Whether the caller whose request this task answers may write `new` over `old`: an Apply that
/// creates needs the right to, and nobody grants what he does not have.
pub(super) fn may_write(
    snapshot: &Snapshot,
    old: Option<&Object>,
    new: &Object,
) -> Result<(), ApiError> {
    let check = |user: &UserInfo| {
        if user.is_superuser() {
            return Ok(());
        }
        if old.is_none() {
            reserved::require_to_create(snapshot, user, new)?;
            let namespace = new.meta().namespace.as_deref().unwrap_or_default();
            require(snapshot, user, &Attributes::on("create", new.kind(), namespace, ""))?;
        }
        escalation::check(snapshot, user, old, new)
    };
    // What the master writes of itself is in nobody's name.
    ACTING.try_with(|acting| check(&acting.user)).unwrap_or(Ok(()))
}

/// Whether the caller whose request this task answers sees the cluster's own secrets in lists.
pub(super) fn sees_reserved(snapshot: &Snapshot) -> bool {
    ACTING.try_with(|acting| reserved::has_cluster(snapshot, &acting.user)).unwrap_or(true)
}

fn object(verb: &'static str, object: &Object) -> Attributes {
    let key = object.key();
    let name = if verb == "create" { "" } else { key.name.as_str() };
    Attributes::on(verb, key.kind, &key.namespace, name)
}

fn by_ref(
    verb: &'static str,
    reference: Option<timonier_proto::v1::ObjectRef>,
) -> Result<Attributes, ApiError> {
    let key = parse_ref(reference)?;
    Ok(Attributes::on(verb, key.kind, &key.namespace, &key.name))
}

/// What the log says of a manifest: its head, read without the rest. Decides nothing.
fn head(verb: &'static str, json: &[u8], default_namespace: &str) -> Vec<Attributes> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Head<'a> {
        #[serde(borrow)]
        api_version: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        kind: std::borrow::Cow<'a, str>,
        metadata: Meta,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
    }
    let Ok(head) = serde_json::from_slice::<Head<'_>>(json) else { return Vec::new() };
    let Some(kind) = Kind::by_api(&head.api_version, &head.kind) else { return Vec::new() };
    let default = if default_namespace.is_empty() { DEFAULT_NAMESPACE } else { default_namespace };
    let namespace = head.metadata.namespace.as_deref().unwrap_or(default);
    vec![Attributes::on(verb, kind, namespace, &head.metadata.name.unwrap_or_default())]
}

impl Asks for GetRequest {
    const METHOD: &'static str = "Get";
    fn asks(&self) -> Asked {
        Ok(vec![by_ref("get", self.r#ref.clone())?])
    }
    fn is_audited(&self) -> bool {
        self.r#ref.as_ref().is_some_and(|reference| reference.kind == "Secret")
    }
}

impl Asks for ListRequest {
    const METHOD: &'static str = "List";
    fn asks(&self) -> Asked {
        Ok(vec![Attributes::on("list", parse_kind(&self.kind)?, &self.namespace, "")])
    }
    fn is_audited(&self) -> bool {
        self.kind == "Secret"
    }
}

impl Asks for WatchRequest {
    const METHOD: &'static str = "Watch";
    fn asks(&self) -> Asked {
        Ok(vec![Attributes::on("watch", parse_kind(&self.kind)?, &self.namespace, "")])
    }
    fn is_audited(&self) -> bool {
        self.kind == "Secret"
    }
}

impl Asks for CreateRequest {
    const METHOD: &'static str = "Create";
    fn asks(&self) -> Asked {
        Ok(vec![object("create", &decode_into(&self.json, &self.default_namespace)?)])
    }
    fn summary(&self) -> Vec<Attributes> {
        head("create", &self.json, &self.default_namespace)
    }
}

impl Asks for UpdateRequest {
    const METHOD: &'static str = "Update";
    fn asks(&self) -> Asked {
        let asked = object("update", &decode_into(&self.json, &self.default_namespace)?);
        Ok(vec![if self.status { asked.part("status") } else { asked }])
    }
    fn summary(&self) -> Vec<Attributes> {
        head("update", &self.json, &self.default_namespace)
    }
}

impl Asks for PatchRequest {
    const METHOD: &'static str = "Patch";
    fn asks(&self) -> Asked {
        Ok(vec![by_ref("patch", self.r#ref.clone())?])
    }
}

impl Asks for ApplyRequest {
    const METHOD: &'static str = "Apply";
    fn asks(&self) -> Asked {
        Ok(vec![object("patch", &decode_into(&self.json, &self.default_namespace)?)])
    }
    fn summary(&self) -> Vec<Attributes> {
        head("patch", &self.json, &self.default_namespace)
    }
}

impl Asks for DeleteRequest {
    const METHOD: &'static str = "Delete";
    fn asks(&self) -> Asked {
        Ok(vec![by_ref("delete", self.r#ref.clone())?])
    }
}

/// A deletion that asks whether it may be now.
pub(super) struct Evict(pub DeleteRequest);

impl Asks for Evict {
    const METHOD: &'static str = "Evict";
    fn asks(&self) -> Asked {
        let reference = self.0.r#ref.clone().unwrap_or_default();
        let namespace = match reference.namespace.as_str() {
            "" => DEFAULT_NAMESPACE,
            namespace => namespace,
        };
        let asked = Attributes::on("create", Kind::Pod, namespace, &reference.name);
        Ok(vec![asked.part("eviction")])
    }
}

impl Asks for CommitRequest {
    const METHOD: &'static str = "Commit";
    fn asks(&self) -> Asked {
        if self.ops.len() > limits::COMMIT_OPERATIONS_MAX {
            // The method says how many are too many.
            return Ok(Vec::new());
        }
        let ops = self.ops.iter().filter_map(|write| write.op.as_ref());
        let asked = ops.map(|op| match op {
            write_op::Op::Create(create) => create.asks(),
            write_op::Op::Update(update) => update.asks(),
            write_op::Op::Delete(delete) => delete.asks(),
        });
        Ok(asked.collect::<Result<Vec<_>, _>>()?.concat())
    }
    fn summary(&self) -> Vec<Attributes> {
        let ops = self.ops.iter().filter_map(|write| write.op.as_ref());
        ops.flat_map(|op| match op {
            write_op::Op::Create(create) => create.summary(),
            write_op::Op::Update(update) => update.summary(),
            write_op::Op::Delete(delete) => delete.summary(),
        })
        .collect()
    }
}

impl Asks for MonitorRequest {
    const METHOD: &'static str = "Monitor";
    fn asks(&self) -> Asked {
        let of = |resource| Attributes::virtually("list", "metrics.k8s.io", resource);
        Ok(if self.with_pods { vec![of("nodes"), of("pods")] } else { vec![of("nodes")] })
    }
    fn is_audited(&self) -> bool {
        false
    }
}

impl Asks for BeatsRequest {
    const METHOD: &'static str = "Beats";
    fn asks(&self) -> Asked {
        let asked = Attributes::on("get", Kind::LatencyAutoscaler, &self.namespace, &self.name);
        Ok(vec![asked.part("beats")])
    }
    fn is_audited(&self) -> bool {
        false
    }
}

impl Asks for CreateTokenRequest {
    const METHOD: &'static str = "CreateToken";
    fn asks(&self) -> Asked {
        let asked = Attributes::on("create", Kind::ServiceAccount, &self.namespace, &self.name);
        Ok(vec![asked.part("token")])
    }
}

fn stream_asks(request: &StreamRequest) -> Vec<Attributes> {
    let pod = |verb, namespace: &str, name: &str, sub| {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        vec![Attributes::on(verb, Kind::Pod, namespace, name).part(sub)]
    };
    match &request.request {
        Some(Stream::Logs(logs)) => pod("get", &logs.namespace, &logs.pod, "log"),
        Some(Stream::Exec(exec)) => pod("create", &exec.namespace, &exec.pod, "exec"),
        Some(Stream::PortForward(forward)) => {
            pod("create", &forward.namespace, &forward.pod, "portforward")
        }
        // Refused by the method; only who may do everything gets so far.
        Some(Stream::Image(_)) | None => vec![Attributes::on("*", Kind::Pod, "", "")],
    }
}
