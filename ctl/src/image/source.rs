//! Where an image comes from: the local Docker, or an archive that `docker save` has written.
//! Either way it ends in a file that can be read more than once, so that memory stays bounded.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use bollard::Docker;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use crate::error::{Outcome, fail};
use crate::output::Out;
use crate::output::progress::Spinner;

const MIB: f64 = (1 << 20) as f64;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// An image of the local Docker.
pub struct Local {
    docker: Docker,
    /// What it is exported by.
    pub reference: String,
    pub id: String,
    pub diff_ids: Vec<String>,
    pub size_bytes: u64,
}

/// Finds an image in the engine of `$DOCKER_HOST`, or behind the usual socket.
pub async fn local(name: &str) -> Outcome<Local> {
    let unreachable = |error: bollard::errors::Error| {
        fail(format!("load image {name}: ask the local Docker: {error}"))
            .hint("start it, or set DOCKER_HOST, or give an archive made by docker save")
    };
    let docker = connect().map_err(unreachable)?;
    let docker = docker.negotiate_version().await.map_err(unreachable)?;
    let found = docker.inspect_image(name).await.map_err(|error| match error {
        bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
            fail(format!("load image {name}: neither an image of the local Docker nor a file"))
                .hint("docker images lists what is there; docker build or docker pull brings more")
        }
        other => unreachable(other),
    })?;
    let tags = found.repo_tags.unwrap_or_default();
    let id = found.id.unwrap_or_default();
    Ok(Local {
        docker,
        reference: reference(name, &tags, &id),
        diff_ids: found.root_fs.and_then(|fs| fs.layers).unwrap_or_default(),
        size_bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
        id,
    })
}

fn connect() -> Result<Docker, bollard::errors::Error> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    if host.starts_with("tcp://") || host.starts_with("http://") {
        Docker::connect_with_http_defaults()
    } else {
        Docker::connect_with_socket_defaults()
    }
}

/// By a bare repository Docker would export all its tags, and by an id none.
fn reference(name: &str, tags: &[String], id: &str) -> String {
    let latest = format!("{name}:latest");
    let exact = tags.iter().find(|tag| **tag == name || **tag == latest);
    exact.or(tags.first()).cloned().unwrap_or_else(|| id.to_owned())
}

impl Local {
    /// Exports into an unnamed temporary file.
    pub async fn export(&self, out: &Out) -> Outcome<File> {
        let failed = |error: String| fail(format!("export image {}: {error}", self.reference));
        let chunks = self.docker.export_image(&self.reference);
        let chunks = chunks.map_err(|error| error.to_string());
        spool(chunks, &self.reference, out).await.map_err(failed)
    }
}

async fn spool(
    chunks: impl Stream<Item = Result<bytes::Bytes, String>>,
    reference: &str,
    out: &Out,
) -> Result<File, String> {
    let plain = |error: std::io::Error| format!("write a temporary file: {error}");
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(plain)?);
    let mut chunks = std::pin::pin!(chunks);
    let mut written: u64 = 0;
    let spinner = Spinner::start(out);
    spinner.say(format!("exporting {reference}"));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        file.write_all(&chunk).await.map_err(plain)?;
        written += chunk.len() as u64;
        if out.lively {
            spinner.say(format!("exporting {reference}: {:.1} MiB", written as f64 / MIB));
        }
    }
    file.flush().await.map_err(plain)?;
    Ok(file.into_std().await)
}

/// Opens an archive; a compressed one is unpacked into a temporary file. Blocks.
pub fn open(path: PathBuf) -> Outcome<File> {
    let failed =
        |error: std::io::Error| fail(format!("read image archive {}: {error}", path.display()));
    let mut file = File::open(&path).map_err(failed)?;
    let mut magic = [0; 2];
    let compressed = file.read_exact(&mut magic).is_ok() && magic == GZIP_MAGIC;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    if !compressed {
        return Ok(file);
    }
    let mut unpacked = tempfile::tempfile().map_err(failed)?;
    std::io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut unpacked).map_err(failed)?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tag_is_exported() {
        let tags = |list: &[&str]| list.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        let both = tags(&["web:v1", "web:latest"]);
        assert_eq!(reference("web:v1", &both, "sha256:a"), "web:v1");
        assert_eq!(reference("web", &both, "sha256:a"), "web:latest");
        assert_eq!(reference("abc123", &both, "sha256:a"), "web:v1");
        assert_eq!(reference("abc123", &[], "sha256:a"), "sha256:a");
    }
}
