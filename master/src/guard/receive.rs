//! Requests that are one message have to come in time, and all that are being received or worked on
//! have a bounded part of the memory. Whoever has shown nothing gets little of it: each request holds
//! its place on the connection and what has come of its 16 MiB for as long as it is not answered.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// From the first wait for a part of the request to its end: 16 MiB over 5 Mbit/s.
pub const RECEIVE_DEADLINE: Duration = Duration::from_secs(30);

/// A request of somebody who has shown nothing; to join, a few KiB are enough.
pub const STRANGER_BYTES_MAX: usize = 64 << 10;
/// All requests of others than masters together.
const ROOM_BYTES: usize = 256 << 20;

/// The memory for requests. Clones are the same.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES)))
    }
}

impl Room {
    /// The place for one request of so many bytes at most.
    pub fn place(&self, bytes_max: usize) -> Place {
        Place { room: self.clone(), bytes_max, held: Arc::default() }
    }
}

/// What one request holds until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Place {
    room: Room,
    bytes_max: usize,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Place {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let received = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) + bytes;
        if received > self.bytes_max {
            let max = self.bytes_max;
            let why =
                format!("receive the request: it has more than the {max} bytes of its caller");
            return Err(Status::resource_exhausted(why));
        }
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(more) = self.room.0.clone().try_acquire_many_owned(wanted) else {
            let why = "receive the request: this master has too many large ones; hint: try again";
            return Err(Status::unavailable(why));
        };
        match &mut *held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

/// The body of such a request.
pub struct Timely {
    body: Body,
    /// Masters' have no bound together: they must not wait for others.
    place: Option<Place>,
    /// Most requests are there at once and need none.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    pub fn new(body: Body, place: Option<Place>) -> Self {
        Self { body, place, deadline: None }
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
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            let taken = self.place.as_ref().map_or(Ok(()), |place| place.take(bytes));
            return Poll::Ready(taken.map_or_else(|full| Some(Err(full)), |()| frame));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_together_have_a_bounded_part_of_the_memory() {
        let room = Room(Arc::new(Semaphore::new(100)));
        let (one, other) = (room.place(80), room.place(80));
        one.take(40).unwrap();
        one.take(30).unwrap();
        assert_eq!(one.take(11).unwrap_err().code(), tonic::Code::ResourceExhausted);
        other.take(30).unwrap();
        assert_eq!(other.take(1).unwrap_err().code(), tonic::Code::Unavailable);
        // The body is gone, the work for it goes on.
        let worked_on = one.clone();
        drop(one);
        assert!(other.take(1).is_err());
        drop(worked_on);
        other.take(50).unwrap();
    }
}
