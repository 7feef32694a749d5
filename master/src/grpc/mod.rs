//! The door that people's tools come through: the gRPC service Control.
//!
//! One file a concern; this one only says which method is where. A request is decoded strictly,
//! admitted (pure code), and proposed to the store; answers are Kubernetes JSON. What agents say and
//! the byte streams to them are other modules' (`sessions`, `telemetry`, `streams`), which the last
//! four methods hand over to.

mod allocate;
mod backup;
mod commit;
mod delete;
mod encryption;
mod guard;
mod info;
mod limits;
mod masters;
mod propose;
mod read;
mod repeat;
mod select;
mod watch;
mod whoami;
mod write;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt};
use timonier_master_core::world::Settings;
use timonier_proto::v1::control_server::{Control, ControlServer};
use timonier_proto::v1::{
    ApplyReply, ApplyRequest, BackupRequest, BeatsRequest, CanIReply, CanIRequest,
    ChangeMastersReply, ChangeMastersRequest, ClusterInfoReply, ClusterInfoRequest, CommitReply,
    CommitRequest, CreateRequest, CreateTokenReply, CreateTokenRequest, DeleteReply, DeleteRequest,
    EncryptionReply, EncryptionStatusRequest, GetRequest, ListMastersReply, ListMastersRequest,
    ListReply, ListRequest, ListRulesReply, ListRulesRequest, MonitorRequest, ObjectReply,
    PatchRequest, RotateEncryptionRequest, StreamFrame, StreamRequest, UpdateRequest, WatchRequest,
    WhoAmIReply, WhoAmIRequest,
};
use timonier_proto::{ApiError, MASTERS_HEADER, MESSAGE_BYTES_MAX, Reason};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use self::guard::Evict;
use self::repeat::RequestId;
use crate::guard::{Asked, Guard, source};
use crate::masters::Masters;
use crate::pki::Pki;
use crate::store::Store;
use crate::streams::{ClientFrames, Origin, Streams};
use crate::telemetry::{BeatStream, FrameStream, Hub};

pub use limits::{
    CONCURRENT_REQUESTS_PER_CONNECTION_MAX, CONCURRENT_STREAMS_PER_CONNECTION_MAX,
    KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
};

/// The service. Clones are the same door.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    hub: Hub,
    streams: Streams,
    guard: Guard,
    settings: Settings,
    masters: Masters,
    pki: Pki,
    started: Instant,
    /// Services are written one at a time, so that no two get the same address or node port.
    allocating: Mutex<()>,
    /// Held while a pod is evicted, so that evictions of one budget do not race.
    evicting: Mutex<()>,
    watches: Arc<Semaphore>,
    monitors: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// What a door opens on.
