//! The guard: every call passes it before its method is reached.
//!
//! It knows each method by its path ([`table`]); a path that it does not know is refused. It bounds
//! what one caller may ask a second, establishes in whose name the caller acts, and asks for what
//! the table says. Where that depends on the request's contents (which object, in which namespace),
//! the table says so and the door asks, through [`Guard::require`]. Requests have to come in time,
//! and a stream ends when its caller loses the right to it.

mod acting;
mod audit;
#[cfg(test)]
mod doors;
mod rate;
mod receive;
mod standing;
mod table;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use timonier_master_core::access::{self, Attributes, UserInfo, reserved};
use timonier_proto::{ApiError, Reason};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::server::TcpConnectInfo;
use tonic::{Extensions, Status};

use self::receive::{Place, Room, STRANGER_BYTES_MAX, Timely};
use self::standing::{Standing, Way, WhileStanding};
use crate::caller::{Caller, CallerLayer, Refusals, Refused};
use crate::incoming::Connection;
use crate::store::Store;

pub use acting::{Acting, IMPERSONATE_GROUP, IMPERSONATE_USER};
pub use audit::{Audit, Entrant, OUTCOME_UNKNOWN, Record, Underway};
pub use rate::{Buckets, Rate};
pub use standing::Asked;
pub use table::{METHODS, Need, need};

/// Metadata under which a client numbers its writes.
const REQUEST_ID: &str = "timonier-request-id";

/// The guard. Clones are the same.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    audit: Audit,
    buckets: Buckets,
    room: Room,
}

impl Guard {
    /// The audit log is in `data_dir`.
    pub fn start(store: Store, data_dir: &Path) -> std::io::Result<Self> {
        let audit = Audit::open(data_dir)?;
        let (buckets, room) = (Buckets::default(), Room::default());
        Ok(Self { inner: Arc::new(Inner { store, audit, buckets, room }) })
    }

    /// To be put around every service; `callers` is the layer before it.
    pub fn layer(&self, callers: &CallerLayer) -> GuardLayer {
        GuardLayer { guard: self.clone(), callers: callers.clone() }
    }

    /// Whether the user may do all of it, by the state as this master knows it.
    pub fn require(&self, user: &UserInfo, asked: &[Attributes]) -> Result<(), ApiError> {
        if user.is_superuser() {
            return Ok(());
        }
        let snapshot = self.inner.store.snapshot();
        asked.iter().try_for_each(|asked| access::require(&snapshot, user, asked))
    }

    /// Refuses what names one of the cluster's own secrets to those who do not have the cluster.
    pub fn spare_own(&self, user: &UserInfo, asked: &[Attributes]) -> Result<(), ApiError> {
        let snapshot = self.inner.store.snapshot();
        asked.iter().try_for_each(|asked| reserved::require(&snapshot, user, asked))
    }

    pub fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    /// The place for a request; none where a master asks, which goes on whatever others ask.
    fn place(&self, need: &Need, parts: &Parts<'_>) -> Option<Place> {
        let is_stranger = caller(parts.extensions).name == access::ANONYMOUS;
        let bytes_max = if is_stranger { STRANGER_BYTES_MAX } else { usize::MAX };
        (!matches!(need, Need::Masters)).then(|| self.inner.room.place(bytes_max))
    }

    /// What the table asks of whoever calls this path.
    async fn pass(&self, path: &str, parts: &mut Parts<'_>) -> Result<&'static Need, ApiError> {
        let caller = caller(parts.extensions);
        let user = user_of(&caller);
        // First of all, as each refusal after it is written down: the rate bounds the log, too. That
        // somebody asks too often is not written, or it would fill the log.
        let (acts_as_another, source) = (acting::is_asked(parts.headers), parts.source());
        self.inner.buckets.take(&user, acts_as_another, source, Instant::now())?;
        self.has_a_state(path)?;
        let outcome = self.check(path, &caller, parts);
        let fixed = outcome.as_ref().ok().and_then(|need| need.audited());
        if outcome.is_err() || fixed.is_some() {
            let acting = parts.extensions.get::<Acting>().cloned();
            let acting = acting.unwrap_or(Acting { user, by: None });
            let asked: Vec<Attributes> = fixed.into_iter().collect();
            let result = outcome.as_ref().map(drop).map_err(Clone::clone);
            let record = Record::new(&acting, path, &asked, result.as_ref(), source, parts.id());
            self.inner.audit.write(record).await;
        }
        outcome
    }

    /// A master that is still catching up with the others knows neither who may do what nor what there
    /// is. It takes what masters say to it, and those who want to join.
    fn has_a_state(&self, path: &str) -> Result<(), ApiError> {
        let store = &self.inner.store;
        if matches!(need(path), Some(Need::Masters | Need::Anyone)) || store.votes() {
            return Ok(());
        }
        let why = "this master is still catching up with the others; hint: try again in a moment, or ask \
                   another master";
        Err(ApiError::new(Reason::Unavailable, why))
    }

    fn check(
        &self,
        path: &str,
        caller: &Caller,
        parts: &mut Parts<'_>,
    ) -> Result<&'static Need, ApiError> {
        let need = need(path).ok_or_else(|| {
            ApiError::new(Reason::Forbidden, format!("{path} is no method of this master"))
        })?;
        let acting = acting::of(user_of(caller), parts.headers, &self.inner.store.snapshot())?;
        let allowed = match need {
            Need::Objects | Need::Anyone => Ok(()),
            Need::Fixed(asked) | Need::Told(asked) => self.require(&acting.user, &[asked()]),
            // What a machine's own certificate says is meant: nobody acts as one.
            Need::Nodes => match caller.node() {
                Some(_) => Ok(()),
                None => Err(not_for(&acting.user, path, "nodes")),
            },
            Need::Masters => match caller.is_master() {
                true => Ok(()),
                false => Err(not_for(&acting.user, path, "masters of this cluster")),
            },
        };
        parts.extensions.insert(acting);
        allowed.map(|()| need)
    }
}

