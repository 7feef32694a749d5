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
use timonier_proto::{ApiError, DEFAULT_NAMESPACE, Kind, Object, Reason};
use tonic::Request;

use super::propose::decode_into;
use super::select::{parse_kind, parse_ref};
use super::{Answer, Inner, limits};
use crate::guard::{Acting, Asked as StreamAsked, Guard, Record, source};

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
        let outcome = audited(&self.guard, request, work).await;
        self.answer(outcome)
    }
}

/// The first frame of a stream says what it is about.
pub(super) async fn stream_allowed(
    guard: &Guard,
    acting: &Acting,
    from: Option<std::net::SocketAddr>,
    noted: Option<&StreamAsked>,
    request: &StreamRequest,
) -> Result<(), ApiError> {
    let asked = stream_asks(request);
    let result = guard.require(&acting.user, &asked);
    let is_plain = matches!(request.request, Some(Stream::Logs(_)));
    if !is_plain || result.is_err() {
        let outcome = result.as_ref().map(|()| &());
        guard.audit().write(Record::new(acting, "Open", &asked, outcome, from, "")).await;
    }
    if let Some(noted) = noted {
        noted.note(asked);
    }
    result
}

/// Asks, works, and writes it down; also when the caller goes away, which drops this.
async fn audited<T: Asks, R, F>(
    guard: &Guard,
    request: Request<T>,
    work: impl FnOnce(T) -> F,
) -> Result<R, ApiError>
where
    F: Future<Output = Result<R, ApiError>>,
{
    let (metadata, extensions, message) = request.into_parts();
    let (acting, from) = (acting(&extensions), source(&extensions));
    let id = metadata.get("timonier-request-id").and_then(|id| id.to_str().ok());
    let record = |asked: &[Attributes], result: Result<&(), &ApiError>| {
        Record::new(&acting, T::METHOD, asked, result, from, id.unwrap_or_default())
    };
    let is_audited = message.is_audited();
    let is_written = is_audited || acting.by.is_some();
    if let Err(error) = allowed(guard, &acting, &message, extensions.get()) {
        if is_written || error.reason == Reason::Forbidden {
            guard.audit().write(record(&message.summary(), Err(&error))).await;
        }
        return Err(error);
    }
    let asked = if is_audited { message.summary() } else { Vec::new() };
    let underway = is_written.then(|| guard.audit().begin(record(&asked, Ok(&()))));
    let outcome = ACTING.scope(acting.clone(), work(message)).await;
    let result = outcome.as_ref().map(|_| &());
    match (underway, result) {
        (Some(underway), result) => underway.end(result).await,
        (None, Err(error)) if error.reason == Reason::Forbidden => {
            guard.audit().write(record(&asked, Err(error))).await;
        }
        (None, _) => {}
    }
    outcome
}

/// `noted` is a stream's: it is asked again while it goes on.
fn allowed<T: Asks>(
    guard: &Guard,
    acting: &Acting,
    message: &T,
    noted: Option<&StreamAsked>,
) -> Result<(), ApiError> {
    // Of superusers nothing is asked, so that their requests are decoded once only.
    if acting.user.is_superuser() {
        return Ok(());
    }
    let asked = message.asks()?;
    let allowed =
        guard.require(&acting.user, &asked).and_then(|()| guard.spare_own(&acting.user, &asked));
    if let Some(noted) = noted {
        noted.note(asked);
    }
    allowed
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use timonier_proto::v1::{LogsRequest, ObjectRef};

    use super::*;
    use crate::guard::OUTCOME_UNKNOWN;
    use crate::store::{Store, StoreConfig};

    #[tokio::test]
    async fn a_write_whose_caller_goes_away_is_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(folder.path())).await.unwrap();
        let guard = Guard::start(store.clone(), folder.path()).unwrap();
        let r#ref = ObjectRef { kind: "Secret".into(), namespace: "a".into(), name: "s".into() };
        let mut request = Request::new(DeleteRequest { r#ref: Some(r#ref), ..Default::default() });
        let user = UserInfo::authenticated("root", vec!["system:masters".to_owned()]);
        request.extensions_mut().insert(Acting { user, by: None });
        // The write is proposed, and its answer does not come before the caller resets the stream.
        let work = |_| std::future::pending::<Result<(), ApiError>>();
        assert!(audited(&guard, request, work).now_or_never().is_none());
        let line = format!(r#""asked":["delete secrets s in a"],"result":"{OUTCOME_UNKNOWN}""#);
        let written = async {
            let path = folder.path().join("audit.log");
            while !tokio::fs::read_to_string(&path).await.unwrap_or_default().contains(&line) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.expect("it is written down");
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn what_a_stream_asked_for_is_asked_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(folder.path())).await.unwrap();
        let guard = Guard::start(store.clone(), folder.path()).unwrap();
        let acting = Acting { user: UserInfo::authenticated("vera", Vec::new()), by: None };
        let watch =
            WatchRequest { kind: "Pod".into(), namespace: "a".into(), ..Default::default() };
        let (mut request, asked) = (Request::new(watch), StreamAsked::default());
        request.extensions_mut().insert(acting.clone());
        request.extensions_mut().insert(asked.clone());
        let work = async |_| Ok(());
        assert_eq!(audited(&guard, request, work).await.unwrap_err().reason, Reason::Forbidden);
        assert_eq!(asked.get(), [Attributes::on("watch", Kind::Pod, "a", "")]);

        let logs = LogsRequest { namespace: "a".into(), pod: "p".into(), ..Default::default() };
        let request = StreamRequest { request: Some(Stream::Logs(logs)) };
        let asked = StreamAsked::default();
        stream_allowed(&guard, &acting, None, Some(&asked), &request).await.unwrap_err();
        assert_eq!(asked.get(), [Attributes::on("get", Kind::Pod, "a", "p").part("log")]);
        store.shutdown().await.unwrap();
    }
}
