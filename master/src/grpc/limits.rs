//! The door's bounds.

use std::time::Duration;

/// Requests of one connection that are worked on at the same time; more wait. Each may hold a
/// message. The most are another master's that passes its callers' writes on: at a few milliseconds
/// each, this many are more than the log takes.
pub const CONCURRENT_REQUESTS_PER_CONNECTION_MAX: usize = 256;
/// HTTP/2 streams of one connection. An agent has its session, and one for each log, shell and
/// forwarded connection of its pods; another master those that it passes on.
pub const CONCURRENT_STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// A connection that has been silent so long is asked whether it is still there…
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// …and closed when it has not answered after so long.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Watches that may be open at the same time.
pub(super) const WATCHES_MAX: usize = 4096;
/// Monitors, and watches of latencies, that may be open at the same time: a monitor reads all nodes,
/// and their pods, up to 20 times a second.
pub(super) const MONITORS_MAX: usize = 256;
/// Events that wait for one slow watcher; after that its watch waits, and in the end must resync.
pub(super) const WATCH_QUEUE_EVENTS_MAX: usize = 64;
/// An idle watch tells how far it has come this often.
pub(super) const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of objects in one page of a list: leaves room for the rest of the message.
pub(super) const LIST_BYTES_MAX: usize = timonier_proto::MESSAGE_BYTES_MAX - (1 << 20);
/// A read that must be current waits so long for the store.
pub(super) const LINEARIZE_DEADLINE: Duration = Duration::from_secs(5);
/// Operations in one commit.
pub(super) const COMMIT_OPERATIONS_MAX: usize = 1000;
/// A patch or an apply that finds its object changed meanwhile starts again so often.
pub(super) const CONFLICT_RETRIES_MAX: usize = 16;
/// Names tried for an object with generateName.
pub(super) const GENERATED_NAMES_MAX: usize = 8;
/// Backups that one master makes at the same time: each reads the whole state.
pub(super) const BACKUPS_MAX: usize = 2;
