//! Docker Engine behind the [`Runtime`] trait.
//!
//! Connects when first asked and again when that failed, so the agent may start before Docker
//! does. Containers are made with Docker's network, restart policy and health checks turned off:
//! all three are the agent's.

mod containers;
mod convert;
mod exec;
mod follow;
mod images;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::ClientVersion;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{
    Answer, Archive, ContainerInfo, ContainerSpec, ContainerSummary, ExecSession, ExecSpec,
    ImageInfo, Items, LogOptions, Output, Progress, RegistryAuth, Runtime, RuntimeError,
    RuntimeErrorKind, RuntimeEvent, RuntimeVersion, Signal, TerminalSize,
};
use convert::failed;

pub const DOCKER_SOCKET_DEFAULT: &str = "/var/run/docker.sock";

/// Longest wait for an answer, starts under load included.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// A ping that takes longer means that Docker hangs.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// What we speak at most; lowered to what the engine speaks.
const CLIENT_VERSION: ClientVersion = ClientVersion { major_version: 1, minor_version: 47 };

/// The Docker Engine at a unix socket.
pub struct Docker {
    socket: PathBuf,
    client: Mutex<Option<bollard::Docker>>,
}

impl Docker {
    /// Does not connect yet.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_owned(), client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<bollard::Docker, RuntimeError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let what = || format!("connect to docker at {}", self.socket.display());
        let path = self.socket.to_string_lossy();
        let client =
            bollard::Docker::connect_with_unix(&path, CALL_DEADLINE.as_secs(), &CLIENT_VERSION)
                .map_err(|error| failed(what(), error))?;
        let negotiated = timeout(PING_DEADLINE, client.negotiate_version()).await;
        let client = match negotiated {
            Ok(answer) => answer.map_err(|error| failed(what(), error))?,
            Err(_) => return Err(no_answer(&what())),
        };
        *slot = Some(client.clone());
        Ok(client)
    }
}

fn no_answer(what: &str) -> RuntimeError {
    let text = format!("no answer in {} s", PING_DEADLINE.as_secs());
    RuntimeError::new(RuntimeErrorKind::Unavailable, what, text)
}

impl Runtime for Docker {
    fn version(&self) -> Answer<'_, RuntimeVersion> {
        Box::pin(async move {
            let what = "ask docker for its version";
            let answer = self.client().await?.version().await.map_err(|e| failed(what, e))?;
            let version = answer.version.unwrap_or_default();
            Ok(RuntimeVersion { name: "docker".to_owned(), version })
        })
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let client = self.client().await?;
            let what = || format!("ping docker at {}", self.socket.display());
            match timeout(PING_DEADLINE, client.ping()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(failed(what(), error)),
                Err(_) => Err(no_answer(&what())),
            }
        })
    }

    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>> {
        Box::pin(async move { images::find(&self.client().await?, reference).await })
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<RegistryAuth>,
        progress: Progress<'a>,
    ) -> Answer<'a, ImageInfo> {
        Box::pin(
            async move { images::pull(&self.client().await?, reference, auth, progress).await },
        )
    }

    fn load_image<'a>(
        &'a self,
        archive: Archive,
        progress: Progress<'a>,
    ) -> Answer<'a, Vec<String>> {
        Box::pin(async move { images::load(self.client().await?, archive, progress).await })
    }

    fn layers(&self) -> Answer<'_, Vec<Vec<String>>> {
        Box::pin(async move { images::layers(&self.client().await?).await })
    }

    fn tag<'a>(&'a self, image: &'a str, reference: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { images::tag(&self.client().await?, image, reference).await })
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, String> {
        Box::pin(async move { containers::create(&self.client().await?, spec).await })
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { containers::start(&self.client().await?, id).await })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Answer<'a, ()> {
        Box::pin(async move { containers::signal(&self.client().await?, id, signal).await })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { containers::remove(&self.client().await?, id).await })
    }

    fn list<'a>(&'a self, node: &'a str) -> Answer<'a, Vec<ContainerSummary>> {
        Box::pin(async move { containers::list(&self.client().await?, node).await })
    }

    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        Box::pin(async move { containers::inspect(&self.client().await?, id).await })
    }

    fn events(&self, node: &str) -> Items<RuntimeEvent> {
        follow::events(&self.socket, node)
    }

    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Answer<'a, ExecSession> {
        Box::pin(async move { exec::start(&self.client().await?, id, spec).await })
    }

    fn exec_resize<'a>(&'a self, exec: &'a str, size: TerminalSize) -> Answer<'a, ()> {
        Box::pin(async move { exec::resize(&self.client().await?, exec, size).await })
    }

    fn exec_exit_code<'a>(&'a self, exec: &'a str) -> Answer<'a, Option<i32>> {
        Box::pin(async move { exec::exit_code(&self.client().await?, exec).await })
    }

    fn logs(&self, id: &str, options: LogOptions) -> Items<Output> {
        follow::logs(&self.socket, id, options)
    }
}
