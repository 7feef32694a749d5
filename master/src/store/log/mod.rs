//! The log on the disk, as openraft's log storage.
//!
//! Segment files of our own ([`segment`]), written by a thread of its own ([`writer`]). Entries
//! stay in memory until they are applied; the rest is read back from the files.

mod files;
mod record;
pub(super) mod scan;
mod segment;
mod space;
mod state_file;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use self::files::Files;
use self::state_file::{LogState, StateFile};
use self::writer::{Answer, Command, Pending, Writer};
use super::keyring::{KeyId, Keyring};
use super::raft::{Entry, LogId, StorageError, Types, Vote, storage_error};
use super::{StoreError, blocking};

pub(super) use self::record::{HEADER_BYTES, Kind, decode_entry, encode_payload};
pub(super) use self::scan::Fault;
pub(super) use self::space::{Promise, Space};

/// Writes under way; openraft itself waits for each, so this is never reached.
const COMMANDS_MAX: usize = 64;
/// A snapshot that another master sent is on the disk within this time, or never.
const REACH_TIMEOUT: Duration = Duration::from_secs(120);

/// What the thread that writes, those who read and those who ask share.
pub(super) struct Shared {
    files: Mutex<Files>,
    /// Held by whoever makes or removes segments at the log's end.
    making: Mutex<()>,
    /// Entries that were appended and not yet applied, without gaps.
    recent: Mutex<VecDeque<Entry>>,
    /// Index + 1 of the last entry that is known to be committed.
    committed_next: AtomicU64,
    keyring: Arc<Keyring>,
    fsyncs: AtomicU64,
    reach: watch::Sender<Reach>,
}

/// How far the snapshot on the disk reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// To the entry before this one.
    Before(u64),
    /// No further than it did: the next one could not be written.
    Failed,
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn truncate(&self, index: u64) -> io::Result<()> {
        let _alone = self.making();
        self.files().truncate(index)
    }

    fn capacity(&self) -> u64 {
        self.files().capacity
    }

    fn dir(&self) -> PathBuf {
        self.files().dir.clone()
    }

    pub fn fsyncs(&self) -> u64 {
        self.fsyncs.load(Ordering::Relaxed)
    }

    /// Of the records in the log's files.
    pub fn bytes(&self) -> u64 {
        self.files().bytes()
    }

    pub fn last_index(&self) -> u64 {
        self.files().last().map_or(0, |last| last.index)
    }

    /// The entry up to which the log was purged: a snapshot must reach it.
    pub fn purged(&self) -> Option<LogId> {
        self.files().purged
    }

    /// A snapshot that reaches to this entry is on the disk.
    pub fn reached(&self, index: u64) {
        self.reach.send_replace(Reach::Before(index + 1));
    }

    /// A snapshot could not be written, and the store stops for that.
    pub fn not_reached(&self) {
        self.reach.send_replace(Reach::Failed);
    }

    /// Waits until the snapshot on the disk has the entry.
    async fn until_reached(&self, index: u64) -> io::Result<()> {
        let mut reach = self.reach.subscribe();
        let told = reach.wait_for(|reach| match reach {
            Reach::Before(next) => *next > index,
            Reach::Failed => true,
        });
        match timeout(REACH_TIMEOUT, told).await {
            Ok(Ok(reach)) if *reach != Reach::Failed => Ok(()),
            Ok(_) => Err(io::Error::other("the snapshot that stands for it was not written")),
            Err(_) => Err(io::Error::other("no snapshot that stands for it was written in time")),
        }
    }

    /// Forgets the entries in memory up to this one: from now on they are read from the disk.
    pub fn applied(&self, index: u64) {
        let mut recent = self.recent();
        while recent.front().is_some_and(|entry| entry.log_id.index <= index) {
            recent.pop_front();
        }
        if recent.is_empty() {
            recent.shrink_to(COMMANDS_MAX);
        }
    }

    /// What the files' records are sealed with, those of purged entries too, and how many files
    /// need each.
    pub fn keys(&self) -> BTreeMap<KeyId, usize> {
        self.files().keys()
    }

    /// Opens one record of each key: who has another keyring learns it at the start.
    fn check_keys(&self) -> Result<(), StoreError> {
        let samples = self.files().one_of_each_key();
        for (file, path, place) in samples {
            segment::read_entry(&file, &path, &place, &self.keyring)?;
        }
        Ok(())
    }

    /// The entries from `from` on that there are, without gaps, up to `to`, which is not among them.
    fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        for index in from..to {
            let Some((file, path, place)) = self.files().find(index) else { break };
            match segment::read_entry(&file, &path, &place, &self.keyring) {
                Ok(entry) => entries.push(entry),
                // Purged meanwhile, and the key of its file with it.
                Err(_) if self.files().find(index).is_none() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }
}

