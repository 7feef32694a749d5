//! The log's segments as one sequence: opening them, finding an entry, cutting and purging.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::{Fault, scan};
use super::segment::{Place, RECORDS_OFFSET, Segment};
use crate::store::StoreError;
use crate::store::keyring::KeyId;
use crate::store::raft::LogId;

/// An empty file of this name and a log index tells the next start to give up the log from there.
const DISCARD_PREFIX: &str = "discard-from-";

#[derive(Debug)]
pub struct Files {
    pub dir: PathBuf,
    /// Of new segments, in bytes.
    pub capacity: u64,
    /// In order; the last one is written to.
    segments: VecDeque<Segment>,
    /// Made ahead, so that the log can go on when the last one is full.
    spare: Option<Segment>,
    /// Entries up to this one do not count, even where they are still in a file.
    pub purged: Option<LogId>,
}

/// Of a fault: offset in its file, and log index.
type Position = (u64, u64);

struct Opened {
    segment: Segment,
    /// Highest index + 1 that its records say was committed.
    committed_next: u64,
    torn: Option<Position>,
    /// The log ends in this segment although there are more.
    ended: bool,
}

impl Files {
    /// Opens the log; cuts the torn end of the last write, and refuses any other damage. Answers
    /// the highest index + 1 that is known to be committed, too. `begun`: there must be a log.
    pub fn open(
        dir: &Path,
        capacity: u64,
        purged: Option<LogId>,
        begun: bool,
    ) -> Result<(Self, u64), StoreError> {
        let dir = dir.to_owned();
        let mut files = Self { dir, capacity, segments: VecDeque::new(), spare: None, purged };
        let mut committed_next = 0;
        let mut torn = None;
        let mut numbers = files.numbers()?.into_iter();
        while let Some(number) = numbers.next() {
            if let Some(last) = files.segments.back()
                && number != last.number + 1
            {
                return Err(files.missing(last.number + 1));
            }
            let opened = files.open_segment(number)?;
            committed_next = opened.committed_next.max(committed_next);
            files.check_before(&opened.segment, torn)?;
            torn = torn.or(opened.torn);
            files.segments.push_back(opened.segment);
            if opened.ended {
                files.remove(numbers.by_ref())?;
            }
        }
        files.check_beginning()?;
        if let Some((offset, index)) = torn {
            files.cut_torn(offset, index)?;
        }
        files.set_spare_aside();
        files.leave_behind()?;
        if files.segments.is_empty() {
            if begun && !files.discards_from(files.next_index()) {
                return Err(files.missing(1));
            }
            files.create_first()?;
        }
        Ok((files, committed_next))
    }

    /// Where a snapshot reached further than the log, what comes next does not follow on its records:
    /// goes on in another file, and removes those that hold nothing but what was purged.
    fn leave_behind(&mut self) -> Result<(), StoreError> {
        let Some(purged) = self.purged else { return Ok(()) };
        if self.ends_before(purged) && !self.rotate() {
            let number = self.segments.back().map_or(0, |last| last.number) + 1;
            let next = Segment::create(&self.dir, number, self.capacity);
            self.segments.push_back(next.map_err(StoreError::io("make a log file in", &self.dir))?);
        }
        self.purge(purged).map_err(StoreError::io("remove log files in", &self.dir))
    }

    fn create_first(&mut self) -> Result<(), StoreError> {
        let first = Segment::create(&self.dir, 1, self.capacity).map_err(|source| {
            let path = self.dir.clone();
            match source.kind() {
                io::ErrorKind::StorageFull => StoreError::NoSpace { path, bytes: self.capacity },
                _ => StoreError::Io { attempt: "make a log file in", path, source },
            }
        })?;
        self.segments.push_back(first);
        Ok(())
    }

    /// A last segment without records was made ahead, unless it is the only one.
    fn set_spare_aside(&mut self) {
        if self.segments.len() > 1 && self.segments.back().is_some_and(|s| s.places.is_empty()) {
            self.spare = self.segments.pop_back();
        }
    }

