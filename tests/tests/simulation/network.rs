//! The network between the hosts: what is sent arrives late, in another order, twice or not at all,
//! as its weather says. A call is a closure that is run on the host it is sent to; connections, in
//! which nothing is lost or out of order, are in `lines`.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::{mpsc, oneshot};

use crate::lines::{Line, Lines};
use crate::os::HostId;
use crate::world::World;

/// Longest delay of a message in ordinary weather.
const DELAY_MAX: Duration = Duration::from_millis(3);
/// Longest delay of one that is held up.
const DELAY_LONG_MAX: Duration = Duration::from_millis(400);

/// Connections that nobody has accepted yet; further ones are refused.
const ACCEPTED_MAX: usize = 64;

pub type Answer = Box<dyn Any + Send>;
type Work = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// How bad it is between all hosts.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Share of messages that are lost…
    pub lost: f64,
    /// …that arrive twice…
    pub twice: f64,
    /// …and that are held up.
    pub late: f64,
}

pub const CALM: Weather = Weather { lost: 0.0, twice: 0.0, late: 0.0 };

/// Clones are the same network.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    rng: Rng,
    now: Duration,
    weather: Weather,
    /// From, to.
    cut: BTreeSet<(HostId, HostId)>,
    /// By the time of arrival, then in the order of sending.
    under_way: BTreeMap<(Duration, u64), Message>,
    sent: u64,
    lines: Lines,
}

impl Inner {
    fn delay(&mut self) -> Duration {
        let late = self.rng.f64() < self.weather.late;
        let longest = if late { DELAY_LONG_MAX } else { DELAY_MAX };
        longest.mul_f64(self.rng.f64())
    }
}

struct Message {
    from: HostId,
    to: HostId,
    what: What,
}

enum What {
    Call { work: Work, reply: Reply },
    Answer { answer: Answer, reply: Reply },
}

/// Taken by the first answer.
type Reply = Arc<Mutex<Option<oneshot::Sender<Answer>>>>;

impl Network {
    pub fn new(seed: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                rng: Rng::with_seed(seed ^ 0x0E70),
                now: Duration::ZERO,
                weather: CALM,
                cut: BTreeSet::new(),
                under_way: BTreeMap::new(),
                sent: 0,
                lines: Lines::default(),
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.lock().cut.insert((from, to));
    }

    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    /// Runs `work` on the host `to` and answers what it answers, or never.
    pub async fn call<A, F>(
        &self,
        from: HostId,
        to: HostId,
        work: impl Fn() -> F + Send + Sync + 'static,
    ) -> A
    where
        A: Send + 'static,
        F: Future<Output = A> + Send + 'static,
    {
        let (reply, answered) = oneshot::channel();
        let work: Work = Arc::new(move || {
            let work = work();
            Box::pin(async move { Box::new(work.await) as Answer })
        });
        let reply = Arc::new(Mutex::new(Some(reply)));
        self.send(from, to, || What::Call { work: work.clone(), reply: reply.clone() });
        match answered.await {
            Ok(answer) => *answer.downcast().expect("the work answers this type"),
            Err(_) => std::future::pending().await,
        }
    }

    fn send(&self, from: HostId, to: HostId, mut what: impl FnMut() -> What) {
        let mut inner = self.lock();
        let times = if inner.rng.f64() < inner.weather.twice { 2 } else { 1 };
        for _ in 0..times {
            let Inner { weather, .. } = *inner;
            if from != to && (inner.cut.contains(&(from, to)) || inner.rng.f64() < weather.lost) {
                continue;
            }
            let delay = inner.delay();
            inner.sent += 1;
            let place = (inner.now + delay, inner.sent);
            inner.under_way.insert(place, Message { from, to, what: what() });
        }
    }

    /// Where connections to the host come out from now on.
    pub fn listen(&self, host: HostId) -> mpsc::Receiver<Line> {
        let (listener, accepted) = mpsc::channel(ACCEPTED_MAX);
        self.lines(|lines| lines.listeners.insert(host, listener));
        accepted
    }

    /// A connection to a host that listens.
    pub async fn connect(&self, from: HostId, to: HostId) -> io::Result<Line> {
        let network = self.clone();
        let accept = move || {
            let network = network.clone();
            async move { network.accept(from, to) }
        };
        let outgoing = self.call(from, to, accept).await;
        let outgoing = outgoing.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(Line::new(self.clone(), from, outgoing ^ 1))
    }

    fn accept(&self, from: HostId, to: HostId) -> Option<u64> {
        let listener = self.lines(|lines| lines.listeners.get(&to).cloned())?;
        let id = self.lines(|lines| lines.connect(from, to));
        listener.try_send(Line::new(self.clone(), to, id)).ok().map(|()| id)
    }

    /// Nobody accepts connections on the host any more.
    pub fn deafen(&self, host: HostId) {
        self.lines(|lines| lines.listeners.remove(&host));
    }

    /// The host has lost power.
    pub fn forget(&self, host: HostId) {
        self.lines(|lines| lines.forget(host));
    }

    /// Does something with the connections, which must not come back here.
    pub fn lines<T>(&self, work: impl FnOnce(&mut Lines) -> T) -> T {
        work(&mut self.lock().lines)
    }

    /// When something arrives that is sent now, and again after `resend` while it is lost.
    pub fn arrival(&self, from: HostId, to: HostId, resend: Duration) -> Duration {
        let mut inner = self.lock();
        let mut at = inner.now + inner.delay();
        while from != to && inner.rng.f64() < inner.weather.lost {
            at += resend;
        }
        at
    }

    /// Hands out what has arrived by now.
    pub fn deliver(&self, world: &World) {
        {
            let Inner { lines, cut, .. } = &mut *self.lock();
            lines.deliver(world.now(), |from, to| world.is_on(to) && !cut.contains(&(from, to)));
        }
        loop {
            let message = {
                let mut inner = self.lock();
                inner.now = world.now();
                let Some(entry) = inner.under_way.first_entry() else { return };
                if entry.key().0 > world.now() {
                    return;
                }
                let message = entry.remove();
                if inner.cut.contains(&(message.from, message.to)) {
                    continue;
                }
                message
            };
            self.hand_out(world, message);
        }
    }

    fn hand_out(&self, world: &World, Message { from, to, what }: Message) {
        match what {
            What::Call { work, reply } => {
                let network = self.clone();
                world.spawn(to, async move {
                    let mut answer = Some(work().await);
                    network.answer(to, from, &mut answer, &reply);
                });
            }
            What::Answer { answer, reply } => {
                let reply = reply.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(reply) = reply {
                    // Who asked may have given up.
                    let _ = reply.send(answer);
                }
            }
        }
    }

    fn answer(&self, from: HostId, to: HostId, answer: &mut Option<Answer>, reply: &Reply) {
        // A host that has died says nothing any more.
        if crate::os::is_dead(from) {
            return;
        }
        let mut inner = self.lock();
        let Inner { weather, .. } = *inner;
        if from != to && (inner.cut.contains(&(from, to)) || inner.rng.f64() < weather.lost) {
            return;
        }
        let delay = inner.delay();
        let Some(answer) = answer.take() else { return };
        inner.sent += 1;
        let place = (inner.now + delay, inner.sent);
        let what = What::Answer { answer, reply: reply.clone() };
        inner.under_way.insert(place, Message { from, to, what });
    }
}
