//! The log's own thread: every write and fsync of the log happens here, in order, off the runtime.
//!
//! Takes all appends that wait, writes them as one, and syncs once for all of them.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::record::{self, Format, Header, Kind, stored_bytes};
use super::segment::Place;
use super::state_file::StateFile;
use crate::store::blocking;
use crate::store::keyring::{DataKey, PLAIN};
use crate::store::raft::{LogId, Types, Vote};

/// Most appends that are written as one.
const APPENDS_PER_SYNC_MAX: usize = 64;
/// A write buffer larger than this is given back.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

pub enum Command {
    Append {
        records: Vec<Pending>,
        done: LogFlushed<Types>,
    },
    SaveVote(Vote, Answer),
    /// From this index on.
    Truncate(u64, Answer),
    /// Up to and including this entry.
    Purge(LogId, Answer),
    /// What comes next goes into another file, so that this one can go once it is purged.
    BeginFile(Answer),
}

pub type Answer = oneshot::Sender<io::Result<()>>;

/// An entry that is to be written.
pub struct Pending {
    pub log_id: LogId,
    pub kind: Kind,
    pub payload: Bytes,
}

pub struct Writer {
    pub shared: Arc<Shared>,
    pub state: StateFile,
    pub fsync_delay: Option<Duration>,
    /// Why nothing is written any more: after a failed sync nobody knows what is on the disk.
    pub broken: Option<String>,
    pub buffer: Vec<u8>,
}

impl Writer {
    /// Returns when all senders are gone.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut next = commands.blocking_recv();
        while let Some(command) = next.take() {
            next = self.obey(command, &mut commands).or_else(|| commands.blocking_recv());
        }
    }

    /// The same as a task, on a simulated disk.
    pub async fn run_here(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut next = commands.recv().await;
        while let Some(command) = next.take() {
            tokio::time::sleep(blocking::delay()).await;
            next = self.obey(command, &mut commands);
            if next.is_none() {
                next = commands.recv().await;
            }
        }
    }

    /// Answers a command that was taken out of the queue meanwhile.
    fn obey(
        &mut self,
        command: Command,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Option<Command> {
        let mut next = None;
        match command {
            Command::Append { records, done } => {
                let mut appends = vec![(records, done)];
                while appends.len() < APPENDS_PER_SYNC_MAX && next.is_none() {
                    match commands.try_recv() {
                        Ok(Command::Append { records, done }) => appends.push((records, done)),
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                self.append(appends);
            }
            Command::SaveVote(vote, answer) => {
                let result = self.state.save_vote(vote);
                self.synced();
                let _ = answer.send(result);
            }
            Command::Truncate(index, answer) => {
                let _ = answer.send(self.shared.truncate(index));
            }
            Command::Purge(purged, answer) => {
                let result = self.purge(purged);
                let _ = answer.send(result);
            }
            Command::BeginFile(answer) => {
                let _ = answer.send(self.begin_file());
            }
        }
        next
    }

    fn purge(&mut self, purged: LogId) -> io::Result<()> {
        self.state.save_purged(purged)?;
        self.synced();
        // What comes next does not follow on the records of that file.
        if self.shared.files().ends_before(purged) {
            self.next_file()?;
        }
        self.shared.files().purge(purged)
    }

    fn append(&mut self, appends: Vec<(Vec<Pending>, LogFlushed<Types>)>) {
        let records = appends.iter().flat_map(|(records, _)| records);
        let result = match &self.broken {
            Some(why) => Err(why.clone()),
            None => self.write(records).map_err(|error| error.to_string()),
        };
        if let Err(why) = &result {
            tracing::error!(why, "the log cannot be written");
            self.broken = Some(why.clone());
        }
        for (_, done) in appends {
            done.log_io_completed(result.clone().map_err(io::Error::other));
        }
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
    }

    fn write<'a>(&mut self, records: impl Iterator<Item = &'a Pending>) -> io::Result<()> {
        let mut places = Vec::new();
        let (mut number, mut begin, mut room) = self.target();
        let key = self.shared.keyring.active();
        for pending in records {
            let bytes = stored_bytes(pending.payload.len());
            if self.buffer.len() as u64 + bytes > room {
                self.sync(begin, std::mem::take(&mut places))?;
                self.next_file()?;
                (number, begin, room) = self.target();
            }
            let offset = begin + self.buffer.len() as u64;
            places.push(self.encode(pending, number, begin, offset, key.as_deref()));
        }
        self.sync(begin, places)
    }

    fn next_file(&self) -> io::Result<()> {
        while !self.shared.files().rotate() {
            self.shared.make_spare()?;
        }
        Ok(())
    }

    fn begin_file(&self) -> io::Result<()> {
        // A file without records can take other ones as it is.
        let is_empty = self.shared.files().active().places.is_empty();
        if is_empty { Ok(()) } else { self.next_file() }
    }

    /// The number of the segment that is written to, where it ends, and its room.
    fn target(&self) -> (u64, u64, u64) {
        let mut files = self.shared.files();
        let active = files.active();
        (active.number, active.end, active.room())
    }

    fn encode(
        &mut self,
        pending: &Pending,
        number: u64,
        begin: u64,
        offset: u64,
        key: Option<&DataKey>,
    ) -> Place {
        let Pending { log_id, kind, payload } = pending;
        let header = Header {
            payload_bytes: 0,
            payload_crc: 0,
            index: log_id.index,
            term: log_id.leader_id.term,
            node: log_id.leader_id.node_id,
            committed_next: self.shared.committed_next.load(Ordering::Relaxed),
            group: u32::try_from(begin).unwrap_or(u32::MAX),
            kind: *kind,
            format: Format::Plain,
            key: PLAIN,
        };
        let keyring = &self.shared.keyring;
        let written = record::encode(header, payload, number, keyring, key, &mut self.buffer);
        Place {
            offset,
            payload_bytes: written.payload_bytes,
            kind: *kind,
            key: written.key,
            log_id: *log_id,
        }
    }

    /// Writes the buffer at `begin` of the current segment. On the disk when this returns.
    fn sync(&mut self, begin: u64, places: Vec<Place>) -> io::Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let file = self.shared.files().active().file.clone();
        file.write_all_at(&self.buffer, begin)?;
        file.sync_data()?;
        self.synced();
        let mut files = self.shared.files();
        let active = files.active();
        active.places.extend(places);
        active.end = begin + self.buffer.len() as u64;
        drop(files);
        self.buffer.clear();
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "the log's own thread may wait; for tests")]
    fn synced(&self) {
        if let Some(delay) = self.fsync_delay {
            std::thread::sleep(delay);
        }
        self.shared.fsyncs.fetch_add(1, Ordering::Relaxed);
    }
}
