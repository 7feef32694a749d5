//! Room for what is about to be proposed. The consensus stops for good when the log cannot be
//! written, so what may not fit is refused before it is proposed, and the space of what fits is
//! reserved on the disk already.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::Shared;
use super::record::stored_bytes;
use super::segment::Segment;
use crate::store::blocking;

/// Room that only the consensus' own entries use.
const MARGIN_BYTES: u64 = 64 << 10;
/// After the disk was found full, it is asked again not before this.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Space {
    shared: Arc<Shared>,
    /// Promised and not yet written, in bytes.
    promised: Arc<AtomicU64>,
    /// Held by whoever makes a segment ahead; when that failed last, and why.
    failure: Arc<Mutex<Option<(Instant, String)>>>,
    /// Why writes are refused at the moment.
    refusing: Arc<watch::Sender<Option<String>>>,
}

/// Bytes of the log that are kept for one entry until this is dropped.
pub struct Promise {
    promised: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Space {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            promised: Arc::default(),
            failure: Arc::default(),
            refusing: Arc::new(watch::Sender::new(None)),
        }
    }

    pub fn refusing(&self) -> Option<String> {
        self.refusing.borrow().clone()
    }

    /// Keeps room for one entry with a payload of so many bytes, or says why there is none and what to do.
    ///
    /// Called by one task at a time: two could each find the same room.
    pub async fn promise(&self, payload_bytes: usize) -> Result<Promise, String> {
        let bytes = stored_bytes(payload_bytes);
        loop {
            let needed = bytes + MARGIN_BYTES + self.promised.load(Ordering::Relaxed);
            let (active, spare) = self.shared.files().room();
            if active >= needed || spare.is_some_and(|spare| spare >= needed) {
                self.promised.fetch_add(bytes, Ordering::Relaxed);
                self.refuse(None);
                if spare.is_none() && active < self.shared.capacity() / 2 {
                    // Ahead of need, while writes go on.
                    let ahead = self.clone();
                    tokio::spawn(async move {
                        let _ = ahead.make_spare().await;
                    });
                }
                return Ok(Promise { promised: self.promised.clone(), bytes });
            }
            if let Err(why) = self.make_spare().await {
                self.refuse(Some(&why));
                return Err(why);
            }
        }
    }

    fn refuse(&self, why: Option<&str>) {
        self.refusing.send_if_modified(|refusing| {
            let changed = refusing.is_some() != why.is_some();
            if changed {
                match why {
                    Some(why) => tracing::warn!(why, "writes are refused"),
                    None => tracing::info!("writes are taken again"),
                }
                *refusing = why.map(str::to_owned);
            }
            changed
        });
    }

    async fn make_spare(&self) -> Result<(), String> {
        let mut failure = self.failure.lock().await;
        if let Some((at, why)) = &*failure
            && at.elapsed() < RETRY
        {
            return Err(why.clone());
        }
        let shared = self.shared.clone();
        let made = blocking::run(move || shared.make_spare()).await;
        let result = match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(error) => Err(format!("make a log file: {error}")),
        };
        *failure = result.as_ref().err().map(|why| (Instant::now(), why.clone()));
        result
    }

    fn explain(&self, error: &io::Error) -> String {
        let dir = self.shared.dir();
        if error.kind() == io::ErrorKind::StorageFull {
            return format!(
                "write the log: no space left on {}, which needs {} KiB; hint: free space there: \
                 nothing acknowledged is lost, and the master takes writes again by itself",
                dir.display(),
                self.shared.capacity() >> 10
            );
        }
        format!(
            "write the log: make a file in {}: {error}; hint: see that the disk is in order: the \
             master takes writes again by itself",
            dir.display()
        )
    }
}

impl Shared {
    /// Makes a segment ahead, unless there is one.
    pub(super) fn make_spare(&self) -> io::Result<()> {
        let _alone = self.making();
        let (dir, number, capacity) = {
            let files = self.files();
            let Some(number) = files.spare_number() else { return Ok(()) };
            (files.dir.clone(), number, files.capacity)
        };
        let spare = Segment::create(&dir, number, capacity)?;
        self.files().put_spare(spare);
        Ok(())
    }
}
