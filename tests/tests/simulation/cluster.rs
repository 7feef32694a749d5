//! One run: masters on their hosts, clients, faults for a while, then peace, and a last look.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timonier_identity::Identity;
use timonier_master::store::{Start, Store, StoreConfig, blocking};
use timonier_master_core::level::Level;

use crate::agents::AgentHost;
use crate::complaints::Listener;
use crate::engine::Engine;
use crate::faults::{self, Fault, Faults, Hosts};
use crate::invariants::{Observers, check_end};
use crate::masters::{MasterHost, node_name};
use crate::membership::{self, Operator, Order};
use crate::network::Network;
use crate::os::HostId;
use crate::rollouts;
use crate::transport::{self, End};
use crate::workload::{Clients, Door};
use crate::world::World;

/// When the faults begin.
const MASTERS: usize = 3;
/// How long a master is cut off from the others, where that is all that happens: long enough for the
/// nodes of its agents to be lost.
const ISLAND: Duration = Duration::from_secs(12);
/// Hosts that masters may be on.
const PLACES: usize = 4;
/// Masters that join are all members within this time.
const JOIN_MAX: Duration = Duration::from_secs(20);
const CLIENTS: usize = 4;
/// How long faults happen.
const TROUBLE: Duration = Duration::from_secs(25);
/// From the end of the faults to a cluster that works.
const CONVERGE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked, at the end, who is a member no more.
const DISMISS_INTERVAL: Duration = Duration::from_millis(500);
/// How often the masters are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Whatever chance brings.
    Faults,
    /// Each master in turn is cut off from the others, but from no agent.
    Islands,
}

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
    /// Hosts that masters may be on.
    masters: usize,
    /// How each master starts, by host, once its cluster has taken it in.
    starts: Vec<Option<Start>>,
    /// By host, how many masters were there, each with a disk of its own, or how often an agent
    /// was started.
    lives: Vec<u32>,
    /// By host, what the build of the master knows that was started there last. The first masters
    /// begin with an older build, and are upgraded when they start again.
    builds: Vec<Option<Level>>,
    operator: Operator,
    doors: Vec<Door>,
    identity: Identity,
    agents: usize,
    /// By agent.
    engines: Vec<Engine>,
    observers: Observers,
    /// Stores that have failed for good: their processes end.
    failed: Arc<Mutex<Vec<HostId>>>,
    /// Why the run fails, from inside a host: a master that does not start, a panic.
    refused: Arc<Mutex<Option<String>>>,
}

