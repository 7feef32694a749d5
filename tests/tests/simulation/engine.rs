//! The container engine of an agent's host, in memory: it takes its time, its containers do not always
//! listen, and it does what it was asked although who asked is gone. It keeps what it has over a loss
//! of power, when all that ran has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use timonier_agent::runtime::{
    Answer, Archive, ContainerInfo, ContainerLabels, ContainerRole, ContainerSpec,
    ContainerSummary, ExecSession, ExecSpec, ImageInfo, Items, LogOptions, Output, Progress,
    RegistryAuth, Runtime, RuntimeError, RuntimeErrorKind, RuntimeEvent, RuntimeEventKind,
    RuntimeVersion, Signal, TerminalSize,
};
use timonier_proto::k8s_openapi::jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tokio_stream::wrappers::BroadcastStream;

/// An answer that needs no work.
const LOOK_MAX: Duration = Duration::from_millis(20);
/// A container takes up to so long to be made, and to be started…
const MAKE_MAX: Duration = Duration::from_millis(300);
/// …to end when it is asked to, if it listens…
const END_MAX: Duration = Duration::from_millis(1500);
/// …and to be killed.
const KILL_MAX: Duration = Duration::from_millis(100);
/// Of ten, so many do not listen.
const DEAF: u8 = 3;
const EVENTS_MAX: usize = 256;
/// Beyond what a kernel gives, so that nothing is ever found under it.
const PID_FIRST: u32 = 1 << 30;
const KILLED: i32 = 137;
const POWER_LOST: i32 = 255;

/// A pod of which something runs.
#[derive(Debug, Clone)]
pub struct Ran {
    pub node: String,
    pub unique: bool,
}

/// Clones are the same engine.
#[derive(Clone, Default)]
pub struct Engine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By id.
    containers: BTreeMap<String, Container>,
    made: u32,
    events: Option<broadcast::Sender<RuntimeEvent>>,
}

struct Container {
    labels: ContainerLabels,
    name: String,
    info: ContainerInfo,
    /// Its start has begun: from now on it may run, when exactly nobody knows.
    begun: bool,
}

fn up_to(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

fn refused(what: &str) -> RuntimeError {
    RuntimeError::new(RuntimeErrorKind::Refused, what, "there is no such container")
}

impl State {
    fn tell(&mut self, container_id: &str, kind: RuntimeEventKind) {
        let Some(container) = self.containers.get(container_id) else { return };
        let pod_uid = container.labels.pod_uid.clone();
        let event = RuntimeEvent { container_id: container_id.to_owned(), pod_uid, kind };
        if let Some(events) = &self.events {
            // Nobody may follow them now.
            let _ = events.send(event);
        }
    }

    fn end(&mut self, id: &str, exit_code: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if !std::mem::take(&mut container.info.running) {
            return;
        }
        container.begun = false;
        container.info.pid = 0;
        container.info.exit_code = exit_code;
        container.info.finished_at = Some(Timestamp::now());
        self.tell(id, RuntimeEventKind::Died { exit_code });
    }
}

impl Engine {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that runs has ended, and nobody is told.
    pub fn power_lost(&self) {
        let mut state = self.lock();
        state.events = None;
        for container in state.containers.values_mut() {
            if std::mem::take(&mut container.begun) {
                container.info = ContainerInfo {
                    running: false,
                    pid: 0,
                    exit_code: POWER_LOST,
                    ..container.info.clone()
                };
            }
        }
    }

    /// The agent's process has ended: what was being started runs, what was told to end may not.
    pub fn left_alone(&self) {
        let mut state = self.lock();
        let pid = PID_FIRST + state.made;
        for container in state.containers.values_mut().filter(|one| one.begun) {
            container.info.running = true;
            container.info.pid = pid;
            container.info.started_at.get_or_insert(Timestamp::now());
        }
    }

    /// Pods of which a container runs, by uid.
    pub fn running(&self) -> BTreeMap<String, Ran> {
        let state = self.lock();
        let running = state
            .containers
            .values()
            .filter(|one| one.begun && one.labels.role != ContainerRole::Sandbox);
        running
            .map(|one| {
                let ran = Ran { node: one.labels.node.clone(), unique: one.labels.unique };
                (one.labels.pod_uid.clone(), ran)
            })
            .collect()
    }

    /// Goes on when nobody waits for it any more.
    fn does<T: Send + 'static>(
        &self,
        what: &'static str,
        most: Duration,
        work: impl FnOnce(&mut State) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Answer<'_, T> {
        let engine = self.clone();
        let done = tokio::spawn(async move {
            sleep(up_to(most)).await;
            work(&mut engine.lock())
        });
        Box::pin(async move {
            let gone = |_| RuntimeError::new(RuntimeErrorKind::Unavailable, what, "it stops");
            done.await.map_err(gone)?
        })
    }
}

fn image(reference: &str) -> ImageInfo {
    ImageInfo {
        id: format!("sha256:{reference}"),
        entrypoint: vec!["/program".to_owned()],
        ..ImageInfo::default()
    }
}

