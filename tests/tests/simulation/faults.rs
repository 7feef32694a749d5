//! What goes wrong, decided by the dice: crashes in the middle of disk operations, cuts of the
//! network in one direction or both, between masters only or around a host, bad weather, slow and
//! broken disks, clocks that jump.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;

use crate::network::{CALM, Network, Weather};
use crate::os::{self, HostId};

/// Between two faults.
const PAUSE_MAX: Duration = Duration::from_millis(1500);
/// A host is off for at most so long.
const OFF_MAX: Duration = Duration::from_secs(4);
/// A process that was killed is started again within so long.
const RESTART_MAX: Duration = Duration::from_secs(1);
const CUT_MAX: Duration = Duration::from_secs(4);
/// One cut in so many is a long one: a node is lost and its pods are replaced meanwhile.
const LONG_ONE_IN: u8 = 4;
const LONG_CUT_MAX: Duration = Duration::from_secs(14);
/// Longest write of a slow disk.
const SLOW_MAX: Duration = Duration::from_millis(300);
/// Of an ordinary one.
const WRITE_MAX: Duration = Duration::from_millis(1);
const SKEW_MAX_S: i64 = 7200;
/// Operations on a disk until a crash that was decided on happens.
const CRASH_OPERATIONS_MAX: u32 = 60;

/// Each disk's longest write, by host.
pub type Disks = Rc<RefCell<BTreeMap<HostId, Duration>>>;

/// What the hosts' stores ask how long a write takes.
pub fn delay(disks: &Disks) -> Duration {
    let host = os::current();
    let longest = host.and_then(|host| disks.borrow().get(&host).copied()).unwrap_or(WRITE_MAX);
    longest.mul_f64(fastrand::f64())
}

#[derive(Debug, Clone)]
pub enum Fault {
    /// A loss of power.
    Crash(HostId),
    /// Of the process, which starts again soon: no watchdog is in the simulation.
    Kill(HostId),
    Start(HostId),
}

/// Which host is what: masters first, then the clients', then the agents'.
#[derive(Debug, Clone, Copy)]
pub struct Hosts {
    pub masters: usize,
    pub clients: HostId,
    pub agents: usize,
}

impl Hosts {
    /// Those that may fail.
    pub fn all(self) -> impl Iterator<Item = HostId> + Clone {
        (0..=self.masters + self.agents).filter(move |host| *host != self.clients)
    }

    fn is_master(self, host: HostId) -> bool {
        host < self.masters
    }
}