/// openraft's handle of the log.
pub(super) struct Log {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

/// Reads entries, beside the log's writing.
#[derive(Clone)]
pub(super) struct LogReader(Arc<Shared>);

/// Asks the log to go on in another file.
#[derive(Clone)]
pub(super) struct NewFile(mpsc::WeakSender<Command>);

impl NewFile {
    pub async fn begin(&self) -> io::Result<()> {
        let gone = || io::Error::other("the log's thread has ended");
        let (answer, answered) = oneshot::channel();
        let commands = self.0.upgrade().ok_or_else(gone)?;
        commands.send(Command::BeginFile(answer)).await.map_err(|_| gone())?;
        drop(commands);
        answered.await.map_err(|_| gone())?
    }
}

pub(super) struct OpenedLog {
    pub log: Log,
    pub shared: Arc<Shared>,
    pub new_file: NewFile,
    /// Ends when the log is dropped; a simulated one has none.
    pub thread: Option<JoinHandle<()>>,
}

impl Log {
    /// Reads the whole log once; blocks.
    pub fn open(
        dir: PathBuf,
        segment_bytes: u64,
        fsync_delay: Option<Duration>,
        keyring: Arc<Keyring>,
    ) -> Result<OpenedLog, StoreError> {
        let fresh = !has_segments(&dir)?;
        let state = StateFile::open(&dir, fresh)?;
        let LogState { vote, purged, .. } = state.state();
        // Who has voted has had a log.
        let (files, committed_next) = Files::open(&dir, segment_bytes, purged, vote.is_some())?;
        let purged = files.purged;
        let committed = committed_next
            .checked_sub(1)
            .and_then(|index| files.find(index))
            .map(|(_, _, place)| place.log_id)
            .max(purged);
        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            making: Mutex::default(),
            recent: Mutex::default(),
            committed_next: AtomicU64::new(committed_next),
            keyring,
            fsyncs: AtomicU64::new(0),
            reach: watch::Sender::new(Reach::Before(0)),
        });
        shared.check_keys()?;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let buffer = Vec::new();
        let writer = Writer { shared: shared.clone(), state, fsync_delay, broken: None, buffer };
        let thread = if blocking::is_simulated() {
            tokio::spawn(writer.run_here(receiver));
            None
        } else {
            let thread = std::thread::Builder::new().name("log".to_owned());
            let running = thread.spawn(move || writer.run(receiver));
            Some(running.map_err(StoreError::io("start the thread of", &dir))?)
        };
        let new_file = NewFile(commands.downgrade());
        let log = Self { shared: shared.clone(), commands, vote, committed };
        Ok(OpenedLog { log, shared, new_file, thread })
    }

    async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Result<(), StorageError> {
        let (answer, answered) = oneshot::channel();
        let gone = || storage_error(&io::Error::other("the log's thread has ended"));
        self.commands.send(command(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|error| storage_error(&error))
    }
}

/// Whether a record that begins one of the files is sealed. What cannot be read is not looked at:
/// opening the log says why.
pub(super) fn any_sealed(dir: &std::path::Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names =
        entries.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)));
    names.any(|(path, name)| {
        segment::Segment::number_of(&name)
            .is_some_and(|number| segment::begins_sealed(&path, number))
    })
}

fn has_segments(dir: &std::path::Path) -> Result<bool, StoreError> {
    let mut entries = std::fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    Ok(entries.any(|entry| {
        entry.is_ok_and(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| segment::Segment::number_of(name).is_some())
        })
    }))
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => self.0.purged().map_or(0, |purged| purged.index + 1),
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let (first_recent, recent) = {
            let recent = self.0.recent();
            let first = recent.front().map_or(u64::MAX, |entry| entry.log_id.index);
            let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
            let wanted = recent.iter().skip(skip).take_while(|entry| entry.log_id.index < to);
            (first, wanted.cloned().collect::<Vec<_>>())
        };
        let to_stored = to.min(first_recent);
        if from >= to_stored {
            return Ok(recent);
        }
        let shared = self.0.clone();
        let mut entries = blocking::run(move || shared.read(from, to_stored))
            .await
            .map_err(|error| storage_error(&error))?
            .map_err(|error| storage_error(&error))?;
        // Nothing is given behind a gap, which is there where entries were purged meanwhile.
        let joins = |first: &Entry| first.log_id.index == from + entries.len() as u64;
        if recent.first().is_some_and(joins) {
            entries.extend(recent);
        }
        Ok(entries)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        LogReader(self.shared.clone()).try_get_log_entries(range).await
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<openraft::LogState<Types>, StorageError> {
        let files = self.shared.files();
        Ok(openraft::LogState { last_purged_log_id: files.purged, last_log_id: files.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.shared.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = *vote;
        self.ask(|answer| Command::SaveVote(saved, answer)).await?;
        self.vote = Some(saved);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    /// Costs nothing: it is written with the next record.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let next = committed.map_or(0, |committed| committed.index + 1);
        self.shared.committed_next.store(next, Ordering::Relaxed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut recent = Vec::new();
        for entry in entries {
            let (kind, payload) = encode_payload(&entry).map_err(|error| storage_error(&error))?;
            records.push(Pending { log_id: entry.log_id, kind, payload });
            recent.push(entry);
        }
        self.shared.recent().extend(recent);
        let gone = || storage_error(&io::Error::other("the log's thread has ended"));
        self.commands.send(Command::Append { records, done }).await.map_err(|_| gone())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.shared.recent().retain(|entry| entry.log_id.index < since.index);
        self.ask(|answer| Command::Truncate(since.index, answer)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        // One that another master sends is being installed meanwhile: until it is on the disk, the
        // log's entries are all that there is of them.
        self.shared.until_reached(upto.index).await.map_err(|error| storage_error(&error))?;
        // It may reach further than the log: what was not applied never will be.
        self.shared.applied(upto.index);
        self.ask(|answer| Command::Purge(upto, answer)).await
    }
}
