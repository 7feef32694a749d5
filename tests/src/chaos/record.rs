//! What the writers asked for and what they were answered, and whether what a master has can have
//! come of it.
//!
//! Each object has one writer, which asks for one state after the other, each on the condition that
//! the object is as it was read. So what was acknowledged, or read, is never gone back from; what was
//! not answered may have been done, or be done later, until something after it is.
//!
//! Nothing is asked or read here: a made-up record shows that each violation is found.

use std::collections::{BTreeMap, BTreeSet};

/// An object's value; none where there is no such object.
pub type State = Option<u64>;

/// An object as a master has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub value: u64,
    pub revision: u64,
    pub uid: String,
}

/// How what was read or answered cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// What was acknowledged, or read before, is undone.
    Lost(String),
    /// Nobody asked for it, or it was refused.
    Unasked(String),
    /// A write was done more than once, or not in the same way on all masters.
    Repeated(String),
}

impl Wrong {
    pub fn what(&self) -> &str {
        let (Self::Lost(what) | Self::Unasked(what) | Self::Repeated(what)) = self;
        what
    }
}

/// How far each object had come at some moment: what is read from then on is not before it.
#[derive(Debug, Default)]
pub struct Marks(BTreeMap<String, usize>);

#[derive(Debug, Default)]
pub struct Record {
    histories: BTreeMap<String, History>,
    acked: usize,
}

impl Record {
    /// A writer is about to ask for this.
    pub fn ask(&mut self, name: &str, state: State) {
        self.histories.entry(name.to_owned()).or_default().asked.push(Asked::for_(state));
    }

    /// What was asked for last was done; the store's revision was this one after it.
    pub fn acknowledged(&mut self, name: &str, revision: u64) {
        self.acked += 1;
        let history = self.histories.entry(name.to_owned()).or_default();
        history.done = history.asked.len() - 1;
        history.asked[history.done].acked = Some(revision);
    }

    /// What was asked for last was not done and never will be, as the object is not as it was read.
    /// That is wrong unless something that was not answered may have been done meanwhile.
    pub fn refused(&mut self, name: &str) -> Result<(), Wrong> {
        let history = self.histories.entry(name.to_owned()).or_default();
        let last = history.asked.len() - 1;
        history.asked[last].refused = true;
        let mut between = history.asked.iter().take(last).skip(history.done + 1);
        if between.any(|asked| !asked.refused) {
            return Ok(());
        }
        let state = history.asked[last].state;
        let what = format!("{name}: {state:?} was refused, and nobody else writes it");
        Err(Wrong::Repeated(what))
    }

    /// How many writes were acknowledged.
    pub fn acked(&self) -> usize {
        self.acked
    }

    pub fn marks(&self) -> Marks {
        Marks(self.histories.iter().map(|(name, history)| (name.clone(), history.done)).collect())
    }

    pub fn mark(&self, name: &str) -> usize {
        self.histories.get(name).map_or(0, |history| history.done)
    }

    /// Takes in what was read of one object after it was at the mark.
    pub fn read(&mut self, name: &str, mark: usize, stored: Option<&Stored>) -> Result<(), Wrong> {
        match self.histories.get_mut(name) {
            Some(history) => history.read(name, mark, stored),
            None => match stored {
                Some(stored) => Err(Wrong::Unasked(format!("{name} is {stored:?}"))),
                None => Ok(()),
            },
        }
    }

    /// Takes in what was read of all objects after the marks; what is wrong, by name.
    pub fn read_all(
        &mut self,
        marks: &Marks,
        stored: &BTreeMap<String, Stored>,
    ) -> Vec<(String, Wrong)> {
        let names: BTreeSet<&String> = marks.0.keys().chain(stored.keys()).collect();
        let mut all_wrong = Vec::new();
        for name in names {
            let mark = marks.0.get(name).copied().unwrap_or_default();
            if let Err(wrong) = self.read(name, mark, stored.get(name)) {
                all_wrong.push((name.clone(), wrong));
            }
        }
        all_wrong
    }
}

