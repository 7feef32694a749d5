//! An engine and a network in memory: containers are entries that the test starts to die.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::pods::{NetAnswer, PodNetwork};
use crate::runtime::{
    Answer, Archive, ContainerInfo, ContainerLabels, ContainerSpec, ContainerSummary, ExecSession,
    ExecSpec, ImageInfo, Items, LogOptions, Output, Progress, RegistryAuth, Runtime, RuntimeError,
    RuntimeErrorKind, RuntimeEvent, RuntimeEventKind, RuntimeVersion, Signal, TerminalSize,
};

const EVENTS_MAX: usize = 1024;

/// How long the engine takes to create and to start.
pub(crate) const STEP: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(crate) struct World {
    pub(crate) containers: BTreeMap<String, FakeContainer>,
    pub(crate) images: BTreeSet<String>,
    /// Images that a registry has.
    pub(crate) remote: BTreeSet<String>,
    pub(crate) down: bool,
    /// Containers ignore SIGTERM.
    pub(crate) deaf: bool,
    /// Creates and starts under way, and the most there ever were.
    pub(crate) busy: usize,
    pub(crate) busiest: usize,
    /// Names of the calls made, in order.
    pub(crate) calls: Vec<String>,
    made: u32,
}

#[derive(Clone)]
pub(crate) struct FakeContainer {
    pub(crate) spec: ContainerSpec,
    pub(crate) info: ContainerInfo,
}

pub(crate) struct FakeRuntime {
    pub(crate) world: Mutex<World>,
    events: Mutex<broadcast::Sender<Option<RuntimeEvent>>>,
}

fn error(kind: RuntimeErrorKind, what: &str) -> RuntimeError {
    RuntimeError::new(kind, what, "as the test wants it")
}

impl FakeRuntime {
    pub(crate) fn new() -> Arc<Self> {
        let world = World { images: ["web:v1".to_owned()].into(), ..World::default() };
        let events = Mutex::new(broadcast::channel(EVENTS_MAX).0);
        Arc::new(Self { world: Mutex::new(world), events })
    }

    /// Takes note of a call; an error while the engine is down.
    fn call(&self, what: &str) -> Result<(), RuntimeError> {
        let mut world = self.world.lock().unwrap();
        world.calls.push(what.to_owned());
        if world.down { Err(error(RuntimeErrorKind::Unavailable, what)) } else { Ok(()) }
    }

    fn tell(&self, id: &str, uid: &str, kind: RuntimeEventKind) {
        let event = RuntimeEvent { container_id: id.to_owned(), pod_uid: uid.to_owned(), kind };
        self.events.lock().unwrap().send(Some(event)).ok();
    }

    /// The process of a running container ends.
    pub(crate) fn die(&self, id: &str, exit_code: i32) {
        let mut world = self.world.lock().unwrap();
        let Some(container) = world.containers.get_mut(id) else { return };
        if !std::mem::take(&mut container.info.running) {
            return;
        }
        container.info.pid = 0;
        container.info.exit_code = exit_code;
        let uid = labels(&container.spec).pod_uid;
        drop(world);
        self.tell(id, &uid, RuntimeEventKind::Died { exit_code });
    }

    /// The engine stops, and with it all containers; nobody hears of it.
    pub(crate) fn stop(&self) {
        let mut world = self.world.lock().unwrap();
        world.down = true;
        for container in world.containers.values_mut().filter(|c| c.info.running) {
            container.info.running = false;
            container.info.exit_code = 255;
        }
        drop(world);
        let fresh = broadcast::channel(EVENTS_MAX).0;
        *self.events.lock().unwrap() = fresh;
    }

    pub(crate) fn come_back(&self) {
        self.world.lock().unwrap().down = false;
    }

    pub(crate) fn running(&self) -> Vec<String> {
        let world = self.world.lock().unwrap();
        let running = world.containers.iter().filter(|(_, c)| c.info.running);
        running.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.world.lock().unwrap().calls.iter().filter(|call| *call == name).count()
    }

    async fn work(&self) {
        {
            let mut world = self.world.lock().unwrap();
            world.busy += 1;
            world.busiest = world.busiest.max(world.busy);
        }
        tokio::time::sleep(STEP).await;
        self.world.lock().unwrap().busy -= 1;
    }
}

fn labels(spec: &ContainerSpec) -> ContainerLabels {
    ContainerLabels::from_lookup(|name| spec.labels.get(name).map(String::as_str)).unwrap()
}

fn image(reference: &str) -> ImageInfo {
    ImageInfo {
        id: format!("sha256:{reference}"),
        entrypoint: vec!["/web".to_owned()],
        ..ImageInfo::default()
    }
}

