//! A master for tests: it keeps objects and tells watchers, and plays prepared frames and beats.
//! It decides nothing; a test puts the next state in itself.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use timonier_identity::Subject;
use timonier_proto::v1::control_server::{Control, ControlServer};
use timonier_proto::v1::{self, stream_frame, stream_request, watch_event};
use timonier_proto::{ApiError, Kind, ObjectKey, Reason};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::client::Client;
use crate::config::{Config, Target};
use crate::context::Ctx;
use crate::fields::Fields;
use crate::login::{Bearer, Login};
use crate::output::{Captured, Out};

/// Events a watcher in a test may lag behind.
const EVENTS_MAX: usize = 64;

/// What is prepared. Each opened stream plays the next list; after the last one it stays silent.
#[derive(Default)]
pub struct Script {
    pub monitor: Vec<Vec<v1::MonitorFrame>>,
    pub beats: Vec<Vec<v1::LatencyBeats>>,
    /// What each node has to say to an image: the layers it lacks (`None`: none of it), and how
    /// the load ends.
    pub nodes: Nodes,
}

type Change = (watch_event::Type, Kind, Value);

pub struct Scripted {
    script: Mutex<Script>,
    objects: Mutex<BTreeMap<(String, String), Value>>,
    changes: broadcast::Sender<Change>,
    pub address: String,
    login: Login,
    pub deleted: Mutex<Vec<String>>,
    pub offers: Mutex<Vec<v1::ImageOffer>>,
    pub archives: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Script {
    pub async fn serve(self) -> Arc<Scripted> {
        let (serving, identity) = timonier_identity::throwaway(&Subject::admin());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master = Arc::new(Scripted {
            script: Mutex::new(self),
            objects: Mutex::default(),
            changes: broadcast::Sender::new(EVENTS_MAX),
            address: listener.local_addr().unwrap().to_string(),
            login: Login { identity, bearer: Bearer::default() },
            deleted: Mutex::default(),
            offers: Mutex::default(),
            archives: Arc::default(),
        });
        let server = tonic::transport::Server::builder()
            .add_service(ControlServer::from_arc(master.clone()));
        tokio::spawn(server.serve_with_incoming(timonier_identity::incoming(listener, serving)));
        master
    }
}

/// A context that talks to this master, and what it prints.
pub fn ctx_of(master: &Scripted) -> (Ctx, Arc<Mutex<Captured>>) {
    let (out, captured) = Out::captured();
    let servers = vec![master.address.clone()];
    let ctx = Ctx {
        client: Client::new(servers.clone(), Ok(master.login.clone()), None),
        target: Target { servers, namespace: "default".into(), namespace_typed: false },
        out,
        config: Config::default(),
        config_path: "/nonexistent".into(),
    };
    (ctx, captured)
}

/// Both outputs as text.
pub fn printed(captured: &Mutex<Captured>) -> (String, String) {
    let captured = captured.lock().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&captured.out), text(&captured.err))
}

impl Scripted {
    /// Puts an object in as it is from now on.
    pub fn put(&self, kind: Kind, object: Value) {
        let key = (kind.to_string(), object.name().to_owned());
        self.objects.lock().unwrap().insert(key, object.clone());
        let _ = self.changes.send((watch_event::Type::Modified, kind, object));
    }

    pub fn remove(&self, kind: Kind, name: &str) -> Option<Value> {
        let gone = self.objects.lock().unwrap().remove(&(kind.to_string(), name.to_owned()))?;
        let _ = self.changes.send((watch_event::Type::Deleted, kind, gone.clone()));
        Some(gone)
    }

    pub fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(&(kind.to_string(), name.to_owned())).cloned()
    }

    fn find(&self, reference: Option<v1::ObjectRef>) -> Result<(Kind, String, Value), Status> {
        let reference = reference.unwrap_or_default();
        let kind = Kind::by_name(&reference.kind).unwrap();
        let key = ObjectKey::new(kind, reference.namespace.as_str(), reference.name.as_str());
        let object = self.get(kind, &reference.name).ok_or_else(|| ApiError::not_found(&key))?;
        Ok((kind, reference.name, object))
    }

    fn all(&self, kind: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        objects.iter().filter(|(key, _)| key.0 == kind).map(|(_, value)| value.clone()).collect()
    }
}

fn bytes(value: &Value) -> bytes::Bytes {
    value.to_string().into()
}

fn reply(value: &Value) -> Result<Response<v1::ObjectReply>, Status> {
    Ok(Response::new(v1::ObjectReply { json: bytes(value), revision: 1 }))
}

type Nodes = BTreeMap<String, (Option<Vec<String>>, String)>;

/// Answers an offer for all nodes, takes the archive and tells how it ended.
async fn play_nodes(
    offer: &v1::ImageOffer,
    nodes: &Nodes,
    mut frames: Streaming<v1::StreamFrame>,
    sender: tokio::sync::mpsc::Sender<Result<v1::StreamFrame, Status>>,
) -> Vec<u8> {
    let say = |frame| Ok(v1::StreamFrame { frame: Some(frame) });
    for name in &offer.nodes {
        let missing = nodes[name].0.clone();
        let want = v1::ImageWant {
            node: name.clone(),
            has_image: missing.is_none(),
            missing_diff_ids: missing.unwrap_or_default(),
        };
        let _ = sender.send(say(stream_frame::Frame::ImageWant(want))).await;
    }
    let mut archive = Vec::new();
    while let Ok(Some(frame)) = frames.message().await {
        match frame.frame {
            Some(stream_frame::Frame::Data(data)) => archive.extend_from_slice(&data),
            _ => break,
        }
    }
    for name in offer.nodes.iter().filter(|name| nodes[*name].0.is_some()) {
        let end = v1::StreamEnd { node: name.clone(), error: nodes[name].1.clone(), exit_code: 0 };
        let _ = sender.send(say(stream_frame::Frame::End(end))).await;
    }
    archive
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The next list, and silence when it was the last.
fn play<T: Send + Sync + 'static>(lists: &mut Vec<Vec<T>>) -> Streamed<T> {
    if lists.is_empty() {
        return Box::pin(stream::pending());
    }
    let list = stream::iter(lists.remove(0)).map(Ok);
    if lists.is_empty() { Box::pin(list.chain(stream::pending())) } else { Box::pin(list) }
}