#[derive(Debug)]
struct History {
    /// In this order; the first stands for what was before any.
    asked: Vec<Asked>,
    /// The last of them that is known to be done.
    done: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { asked: vec![Asked::for_(None)], done: 0 }
    }
}

#[derive(Debug)]
struct Asked {
    state: State,
    refused: bool,
    /// The revision after it, which may have had other changes beside it.
    acked: Option<u64>,
    /// As it was read first. A write that is done once is the same for ever and everywhere.
    read: Option<Stored>,
}

impl Asked {
    fn for_(state: State) -> Self {
        Self { state, refused: false, acked: None, read: None }
    }

    fn is(&self, state: State) -> bool {
        self.state == state && !self.refused
    }
}

impl History {
    fn read(&mut self, name: &str, mark: usize, stored: Option<&Stored>) -> Result<(), Wrong> {
        let state = stored.map(|stored| stored.value);
        let Some(at) = (mark..self.asked.len()).find(|at| self.asked[*at].is(state)) else {
            let known = &self.asked[mark];
            let how = known.acked.map_or("read", |_| "acknowledged");
            let what = format!("{name} is {state:?} after {:?} was {how}", known.state);
            let was_before = self.asked.iter().take(mark).any(|asked| asked.is(state));
            return Err(if was_before { Wrong::Lost(what) } else { Wrong::Unasked(what) });
        };
        self.done = self.done.max(at);
        match stored {
            Some(stored) => self.asked[at].read(name, stored),
            None => Ok(()),
        }
    }
}

