//! What the clients do: registers that are read, written and swapped, and objects that are created
//! once. All of it is written down with the time of its call and of its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timonier_master::store::{CommitError, Committed, Store};
use timonier_master_core::op::{Op, Precondition, Txn};
use timonier_proto::k8s_openapi::api::core::v1::ConfigMap;
use timonier_proto::{Kind, Kinded, Object, ObjectKey};

use crate::linear::{Action, Operation};
use crate::network::Network;
use crate::os::HostId;

pub const REGISTERS: u64 = 4;
const NAMESPACE: &str = "sim";
/// One attempt; then another master is asked.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Of one write, with the same id.
const ATTEMPTS_MAX: u32 = 3;
/// Of so many attempts, one is made at any master, also at one that is off.
const ANY_ONE_IN: u8 = 8;
/// Between two operations of one client.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// A master's store, while it is open.
#[derive(Clone, Default)]
pub struct Door(Arc<Mutex<Option<Store>>>);

impl Door {
    pub fn set(&self, store: Option<Store>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }

    pub fn store(&self) -> Option<Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that was asked and answered.
#[derive(Default)]
pub struct Record {
    /// By register.
    pub history: BTreeMap<u64, Vec<Operation>>,
    /// Names of objects whose creation was acknowledged.
    pub created: Vec<String>,
    pub acknowledged: u64,
    pub unknown: u64,
    next_value: u64,
}

/// The clients of all masters; clones are the same.
#[derive(Clone)]
pub struct Clients {
    pub network: Network,
    /// The host they run on.
    pub host: HostId,
    /// By the masters' hosts.
    pub doors: Vec<Door>,
    pub record: Arc<Mutex<Record>>,
    begun: tokio::time::Instant,
}

impl Clients {
    pub fn new(network: Network, host: HostId, doors: Vec<Door>) -> Self {
        let begun = tokio::time::Instant::now();
        Self { network, host, doors, record: Arc::default(), begun }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn next_value(&self) -> u64 {
        let mut record = self.record();
        record.next_value += 1;
        record.next_value
    }

    /// Works until it is dropped.
    pub async fn run(self, client: usize) {
        loop {
            tokio::time::sleep(PAUSE_MAX.mul_f64(fastrand::f64())).await;
            let register = fastrand::u64(..REGISTERS);
            match fastrand::u8(..10) {
                0..4 => self.read(client, register).await,
                4..6 => self.write(client, register).await,
                6..8 => self.swap(client, register).await,
                _ => self.create(client).await,
            }
        }
    }

    /// The registers' first values; tries until it is done.
    pub async fn prepare(&self) {
        for register in 0..REGISTERS {
            let txn = Txn {
                id: Some(format!("prepare-{register}")),
                ops: vec![Op::Create(named(object(&name(register), 0)))],
                ..Txn::default()
            };
            let begun = self.begin(register, Action::Write(0), "prepare".to_owned());
            loop {
                match self.commit(&txn).await {
                    Some(Ok(_)) => break,
                    Some(Err(rejected)) => panic!("{} was refused: {rejected}", name(register)),
                    None => {}
                }
            }
            self.end(register, begun, true, |_| {});
        }
    }

    async fn read(&self, client: usize, register: u64) {
        let called = self.now();
        let door = self.doors[self.choose()].clone();
        let master = self.doors.iter().position(|d| Arc::ptr_eq(&d.0, &door.0)).unwrap_or(0);
        let reading = self.network.call(self.host, master, move || {
            let store = door.store();
            async move {
                let store = store?;
                store.linearize().await.ok()?;
                Some(value(&store, register))
            }
        });
        if let Ok(Some(seen)) = tokio::time::timeout(ATTEMPT, reading).await {
            let by = format!("client {client} at master {master}");
            let begun = self.begin(register, Action::Read(seen.map(|(value, _)| value)), by);
            self.end(register, begun, true, |operation| operation.called = called);
        }
    }

    async fn write(&self, client: usize, register: u64) {
        let new = self.next_value();
        let txn = Txn {
            id: Some(format!("write-{new}")),
            ops: vec![Op::Replace(object(&name(register), new))],
            ..Txn::default()
        };
        let begun = self.begin(register, Action::Write(new), format!("client {client}"));
        let result = self.commit(&txn).await;
        self.end(register, begun, matches!(result, Some(Ok(_))), |_| {});
    }

    async fn swap(&self, client: usize, register: u64) {
        // Whatever some master has, however old.
        let seen = self.doors[self.choose()].store().and_then(|store| value(&store, register));
        let Some((old, revision)) = seen else { return };
        let new = self.next_value();
        let key = key(&name(register));
        let txn = Txn {
            id: Some(format!("swap-{new}")),
            ops: vec![Op::Replace(object(&name(register), new))],
            preconditions: vec![Precondition::Revision(key, revision)],
            ..Txn::default()
        };
        let swap = Action::Swap(Some(old), new, true);
        let begun = self.begin(register, swap, format!("client {client}"));
        match self.commit(&txn).await {
            Some(Ok(_)) => self.end(register, begun, true, |_| {}),
            Some(Err(rejected)) => self.end(register, begun, true, |operation| {
                operation.action = Action::Swap(Some(old), new, false);
                operation.by = format!("{}: {rejected}", operation.by);
            }),
            None => self.end(register, begun, false, |_| {}),
        }
    }

    async fn create(&self, client: usize) {
        let value = self.next_value();
        let name = format!("object-{client}-{value}");
        let txn = Txn {
            id: Some(name.clone()),
            ops: vec![Op::Create(named(object(&name, value)))],
            ..Txn::default()
        };
        match self.commit(&txn).await {
            Some(Ok(_)) => {
                let mut record = self.record();
                record.created.push(name);
                record.acknowledged += 1;
            }
            // The id says that it is the same write: it cannot be there already.
            Some(Err(rejected)) => panic!("[1] {name} was refused: {rejected}"),
            None => self.record().unknown += 1,
        }
    }

    /// Most often a master that runs: one that is off costs a whole attempt.
    fn choose(&self) -> usize {
        let is_open = |host: &usize| self.doors[*host].store().is_some();
        let open: Vec<usize> = (0..self.doors.len()).filter(is_open).collect();
        if open.is_empty() || fastrand::u8(..ANY_ONE_IN) == 0 {
            return fastrand::usize(..self.doors.len());
        }
        open[fastrand::usize(..open.len())]
    }

    /// Writes on one master after the other; `None`: whether it was done is not known.
    pub async fn commit(&self, txn: &Txn) -> Option<Result<Committed, CommitError>> {
        for _ in 0..ATTEMPTS_MAX {
            let master = self.choose();
            let (door, txn) = (self.doors[master].clone(), txn.clone());
            let writing = self.network.call(self.host, master, move || {
                let (store, txn) = (door.store(), txn.clone());
                async move {
                    match store {
                        Some(store) => store.commit(txn).await,
                        None => Err(CommitError::ShuttingDown),
                    }
                }
            });
            match tokio::time::timeout(ATTEMPT, writing).await {
                Ok(Ok(committed)) => return Some(Ok(committed)),
                Ok(Err(error @ CommitError::Rejected(_))) => return Some(Err(error)),
                Ok(Err(_)) => tokio::time::sleep(PAUSE_MAX.mul_f64(fastrand::f64())).await,
                Err(_) => {}
            }
        }
        None
    }

    /// Whoever goes away in the middle of it leaves one behind that may have been done.
    fn begin(&self, register: u64, action: Action, by: String) -> usize {
        let operation = Operation { action, called: self.now(), answered: None, by };
        let mut record = self.record();
        let history = record.history.entry(register).or_default();
        history.push(operation);
        history.len() - 1
    }

    fn end(&self, register: u64, begun: usize, known: bool, change: impl FnOnce(&mut Operation)) {
        let now = self.now();
        let mut record = self.record();
        if known {
            record.acknowledged += 1;
        } else {
            record.unknown += 1;
        }
        let history = record.history.entry(register).or_default();
        if let Some(operation) = history.get_mut(begun) {
            operation.answered = known.then_some(now);
            change(operation);
        }
    }
}

fn name(register: u64) -> String {
    format!("register-{register}")
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, NAMESPACE, name)
}

fn object(name: &str, value: u64) -> Object {
    let mut map = ConfigMap::default();
    map.metadata.namespace = Some(NAMESPACE.to_owned());
    map.metadata.name = Some(name.to_owned());
    map.data = Some(BTreeMap::from([("value".to_owned(), value.to_string())]));
    map.into_object()
}

/// As it is created: with a uid.
fn named(mut object: Object) -> Object {
    object.meta_mut().uid = object.meta().name.clone();
    object
}

/// The register's value here, and its revision.
fn value(store: &Store, register: u64) -> Option<(u64, u64)> {
    let snapshot = store.snapshot();
    let map = snapshot.get::<ConfigMap>(NAMESPACE, &name(register))?;
    let value = map.data.as_ref()?.get("value")?.parse().ok()?;
    let revision = map.metadata.resource_version.as_ref()?.parse().ok()?;
    Some((value, revision))
}
