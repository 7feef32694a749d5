//! Whether a history of one register could have happened on a single copy: the algorithm of Wing
//! and Gong with Lowe's memory of the states that were seen, as in porcupine.

use std::collections::HashSet;
use std::time::Duration;

/// What was asked of the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `None`: there is nothing yet.
    Read(Option<u64>),
    Write(u64),
    /// From, to, and whether it was done.
    Swap(Option<u64>, u64, bool),
}

/// One operation of one client.
#[derive(Debug, Clone)]
pub struct Operation {
    pub action: Action,
    pub called: Duration,
    /// `None`: whether it was done is not known, and may be decided at any time after the call.
    pub answered: Option<Duration>,
    /// For people.
    pub by: String,
}

impl Operation {
    /// What the register holds afterwards; `None` when this cannot be done on this value.
    fn on(&self, value: Option<u64>) -> Option<Option<u64>> {
        match self.action {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Write(new) => Some(Some(new)),
            Action::Swap(old, new, true) => (old == value).then_some(Some(new)),
            Action::Swap(old, _, false) => (old != value).then_some(value),
        }
    }
}

/// A set of operations by their index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn toggled(&self, at: usize) -> Self {
        let mut bits = self.0.clone();
        bits[at / 64] ^= 1 << (at % 64);
        Self(bits)
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & 1 << (at % 64) != 0
    }
}

/// Some order of the operations that a single copy could have done them in, or the longest
/// beginning of one that was found.
pub fn check(history: &[Operation]) -> Result<(), Vec<usize>> {
    let mut operations: Vec<(usize, &Operation)> = history.iter().enumerate().collect();
    operations.sort_by_key(|(_, operation)| operation.called);
    let certain = operations.iter().filter(|(_, o)| o.answered.is_some()).count();
    let mut seen: HashSet<(Set, Option<u64>)> = HashSet::new();
    let mut best = Vec::new();
    // Each step: what was done so far, the value then, and where to go on looking.
    let mut done = Set(vec![0; operations.len().div_ceil(64)]);
    let (mut value, mut from) = (None, 0);
    let mut steps: Vec<(usize, Option<u64>)> = Vec::new();
    loop {
        let certain_done =
            steps.iter().filter(|(at, _)| operations[*at].1.answered.is_some()).count();
        if certain_done == certain {
            return Ok(());
        }
        if steps.len() > best.len() {
            best = steps.iter().map(|(at, _)| operations[*at].0).collect();
        }
        match next(&operations, &done, value, from, &mut seen) {
            Some((at, after)) => {
                steps.push((at, value));
                done = done.toggled(at);
                (value, from) = (after, 0);
            }
            None => {
                let Some((at, before)) = steps.pop() else { return Err(best) };
                done = done.toggled(at);
                (value, from) = (before, at + 1);
            }
        }
    }
}

/// The first operation from `from` on that may come next: none that is left was answered before it
/// was called.
fn next(
    operations: &[(usize, &Operation)],
    done: &Set,
    value: Option<u64>,
    from: usize,
    seen: &mut HashSet<(Set, Option<u64>)>,
) -> Option<(usize, Option<u64>)> {
    let mut earliest_answer = Duration::MAX;
    for (at, (_, operation)) in operations.iter().enumerate() {
        if done.has(at) {
            continue;
        }
        if operation.called > earliest_answer {
            return None;
        }
        earliest_answer = earliest_answer.min(operation.answered.unwrap_or(Duration::MAX));
        if at < from {
            continue;
        }
        if let Some(after) = operation.on(value)
            && seen.insert((done.toggled(at), after))
        {
            return Some((at, after));
        }
    }
    None
}

#[test]
fn histories_that_could_be_and_could_not() {
    let operation = |action, called, answered: u64| Operation {
        action,
        called: Duration::from_millis(called),
        answered: (answered > 0).then(|| Duration::from_millis(answered)),
        by: String::new(),
    };
    use Action::{Read, Swap, Write};
    for (could_be, history) in [
        (true, vec![operation(Write(1), 0, 2), operation(Read(Some(1)), 3, 4)]),
        (false, vec![operation(Write(1), 0, 2), operation(Read(None), 3, 4)]),
        (true, vec![operation(Write(1), 0, 5), operation(Read(None), 3, 4)]),
        // An unknown one may have been done, later, or never.
        (
            true,
            vec![
                operation(Write(1), 0, 0),
                operation(Read(None), 3, 4),
                operation(Read(Some(1)), 5, 6),
            ],
        ),
        (
            false,
            vec![
                operation(Write(1), 0, 0),
                operation(Read(Some(1)), 3, 4),
                operation(Read(None), 5, 6),
            ],
        ),
        (false, vec![operation(Write(1), 0, 1), operation(Swap(None, 2, true), 2, 3)]),
        (
            true,
            vec![
                operation(Write(1), 0, 1),
                operation(Swap(None, 2, false), 2, 3),
                operation(Read(Some(1)), 4, 5),
            ],
        ),
        // Two readers see two writes in different orders.
        (
            false,
            vec![
                operation(Write(1), 0, 9),
                operation(Write(2), 0, 9),
                operation(Read(Some(1)), 1, 2),
                operation(Read(Some(2)), 3, 4),
                operation(Read(Some(1)), 5, 6),
            ],
        ),
    ] {
        assert_eq!(check(&history).is_ok(), could_be, "{history:?}");
    }
}
