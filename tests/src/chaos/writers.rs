//! Writers that create, delete and update objects through any master, and keep in one record what
//! they asked for and what was acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use timonier_proto::v1::write_op::Op;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

use super::cluster::{ChaosCluster, MASTERS};
use super::objects::{self, commit, create, delete, update};
use super::record::{Marks, Record, State, Stored, Wrong};

/// Those that create objects, and delete some of them.
const CREATORS: usize = 4;
/// Those that update one object each.
const COUNTERS: usize = 2;
/// Of so many objects one is deleted again, once the others are created.
const DELETE_EVERY: u64 = 10;
const PAUSE: Duration = Duration::from_millis(40);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// A write whose fate is unknown is sent again, with the same id, so often; then it is given up and
/// may have been done or not.
const TRIES_MAX: usize = 20;

pub struct Writers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The last acknowledgement, and the longest time without one since it was asked for.
    last: Option<Instant>,
    pause: Duration,
    record: Record,
    violations: Vec<String>,
}

impl Seen {
    fn acknowledged(&mut self, name: &str, revision: u64) {
        self.record.acknowledged(name, revision);
        self.pause = self.pause.max(self.last.map_or(Duration::ZERO, |last| last.elapsed()));
        self.last = Some(Instant::now());
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Writers {
    pub fn start(chaos: &ChaosCluster) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let admin = chaos.cluster.admin()?;
        let channels: Vec<Channel> =
            (0..MASTERS).map(|m| chaos.cluster.dial_lazily(m, &admin)).collect::<Result<_>>()?;
        let writer = Writer { channels, shared: shared.clone() };
        let creators = (0..CREATORS).map(|number| tokio::spawn(writer.clone().create(number)));
        let counters = (0..COUNTERS).map(|number| tokio::spawn(writer.clone().count(number)));
        let tasks = creators.chain(counters).collect();
        Ok(Self { shared, tasks })
    }

    pub fn acked(&self) -> usize {
        self.shared.seen().record.acked()
    }

    /// The longest time without an acknowledgement since the last call.
    pub fn longest_pause(&self) -> Duration {
        let mut seen = self.shared.seen();
        let running = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        std::mem::take(&mut seen.pause).max(running)
    }

    /// To be asked for before objects are read.
    pub fn marks(&self) -> Marks {
        self.shared.seen().record.marks()
    }

    /// What is wrong with the objects that were read after the marks, by name.
    pub fn read_all(
        &self,
        marks: &Marks,
        stored: &BTreeMap<String, Stored>,
    ) -> Vec<(String, Wrong)> {
        self.shared.seen().record.read_all(marks, stored)
    }

    /// What was seen since the last call.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.seen().violations)
    }

    /// How many writes were acknowledged in all.
    pub async fn stop(self) -> Result<usize> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("join a writer")?;
        }
        Ok(self.shared.seen().record.acked())
    }
}

#[derive(Clone)]
struct Writer {
    channels: Vec<Channel>,
    shared: Arc<Shared>,
}

impl Writer {
    async fn create(self, number: usize) {
        let mut created = 0;
        let mut doomed = None;
        while !self.shared.stops() {
            created += 1;
            let name = format!("w{number}-{created}");
            let is_there = self.ask(&name, Some(0), create(&name, 0)).await;
            if is_there && doomed.is_none() {
                doomed = Some(name);
            }
            sleep(PAUSE).await;
            if created % DELETE_EVERY == 0
                && let Some(name) = doomed.take()
            {
                self.ask(&name, None, delete(&name)).await;
                sleep(PAUSE).await;
            }
        }
    }

    /// Counts upwards in one object, from wherever it is read to be.
    async fn count(self, number: usize) {
        let name = format!("counter-{number}");
        let mut value = 0;
        while !self.shared.stops() {
            match self.read(&name).await {
                Ok(Some(stored)) => {
                    value += 1;
                    let op = match stored {
                        Some(stored) => update(&name, value, stored.revision),
                        None => create(&name, value),
                    };
                    self.ask(&name, Some(value), op).await;
                }
                // No answer.
                Ok(None) => {}
                // One violation is enough.
                Err(violation) => return self.shared.seen().violations.push(violation),
            }
            sleep(PAUSE).await;
        }
    }

    /// What is there, if a master answers; an error is a violation.
    async fn read(&self, name: &str) -> Result<Option<Option<Stored>>, String> {
        let mark = self.shared.seen().record.mark(name);
        let reading = timeout(CALL_TIMEOUT, objects::read(self.any_master(), name));
        let Ok(Ok(json)) = reading.await else { return Ok(None) };
        let parse = |json: Bytes| anyhow::Ok(objects::parse(&serde_json::from_slice(&json)?)?.1);
        let stored = json.map(parse).transpose().map_err(|error| format!("{error:#}"))?;
        let read = self.shared.seen().record.read(name, mark, stored.as_ref());
        read.map_err(|wrong| format!("a writer read: {}", wrong.what()))?;
        Ok(Some(stored))
    }

    /// Whether it was acknowledged.
    async fn ask(&self, name: &str, state: State, op: Op) -> bool {
        self.shared.seen().record.ask(name, state);
        let of = state.map_or_else(|| "gone".to_owned(), |value| value.to_string());
        let id = format!("chaos-{name}-{of}");
        for _ in 0..TRIES_MAX {
            let call = commit(self.any_master(), op.clone(), id.clone());
            match timeout(CALL_TIMEOUT, call).await {
                Ok(Ok(revision)) => {
                    self.shared.seen().acknowledged(name, revision);
                    return true;
                }
                Ok(Err(status)) if is_refusal(status.code()) => {
                    let mut seen = self.shared.seen();
                    if let Err(wrong) = seen.record.refused(name) {
                        let what = format!("{}: {}", wrong.what(), status.message());
                        seen.violations.push(what);
                    }
                    return false;
                }
                Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
            }
        }
        false
    }

    fn any_master(&self) -> Channel {
        self.channels[fastrand::usize(..self.channels.len())].clone()
    }
}

/// The object is not as the writer knows it: it is there, it is gone, it was changed.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::AlreadyExists | Code::NotFound | Code::Aborted)
}