impl Runtime for FakeRuntime {
    fn version(&self) -> Answer<'_, RuntimeVersion> {
        Box::pin(async { Ok(RuntimeVersion { name: "fake".into(), version: "1".into() }) })
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async { self.call("ping") })
    }

    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>> {
        Box::pin(async move {
            self.call("image")?;
            let here = self.world.lock().unwrap().images.contains(reference);
            Ok(here.then(|| image(reference)))
        })
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        _: Option<RegistryAuth>,
        _: Progress<'a>,
    ) -> Answer<'a, ImageInfo> {
        Box::pin(async move {
            self.call("pull")?;
            self.work().await;
            let mut world = self.world.lock().unwrap();
            if !world.remote.contains(reference) {
                return Err(error(RuntimeErrorKind::Refused, "pull"));
            }
            world.images.insert(reference.to_owned());
            Ok(image(reference))
        })
    }

    fn load_image<'a>(&'a self, _: Archive, _: Progress<'a>) -> Answer<'a, Vec<String>> {
        Box::pin(async {
            self.call("load")?;
            Ok(vec!["loaded".to_owned()])
        })
    }

    fn layers(&self) -> Answer<'_, Vec<Vec<String>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn tag<'a>(&'a self, _: &'a str, reference: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.world.lock().unwrap().images.insert(reference.to_owned());
            Ok(())
        })
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, String> {
        Box::pin(async move {
            self.call("create")?;
            self.work().await;
            let mut world = self.world.lock().unwrap();
            world.made += 1;
            let id = format!("id{}", world.made);
            let info = ContainerInfo {
                id: id.clone(),
                image_id: format!("sha256:{}", spec.image),
                ..ContainerInfo::default()
            };
            world.containers.insert(id.clone(), FakeContainer { spec: spec.clone(), info });
            Ok(id)
        })
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.call("start")?;
            self.work().await;
            let mut world = self.world.lock().unwrap();
            let container = world
                .containers
                .get_mut(id)
                .ok_or_else(|| error(RuntimeErrorKind::NotFound, "start"))?;
            container.info.running = true;
            container.info.pid = 4242;
            container.info.started_at = Some("2026-01-01T00:00:00Z".parse().unwrap());
            let uid = labels(&container.spec).pod_uid;
            drop(world);
            self.tell(id, &uid, RuntimeEventKind::Started);
            Ok(())
        })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Answer<'a, ()> {
        Box::pin(async move {
            self.call(if signal == Signal::Kill { "kill" } else { "term" })?;
            let deaf = self.world.lock().unwrap().deaf;
            match signal {
                Signal::Kill => self.die(id, 137),
                Signal::Terminate if !deaf => self.die(id, 143),
                Signal::Terminate => {}
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.call("remove")?;
            self.die(id, 137);
            self.world.lock().unwrap().containers.remove(id);
            Ok(())
        })
    }

    fn list<'a>(&'a self, node: &'a str) -> Answer<'a, Vec<ContainerSummary>> {
        Box::pin(async move {
            self.call("list")?;
            let world = self.world.lock().unwrap();
            let all = world.containers.iter().map(|(id, container)| ContainerSummary {
                id: id.clone(),
                running: container.info.running,
                created_only: container.info.started_at.is_none(),
                labels: labels(&container.spec),
            });
            Ok(all.filter(|one| one.labels.node == node).collect())
        })
    }

    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        Box::pin(async move {
            self.call("inspect")?;
            Ok(self.world.lock().unwrap().containers.get(id).map(|c| c.info.clone()))
        })
    }

    fn events(&self, _: &str) -> Items<RuntimeEvent> {
        let receiver = self.events.lock().unwrap().subscribe();
        let stream = BroadcastStream::new(receiver).filter_map(|event| async move {
            match event {
                Ok(event) => event.map(Ok),
                Err(_) => Some(Err(error(RuntimeErrorKind::Unavailable, "follow"))),
            }
        });
        Box::pin(stream)
    }

    fn exec<'a>(&'a self, _: &'a str, spec: ExecSpec) -> Answer<'a, ExecSession> {
        Box::pin(async move {
            self.call("exec")?;
            // `false` fails, as it should; `hang` never ends.
            let ending = if spec.command.first().is_some_and(|c| c == "hang") {
                futures::stream::pending().boxed()
            } else {
                futures::stream::empty().boxed()
            };
            Ok(ExecSession {
                id: spec.command.join(" "),
                input: Box::pin(tokio::io::sink()),
                output: ending,
            })
        })
    }

    fn exec_resize<'a>(&'a self, _: &'a str, _: TerminalSize) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn exec_exit_code<'a>(&'a self, exec: &'a str) -> Answer<'a, Option<i32>> {
        Box::pin(async move { Ok(Some(i32::from(exec.starts_with("false")))) })
    }

    fn logs(&self, _: &str, _: LogOptions) -> Items<Output> {
        Box::pin(futures::stream::empty())
    }
}

/// Addresses and links, as sets.
#[derive(Default)]
pub(crate) struct FakeNetwork {
    pub(crate) addresses: Mutex<BTreeMap<String, Ipv4Addr>>,
    pub(crate) attached: Mutex<BTreeSet<String>>,
    next: Mutex<u8>,
}

impl PodNetwork for FakeNetwork {
    fn allocate(&self, uid: &str) -> Result<Ipv4Addr, String> {
        let mut addresses = self.addresses.lock().unwrap();
        if let Some(ip) = addresses.get(uid) {
            return Ok(*ip);
        }
        let mut next = self.next.lock().unwrap();
        *next += 1;
        let ip = Ipv4Addr::new(10, 244, 0, *next + 1);
        addresses.insert(uid.to_owned(), ip);
        Ok(ip)
    }

    fn adopt(&self, uid: &str, ip: Ipv4Addr) -> Result<(), String> {
        self.addresses.lock().unwrap().insert(uid.to_owned(), ip);
        Ok(())
    }

    fn release(&self, uid: &str) {
        self.addresses.lock().unwrap().remove(uid);
    }

    fn attach<'a>(&'a self, uid: &'a str, _: u32, _: Ipv4Addr) -> NetAnswer<'a> {
        self.attached.lock().unwrap().insert(uid.to_owned());
        Box::pin(async { Ok(()) })
    }

    fn detach<'a>(&'a self, uid: &'a str) -> NetAnswer<'a> {
        self.attached.lock().unwrap().remove(uid);
        Box::pin(async { Ok(()) })
    }

    fn remove_leftovers(&self, _: BTreeSet<String>) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }

    fn ensure_forwarding(&self) -> NetAnswer<'_> {
        Box::pin(async { Ok(()) })
    }
}