/// Runs the whole seed.
///
/// With `agents`, the control loops run as well, and there is a deployment that somebody changes.
/// `identity` is everybody's; nobody looks at it.
pub fn run(seed: u64, agents: usize, identity: Identity, plan: Plan) -> Outcome {
    let folder = tempfile::tempdir_in(memory()).expect("a folder can be made");
    let masters = PLACES;
    let faults = Faults::new(seed);
    let disks = faults.disks.clone();
    let mut cluster = Cluster {
        world: World::new(seed, masters + 1 + agents),
        network: Network::new(seed),
        faults,
        folder,
        masters,
        starts: vec![None; masters],
        lives: vec![0; masters + 1 + agents],
        builds: vec![None; masters],
        operator: Operator::new(seed, (MASTERS..masters).collect()),
        doors: (0..masters).map(|_| Door::default()).collect(),
        identity,
        agents,
        engines: (0..agents).map(|_| Engine::default()).collect(),
        observers: Observers::default(),
        failed: Arc::default(),
        refused: Arc::default(),
    };
    blocking::simulate(move || faults::delay(&disks));
    let network = cluster.network.clone();
    timonier_identity::simulate_network(move |address| transport::connect(&network, address));
    let panicked = cluster.refused.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic.to_string());
    }));
    let listener = Listener(cluster.refused.clone());
    let _listening = tracing::subscriber::set_default(listener);
    let clients = cluster.start();
    let gathered = cluster.gather();
    let failure = gathered.and_then(|()| match plan {
        Plan::Faults => cluster.live(&clients),
        Plan::Islands => cluster.islands(&clients),
    });
    let failure = failure.err();
    drop(std::panic::take_hook());
    let mut trace = std::mem::take(&mut cluster.faults.told);
    let record = clients.record();
    for operation in record.history.values().flatten() {
        trace.push(format!("{operation:?}"));
    }
    let any = cluster.doors.iter().find_map(Door::store);
    let missed = any.as_ref().is_some_and(|store| !cluster.observers.saw_all(store));
    let level = any.map_or(Level::FIRST, |store| store.snapshot().level);
    let summary = format!(
        "{} s, {} acknowledged, {} unknown, {} terms, {} decisions, level {level}{}",
        cluster.world.now().as_secs(),
        record.acknowledged,
        record.unknown,
        cluster.observers.terms.count(),
        cluster.observers.availability.decisions,
        if missed { ", not all seen" } else { "" }
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
        self.join(0, Start::First);
        for agent in 0..self.agents {
            self.start_agent(agent);
        }
        let (host, agents) = (self.masters, self.agents);
        let clients = Arc::new(Mutex::new(None));
        let (made, network, doors) = (clients.clone(), self.network.clone(), self.doors.clone());
        self.world.start(host, async move {
            let clients = Clients::new(network, host, doors);
            *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(clients.clone());
            if agents > 0 {
                rollouts::change(&clients);
            }
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

    /// A new master, with an empty disk.
    fn join(&mut self, host: HostId, start: Start) {
        self.starts[host] = Some(start);
        self.lives[host] += 1;
        self.start_master(host);
    }

    fn start_master(&mut self, host: HostId) {
        let Some(start) = self.starts[host].clone() else { return };
        let is_old = host < MASTERS && self.builds[host].is_none();
        let level_max = if is_old { Level::FIRST } else { Level::NEWEST };
        self.builds[host] = Some(level_max);
        let disk = format!("{}-{}", membership::name(host), self.lives[host]);
        let config = StoreConfig {
            segment_bytes: 1 << 20,
            snapshot_entries: 60,
            start,
            level_max,
            name: membership::name(host),
            address: transport::address(host),
            transport: Some(Arc::new(End {
                network: self.network.clone(),
                host,
                doors: self.doors.clone(),
                consensus: self.observers.consensus.clone(),
            })),
            ..StoreConfig::new(self.folder.path().join(disk))
        };
        let (door, failed, refused) =
            (self.doors[host].clone(), self.failed.clone(), self.refused.clone());
        let serves = (self.agents > 0).then(|| MasterHost {
            network: self.network.clone(),
            host,
            doors: self.doors.clone(),
            identity: self.identity.clone(),
        });
        let tell = move |list: &Arc<Mutex<Vec<HostId>>>| {
            list.lock().unwrap_or_else(PoisonError::into_inner).push(host);
        };
        self.world.start(host, async move {
            match Store::open(config).await {
                Ok(store) => {
                    door.set(Some(store.clone()));
                    if let Some(master) = serves {
                        master.serve(store.clone());
                    }
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

    fn start_agent(&mut self, agent: usize) {
        let host = self.masters + 1 + agent;
        self.lives[host] += 1;
        let name = node_name(host);
        let data_dir = self.folder.path().join(&name);
        std::fs::create_dir_all(&data_dir).expect("a folder can be made");
        let agent = AgentHost {
            name,
            data_dir,
            masters: (0..MASTERS).map(transport::address).collect(),
            identity: self.identity.clone(),
            engine: self.engines[agent].clone(),
            life: self.lives[host],
        };
        self.world.start(host, agent.run());
    }

    fn start_host(&mut self, host: HostId) {
        match host.checked_sub(self.masters + 1) {
            None => self.start_master(host),
            Some(agent) => self.start_agent(agent),
        }
    }

    /// A loss of power: an agent's containers are gone with it.
    fn stop_host(&mut self, host: HostId) {
        self.forget(host);
        self.world.stop(host);
    }

    /// An agent's containers go on.
    fn kill_process(&mut self, host: HostId) {
        self.network.deafen(host);
        match host.checked_sub(self.masters + 1) {
            None => self.doors[host].set(None),
            Some(agent) => self.engines[agent].left_alone(),
        }
        self.world.end_process(host);
    }

    fn forget(&mut self, host: HostId) {
        self.network.forget(host);
        match host.checked_sub(self.masters + 1) {
            None => self.doors[host].set(None),
            Some(agent) => self.engines[agent].power_lost(),
        }
    }

    /// The other masters join the first, one after the other.
    fn gather(&mut self) -> Result<(), String> {
        for host in 1..MASTERS {
            let admitted: Arc<Mutex<Option<Start>>> = Arc::default();
            let (into, door) = (admitted.clone(), self.doors[0].clone());
            self.world.spawn(0, async move {
                loop {
                    if let Some(store) = door.store()
                        && let Ok(id) = store
                            .admit(
                                &membership::name(host),
                                &transport::address(host),
                                Level::NEWEST.into(),
                            )
                            .await
                    {
                        let cluster_id = store.cluster_id().to_owned();
                        let start = Start::Joining { cluster_id, id };
                        *into.lock().unwrap_or_else(PoisonError::into_inner) = Some(start);
                        return;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            });
            let start =
                self.until(|_| admitted.lock().unwrap_or_else(PoisonError::into_inner).take())?;
            self.join(host, start);
            self.until(|cluster| {
                let members = cluster.doors[0].store()?.members();
                (members.iter().filter(|member| member.voter).count() > host).then_some(())
            })?;
        }
        Ok(())
    }

    fn until<T>(&mut self, mut look: impl FnMut(&Self) -> Option<T>) -> Result<T, String> {
        let until = self.world.now() + JOIN_MAX;
        while self.world.now() < until {
            self.tick()?;
            if let Some(found) = look(self) {
                return Ok(found);
            }
        }
        Err(format!("[5] no cluster of {MASTERS} masters within {JOIN_MAX:?}"))
    }

    /// One tick of everything.
    fn tick(&mut self) -> Result<(), String> {
        self.network.deliver(&self.world);
        for host in self.world.tick() {
            self.forget(host);
            self.faults.died(self.world.now(), host);
        }
        let failed =
            std::mem::take(&mut *self.failed.lock().unwrap_or_else(PoisonError::into_inner));
        for host in failed {
            self.stop_host(host);
            self.faults.died(self.world.now(), host);
        }
        if let Some(why) = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(why);
        }
        if self.world.now().as_millis().is_multiple_of(LOOK.as_millis()) {
            self.observers.look(&self.doors, &self.engines)?;
        }
        Ok(())
    }

    fn hosts(&self) -> Hosts {
        Hosts { masters: self.masters, clients: self.masters, agents: self.agents }
    }

    fn live(&mut self, clients: &Clients) -> Result<(), String> {
        let end = self.world.now() + TROUBLE;
        self.faults.begin(self.world.now());
        self.operator.begin(self.world.now());
        while self.world.now() < end {
            let now = self.world.now();
            for fault in self.faults.step(now, &self.hosts(), &self.network) {
                match fault {
                    Fault::Start(host) if !self.world.is_on(host) => self.start_host(host),
                    Fault::Crash(host) if self.world.is_on(host) => {
                        self.stop_host(host);
                        self.faults.died(now, host);
                    }
                    Fault::Kill(host) if self.world.is_on(host) => {
                        self.kill_process(host);
                        self.faults.killed(now, host);
                    }
                    Fault::Start(_) | Fault::Crash(_) | Fault::Kill(_) => {}
                }
            }
            self.change_members();
            self.tick()?;
        }
        self.operator.end();
        self.faults.end(self.world.now(), &self.hosts(), &self.network);
        for host in self.hosts().all() {
            if !self.world.is_on(host) {
                self.start_host(host);
            }
        }
        self.converge(clients)
    }

    fn islands(&mut self, clients: &Clients) -> Result<(), String> {
        // And every master has caught up with the others.
        let ready = |cluster: &Self| {
            let stores: Vec<_> = cluster.doors.iter().filter_map(Door::store).collect();
            let applied: Vec<u64> = stores.iter().map(|s| s.status().applied_index).collect();
            let is_ready = |store| rollouts::nodes(store).0 == cluster.agents;
            (stores.iter().all(is_ready) && applied.iter().all(|a| *a == applied[0])).then_some(())
        };
        self.until(ready)?;
        for island in 0..MASTERS {
            self.faults.tell(self.world.now(), format!("{island} is cut off from the masters"));
            for other in (0..MASTERS).filter(|other| *other != island) {
                self.network.cut(island, other);
                self.network.cut(other, island);
            }
            let heal_at = self.world.now() + ISLAND;
            while self.world.now() < heal_at {
                self.tick()?;
                for store in self.doors.iter().filter_map(Door::store) {
                    let (_, lost) = rollouts::nodes(&store);
                    if !lost.is_empty() {
                        return Err(format!("{lost:?} are not Ready, yet reach two masters"));
                    }
                }
            }
            self.network.heal();
            self.until(ready)?;
        }
        self.operator.end();
        self.faults.end(self.world.now(), &self.hosts(), &self.network);
        self.converge(clients)
    }

    fn change_members(&mut self) {
        let now = self.world.now();
        let order = self.operator.step(now, &self.world, &self.doors);
        for said in self.operator.said.drain(..) {
            self.faults.tell(now, said);
        }
        match order {
            Some(Order::Join(host, start)) => self.join(host, start),
            Some(Order::Leave(host)) => self.leave(host),
            None => {}
        }
    }

    fn leave(&mut self, host: HostId) {
        self.starts[host] = None;
        self.stop_host(host);
    }

    /// Those whose removal was never answered are switched off, as people would.
    fn dismiss(&mut self) {
        let stores: Vec<(HostId, Store)> = (self.doors.iter().enumerate())
            .filter_map(|(host, door)| Some((host, door.store()?)))
            .collect();
        let Some((_, leader)) = stores.iter().find(|(_, store)| store.status().leader) else {
            return;
        };
        let members: BTreeSet<u64> = leader.members().iter().map(|member| member.id).collect();
        for (host, store) in stores {
            if !members.contains(&store.id()) {
                self.faults.tell(self.world.now(), format!("host {host} is no member any more"));
                self.operator.out.insert(host);
                self.leave(host);
            }
        }
    }

    /// The cluster goes by all that every master knows; one that was admitted and never came may be of
    /// any build.
    fn is_level(&self, stores: &[Store]) -> bool {
        if stores.iter().any(|store| store.members().len() > stores.len()) {
            return true;
        }
        let open = self.doors.iter().zip(&self.builds).filter(|(door, _)| door.store().is_some());
        let known = open.filter_map(|(_, build)| *build).min();
        stores.iter().all(|store| Some(store.snapshot().level) == known)
    }

    fn converge(&mut self, clients: &Clients) -> Result<(), String> {
        let until = self.world.now() + CONVERGE_MAX;
        let mut quiet = false;
        loop {
            self.change_members();
            self.tick()?;
            let now = self.world.now();
            let stores: Vec<Store> = self.doors.iter().filter_map(Door::store).collect();
            let unsettled = stores.first().map(|s| rollouts::unsettled(s, &self.engines));
            if now > until {
                let why = unsettled.flatten().unwrap_or_default();
                return Err(format!(
                    "[5] not as it should be {CONVERGE_MAX:?} after the faults: {why}"
                ));
            }
            if !quiet && now > until - CONVERGE_MAX / 2 {
                // The clients have had time to see it work.
                quiet = true;
                self.world.stop(self.masters);
            }
            if quiet && now.as_millis().is_multiple_of(DISMISS_INTERVAL.as_millis()) {
                self.dismiss();
            }
            let statuses: Vec<_> = stores.iter().map(Store::status).collect();
            let same = statuses.iter().all(|s| {
                s.applied_index == statuses[0].applied_index && s.last_index == s.applied_index
            });
            let led = statuses.iter().filter(|status| status.leader).count() == 1;
            let all = self.starts.iter().flatten().count() == stores.len();
            let is_still = self.operator.is_idle() && all && same && led && self.is_level(&stores);
            if quiet && is_still && unsettled == Some(None) {
                self.observers.look(&self.doors, &self.engines)?;
                return check_end(&stores, &clients.record());
            }
        }
    }
}