#[tonic::async_trait]
impl Control for Scripted {
    type WatchStream = Streamed<v1::WatchEvent>;
    type MonitorStream = Streamed<v1::MonitorFrame>;
    type BeatsStream = Streamed<v1::LatencyBeats>;
    type BackupStream = Streamed<v1::BackupChunk>;
    type OpenStream = Streamed<v1::StreamFrame>;
    type LoadImageStream = ReceiverStream<Result<v1::StreamFrame, Status>>;

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        reply(&self.find(request.into_inner().r#ref)?.2)
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
        let wanted = request.into_inner().kind;
        let later = BroadcastStream::new(self.changes.subscribe());
        let event = |kind: watch_event::Type, object: &Value| v1::WatchEvent {
            r#type: kind as i32,
            json: bytes(object),
            revision: 1,
        };
        let now: Vec<_> =
            self.all(&wanted).iter().map(|o| event(watch_event::Type::Added, o)).collect();
        let later = later.filter_map(move |change| {
            let (how, kind, object) = change.unwrap();
            std::future::ready((kind.to_string() == wanted).then(|| event(how, &object)))
        });
        Ok(Response::new(Box::pin(stream::iter(now).chain(later).map(Ok))))
    }

    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        let mut object: Value = serde_json::from_slice(&request.into_inner().json).unwrap();
        let kind = Kind::by_name(object.text("kind")).unwrap();
        if self.get(kind, object.name()).is_some() {
            let key = ObjectKey::new(kind, "default", object.name());
            return Err(ApiError::already_exists(&key).into());
        }
        object["metadata"]["uid"] = json!(format!("uid-of-{}", object.name()));
        self.put(kind, object.clone());
        reply(&object)
    }

    async fn patch(
        &self,
        request: Request<v1::PatchRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        let request = request.into_inner();
        let (kind, _, mut object) = self.find(request.r#ref)?;
        let patch: json_patch::Patch = serde_json::from_slice(&request.patch).unwrap();
        json_patch::patch(&mut object, &patch)
            .map_err(|error| ApiError::new(Reason::Invalid, error.to_string()))?;
        object["metadata"]["generation"] = json!(object.int("metadata.generation") + 1);
        self.put(kind, object.clone());
        reply(&object)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        let (kind, name, _) = self.find(request.into_inner().r#ref)?;
        self.remove(kind, &name);
        self.deleted.lock().unwrap().push(format!("{kind}/{name}"));
        Ok(Response::new(v1::DeleteReply { gone: true, ..Default::default() }))
    }

    async fn monitor(
        &self,
        _: Request<v1::MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        Ok(Response::new(play(&mut self.script.lock().unwrap().monitor)))
    }

    async fn beats(
        &self,
        _: Request<v1::BeatsRequest>,
    ) -> Result<Response<Self::BeatsStream>, Status> {
        Ok(Response::new(play(&mut self.script.lock().unwrap().beats)))
    }

    async fn load_image(
        &self,
        request: Request<Streaming<v1::StreamFrame>>,
    ) -> Result<Response<Self::LoadImageStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.frame);
        let Some(stream_frame::Frame::Request(v1::StreamRequest {
            request: Some(stream_request::Request::Image(offer)),
        })) = first
        else {
            return Err(Status::invalid_argument("the first frame is an offer"));
        };
        let nodes = self.script.lock().unwrap().nodes.clone();
        self.offers.lock().unwrap().push(offer.clone());
        let (sender, receiver) = tokio::sync::mpsc::channel(EVENTS_MAX);
        let archives = self.archives.clone();
        tokio::spawn(async move {
            let archive = play_nodes(&offer, &nodes, frames, sender).await;
            archives.lock().unwrap().push(archive);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn open(
        &self,
        _: Request<Streaming<v1::StreamFrame>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        Err(Status::unimplemented("open"))
    }
    async fn list_masters(
        &self,
        _: Request<v1::ListMastersRequest>,
    ) -> Result<Response<v1::ListMastersReply>, Status> {
        Err(Status::unimplemented("list_masters"))
    }
    async fn change_masters(
        &self,
        _: Request<v1::ChangeMastersRequest>,
    ) -> Result<Response<v1::ChangeMastersReply>, Status> {
        Err(Status::unimplemented("change_masters"))
    }
    async fn backup(
        &self,
        _: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::unimplemented("backup"))
    }
    async fn can_i(&self, _: Request<v1::CanIRequest>) -> Result<Response<v1::CanIReply>, Status> {
        Err(Status::unimplemented("can_i"))
    }
    async fn list_rules(
        &self,
        _: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesReply>, Status> {
        Err(Status::unimplemented("list_rules"))
    }
    async fn who_am_i(
        &self,
        _: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIReply>, Status> {
        Err(Status::unimplemented("who_am_i"))
    }
    async fn create_token(
        &self,
        _: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        Err(Status::unimplemented("create_token"))
    }
    async fn update(
        &self,
        _: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::ObjectReply>, Status> {
        Err(Status::unimplemented("update"))
    }
    async fn apply(
        &self,
        _: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyReply>, Status> {
        Err(Status::unimplemented("apply"))
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
}