pub struct Faults {
    rng: Rng,
    pub disks: Disks,
    next: Duration,
    heal_at: Duration,
    calm_at: Duration,
    /// When hosts that are off come back.
    starts: BTreeMap<HostId, Duration>,
    /// Each fault, for the trace.
    pub told: Vec<String>,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed ^ 0xFA17),
            disks: Disks::default(),
            next: Duration::MAX,
            heal_at: Duration::MAX,
            calm_at: Duration::MAX,
            starts: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// From now on.
    pub fn begin(&mut self, now: Duration) {
        self.next = now + PAUSE_MAX;
    }

    pub fn tell(&mut self, now: Duration, what: String) {
        self.told.push(format!("{:>8.3} s  {what}", now.as_secs_f64()));
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.rng.f64())
    }

    /// The host is off; it comes back some time.
    pub fn died(&mut self, now: Duration, host: HostId) {
        self.off(now, host, OFF_MAX);
    }

    /// Its process was killed.
    pub fn killed(&mut self, now: Duration, host: HostId) {
        self.off(now, host, RESTART_MAX);
    }

    fn off(&mut self, now: Duration, host: HostId, longest: Duration) {
        let off = self.up_to(longest);
        self.tell(now, format!("host {host} is off for {off:?}"));
        self.starts.insert(host, now + off);
    }

    /// What happens now.
    pub fn step(&mut self, now: Duration, hosts: &Hosts, network: &Network) -> Vec<Fault> {
        let mut faults = Vec::new();
        let due: Vec<HostId> =
            self.starts.iter().filter(|(_, at)| **at <= now).map(|(host, _)| *host).collect();
        for host in due {
            self.starts.remove(&host);
            self.tell(now, format!("host {host} starts"));
            faults.push(Fault::Start(host));
        }
        if self.heal_at <= now {
            self.heal_at = Duration::MAX;
            network.heal();
            self.tell(now, "the network is whole".to_owned());
        }
        if self.calm_at <= now {
            self.calm_at = Duration::MAX;
            network.set_weather(CALM);
            self.disks.borrow_mut().clear();
            self.tell(now, "the weather is calm, the disks are quick".to_owned());
        }
        if self.next <= now {
            self.next = now + self.up_to(PAUSE_MAX);
            faults.extend(self.fault(now, hosts, network));
        }
        faults
    }

    fn fault(&mut self, now: Duration, hosts: &Hosts, network: &Network) -> Option<Fault> {
        let all: Vec<HostId> = hosts.all().collect();
        let host = all[self.rng.usize(..all.len())];
        // An agent has no disk that matters here.
        let kinds = if hosts.is_master(host) { 13 } else { 8 };
        match (hosts.is_master(host), self.rng.u8(..kinds)) {
            (_, 0 | 1) => {
                self.tell(now, format!("host {host} loses power"));
                return Some(Fault::Crash(host));
            }
            (true, 12) | (false, 2) => {
                self.tell(now, format!("host {host}'s process is killed"));
                return Some(Fault::Kill(host));
            }
            (true, 2..=4) => {
                let operations = self.rng.u32(..CRASH_OPERATIONS_MAX);
                self.tell(now, format!("host {host} dies in {operations} disk operations"));
                os::crash_in(host, operations);
            }
            (_, 11) | (false, 7) => {
                let skew = self.rng.i64(-SKEW_MAX_S..=SKEW_MAX_S);
                self.tell(now, format!("host {host}'s clock is {skew} s off"));
                os::skew(host, skew * 1_000_000_000);
            }
            (_, 8) => {
                let weather = Weather {
                    lost: self.rng.f64() * 0.3,
                    twice: self.rng.f64() * 0.3,
                    late: self.rng.f64() * 0.5,
                };
                network.set_weather(weather);
                self.calm_at = now + self.up_to(CUT_MAX);
                self.tell(now, format!("{weather:?}"));
            }
            (_, 9) => {
                let slow = self.up_to(SLOW_MAX);
                self.disks.borrow_mut().insert(host, slow);
                self.calm_at = now + self.up_to(CUT_MAX);
                self.tell(now, format!("host {host}'s disk takes up to {slow:?}"));
            }
            (_, 10) => {
                self.tell(now, format!("host {host}'s disk fails a sync"));
                os::fail_next_sync(host);
            }
            _ => self.cut(now, host, hosts, network),
        }
        None
    }

    fn cut(&mut self, now: Duration, host: HostId, hosts: &Hosts, network: &Network) {
        let may_fail: Vec<HostId> = hosts.all().filter(|other| *other != host).collect();
        let other = may_fail[self.rng.usize(..may_fail.len())];
        let all = 0..=hosts.masters + hosts.agents;
        let kinds = if hosts.is_master(host) { 5 } else { 4 };
        let what = match self.rng.u8(..kinds) {
            0 => {
                network.cut(host, other);
                format!("nothing from {host} reaches {other}")
            }
            1 => {
                network.cut(host, other);
                network.cut(other, host);
                format!("{host} and {other} are cut apart")
            }
            2 => {
                all.clone().filter(|o| *o != host).for_each(|other| network.cut(host, other));
                format!("nothing leaves {host}")
            }
            3 => {
                for other in all.filter(|other| *other != host) {
                    network.cut(host, other);
                    network.cut(other, host);
                }
                format!("{host} is alone")
            }
            _ => self.cut_from_masters(host, hosts, network),
        };
        let is_long = self.rng.u8(..LONG_ONE_IN) == 0;
        let heal_at = now + self.up_to(if is_long { LONG_CUT_MAX } else { CUT_MAX });
        self.heal_at = match self.heal_at {
            Duration::MAX => heal_at,
            other => other.max(heal_at),
        };
        self.tell(now, what);
    }

    /// It keeps its agents and its clients.
    fn cut_from_masters(&mut self, host: HostId, hosts: &Hosts, network: &Network) -> String {
        let direction = self.rng.u8(..3);
        for other in (0..hosts.masters).filter(|other| *other != host) {
            if direction != 1 {
                network.cut(host, other);
            }
            if direction != 2 {
                network.cut(other, host);
            }
        }
        match direction {
            0 => format!("{host} is cut off from the other masters"),
            1 => format!("nothing from the other masters reaches {host}"),
            _ => format!("nothing from {host} reaches the other masters"),
        }
    }

    /// Everything is well from now on; answers who must be started.
    pub fn end(&mut self, now: Duration, hosts: &Hosts, network: &Network) -> Vec<HostId> {
        network.heal();
        network.set_weather(CALM);
        self.disks.borrow_mut().clear();
        hosts.all().for_each(os::disarm);
        self.tell(now, "the faults end".to_owned());
        std::mem::take(&mut self.starts).into_keys().collect()
    }
}
