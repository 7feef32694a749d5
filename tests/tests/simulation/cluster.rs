//! One run: masters on their hosts, clients, faults for a while, then peace, and a last look.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timonier_master::store::{Store, StoreConfig, blocking};

use crate::faults::{self, Fault, Faults};
use crate::invariants::{Observer, check_end};
use crate::network::Network;
use crate::os::HostId;
use crate::workload::{Clients, Door};
use crate::world::World;

const CLIENTS: usize = 4;
/// How long faults happen.
const TROUBLE: Duration = Duration::from_secs(25);
/// From the end of the faults to a cluster that works.
const CONVERGE_MAX: Duration = Duration::from_secs(30);
/// How often the masters are looked at.
const LOOK: Duration = Duration::from_millis(5);

pub struct Outcome {
    pub trace: Vec<String>,
    pub summary: String,
    pub failure: Option<String>,
}

impl Outcome {
    /// Of all that happened.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.trace, &self.summary, &self.failure).hash(&mut hasher);
        hasher.finish()
    }
}

struct Cluster {
    world: World,
    network: Network,
    faults: Faults,
    folder: tempfile::TempDir,
    masters: usize,
    doors: Vec<Door>,
    observer: Observer,
    /// Stores that have failed for good: their processes end.
    failed: Arc<Mutex<Vec<HostId>>>,
    /// Why the run fails, from inside a host: a master that does not start, a panic.
    refused: Arc<Mutex<Option<String>>>,
}

/// Runs the whole seed.
pub fn run(seed: u64) -> Outcome {
    let folder = tempfile::tempdir_in(memory()).expect("a folder can be made");
    let masters = 1;
    let faults = Faults::new(seed);
    let disks = faults.disks.clone();
    let mut cluster = Cluster {
        world: World::new(seed, masters + 1),
        network: Network::new(seed),
        faults,
        folder,
        masters,
        doors: vec![Door::default(); masters].iter().map(|_| Door::default()).collect(),
        observer: Observer::default(),
        failed: Arc::default(),
        refused: Arc::default(),
    };
    blocking::simulate(move || faults::delay(&disks));
    let panicked = cluster.refused.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic.to_string());
    }));
    let clients = cluster.start();
    let failure = cluster.live(&clients).err();
    drop(std::panic::take_hook());
    let mut trace = std::mem::take(&mut cluster.faults.told);
    let record = clients.record();
    for operation in record.history.values().flatten() {
        trace.push(format!("{operation:?}"));
    }
    let summary = format!(
        "{} s, {} acknowledged, {} unknown, {} terms",
        cluster.world.now().as_secs(),
        record.acknowledged,
        record.unknown,
        cluster.observer.terms
    );
    Outcome { trace, summary, failure }
}

/// A folder in memory where there is one: these disks are simulated.
fn memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

impl Cluster {
    fn start(&mut self) -> Clients {
        for host in 0..self.masters {
            self.start_master(host);
        }
        let host = self.masters;
        let clients = Arc::new(Mutex::new(None));
        let (made, network, doors) = (clients.clone(), self.network.clone(), self.doors.clone());
        self.world.start(host, async move {
            let clients = Clients::new(network, host, doors);
            *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(clients.clone());
            clients.prepare().await;
            for client in 0..CLIENTS {
                tokio::spawn(clients.clone().run(client));
            }
            std::future::pending().await
        });
        self.world.tick();
        let clients = clients.lock().unwrap_or_else(PoisonError::into_inner).take();
        clients.expect("the clients' host has had its first tick")
    }

    fn start_master(&mut self, host: HostId) {
        let config = StoreConfig {
            segment_bytes: 1 << 20,
            snapshot_entries: 60,
            ..StoreConfig::new(self.folder.path().join(format!("master-{host}")))
        };
        let (door, failed, refused) =
            (self.doors[host].clone(), self.failed.clone(), self.refused.clone());
        let tell = move |list: &Arc<Mutex<Vec<HostId>>>| {
            list.lock().unwrap_or_else(PoisonError::into_inner).push(host);
        };
        self.world.start(host, async move {
            match Store::open(config).await {
                Ok(store) => {
                    door.set(Some(store.clone()));
                    store.failed().await;
                    tell(&failed);
                }
                Err(error) if crate::os::is_dead(host) => drop(error),
                Err(error) => {
                    *refused.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(format!("[5] master {host} does not start: {error}"));
                }
            }
        });
    }

    fn stop_master(&mut self, host: HostId) {
        self.doors[host].set(None);
        self.world.stop(host);
    }

    /// One tick of everything.
    fn tick(&mut self) -> Result<(), String> {
        self.network.deliver(&self.world);
        for host in self.world.tick() {
            self.doors[host].set(None);
            self.faults.died(self.world.now(), host);
        }
        let failed =
            std::mem::take(&mut *self.failed.lock().unwrap_or_else(PoisonError::into_inner));
        for host in failed {
            self.stop_master(host);
            self.faults.died(self.world.now(), host);
        }
        if let Some(why) = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(why);
        }
        if self.world.now().as_millis().is_multiple_of(LOOK.as_millis()) {
            for store in self.doors.iter().filter_map(Door::store) {
                self.observer.observe(&store)?;
            }
        }
        Ok(())
    }

    fn live(&mut self, clients: &Clients) -> Result<(), String> {
        while self.world.now() < TROUBLE {
            let now = self.world.now();
            for fault in self.faults.step(now, self.masters, &self.network) {
                match fault {
                    Fault::Start(host) if !self.world.is_on(host) => self.start_master(host),
                    Fault::Crash(host) if self.world.is_on(host) => {
                        self.stop_master(host);
                        self.faults.died(now, host);
                    }
                    Fault::Start(_) | Fault::Crash(_) => {}
                }
            }
            self.tick()?;
        }
        self.faults.end(self.world.now(), self.masters, &self.network);
        for host in 0..self.masters {
            if !self.world.is_on(host) {
                self.start_master(host);
            }
        }
        self.converge(clients)
    }

    fn converge(&mut self, clients: &Clients) -> Result<(), String> {
        let until = self.world.now() + CONVERGE_MAX;
        let mut quiet = false;
        loop {
            self.tick()?;
            let now = self.world.now();
            if now > until {
                return Err(format!("[5] no cluster that works {CONVERGE_MAX:?} after the faults"));
            }
            if !quiet && now > until - CONVERGE_MAX / 2 {
                // The clients have had time to see it work.
                quiet = true;
                self.world.stop(self.masters);
            }
            let stores: Vec<Store> = self.doors.iter().filter_map(Door::store).collect();
            let statuses: Vec<_> = stores.iter().map(Store::status).collect();
            let same = statuses.iter().all(|s| {
                s.applied_index == statuses[0].applied_index && s.last_index == s.applied_index
            });
            let led = statuses.iter().filter(|status| status.leader).count() == 1;
            if quiet && stores.len() == self.masters && same && led {
                return check_end(&stores, &clients.record());
            }
        }
    }
}
