//! Where the store's blocking work is done: on threads of its own, so that the runtime's go on. A
//! simulation has one thread only, and does it right there, so that a run depends on its seed alone.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

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