impl Asked {
    fn read(&mut self, name: &str, stored: &Stored) -> Result<(), Wrong> {
        if let Some(acked) = self.acked.filter(|acked| stored.revision > *acked) {
            let what = format!("{name} was acknowledged at {acked} and is {stored:?}");
            return Err(Wrong::Repeated(what));
        }
        let first = self.read.get_or_insert_with(|| stored.clone());
        if first != stored {
            return Err(Wrong::Repeated(format!("{name} was {first:?} and is {stored:?}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "counter";

    fn stored(value: u64) -> Stored {
        Stored { value, revision: 10 + value, uid: "u".to_owned() }
    }

    /// Each value was acknowledged, at the revision at which [`stored`] has it.
    fn acked(values: impl IntoIterator<Item = u64>) -> Record {
        let mut record = Record::default();
        for value in values {
            record.ask(NAME, Some(value));
            record.acknowledged(NAME, stored(value).revision);
        }
        record
    }

    fn read(record: &mut Record, state: State) -> Result<(), Wrong> {
        let mark = record.mark(NAME);
        record.read(NAME, mark, state.map(stored).as_ref())
    }

    fn is_lost(answer: &Result<(), Wrong>) -> bool {
        matches!(answer, Err(Wrong::Lost(_)))
    }

    #[test]
    fn an_object_that_was_acknowledged_must_be_there() {
        assert_eq!(read(&mut acked([0]), Some(0)), Ok(()));
        let gone = read(&mut acked([0]), None);
        assert_eq!(gone, Err(Wrong::Lost("counter is None after Some(0) was acknowledged".into())));
    }

    #[test]
    fn an_update_that_was_acknowledged_must_not_be_undone() {
        assert_eq!(read(&mut acked(0..3), Some(2)), Ok(()));
        assert!(is_lost(&read(&mut acked(0..3), Some(1))));
        assert!(is_lost(&read(&mut acked(0..3), Some(0))));
        assert!(is_lost(&read(&mut acked(0..3), None)));
    }

    #[test]
    fn a_deletion_that_was_acknowledged_must_not_be_undone() {
        let mut record = acked([0]);
        record.ask(NAME, None);
        assert_eq!(read(&mut record, Some(0)), Ok(()), "it is not answered yet");
        record.acknowledged(NAME, 20);
        assert_eq!(read(&mut record, None), Ok(()));
        assert!(is_lost(&read(&mut record, Some(0))));
    }

    #[test]
    fn what_was_not_answered_may_be_done_or_not_until_it_was_read() {
        let mut record = acked([0]);
        record.ask(NAME, Some(1));
        record.ask(NAME, Some(2));
        assert_eq!(read(&mut record, Some(0)), Ok(()));
        assert_eq!(read(&mut record, Some(2)), Ok(()));
        assert!(is_lost(&read(&mut record, Some(1))), "it came too late");
        assert!(is_lost(&read(&mut record, Some(0))), "it was read, so it was done");
    }

    #[test]
    fn a_read_may_see_what_came_after_its_mark() {
        let mut record = acked([0]);
        let marks = record.marks();
        for value in [1, 2] {
            record.ask(NAME, Some(value));
            record.acknowledged(NAME, stored(value).revision);
        }
        for value in [0, 1, 2] {
            let has = BTreeMap::from([(NAME.to_owned(), stored(value))]);
            assert_eq!(record.read_all(&marks, &has), [], "{value}");
        }
        assert!(is_lost(&read(&mut record, Some(1))), "not after the next mark");
    }

    #[test]
    fn what_nobody_asked_for_is_found() {
        let unasked = |answer| matches!(answer, Err(Wrong::Unasked(_)));
        assert!(unasked(read(&mut acked(0..3), Some(7))));
        assert!(unasked(read(&mut Record::default(), Some(0))));
        assert_eq!(read(&mut Record::default(), None), Ok(()));
        let mut record = acked([0]);
        record.ask(NAME, Some(1));
        record.ask(NAME, Some(2));
        assert_eq!(record.refused(NAME), Ok(()), "1 may have been done meanwhile");
        assert!(unasked(read(&mut record, Some(2))));
    }

    #[test]
    fn a_refusal_that_nothing_explains_is_found() {
        let repeated = |answer| matches!(answer, Err(Wrong::Repeated(_)));
        let mut record = acked(0..3);
        record.ask(NAME, Some(3));
        assert!(repeated(record.refused(NAME)));
        record.ask(NAME, Some(4));
        assert!(repeated(record.refused(NAME)), "what was refused explains nothing");
        let mut record = acked([0]);
        record.ask(NAME, Some(1));
        assert_eq!(read(&mut record, Some(1)), Ok(()));
        assert!(repeated(record.refused(NAME)), "it was done");
    }

    #[test]
    fn a_write_that_is_done_twice_is_found() {
        let late = Stored { revision: 99, ..stored(0) };
        let answer = acked([0]).read(NAME, 1, Some(&late));
        assert!(matches!(answer, Err(Wrong::Repeated(_))), "after it was acknowledged");
        let other =
            [Stored { revision: 9, ..stored(0) }, Stored { uid: "other".to_owned(), ..stored(0) }];
        for other in other {
            let mut record = acked([0]);
            assert_eq!(read(&mut record, Some(0)), Ok(()));
            let answer = record.read(NAME, 1, Some(&other));
            assert!(matches!(answer, Err(Wrong::Repeated(_))), "{other:?} on another master");
        }
    }

    #[test]
    fn all_objects_are_looked_at() {
        let mut record = Record::default();
        for name in ["a", "b", "c"] {
            record.ask(name, Some(0));
            record.acknowledged(name, 30);
        }
        let marks = record.marks();
        let has = ["b", "c", "d"].map(|name| (name.to_owned(), stored(0)));
        let wrong = record.read_all(&marks, &BTreeMap::from(has));
        let names: Vec<_> = wrong.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "d"]);
        assert!(matches!(&wrong[0].1, Wrong::Lost(_)) && matches!(&wrong[1].1, Wrong::Unasked(_)));
        assert_eq!(record.acked(), 3);
    }
}
