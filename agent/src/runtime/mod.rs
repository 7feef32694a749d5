//! What runs containers: images in, containers created, started, signalled, removed, watched.
//!
//! [`Runtime`] is all the rest of the agent knows of an engine. It is shaped after what a pod
//! needs, not after Docker's API, so that a runtime without a daemon can stand beside
//! [`docker::Docker`]. It decides nothing (no retries, no restart policy, no back-off) and knows
//! no network: a container is started with an empty network namespace, its sandbox's, or the
//! host's.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::io::AsyncWrite;

pub mod docker;
mod error;
mod labels;

pub use error::{RuntimeError, RuntimeErrorKind};
pub use labels::{ContainerLabels, ContainerRole, LABEL_PREFIX, label};

/// The answer of a [`Runtime`]'s call, to come.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RuntimeError>> + Send + 'a>>;
/// Items that come one after another until the stream ends or fails.
pub type Items<T> = Pin<Box<dyn Stream<Item = Result<T, RuntimeError>> + Send>>;

/// An engine that runs containers. Every call but the streams and `pull`/`load_image` has a
/// deadline of its own and ends with [`RuntimeErrorKind::Unavailable`] when it is missed.
pub trait Runtime: Send + Sync + 'static {
    /// Name and version, as in `docker` and `20.10.24`.
    fn version(&self) -> Answer<'_, RuntimeVersion>;
    /// Ok while the engine answers.
    fn ping(&self) -> Answer<'_, ()>;

    /// The image of that reference or id, `None` where it is not here.
    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>>;
    /// Fetches an image from its registry; `progress` gets a line at a time as the engine tells.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<RegistryAuth>,
        progress: Progress<'a>,
    ) -> Answer<'a, ImageInfo>;
    /// Takes in an archive as `docker save` writes it; the references or ids it held.
    fn load_image<'a>(
        &'a self,
        archive: Archive,
        progress: Progress<'a>,
    ) -> Answer<'a, Vec<String>>;
    /// The layers (`sha256:…`, uncompressed) of each image here, the lowest first.
    fn layers(&self) -> Answer<'_, Vec<Vec<String>>>;
    /// Gives an image that is here one more name, taking it from the one that had it.
    fn tag<'a>(&'a self, image: &'a str, reference: &'a str) -> Answer<'a, ()>;

    /// Makes a container and answers with its id. A name that is taken by a container of the
    /// same node and attempt (a create whose answer was lost) is replaced.
    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, String>;
    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Signals the first process; Ok if it is already gone.
    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Answer<'a, ()>;
    /// Kills and removes a container with its anonymous volumes; Ok if it is already gone.
    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// All containers labelled with this node, dead ones too.
    fn list<'a>(&'a self, node: &'a str) -> Answer<'a, Vec<ContainerSummary>>;
    /// `None` where there is no such container.
    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>>;
    /// What happens to the containers of this node from now on. After an error or the end, some
    /// may have been missed: list and inspect, then call again.
    fn events(&self, node: &str) -> Items<RuntimeEvent>;

    /// Runs a command in a running container.
    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Answer<'a, ExecSession>;
    /// Changes the terminal's size of a session that has one.
    fn exec_resize<'a>(&'a self, exec: &'a str, size: TerminalSize) -> Answer<'a, ()>;
    /// `None` while it runs.
    fn exec_exit_code<'a>(&'a self, exec: &'a str) -> Answer<'a, Option<i32>>;

    /// What a container wrote, dead ones too.
    fn logs(&self, id: &str, options: LogOptions) -> Items<Output>;
}

/// Called with a line of text as work goes on.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);
/// An archive's bytes, from wherever they come.
pub type Archive = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `docker`: also the scheme of container ids in statuses, `docker://…`.
    pub name: String,
    pub version: String,
}

/// What a registry is told; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    pub server: String,
    pub username: String,
    pub password: String,
}

/// An image as it lies here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// `name@sha256:…` where it came from a registry.
    pub digests: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// As in the image's `USER`: empty for root.
    pub user: String,
    pub working_dir: String,
    pub layers: Vec<String>,
    pub size_bytes: u64,
}

/// A container to be made. Everything is resolved: no image defaults are left to apply but the
/// image's own user, environment and working directory where the fields here are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerSpec {
    pub name: String,
    /// Id or reference of an image that is here.
    pub image: String,
    pub entrypoint: Vec<String>,
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `uid[:gid]`; empty: the image's.
    pub user: String,
    pub supplemental_groups: Vec<i64>,
    pub working_dir: String,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub network: NetworkMode,
    pub mounts: Vec<Mount>,
    pub limits: Limits,
    pub read_only_root: bool,
    pub privileged: bool,
    pub no_new_privileges: bool,
    /// Without the `CAP_`.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// An empty network namespace; the agent puts the interface in.
    #[default]
    Empty,
    Host,
    /// The namespace of that container (id).
    Container(String),
}

/// A file or folder of the host, which exists, in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
    /// Kubernetes' `mountPropagation`; none is private.
    pub propagation: Option<String>,
}

/// Bounds of a container; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    /// Relative weight, from the CPU request: 1024 is one core.
    pub cpu_shares: i64,
    /// −1000 to 1000: who dies first when the host runs out of memory.
    pub oom_score: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSummary {
    pub id: String,
    pub running: bool,
    /// Made, never started.
    pub created_only: bool,
    pub labels: ContainerLabels,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerInfo {
    pub id: String,
    pub image_id: String,
    pub running: bool,
    /// Of the first process; 0 when it does not run.
    pub pid: u32,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// The engine's own words about a start that failed.
    pub error: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub container_id: String,
    pub pod_uid: String,
    pub kind: RuntimeEventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEventKind {
    Started,
    Died { exit_code: i32 },
    OutOfMemory,
    Destroyed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub stdin: bool,
    pub tty: bool,
    pub size: Option<TerminalSize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A command that runs. It goes on when the session is dropped.
pub struct ExecSession {
    /// For [`Runtime::exec_resize`] and [`Runtime::exec_exit_code`].
    pub id: String,
    /// Shut down to tell the command that its input has ended.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// Ends when the command has ended.
    pub output: Items<Output>,
}

/// Bytes as they were written, not cut into lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Also everything of a container or command with a terminal.
    Stdout(Bytes),
    Stderr(Bytes),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// RFC 3339 before each line.
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    /// Whole seconds are all that some engines honour.
    pub since: Option<Timestamp>,
}
