//! The audit log: who did what to which object, and what came of it. JSON lines in
//! `<data-dir>/audit.log`.
//!
//! Written are all requests that change something, open a stream into a pod, read secrets, or are
//! refused; plain reads are not. Never the contents of any object. A thread of its own writes; a
//! request waits for room in its queue, up to [`ROOM_DEADLINE`], and what found none is counted in
//! the log itself and in the master's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use timonier_master_core::access::{Attributes, UserInfo};
use timonier_proto::ApiError;
use tokio::sync::mpsc;
use tracing::warn;

use super::Acting;

/// Records that wait to be written.
const QUEUE_RECORDS_MAX: usize = 8_192;
/// Records written at once.
const BATCH_RECORDS_MAX: usize = 2_048;
/// How long the writer gathers records after the first: waking it for each costs the requests more
/// than the records do.
const GATHERING: Duration = Duration::from_millis(20);
/// How long a request waits for room in the queue.
const ROOM_DEADLINE: Duration = Duration::from_secs(1);
/// A file of this size is put aside…
const FILE_BYTES_MAX: u64 = 64 << 20;
/// …and so many of those are kept.
const FILES_KEPT: usize = 4;
/// Objects of one request that are named; more are counted.
const OBJECTS_MAX: usize = 16;
/// Bytes of a text that a client chose.
const TEXT_BYTES_MAX: usize = 256;

/// The result of a request whose caller went away before its answer: it may have been done.
pub const OUTCOME_UNKNOWN: &str = "OutcomeUnknown";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub time: Timestamp,
    pub user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Who really asked, when he acted as `user`; of one who joins, the id of his token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The gRPC method.
    pub method: String,
    /// What was asked: `verb resource name in namespace`, for each object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
    /// Objects beyond those in `asked`.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: usize,
    /// `ok`, Kubernetes' reason, or [`OUTCOME_UNKNOWN`].
    pub result: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

impl Record {
    pub fn new(
        acting: &Acting,
        path: &str,
        asked: &[Attributes],
        result: Result<&(), &ApiError>,
        source: Option<SocketAddr>,
        request_id: &str,
    ) -> Self {
        Self {
            time: Timestamp::now(),
            user: bounded(&acting.user.name),
            groups: acting.user.groups.iter().take(OBJECTS_MAX).map(|g| bounded(g)).collect(),
            by: acting.by.as_deref().map(bounded),
            method: bounded(path.rsplit('/').next().unwrap_or(path)),
            asked: asked.iter().take(OBJECTS_MAX).map(|a| bounded(&a.to_string())).collect(),
            more: asked.len().saturating_sub(OBJECTS_MAX),
            result: outcome(result),
            source: source.map(|source| source.to_string()).unwrap_or_default(),
            request_id: bounded(request_id),
        }
    }
}

/// Who calls a method that writes the audit log itself, once it knows what came of it.
#[derive(Debug, Clone)]
pub struct Entrant {
    acting: Acting,
    source: Option<SocketAddr>,
}

impl Entrant {
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let extensions = request.extensions();
        let acting = extensions.get::<Acting>().cloned();
        let acting = acting.unwrap_or_else(|| Acting { user: UserInfo::anonymous(), by: None });
        Self { acting, source: super::source(extensions) }
    }

    /// What stands for a name where there is none yet, such as a join token's id.
    pub fn shows(&mut self, what: String) {
        self.acting.by = Some(what);
    }

    pub async fn audit(
        &self,
        audit: &Audit,
        method: &str,
        asked: &[Attributes],
        outcome: Result<(), ApiError>,
    ) {
        let result = outcome.as_ref().map(|()| &());
        audit.write(Record::new(&self.acting, method, asked, result, self.source, "")).await;
    }
}

fn outcome(result: Result<&(), &ApiError>) -> String {
    result.map_or_else(|error| error.reason.as_str(), |()| "ok").to_owned()
}

