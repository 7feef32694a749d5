//! Requests that are one message have to come in time. Each holds its place on the connection and
//! what has come of its 16 MiB, for as long as it is not there.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// From the first wait for a part of the request to its end: 16 MiB over 5 Mbit/s.
pub const RECEIVE_DEADLINE: Duration = Duration::from_secs(30);

/// The body of such a request.
pub struct Timely {
    body: Body,
    /// Most requests are there at once and need none.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    pub fn new(body: Body) -> Self {
        Self { body, deadline: None }
    }
}

impl http_body::Body for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(RECEIVE_DEADLINE)));
        deadline.as_mut().poll(context).map(|()| {
            let seconds = RECEIVE_DEADLINE.as_secs();
            let why = format!("receive the request: it was not complete after {seconds} s");
            Some(Err(Status::deadline_exceeded(why)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
