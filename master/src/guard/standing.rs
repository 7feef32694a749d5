//! A stream lasts no longer than the right to it: who calls is asked again, from time to time, what
//! he was asked when it began.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use timonier_master_core::access::Attributes;
use timonier_proto::ApiError;
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

use super::{Guard, Need, acting, user_of};
use crate::caller::CallerLayer;
use crate::incoming::Connection;

/// A stream outlives its caller's right to it by so much at most.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// What the door asked for before it let a stream begin; in the request's extensions, for it to fill.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<OnceLock<Vec<Attributes>>>);

impl Asked {
    pub fn note(&self, asked: Vec<Attributes>) {
        // A request is asked for once only.
        let _ = self.0.set(asked);
    }

    pub fn get(&self) -> &[Attributes] {
        self.0.get().map(Vec::as_slice).unwrap_or_default()
    }
}

/// By what right a stream goes on.
pub struct Standing {
    pub guard: Guard,
    pub callers: CallerLayer,
    pub connection: Option<Connection>,
    pub headers: HeaderMap,
    pub need: &'static Need,
    pub asked: Asked,
}

impl Standing {
    /// Whether the stream may go on: what the caller showed is still good, he may still act as whom
    /// he acts, and that one may still do what was asked.
    fn check(&self) -> Result<(), ApiError> {
        let caller = self.callers.caller(self.connection.as_ref(), &self.headers);
        let user = user_of(&caller.map_err(|status| ApiError::from_grpc(&status))?);
        let acting = acting::of(user, &self.headers, &self.guard.inner.store.snapshot())?;
        match self.need {
            Need::Fixed(asked) | Need::Told(asked) => self.guard.require(&acting.user, &[asked()]),
            Need::Objects => self.guard.require(&acting.user, self.asked.get()),
            Need::Anyone | Need::Nodes | Need::Masters => Ok(()),
        }
    }
}

/// Which way the messages of a body go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// One direction of a stream. Each looks for itself: a caller who reads nothing of the answer could
/// go on sending otherwise.
pub struct WhileStanding {
    /// `None` once it is ended.
    body: Option<Body>,
    way: Way,
    standing: Arc<Standing>,
    again: Pin<Box<Sleep>>,
}

impl WhileStanding {
    pub fn new(body: Body, way: Way, standing: Arc<Standing>) -> Self {
        Self { body: Some(body), way, standing, again: Box::pin(sleep(RECHECK_INTERVAL)) }
    }

    fn end(&mut self, mut why: ApiError) -> Result<Frame<Bytes>, Status> {
        // With it goes the work for this stream.
        self.body = None;
        why.message = format!("the stream has ended before its time: {}", why.message);
        let status = Status::from(why);
        let mut trailers = HeaderMap::new();
        match self.way {
            Way::Out if status.add_header(&mut trailers).is_ok() => Ok(Frame::trailers(trailers)),
            Way::In | Way::Out => Err(status),
        }
    }
}

impl http_body::Body for WhileStanding {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while self.body.is_some() && self.again.as_mut().poll(context).is_ready() {
            if let Err(why) = self.standing.check() {
                return Poll::Ready(Some(self.end(why)));
            }
            self.again.as_mut().reset(Instant::now() + RECHECK_INTERVAL);
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // It may end at any time.
        SizeHint::default()
    }
}