/// Where records go. Clones write to the same log; it ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: mpsc::Sender<Record>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// Opens `audit.log` in that folder and starts its writer.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Self::with_size(folder, FILE_BYTES_MAX)
    }

    fn with_size(folder: &Path, file_bytes_max: u64) -> io::Result<Self> {
        let log = Log::open(folder.join("audit.log"), file_bytes_max)?;
        let (queue, records) = mpsc::channel(QUEUE_RECORDS_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = lost.clone();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(log, records, &counter))?;
        Ok(Self { queue, lost })
    }

    /// Before a request is worked on, with its record but for the result.
    pub fn begin(&self, record: Record) -> Underway {
        let record = Record { result: OUTCOME_UNKNOWN.to_owned(), ..record };
        Underway { audit: self.clone(), record: Some(record) }
    }

    /// Hands the record over; returns when there was room for it.
    pub async fn write(&self, record: Record) {
        let record = match self.queue.try_send(record) {
            Ok(()) => return,
            Err(error) => error.into_inner(),
        };
        if self.queue.send_timeout(record, ROOM_DEADLINE).await.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A request that is being worked on. Its caller may go away at any moment, and what works on it is
/// dropped then, though the write may have been proposed already; so that is a record, too.
#[must_use = "its record is written at the end"]
#[derive(Debug)]
pub struct Underway {
    audit: Audit,
    record: Option<Record>,
}

impl Underway {
    /// Writes down what came of it; returns when there was room for it.
    pub async fn end(mut self, result: Result<&(), &ApiError>) {
        if let Some(record) = &mut self.record {
            record.time = Timestamp::now();
            record.result = outcome(result);
        }
        // The record stays here until there is room: one may go away while waiting for that, too.
        let room = tokio::time::timeout(ROOM_DEADLINE, self.audit.queue.reserve()).await;
        match (room, self.record.take()) {
            (Ok(Ok(room)), Some(record)) => room.send(record),
            _ => {
                self.audit.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        let Err(error) = self.audit.queue.try_send(record) else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let (audit, record) = (self.audit.clone(), error.into_inner());
                runtime.spawn(async move { audit.write(record).await });
            }
            Err(_) => {
                self.audit.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the writer has a thread of its own")]
fn write_all(mut log: Log, mut records: mpsc::Receiver<Record>, lost: &AtomicU64) {
    let mut batch = Vec::with_capacity(BATCH_RECORDS_MAX);
    let mut text = Vec::new();
    loop {
        batch.clear();
        let Some(first) = records.blocking_recv() else { return };
        batch.push(first);
        std::thread::sleep(GATHERING);
        while batch.len() < BATCH_RECORDS_MAX
            && let Ok(record) = records.try_recv()
        {
            batch.push(record);
        }
        text.clear();
        for record in &batch {
            // Texts and numbers always have a JSON form.
            let _ = serde_json::to_writer(&mut text, record);
            text.push(b'\n');
        }
        let gone = lost.swap(0, Ordering::Relaxed);
        if gone > 0 {
            let line = serde_json::json!({"time": Timestamp::now(), "lost": gone});
            text.extend_from_slice(format!("{line}\n").as_bytes());
        }
        if let Err(error) = log.append(&text) {
            let count = batch.len() as u64 + gone;
            lost.fetch_add(count, Ordering::Relaxed);
            warn!(lost = count, "write the audit log {}: {error}", log.path.display());
        } else if gone > 0 {
            warn!(lost = gone, "the audit log could not take every record in time");
        }
    }
}

struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    file_bytes_max: u64,
}

impl Log {
    fn open(path: PathBuf, file_bytes_max: u64) -> io::Result<Self> {
        let file = Self::file(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes, file_bytes_max })
    }

    fn file(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.file_bytes_max {
            self.put_aside()?;
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// `audit.log` becomes `audit.log.1`, that `audit.log.2`, and so on; the oldest goes.
    fn put_aside(&mut self) -> io::Result<()> {
        let old = |index: usize| self.path.with_extension(format!("log.{index}"));
        for index in (1..FILES_KEPT).rev() {
            match std::fs::rename(old(index), old(index + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, old(1))?;
        self.file = Self::file(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use timonier_proto::{Kind, Reason};

    use super::*;

    #[tokio::test]
    async fn the_log_is_bounded_and_holds_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::with_size(folder.path(), 4_000).unwrap();
        let acting = Acting {
            user: UserInfo::authenticated("vera", Vec::new()),
            by: Some("admin".to_owned()),
        };
        let asked = vec![Attributes::on("delete", Kind::Secret, "team", "s"); 20];
        let no = ApiError::new(Reason::Forbidden, "no");
        for index in 0..200 {
            let id = index.to_string();
            let path = "/timonier.v1.Control/Delete";
            audit.write(Record::new(&acting, path, &asked, Err(&no), None, &id)).await;
        }
        drop(audit);
        let read = || std::fs::read_to_string(folder.path().join("audit.log")).unwrap_or_default();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !read().contains("\"requestId\":\"199\"") {
            assert!(std::time::Instant::now() < deadline, "the last record is written");
            tokio::task::yield_now().await;
        }
        let last: serde_json::Value =
            serde_json::from_str(read().lines().next_back().unwrap()).unwrap();
        assert_eq!(last["asked"][0], "delete secrets s in team");
        assert_eq!((&last["more"], &last["by"]), (&4.into(), &"admin".into()));
        assert_eq!((&last["result"], &last["user"]), (&"Forbidden".into(), &"vera".into()));
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert!(files <= FILES_KEPT + 1, "{files} files");
    }
}