pub struct DoorParts {
    pub store: Store,
    pub hub: Hub,
    pub streams: Streams,
    pub guard: Guard,
    pub settings: Settings,
    pub masters: Masters,
    pub pki: Pki,
    /// Ends the watches.
    pub shutdown: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;
/// What agents measure, as it comes in.
type Measured<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Door {
    pub fn new(parts: DoorParts) -> Self {
        let DoorParts { store, hub, streams, guard, settings, masters, pki, shutdown } = parts;
        Self {
            inner: Arc::new(Inner {
                store,
                hub,
                streams,
                guard,
                settings,
                masters,
                pki,
                started: Instant::now(),
                allocating: Mutex::const_new(()),
                evicting: Mutex::const_new(()),
                watches: Arc::new(Semaphore::new(limits::WATCHES_MAX)),
                monitors: Arc::new(Semaphore::new(limits::MONITORS_MAX)),
                backups: Arc::new(Semaphore::new(limits::BACKUPS_MAX)),
                shutdown,
            }),
        }
    }

    /// To be added to the server.
    pub fn service(&self) -> ControlServer<Self> {
        ControlServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Inner {
    /// A stream of what agents measure, if there is a place for another; it has it to its end.
    fn watched<T: 'static>(
        &self,
        stream: impl FnOnce() -> Measured<T>,
    ) -> Result<Measured<T>, ApiError> {
        let place = self.monitors.clone().try_acquire_owned().map_err(|_| {
            let why = format!("monitor: {} monitors are open already", limits::MONITORS_MAX);
            ApiError::new(Reason::TooManyRequests, why)
        })?;
        let keep = move |item| {
            let _ = &place;
            item
        };
        Ok(Box::pin(stream().map(keep)))
    }

    /// Tells people's tools where the other masters are, should this one go.
    fn answer<T>(&self, result: Result<T, ApiError>) -> Answer<T> {
        let mut response = Response::new(result?);
        let addresses = self.masters.addresses();
        if addresses.len() > 1
            && let Ok(value) = MetadataValue::try_from(addresses.join(","))
        {
            response.metadata_mut().insert(MASTERS_HEADER, value);
        }
        Ok(response)
    }
}

#[tonic::async_trait]
impl Control for Door {
    async fn get(&self, request: Request<GetRequest>) -> Answer<ObjectReply> {
        self.inner.guarded(request, |request| self.inner.get(request)).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListReply> {
        self.inner.guarded(request, |request| self.inner.list(request)).await
    }

    type WatchStream = watch::Events;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        self.inner.guarded(request, |request| self.inner.watch(request)).await
    }

    async fn create(&self, request: Request<CreateRequest>) -> Answer<ObjectReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.create(request, &id)).await
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<ObjectReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.update(request, &id)).await
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Answer<ObjectReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.patch(request, &id)).await
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.apply(request, &id)).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.delete(request, &id)).await
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Answer<CommitReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request, |request| self.inner.commit(request, &id)).await
    }

    async fn evict(&self, request: Request<DeleteRequest>) -> Answer<DeleteReply> {
        let id = RequestId::of(&request)?;
        self.inner.guarded(request.map(Evict), |request| self.inner.evict(request.0, &id)).await
    }

    async fn cluster_info(&self, _: Request<ClusterInfoRequest>) -> Answer<ClusterInfoReply> {
        self.inner.answer(Ok(self.inner.cluster_info()))
    }

    async fn list_masters(&self, _: Request<ListMastersRequest>) -> Answer<ListMastersReply> {
        self.inner.answer(Ok(self.inner.list_masters().await))
    }

    async fn change_masters(
        &self,
        request: Request<ChangeMastersRequest>,
    ) -> Answer<ChangeMastersReply> {
        self.inner.answer(self.inner.change_masters_for(request).await)
    }

    type BackupStream = backup::Chunks;

    async fn backup(&self, _: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        self.inner.answer(self.inner.backup().await)
    }

    async fn encryption_status(
        &self,
        _: Request<EncryptionStatusRequest>,
    ) -> Answer<EncryptionReply> {
        Ok(Response::new(self.inner.encryption_status()))
    }

    async fn rotate_encryption(
        &self,
        _: Request<RotateEncryptionRequest>,
    ) -> Answer<EncryptionReply> {
        self.inner.answer(self.inner.rotate_encryption().await)
    }

    type MonitorStream = FrameStream;

    async fn monitor(&self, request: Request<MonitorRequest>) -> Answer<Self::MonitorStream> {
        let Inner { hub, store, .. } = &*self.inner;
        let work = async |request| self.inner.watched(|| hub.monitor(store.clone(), request));
        self.inner.guarded(request, work).await
    }

    type BeatsStream = BeatStream;

    async fn beats(&self, request: Request<BeatsRequest>) -> Answer<Self::BeatsStream> {
        let Inner { hub, store, .. } = &*self.inner;
        let work = async |request| self.inner.watched(|| hub.beats(store.clone(), request));
        self.inner.guarded(request, work).await
    }

    type OpenStream = ClientFrames;

    async fn open(&self, request: Request<Streaming<StreamFrame>>) -> Answer<Self::OpenStream> {
        let acting = guard::acting(request.extensions());
        let from = source(request.extensions());
        let noted = request.extensions().get::<Asked>().cloned();
        let origin = Origin::of(&request);
        let may = async |asked: &StreamRequest| {
            guard::stream_allowed(&self.inner.guard, &acting, from, noted.as_ref(), asked).await
        };
        self.inner.streams.open(request.into_inner(), origin, may).await.map(Response::new)
    }

    type LoadImageStream = ClientFrames;

    async fn load_image(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Answer<Self::LoadImageStream> {
        let origin = Origin::of(&request);
        self.inner.streams.load_image(request.into_inner(), origin).await.map(Response::new)
    }

    async fn can_i(&self, request: Request<CanIRequest>) -> Answer<CanIReply> {
        self.inner.answer(Ok(self.inner.can_i(request)))
    }

    async fn list_rules(&self, request: Request<ListRulesRequest>) -> Answer<ListRulesReply> {
        self.inner.answer(self.inner.list_rules(request))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Answer<WhoAmIReply> {
        self.inner.answer(Ok(self.inner.who_am_i(&request)))
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreateTokenReply> {
        self.inner.guarded(request, async |request| self.inner.create_token(&request)).await
    }
}
