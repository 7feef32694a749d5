//! A master that keeps what it is told and answers as it was prepared to. It decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use timonier_identity::Subject;
use timonier_proto::v1::control_server::{Control, ControlServer};
use timonier_proto::v1::{self, StreamFrame, apply_reply, stream_frame, watch_event};
use timonier_proto::{ApiError, Kind, ObjectKey, REQUEST_ID_HEADER, Reason};
use tokio::sync::{Notify, broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status, Streaming};

const EVENTS_MAX: usize = 64;

#[derive(Clone)]
pub struct Played {
    inner: Arc<Inner>,
    pub address: String,
    /// timonctl's configuration.
    pub config: Arc<tempfile::NamedTempFile>,
}

struct Inner {
    objects: Mutex<BTreeMap<(String, String), Value>>,
    events: broadcast::Sender<(watch_event::Type, Value)>,
    watched: Notify,
    asked: Mutex<Vec<Asked>>,
    removal: Mutex<Duration>,
    refusals: Mutex<VecDeque<Status>>,
    streams: Mutex<VecDeque<Vec<StreamFrame>>>,
    backup: Mutex<Vec<Vec<u8>>>,
    masters: Mutex<Vec<v1::MasterStatus>>,
    allowed: Mutex<Vec<v1::CanIRequest>>,
}

/// A write that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub method: &'static str,
    /// Under which it is done once; empty where it had none.
    pub id: String,
}

fn frame(frame: stream_frame::Frame) -> StreamFrame {
    StreamFrame { frame: Some(frame) }
}

pub fn data(text: &str) -> StreamFrame {
    frame(stream_frame::Frame::Data(text.to_owned().into()))
}

pub fn stderr(text: &str) -> StreamFrame {
    frame(stream_frame::Frame::Stderr(text.to_owned().into()))
}