fn not_for(user: &UserInfo, path: &str, who: &str) -> ApiError {
    let method = path.rsplit('/').next().unwrap_or(path);
    let why = format!("{method} is forbidden: User {:?} is not one of the {who}", user.name);
    ApiError::new(Reason::Forbidden, why)
}

/// Who sent a request; whoever showed nothing is nobody.
pub fn caller(extensions: &Extensions) -> Caller {
    extensions.get::<Caller>().cloned().unwrap_or_else(Caller::anonymous)
}

fn user_of(caller: &Caller) -> UserInfo {
    match caller.name == access::ANONYMOUS {
        true => UserInfo::anonymous(),
        false => UserInfo::authenticated(caller.name.clone(), caller.groups.clone()),
    }
}

/// Of an HTTP request, without its body.
struct Parts<'a> {
    headers: &'a HeaderMap,
    extensions: &'a mut Extensions,
}

impl Parts<'_> {
    fn source(&self) -> Option<SocketAddr> {
        source(self.extensions)
    }

    fn id(&self) -> &str {
        id(self.headers)
    }
}

fn id(headers: &HeaderMap) -> &str {
    headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}

impl Refusals for Guard {
    /// Whoever shows what is no good is nobody, and has the rate of nobody.
    fn refused(&self, refused: Refused) -> futures::future::BoxFuture<'static, Status> {
        let guard = self.clone();
        Box::pin(async move {
            let Refused { path, headers, source, why } = refused;
            let nobody = Acting { user: UserInfo::anonymous(), by: None };
            let Inner { buckets, audit, .. } = &*guard.inner;
            if let Err(error) = buckets.take(&nobody.user, false, source, Instant::now()) {
                return error.into();
            }
            let error = ApiError::from_grpc(&why);
            let record = Record::new(&nobody, &path, &[], Err(&error), source, id(&headers));
            audit.write(record).await;
            why
        })
    }
}

/// Where a request came from.
pub fn source(extensions: &Extensions) -> Option<SocketAddr> {
    let connection = extensions.get::<Connection>().and_then(|connection| connection.remote);
    connection.or_else(|| extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr))
}

/// Puts the guard around every service of the server.
#[derive(Clone)]
pub struct GuardLayer {
    guard: Guard,
    callers: CallerLayer,
}

impl<S> tower_layer::Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { layer: self.clone(), inner }
    }
}

/// A service behind the guard.
#[derive(Clone)]
pub struct Guarded<S> {
    layer: GuardLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let layer = self.layer.clone();
        // The service that is ready, not a clone of it, gets the call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let mut parts = Parts { headers: &head.headers, extensions: &mut head.extensions };
            let need = match layer.guard.pass(head.uri.path(), &mut parts).await {
                Ok(need) => need,
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let (request_streams, answer_streams) = streamed(head.uri.path());
            let standing = (request_streams || answer_streams)
                .then(|| layer.standing(need, &mut parts))
                .flatten();
            // Until the answer is there.
            let place = layer.guard.place(need, &parts);
            let body = match &standing {
                _ if !request_streams => Body::new(Timely::new(body, place.clone())),
                Some(standing) => Body::new(WhileStanding::new(body, Way::In, standing.clone())),
                None => body,
            };
            let answer = inner.call(Request::from_parts(head, body)).await?;
            Ok(match standing {
                Some(standing) if answer_streams => {
                    answer.map(|body| Body::new(WhileStanding::new(body, Way::Out, standing)))
                }
                _ => answer,
            })
        })
    }
}

impl GuardLayer {
    /// By what right the stream of a call that is past the guard goes on. Those of machines last as
    /// long as their connections, which outlive the certificates that they were opened with.
    fn standing(&self, need: &'static Need, parts: &mut Parts<'_>) -> Option<Arc<Standing>> {
        if matches!(need, Need::Nodes | Need::Masters) {
            return None;
        }
        let asked = Asked::default();
        parts.extensions.insert(asked.clone());
        Some(Arc::new(Standing {
            guard: self.guard.clone(),
            callers: self.callers.clone(),
            connection: parts.extensions.get::<Connection>().cloned(),
            headers: parts.headers.clone(),
            need,
            asked,
        }))
    }
}

/// Whether the method's request is a stream, and whether its answer is.
fn streamed(path: &str) -> (bool, bool) {
    let row = timonier_proto::STREAMED.iter().find(|(known, ..)| *known == path);
    row.map_or((false, false), |(_, request, answer)| (*request, *answer))
}