    /// Only the last segment with records may end in a torn write, or be empty.
    fn check_before(&self, segment: &Segment, torn: Option<Position>) -> Result<(), StoreError> {
        let (Some(before), Some(first)) = (self.segments.back(), segment.places.first()) else {
            return Ok(());
        };
        let next = first.log_id.index;
        if torn.is_some() || before.places.is_empty() {
            let (offset, index) = torn.unwrap_or((RECORDS_OFFSET, self.next_index()));
            let why = format!("there is no intact record, although entry {next} was written later");
            return Err(self.damaged(&before.path, offset, index, why));
        }
        Ok(())
    }

    fn cut_torn(&mut self, offset: u64, index: u64) -> Result<(), StoreError> {
        let Some(segment) = self.segments.iter_mut().rev().find(|s| s.end == offset) else {
            return Ok(());
        };
        tracing::warn!(
            file = %segment.path.display(), offset, index,
            "cut the torn end of the last write; it was never acknowledged"
        );
        segment.cut(offset, index).map_err(StoreError::io("cut", &segment.path))
    }

    /// Of the segments in the folder, in order. Removes what a crash left half made.
    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let mut numbers = Vec::new();
        let entries = std::fs::read_dir(&self.dir).map_err(StoreError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.dir))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".tmp") {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
            numbers.extend(Segment::number_of(name));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn open_segment(&self, number: u64) -> Result<Opened, StoreError> {
        let (mut segment, bytes) = Segment::open(&self.dir, number)?;
        let last = self.last_in_files();
        let jumps = self.purged.is_some_and(|purged| self.ends_before(purged));
        let next = last.map(|last| last.index + 1);
        let found = scan(&bytes, number, segment.capacity, next.filter(|_| !jumps));
        drop(bytes);
        segment.places = found.places;
        segment.end = found.end;
        if jumps {
            self.check_jump(&segment)?;
        }
        let index = segment.last().map_or(self.next_index(), |last| last.index + 1);
        let committed_next = found.committed_next;
        let mut opened = Opened { segment, committed_next, torn: None, ended: false };
        match found.fault {
            None => {}
            Some(Fault::Torn) => opened.torn = Some((found.end, index)),
            Some(Fault::Damaged(why)) => {
                let segment = &mut opened.segment;
                if !self.discards_from(index) {
                    return Err(self.damaged(&segment.path, found.end, index, why));
                }
                tracing::warn!(
                    file = %segment.path.display(), offset = found.end, index, why,
                    "gave up the log from here on, as told"
                );
                segment.cut(found.end, index).map_err(StoreError::io("cut", &segment.path))?;
                opened.ended = true;
            }
        }
        Ok(opened)
    }

    /// A snapshot came between this segment and the last one: the gap is what it holds.
    fn check_jump(&self, segment: &Segment) -> Result<(), StoreError> {
        let Some(first) = segment.places.first() else { return Ok(()) };
        let begin = self.last_in_files().map_or(0, |last| last.index + 1);
        let end = self.purged.map_or(0, |purged| purged.index + 1);
        let found = first.log_id.index;
        if (begin..=end).contains(&found) {
            return Ok(());
        }
        let why = format!("an entry from {begin} to {end} was expected, not {found}");
        Err(self.damaged(&segment.path, first.offset, begin, why))
    }

    /// The index of the entry that comes after those found so far.
    fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    /// Whether someone asked to give up the log from this entry on. Asked once only.
    fn discards_from(&self, index: u64) -> bool {
        let path = self.dir.join(format!("{DISCARD_PREFIX}{index}"));
        path.exists() && std::fs::remove_file(path).is_ok()
    }

    fn remove(&self, numbers: impl Iterator<Item = u64>) -> Result<(), StoreError> {
        for number in numbers {
            let path = self.dir.join(Segment::file_name(number));
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    /// What is left of the log must begin where it was purged, at the latest.
    fn check_beginning(&self) -> Result<(), StoreError> {
        let needed = self.purged.map_or(0, |purged| purged.index + 1);
        match self.segments.iter().find_map(|s| s.places.first().map(|place| (s, place))) {
            Some((segment, first)) if first.log_id.index > needed => {
                let found = first.log_id.index;
                let why = format!("entry {needed} was expected, not {found}");
                Err(self.damaged(&segment.path, first.offset, needed, why))
            }
            _ => Ok(()),
        }
    }

    fn missing(&self, number: u64) -> StoreError {
        let path = self.dir.join(Segment::file_name(number));
        self.damaged(&path, 0, self.next_index(), "the file is missing".to_owned())
    }

    fn damaged(&self, path: &Path, offset: u64, index: u64, why: String) -> StoreError {
        let marker = self.dir.join(format!("{DISCARD_PREFIX}{index}"));
        StoreError::Corrupt {
            what: "log record",
            path: path.to_owned(),
            offset,
            index: Some(index),
            why,
            hint: format!(
                "restore the data folder from a backup; or, to lose every write from log index \
                 {index} on, create the empty file {} and start again",
                marker.display()
            ),
        }
    }

    fn last_in_files(&self) -> Option<LogId> {
        self.segments.iter().rev().find_map(Segment::last)
    }

    /// The last entry, or the last purged one when there is none.
    pub fn last(&self) -> Option<LogId> {
        self.last_in_files().max(self.purged)
    }

    /// The entry's id, its file, and where in it.
    pub fn find(&self, index: u64) -> Option<(Arc<File>, PathBuf, Place)> {
        if self.purged.is_some_and(|purged| index <= purged.index) {
            return None;
        }
        self.segments.iter().rev().find_map(|segment| {
            let place = segment.place(index)?;
            Some((segment.file.clone(), segment.path.clone(), place))
        })
    }

    pub fn active(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("the log has a segment to write to")
    }

    /// What the segment that is written to still takes, and what the one made ahead would.
    pub fn room(&self) -> (u64, Option<u64>) {
        let active = self.segments.back().map_or(0, Segment::room);
        (active, self.spare.as_ref().map(Segment::room))
    }

    /// The number of the next segment to make ahead; `None` when there is one.
    pub fn spare_number(&self) -> Option<u64> {
        let last = self.segments.back().map_or(0, |segment| segment.number);
        self.spare.is_none().then_some(last + 1)
    }

    pub fn put_spare(&mut self, segment: Segment) {
        self.spare = Some(segment);
    }

    /// Goes on in the segment that was made ahead; false when there is none.
    pub fn rotate(&mut self) -> bool {
        let spare = self.spare.take();
        let rotated = spare.is_some();
        self.segments.extend(spare);
        rotated
    }

    /// Takes the entries from `index` on out of the log.
    pub fn truncate(&mut self, index: u64) -> io::Result<()> {
        while let Some(last) = self.segments.back_mut() {
            let Some(first) = last.places.first().map(|place| place.log_id.index) else { break };
            if first < index || self.segments.len() == 1 {
                let last = self.active();
                let offset = last.place(index).map_or(RECORDS_OFFSET, |place| place.offset);
                if last.last().is_some_and(|last| last.index >= index) {
                    last.cut(offset, index)?;
                }
                break;
            }
            // From the back, so that a crash leaves no gap; a spare behind would be one.
            for segment in self.spare.take().into_iter().chain(self.segments.pop_back()) {
                std::fs::remove_file(&segment.path)?;
            }
        }
        Ok(())
    }

    /// Its last record is of an entry before that one.
    pub fn ends_before(&self, purged: LogId) -> bool {
        self.last_in_files().is_some_and(|last| last.index < purged.index)
    }

    /// Removes the files that hold nothing after `purged`.
    pub fn purge(&mut self, purged: LogId) -> io::Result<()> {
        self.purged = Some(purged).max(self.purged);
        while self.segments.len() > 1
            && let Some(first) = self.segments.front()
            && first.last().is_some_and(|last| last.index <= purged.index)
        {
            std::fs::remove_file(&first.path)?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// What the records are sealed with, and in how many files.
    pub fn keys(&self) -> BTreeMap<KeyId, usize> {
        let mut keys = BTreeMap::new();
        for segment in &self.segments {
            let own: BTreeSet<KeyId> = segment.places.iter().map(|place| place.key).collect();
            for key in own {
                *keys.entry(key).or_default() += 1;
            }
        }
        keys
    }

    /// A record of each key.
    pub fn one_of_each_key(&self) -> Vec<(Arc<File>, PathBuf, Place)> {
        let mut samples = BTreeMap::new();
        for segment in &self.segments {
            for place in &segment.places {
                let sample = || (segment.file.clone(), segment.path.clone(), *place);
                samples.entry(place.key).or_insert_with(sample);
            }
        }
        samples.into_values().collect()
    }

    /// Of the records in the files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end - RECORDS_OFFSET).sum()
    }
}