pub fn end(end: v1::StreamEnd) -> StreamFrame {
    frame(stream_frame::Frame::End(end))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn key_of(object: &Value) -> (String, String) {
    (text(object, "/kind").to_owned(), text(object, "/metadata/name").to_owned())
}

fn bytes(object: &Value) -> bytes::Bytes {
    object.to_string().into()
}

impl Played {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inner = Arc::new(Inner {
            objects: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            watched: Notify::new(),
            asked: Mutex::default(),
            removal: Mutex::default(),
            refusals: Mutex::default(),
            streams: Mutex::default(),
            backup: Mutex::default(),
            masters: Mutex::default(),
            allowed: Mutex::default(),
        });
        let (serving, admin) = timonier_identity::throwaway(&Subject::admin());
        let config = Arc::new(tempfile::NamedTempFile::new().unwrap());
        let shown = admin.credentials().unwrap();
        let base64 = |text: &str| STANDARD.encode(text);
        let text = json!({
            "clusters": [{"name": "c", "certificate-authority-data": base64(&admin.bundle_pem().unwrap())}],
            "users": [{"name": "u", "client-certificate-data": base64(&shown.chain_pem),
                "client-key-data": base64(&shown.key_pem)}],
            "contexts": [{"name": "x", "cluster": "c", "user": "u"}],
            "currentContext": "x",
        });
        std::fs::write(config.path(), text.to_string()).unwrap();
        let played = Played { inner, address, config };
        let server =
            tonic::transport::Server::builder().add_service(ControlServer::new(played.clone()));
        tokio::spawn(server.serve_with_incoming(timonier_identity::incoming(listener, serving)));
        played
    }

    pub fn put(&self, object: Value) {
        self.inner.objects.lock().unwrap().insert(key_of(&object), object.clone());
        let _ = self.inner.events.send((watch_event::Type::Modified, object));
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().clone()
    }

    fn note<T>(&self, method: &'static str, request: &Request<T>) {
        let id = request.metadata().get(REQUEST_ID_HEADER).map(|id| id.to_str().unwrap());
        let asked = Asked { method, id: id.unwrap_or_default().to_owned() };
        self.inner.asked.lock().unwrap().push(asked);
    }

    /// Deleted objects stay this long.
    pub fn remove_after_delete(&self, time: Duration) {
        *self.inner.removal.lock().unwrap() = time;
    }

    /// The next read is answered so; or the next write, which is done all the same.
    pub fn answer_next(&self, status: impl Into<Status>) {
        self.inner.refusals.lock().unwrap().push_back(status.into());
    }

    /// What the next opened stream says.
    pub fn play(&self, frames: Vec<StreamFrame>) {
        self.inner.streams.lock().unwrap().push_back(frames);
    }

    /// What a backup consists of.
    pub fn keep_backup(&self, pieces: impl IntoIterator<Item = Vec<u8>>) {
        *self.inner.backup.lock().unwrap() = pieces.into_iter().collect();
    }

    pub fn add_master(&self, master: v1::MasterStatus) {
        self.inner.masters.lock().unwrap().push(master);
    }

    /// Exactly this may be done, and nothing else.
    pub fn allow(&self, asked: v1::CanIRequest) {
        self.inner.allowed.lock().unwrap().push(asked);
    }

    /// Returns when a watcher has taken the last event.
    pub async fn watched(&self) {
        self.inner.watched.notified().await;
    }

    fn find(&self, reference: Option<v1::ObjectRef>) -> Result<Value, Status> {
        let reference = reference.unwrap_or_default();
        let kind = Kind::by_name(&reference.kind).unwrap();
        let key = ObjectKey::new(kind, reference.namespace, reference.name.clone());
        let objects = self.inner.objects.lock().unwrap();
        let found = objects.get(&(reference.kind, reference.name)).cloned();
        Ok(found.ok_or_else(|| ApiError::not_found(&key))?)
    }

    /// What was prepared in place of the answer.
    fn prepared(&self) -> Result<(), Status> {
        self.inner.refusals.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    fn all(&self, kind: &str) -> Vec<Value> {
        let objects = self.inner.objects.lock().unwrap();
        objects.iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object.clone()).collect()
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Played {
    type WatchStream = Streamed<v1::WatchEvent>;
    type MonitorStream = Streamed<v1::MonitorFrame>;
    type BeatsStream = Streamed<v1::LatencyBeats>;
    type BackupStream = Streamed<v1::BackupChunk>;
    type OpenStream = Streamed<StreamFrame>;
    type LoadImageStream = Streamed<StreamFrame>;

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        self.prepared()?;
        let object = self.find(request.into_inner().r#ref)?;
        Ok(Response::new(v1::ObjectReply { json: bytes(&object), revision: 1 }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let items = self.all(&request.into_inner().kind).iter().map(bytes).collect();
        Ok(Response::new(v1::ListReply { items, ..Default::default() }))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let kind = request.into_inner().kind;
        let events = BroadcastStream::new(self.inner.events.subscribe());
        let now = self.all(&kind).into_iter().map(|object| (watch_event::Type::Added, object));
        let later = events.filter_map(|event| std::future::ready(event.ok()));
        let inner = self.inner.clone();
        let told = stream::iter(now).chain(later).filter_map(move |(how, object)| {
            let event = (text(&object, "/kind") == kind).then(|| v1::WatchEvent {
                r#type: how as i32,
                json: bytes(&object),
                revision: 1,
            });
            inner.watched.notify_one();
            std::future::ready(event.map(Ok))
        });
        Ok(Response::new(Box::pin(told)))
    }

    /// An object with a field `refuse` is refused for that reason.
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyReply>, Status> {
        self.note("apply", &request);
        let object: Value = serde_json::from_slice(&request.into_inner().json).unwrap();
        if let Some(why) = object.get("refuse").and_then(Value::as_str) {
            let message = format!("strict decoding error: {why}");
            return Err(ApiError::new(Reason::BadRequest, message).into());
        }
        let known = self.inner.objects.lock().unwrap().contains_key(&key_of(&object));
        let result = match known {
            true => apply_reply::Result::Unchanged,
            false => apply_reply::Result::Created,
        };
        self.put(object.clone());
        self.prepared()?;
        Ok(Response::new(v1::ApplyReply {
            result: result as i32,
            json: bytes(&object),
            revision: 1,
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        self.note("delete", &request);
        let object = self.find(request.into_inner().r#ref)?;
        let (inner, time) = (self.inner.clone(), *self.inner.removal.lock().unwrap());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            inner.objects.lock().unwrap().remove(&key_of(&object));
            let _ = inner.events.send((watch_event::Type::Deleted, object));
        });
        Ok(Response::new(v1::DeleteReply::default()))
    }

    async fn open(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let first = request.into_inner().message().await?;
        if !matches!(first.and_then(|f| f.frame), Some(stream_frame::Frame::Request(_))) {
            return Err(Status::invalid_argument("the first frame is a request"));
        }
        let frames = self.inner.streams.lock().unwrap().pop_front().unwrap_or_default();
        Ok(Response::new(Box::pin(stream::iter(frames.into_iter().map(Ok)))))
    }

    async fn create(
        &self,
        _: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        Err(Status::unimplemented("create"))
    }
    async fn update(
        &self,
        _: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        Err(Status::unimplemented("update"))
    }
    async fn patch(
        &self,
        _: Request<v1::PatchRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        Err(Status::unimplemented("patch"))
    }
    async fn commit(
        &self,
        _: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitReply>, Status> {
        Err(Status::unimplemented("commit"))
    }
    async fn evict(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        Err(Status::unimplemented("evict"))
    }
    async fn cluster_info(
        &self,
        _: Request<v1::ClusterInfoRequest>,
    ) -> Result<Response<v1::ClusterInfoReply>, Status> {
        Err(Status::unimplemented("cluster_info"))
    }
    async fn encryption_status(
        &self,
        _: Request<v1::EncryptionStatusRequest>,
    ) -> Result<Response<v1::EncryptionReply>, Status> {
        Err(Status::unimplemented("encryption_status"))
    }
    async fn rotate_encryption(
        &self,
        _: Request<v1::RotateEncryptionRequest>,
    ) -> Result<Response<v1::EncryptionReply>, Status> {
        Err(Status::unimplemented("rotate_encryption"))
    }
    async fn monitor(
        &self,
        _: Request<v1::MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        Err(Status::unimplemented("monitor"))
    }
    async fn beats(
        &self,
        _: Request<v1::BeatsRequest>,
    ) -> Result<Response<Self::BeatsStream>, Status> {
        Err(Status::unimplemented("beats"))
    }
    async fn list_masters(
        &self,
        _: Request<v1::ListMastersRequest>,
    ) -> Result<Response<v1::ListMastersReply>, Status> {
        let masters = self.inner.masters.lock().unwrap().clone();
        Ok(Response::new(v1::ListMastersReply { masters, ..Default::default() }))
    }
    async fn change_masters(
        &self,
        request: Request<v1::ChangeMastersRequest>,
    ) -> Result<Response<v1::ChangeMastersReply>, Status> {
        self.note("change_masters", &request);
        self.prepared()?;
        Ok(Response::new(v1::ChangeMastersReply {}))
    }
    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let pieces = self.inner.backup.lock().unwrap().clone();
        let chunk = |data: Vec<u8>| Ok(v1::BackupChunk { data: data.into(), expected_bytes: 0 });
        Ok(Response::new(Box::pin(stream::iter(pieces.into_iter().map(chunk)))))
    }
    async fn can_i(
        &self,
        request: Request<v1::CanIRequest>,
    ) -> Result<Response<v1::CanIReply>, Status> {
        let allowed = self.inner.allowed.lock().unwrap().contains(request.get_ref());
        Ok(Response::new(v1::CanIReply { allowed, reason: String::new() }))
    }
    async fn list_rules(
        &self,
        request: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesReply>, Status> {
        let namespace = request.into_inner().namespace;
        let rules = [
            json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
            json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"],
                "resources": ["things/log"], "resourceNames": [namespace]}),
        ];
        Ok(Response::new(v1::ListRulesReply { rules: rules.iter().map(bytes).collect() }))
    }
    async fn who_am_i(
        &self,
        _: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIReply>, Status> {
        Ok(Response::new(v1::WhoAmIReply {
            name: "vera".into(),
            groups: vec!["dev".into(), "ops".into()],
            via: "certificate".into(),
            ..Default::default()
        }))
    }
    async fn create_token(
        &self,
        _: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        Err(Status::unimplemented("create_token"))
    }
    async fn load_image(
        &self,
        _: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::LoadImageStream>, Status> {
        Err(Status::unimplemented("load_image"))
    }
}
