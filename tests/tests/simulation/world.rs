//! Hosts on one thread: each has a runtime of its own with a clock that stands still until the world
//! moves it on, so that a host can be taken away in the middle of whatever it does.

use std::future::Future;
use std::time::Duration;

use fastrand::Rng;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::os::{self, HostId};

/// By how much the world moves on at once.
pub const TICK: Duration = Duration::from_millis(1);

/// The hosts, and the time that all of them live in.
pub struct World {
    pub rng: Rng,
    now: Duration,
    hosts: Vec<Option<Host>>,
}

struct Host {
    runtime: Runtime,
    begun: Instant,
    /// The world's time then.
    at: Duration,
}

impl World {
    /// With so many hosts, all switched off.
    pub fn new(seed: u64, hosts: usize) -> Self {
        os::begin(seed);
        fastrand::seed(seed);
        Self {
            rng: Rng::with_seed(seed),
            now: Duration::ZERO,
            hosts: (0..hosts).map(|_| None).collect(),
        }
    }

    /// Since the world began.
    pub fn now(&self) -> Duration {
        self.now
    }

    pub fn is_on(&self, host: HostId) -> bool {
        self.hosts[host].is_some()
    }

    /// Switches a host on, or starts its process again, with this as the first task.
    pub fn start(&mut self, host: HostId, main: impl Future<Output = ()> + Send + 'static) {
        os::begin_process(host, &mut self.rng);
        os::enter(Some(host));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(1)
            .build()
            .expect("a runtime can be made");
        let begun = runtime.block_on(async { Instant::now() });
        runtime.spawn(main);
        os::enter(None);
        self.hosts[host] = Some(Host { runtime, begun, at: self.now });
    }

    /// Switches a host off as a loss of power does.
    pub fn stop(&mut self, host: HostId) {
        os::kill(host);
        self.end_process(host);
    }

    /// Kills what runs on a host. What it wrote stays, and its connections are closed.
    pub fn end_process(&mut self, host: HostId) {
        os::enter(Some(host));
        drop(self.hosts[host].take());
        os::enter(None);
    }

    /// A task on a host that is on.
    pub fn spawn(&self, host: HostId, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(host) = &self.hosts[host] {
            host.runtime.spawn(task);
        }
    }

    /// Lets every host live for one tick, in an order that the dice decide. Answers those that died
    /// in the middle of an operation on their disk, and are off now.
    pub fn tick(&mut self) -> Vec<HostId> {
        let until = self.now + TICK;
        let mut order: Vec<HostId> = (0..self.hosts.len()).collect();
        self.rng.shuffle(&mut order);
        let mut died = Vec::new();
        for id in order {
            let Some(host) = &self.hosts[id] else { continue };
            os::enter(Some(id));
            let target = host.begun + (until - host.at);
            host.runtime.block_on(async { tokio::time::sleep_until(target).await });
            os::enter(None);
            if os::is_dead(id) {
                self.stop(id);
                died.push(id);
            }
        }
        self.now = until;
        os::set_time(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
        died
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            self.stop(host);
        }
    }
}