impl Runtime for Engine {
    fn version(&self) -> Answer<'_, RuntimeVersion> {
        let version = RuntimeVersion { name: "memory".to_owned(), version: "1".to_owned() };
        self.does("ask for the version", LOOK_MAX, |_| Ok(version))
    }

    fn ping(&self) -> Answer<'_, ()> {
        self.does("ping", LOOK_MAX, |_| Ok(()))
    }

    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>> {
        let image = image(reference);
        self.does("look for an image", LOOK_MAX, |_| Ok(Some(image)))
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        _: Option<RegistryAuth>,
        _: Progress<'a>,
    ) -> Answer<'a, ImageInfo> {
        let image = image(reference);
        self.does("pull", MAKE_MAX, |_| Ok(image))
    }

    fn load_image<'a>(&'a self, _: Archive, _: Progress<'a>) -> Answer<'a, Vec<String>> {
        self.does("load an image", MAKE_MAX, |_| Ok(Vec::new()))
    }

    fn layers(&self) -> Answer<'_, Vec<Vec<String>>> {
        self.does("list layers", LOOK_MAX, |_| Ok(Vec::new()))
    }

    fn tag<'a>(&'a self, _: &'a str, _: &'a str) -> Answer<'a, ()> {
        self.does("tag", LOOK_MAX, |_| Ok(()))
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, String> {
        let name = spec.name.clone();
        let label = |name: &str| spec.labels.get(name).map(String::as_str);
        let labels = ContainerLabels::from_lookup(label);
        self.does("create", MAKE_MAX, move |state| {
            let labels = labels.ok_or_else(|| refused("create"))?;
            state.containers.retain(|_, other| other.name != name);
            state.made += 1;
            let id = format!("{}-{:04}", labels.node, state.made);
            let info = ContainerInfo { id: id.clone(), ..ContainerInfo::default() };
            let container = Container { labels, name, info, begun: false };
            state.containers.insert(id.clone(), container);
            Ok(id)
        })
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        if let Some(container) = self.lock().containers.get_mut(&id) {
            container.begun = true;
        }
        self.does("start", MAKE_MAX, move |state| {
            let pid = PID_FIRST + state.made;
            let container = state.containers.get_mut(&id).ok_or_else(|| refused("start"))?;
            container.info.running = true;
            container.info.pid = pid;
            container.info.started_at = Some(Timestamp::now());
            state.tell(&id, RuntimeEventKind::Started);
            Ok(())
        })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Answer<'a, ()> {
        let (id, engine) = (id.to_owned(), self.clone());
        let most = if signal == Signal::Kill { KILL_MAX } else { END_MAX };
        self.does("signal", LOOK_MAX, move |_| {
            if signal == Signal::Kill || fastrand::u8(..10) >= DEAF {
                tokio::spawn(async move {
                    sleep(up_to(most)).await;
                    engine.lock().end(&id, if signal == Signal::Kill { KILLED } else { 0 });
                });
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        let id = id.to_owned();
        self.does("remove", KILL_MAX, move |state| {
            state.end(&id, KILLED);
            state.tell(&id, RuntimeEventKind::Destroyed);
            state.containers.remove(&id);
            Ok(())
        })
    }

    fn list<'a>(&'a self, node: &'a str) -> Answer<'a, Vec<ContainerSummary>> {
        let node = node.to_owned();
        self.does("list", LOOK_MAX, move |state| {
            let all = state.containers.iter().map(|(id, container)| ContainerSummary {
                id: id.clone(),
                running: container.info.running,
                created_only: container.info.started_at.is_none(),
                labels: container.labels.clone(),
            });
            Ok(all.filter(|one| one.labels.node == node).collect())
        })
    }

    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        let id = id.to_owned();
        self.does("inspect", LOOK_MAX, move |state| {
            Ok(state.containers.get(&id).map(|container| container.info.clone()))
        })
    }

    fn events(&self, _: &str) -> Items<RuntimeEvent> {
        let mut state = self.lock();
        let events = state.events.get_or_insert_with(|| broadcast::channel(EVENTS_MAX).0);
        let missed = |_| RuntimeError::new(RuntimeErrorKind::Unavailable, "follow", "too slow");
        Box::pin(BroadcastStream::new(events.subscribe()).map(move |event| event.map_err(missed)))
    }

    fn exec<'a>(&'a self, _: &'a str, _: ExecSpec) -> Answer<'a, ExecSession> {
        self.does("exec", LOOK_MAX, |_| Err(refused("exec")))
    }

    fn exec_resize<'a>(&'a self, _: &'a str, _: TerminalSize) -> Answer<'a, ()> {
        self.does("exec", LOOK_MAX, |_| Err(refused("exec")))
    }

    fn exec_exit_code<'a>(&'a self, _: &'a str) -> Answer<'a, Option<i32>> {
        self.does("exec", LOOK_MAX, |_| Err(refused("exec")))
    }

    fn logs(&self, _: &str, _: LogOptions) -> Items<Output> {
        Box::pin(futures::stream::empty())
    }
}
