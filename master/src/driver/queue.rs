//! Which keys to look at, and when: each at most once in line, none while its last plan is being
//! written, and the ones that failed after a pause. Knows nothing of what the keys mean.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use timonier_proto::ObjectKey;

/// A key of one of the loops, by the loop's index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Item {
    pub of: usize,
    pub key: ObjectKey,
}

/// First pause after a failure; doubled with each further one.
const BACKOFF_FIRST_MS: u64 = 10;
/// Longest pause after a failure.
const BACKOFF_MAX_MS: u64 = 10_000;
/// Failures that are tried again at once: another write was quicker, and now it is there to be seen.
const PROMPT_RETRIES_MAX: u32 = 3;

#[derive(Debug, Default)]
struct Standing {
    in_line: bool,
    /// Its plan is being written.
    busy: bool,
    /// Something changed meanwhile.
    again: bool,
    due: Option<Instant>,
    failures: u32,
    /// Plans written one after the other without coming to rest.
    streak: u32,
}

impl Standing {
    fn is_idle(&self) -> bool {
        !self.in_line && !self.busy && self.due.is_none() && self.failures == 0 && self.streak == 0
    }
}

/// The keys of all loops. Its size is bounded by the number of objects.
#[derive(Debug, Default)]
pub(super) struct Queue {
    line: VecDeque<Item>,
    standings: HashMap<Item, Standing>,
    timers: BTreeSet<(Instant, Item)>,
}

impl Queue {
    /// Look at it soon.
    pub fn push(&mut self, item: Item) {
        let standing = self.standings.entry(item.clone()).or_default();
        if standing.busy {
            standing.again = true;
        } else if !standing.in_line {
            standing.in_line = true;
            self.line.push_back(item);
        }
    }

    /// The next to look at. The caller answers with one of [`Self::rest`], [`Self::busy`],
    /// [`Self::failed`].
    pub fn pop(&mut self) -> Option<Item> {
        let item = self.line.pop_front()?;
        if let Some(standing) = self.standings.get_mut(&item) {
            standing.in_line = false;
        }
        Some(item)
    }

    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// There was nothing to write; look again at `due`, if at all.
    pub fn rest(&mut self, item: &Item, due: Option<Instant>) {
        let standing = self.standings.entry(item.clone()).or_default();
        standing.failures = 0;
        standing.streak = 0;
        self.set_timer(item, due);
        if self.standings.get(item).is_some_and(Standing::is_idle) {
            self.standings.remove(item);
        }
    }

    /// Its plan is being written; changes are noted until [`Self::written`] or [`Self::failed`].
    pub fn busy(&mut self, item: &Item) {
        let standing = self.standings.entry(item.clone()).or_default();
        standing.busy = true;
        standing.again = false;
        self.set_timer(item, None);
    }

    /// The plan was written: look again whether that was all. Answers how many plans in a row that
    /// makes; the caller may slow it down.
    pub fn written(&mut self, item: &Item) -> u32 {
        let standing = self.standings.entry(item.clone()).or_default();
        standing.busy = false;
        standing.failures = 0;
        standing.streak += 1;
        let streak = standing.streak;
        self.push(item.clone());
        streak
    }

    /// The plan was not written. A refusal by the state is tried again at once a few times, anything
    /// else after a pause. `jitter` is a random number in 0..1.
    pub fn failed(&mut self, item: &Item, prompt: bool, now: Instant, jitter: f64) -> Duration {
        let standing = self.standings.entry(item.clone()).or_default();
        standing.busy = false;
        standing.failures += 1;
        let failures = standing.failures;
        if prompt && failures <= PROMPT_RETRIES_MAX {
            self.push(item.clone());
            return Duration::ZERO;
        }
        let pause = backoff(failures, jitter);
        self.set_timer(item, Some(now + pause));
        pause
    }

    /// Takes the key out of the line until `due`.
    pub fn slow_down(&mut self, item: &Item, due: Instant) {
        self.line.retain(|other| other != item);
        if let Some(standing) = self.standings.get_mut(item) {
            standing.in_line = false;
        }
        self.set_timer(item, Some(due));
    }

    /// Puts in line what is due.
    pub fn wake(&mut self, now: Instant) {
        while let Some((due, item)) = self.timers.first().cloned()
            && due <= now
        {
            self.set_timer(&item, None);
            self.push(item);
        }
    }

    /// When the next key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    fn set_timer(&mut self, item: &Item, due: Option<Instant>) {
        let standing = self.standings.entry(item.clone()).or_default();
        if let Some(old) = std::mem::replace(&mut standing.due, due) {
            self.timers.remove(&(old, item.clone()));
        }
        if let Some(due) = due {
            self.timers.insert((due, item.clone()));
        }
    }
}

fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_FIRST_MS.saturating_mul(1 << failures.min(20));
    let pause = Duration::from_millis(doubled.min(BACKOFF_MAX_MS));
    // Between half and the whole, so that keys that failed together don't come back together.
    pause.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use timonier_proto::Kind;

    use super::*;

    fn item(name: &str) -> Item {
        Item { of: 0, key: ObjectKey::new(Kind::Pod, "default", name) }
    }

    #[test]
    fn a_key_is_in_line_once_and_never_while_it_is_being_written() {
        let mut queue = Queue::default();
        queue.push(item("a"));
        queue.push(item("a"));
        assert_eq!(queue.pop(), Some(item("a")));
        assert_eq!(queue.pop(), None);
        queue.busy(&item("a"));
        queue.push(item("a"));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.written(&item("a")), 1);
        assert_eq!(queue.pop(), Some(item("a")));
        queue.rest(&item("a"), None);
        assert!(queue.standings.is_empty(), "what is at rest takes no room");
    }

    #[test]
    fn a_timer_is_replaced_by_the_next_answer() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.rest(&item("a"), Some(now + Duration::from_secs(1)));
        queue.rest(&item("a"), Some(now + Duration::from_secs(5)));
        queue.wake(now + Duration::from_secs(2));
        assert!(queue.is_empty());
        queue.wake(now + Duration::from_secs(5));
        assert_eq!(queue.pop(), Some(item("a")));
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn failures_are_retried_at_once_then_ever_more_slowly() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..20 {
            queue.busy(&item("a"));
            pauses.push(queue.failed(&item("a"), true, now, 1.0));
            queue.pop();
        }
        assert_eq!(pauses[..3], [Duration::ZERO; 3]);
        assert!(pauses[3..].is_sorted() && pauses[3] > Duration::ZERO);
        assert_eq!(pauses.last(), Some(&Duration::from_millis(BACKOFF_MAX_MS)));
        let at_storage = Queue::default().failed(&item("a"), false, now, 0.0);
        assert!(at_storage > Duration::ZERO, "a failing disk is not hammered");
    }
}
