//! Somebody who changes the masters all the time: one more joins, one is taken out for good, the
//! leadership is handed over. Knows no more than what the masters answer, as people do.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use timonier_master::store::{Start, Store};
use timonier_master_core::level::Level;

use crate::os::HostId;
use crate::transport::address;
use crate::workload::Door;
use crate::world::World;

/// Between two changes.
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// A change that is not answered for so long is given up; it may still come.
const PATIENCE: Duration = Duration::from_secs(12);

/// What becomes of a host.
pub enum Order {
    /// Its master starts with an empty disk.
    Join(HostId, Start),
    /// Its master is no member any more, and is switched off.
    Leave(HostId),
}

#[derive(Clone, Copy)]
enum Asked {
    Add(HostId),
    Remove(HostId),
    Transfer,
}

/// How a member that was added starts; nothing for the other changes.
type Answer = Arc<Mutex<Option<Result<Option<Start>, String>>>>;

struct UnderWay {
    asked: Asked,
    answer: Answer,
    until: Duration,
}

pub struct Operator {
    rng: Rng,
    next: Duration,
    under_way: Option<UnderWay>,
    /// Hosts without a master.
    pub out: BTreeSet<HostId>,
    /// For the trace.
    pub said: Vec<String>,
}

pub fn name(host: HostId) -> String {
    format!("master-{host}")
}

async fn do_it(store: Store, asked: Asked, id: Option<u64>) -> Result<Option<Start>, String> {
    let done = match (asked, id) {
        (Asked::Add(host), _) => {
            let id = store
                .admit(&name(host), &address(host), Level::NEWEST.into())
                .await
                .map_err(|e| e.to_string())?;
            let cluster_id = store.cluster_id().to_owned();
            return Ok(Some(Start::Joining { cluster_id, id }));
        }
        (Asked::Remove(_), Some(id)) => store.remove(id).await,
        (Asked::Remove(_), None) => return Err("it does not answer".to_owned()),
        (Asked::Transfer, to) => store.transfer_leadership(to).await,
    };
    done.map(|()| None).map_err(|error| error.to_string())
}

impl Operator {
    /// Begins when masters on all hosts but `out` are members.
    pub fn new(seed: u64, out: BTreeSet<HostId>) -> Self {
        let rng = Rng::with_seed(seed ^ 0x0BE2);
        Self { rng, next: Duration::MAX, under_way: None, out, said: Vec::new() }
    }

    pub fn begin(&mut self, now: Duration) {
        self.next = now + PAUSE_MAX.mul_f64(self.rng.f64());
    }

    /// No more changes; what is under way is waited for.
    pub fn end(&mut self) {
        self.next = Duration::MAX;
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }

    /// What happens now.
    pub fn step(&mut self, now: Duration, world: &World, doors: &[Door]) -> Option<Order> {
        if let Some(under_way) = self.under_way.take() {
            return self.take_answer(now, under_way);
        }
        if self.next <= now {
            self.next = now + PAUSE_MAX.mul_f64(self.rng.f64());
            self.ask(now, world, doors);
        }
        None
    }

    fn take_answer(&mut self, now: Duration, under_way: UnderWay) -> Option<Order> {
        let answer = under_way.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (under_way.asked, answer) {
            (asked, None) if now < under_way.until => {
                let (answer, until) = (under_way.answer, under_way.until);
                self.under_way = Some(UnderWay { asked, answer, until });
                None
            }
            (_, None) => self.say("no answer comes about the masters".to_owned()),
            (_, Some(Err(why))) => self.say(format!("the masters stay as they are: {why}")),
            (Asked::Add(host), Some(Ok(Some(start)))) => {
                self.say(format!("a master joins on host {host}: {start:?}"));
                self.out.remove(&host);
                Some(Order::Join(host, start))
            }
            (Asked::Remove(host), Some(Ok(_))) => {
                self.say(format!("the master on host {host} is a member no more"));
                self.out.insert(host);
                Some(Order::Leave(host))
            }
            (Asked::Add(_) | Asked::Transfer, Some(Ok(_))) => {
                self.say("the leadership was handed over".to_owned())
            }
        }
    }

    fn say(&mut self, what: String) -> Option<Order> {
        self.said.push(what);
        None
    }

    fn ask(&mut self, now: Duration, world: &World, doors: &[Door]) {
        let open: Vec<(HostId, Store)> = doors
            .iter()
            .enumerate()
            .filter_map(|(host, door)| Some((host, door.store()?)))
            .collect();
        let leading = open.iter().find(|(_, store)| store.status().leader);
        let Some(any) = self.rng.choice(&open) else { return };
        let members: Vec<HostId> = (0..doors.len()).filter(|h| !self.out.contains(h)).collect();
        let spare = self.out.first().copied();
        let id = |host: HostId| doors[host].store().map(|store| store.id());
        let (at, asked, about) = match (self.rng.u8(..6), leading, spare) {
            (0..3, Some(leading), Some(host)) => (leading, Asked::Add(host), None),
            // Fewer than two could not be without either.
            (0..4, _, _) if members.len() > 2 => {
                let host = members[self.rng.usize(..members.len())];
                (any, Asked::Remove(host), id(host))
            }
            _ => {
                let to = if self.rng.bool() { Some(any.1.id()) } else { None };
                (any, Asked::Transfer, to)
            }
        };
        let what = match asked {
            Asked::Add(host) => format!("asks to add host {host}"),
            Asked::Remove(host) => format!("asks to remove the master of host {host}"),
            Asked::Transfer => format!("asks {about:?} to lead"),
        };
        self.say(format!("somebody {what}"));
        let (host, store) = at.clone();
        let answer = Answer::default();
        let under_way = UnderWay { asked, answer: answer.clone(), until: now + PATIENCE };
        world.spawn(host, async move {
            let done = do_it(store, asked, about).await;
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        });
        self.under_way = Some(under_way);
    }
}
