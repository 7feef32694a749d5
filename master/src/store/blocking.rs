//! Where the store's blocking work is done: on threads of its own, so that the runtime's go on. A
//! simulation has one thread only, and does it right there, so that a run depends on its seed alone.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::task::JoinError;

/// How long the log's next write takes on the simulated disk.
type Delay = Rc<dyn Fn() -> Duration>;

thread_local! {
    static SIMULATED: RefCell<Option<Delay>> = const { RefCell::new(None) };
}

/// From now on, stores that are opened and used on this thread do their blocking work on it; each
/// write of their logs takes as long as `delay` says.
pub fn simulate(delay: impl Fn() -> Duration + 'static) {
    SIMULATED.set(Some(Rc::new(delay)));
}

/// The log's writes are done by a task on this thread, not by a thread of their own.
pub(super) fn is_simulated() -> bool {
    SIMULATED.with_borrow(Option::is_some)
}

/// What a simulated disk takes for its next write; nothing on a real one.
pub(super) fn delay() -> Duration {
    let delay = SIMULATED.with_borrow(Clone::clone);
    delay.map(|delay| delay()).unwrap_or_default()
}

/// As [`tokio::task::spawn_blocking`].
pub(super) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if is_simulated() { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}

/// A file that the consensus reads and writes: on other threads, or right here.
pub struct AsyncFile(Place);

enum Place {
    Threads(tokio::fs::File),
    Here(File),
}

impl AsyncFile {
    pub(super) fn of(file: File) -> Self {
        let here = is_simulated();
        Self(if here { Place::Here(file) } else { Place::Threads(tokio::fs::File::from_std(file)) })
    }

    /// Once what is under way is done.
    pub(super) async fn into_std(self) -> File {
        match self.0 {
            Place::Threads(file) => file.into_std().await,
            Place::Here(file) => file,
        }
    }
}

impl AsyncRead for AsyncFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).poll_read(context, into),
            Place::Here(file) => {
                let read = file.read(into.initialize_unfilled());
                Poll::Ready(read.map(|bytes| into.advance(bytes)))
            }
        }
    }
}

impl AsyncWrite for AsyncFile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).poll_write(context, bytes),
            Place::Here(file) => Poll::Ready(file.write(bytes)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).poll_flush(context),
            Place::Here(file) => Poll::Ready(file.flush()),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).poll_shutdown(context),
            Place::Here(file) => Poll::Ready(file.flush()),
        }
    }
}

impl AsyncSeek for AsyncFile {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).start_seek(to),
            Place::Here(file) => file.seek(to).map(drop),
        }
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        match &mut self.0 {
            Place::Threads(file) => Pin::new(file).poll_complete(context),
            Place::Here(file) => Poll::Ready(file.stream_position()),
        }
    }
}
