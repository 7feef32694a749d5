//! Images: looked up, pulled, loaded.

use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder,
    TagImageOptionsBuilder,
};
use futures::{StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::convert::failed;
use crate::runtime::{Archive, ImageInfo, Progress, RegistryAuth, RuntimeError, RuntimeErrorKind};

/// Docker answers a load when it has read the whole archive.
const LOAD_DEADLINE: Duration = Duration::from_secs(3600);
/// A pull that tells nothing for so long hangs.
const PULL_SILENCE_MAX: Duration = Duration::from_secs(120);
/// Images asked for their layers at a time.
const CONCURRENT_INSPECTS_MAX: usize = 4;

pub(super) async fn find(
    docker: &Docker,
    reference: &str,
) -> Result<Option<ImageInfo>, RuntimeError> {
    let answer = match docker.inspect_image(reference).await {
        Ok(answer) => answer,
        Err(error) => {
            let error = failed(format!("look up image {reference}"), error);
            let absent = error.kind == RuntimeErrorKind::NotFound;
            return if absent { Ok(None) } else { Err(error) };
        }
    };
    let config = answer.config.unwrap_or_default();
    Ok(Some(ImageInfo {
        id: answer.id.unwrap_or_default(),
        digests: answer.repo_digests.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        layers: answer.root_fs.and_then(|fs| fs.layers).unwrap_or_default(),
        size_bytes: answer.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
    }))
}

pub(super) async fn pull(
    docker: &Docker,
    reference: &str,
    auth: Option<RegistryAuth>,
    progress: Progress<'_>,
) -> Result<ImageInfo, RuntimeError> {
    let what = || format!("pull image {reference}");
    // Without a tag Docker would fetch all of them.
    let full = with_tag(reference);
    let options = CreateImageOptionsBuilder::new().from_image(&full).build();
    let credentials = auth.map(|auth| DockerCredentials {
        username: Some(auth.username),
        password: Some(auth.password),
        serveraddress: Some(auth.server),
        ..Default::default()
    });
    let mut steps = docker.create_image(Some(options), None, credentials);
    loop {
        let step = timeout(PULL_SILENCE_MAX, steps.next()).await.map_err(|_| {
            let text = format!("nothing heard for {} s", PULL_SILENCE_MAX.as_secs());
            RuntimeError::new(RuntimeErrorKind::Refused, what(), text)
        })?;
        let Some(step) = step else { break };
        let step = step.map_err(|error| failed(what(), error))?;
        let Some(status) = step.status else { continue };
        let done = step.progress_detail.and_then(|d| Some((d.current?, d.total?)));
        match (step.id, done) {
            (Some(id), Some((now, all))) => progress(&format!("{id}: {status} {now}/{all}")),
            (Some(id), None) => progress(&format!("{id}: {status}")),
            (None, _) => progress(&status),
        }
    }
    find(docker, reference).await?.ok_or_else(|| {
        RuntimeError::new(RuntimeErrorKind::NotFound, what(), "not there after the pull")
    })
}

fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

pub(super) async fn load(
    docker: Docker,
    archive: Archive,
    progress: Progress<'_>,
) -> Result<Vec<String>, RuntimeError> {
    let docker = docker.with_timeout(LOAD_DEADLINE);
    let options = ImportImageOptionsBuilder::new().build();
    let mut steps = docker.import_image_stream(options, archive, None);
    let mut loaded = Vec::new();
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| failed("load the image", error))?;
        let text = step.stream.or(step.status).unwrap_or_default();
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let name = text.strip_prefix("Loaded image: ");
        loaded.extend(name.or_else(|| text.strip_prefix("Loaded image ID: ")).map(str::to_owned));
        progress(text);
    }
    if loaded.is_empty() {
        let text = "there was no image in the archive; hint: it must be as docker save writes it";
        return Err(RuntimeError::new(RuntimeErrorKind::Refused, "load the image", text));
    }
    Ok(loaded)
}

pub(super) async fn layers(docker: &Docker) -> Result<Vec<Vec<String>>, RuntimeError> {
    let options = ListImagesOptionsBuilder::new().build();
    let images = docker
        .list_images(Some(options))
        .await
        .map_err(|error| failed("list the images", error))?;
    let lookups = images.into_iter().map(|image| async move { find(docker, &image.id).await });
    let found: Vec<Option<ImageInfo>> = futures::stream::iter(lookups)
        .buffer_unordered(CONCURRENT_INSPECTS_MAX)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().map(|image| image.layers).collect())
}

pub(super) async fn tag(docker: &Docker, image: &str, reference: &str) -> Result<(), RuntimeError> {
    let full = with_tag(reference);
    let (repository, tag) = full.rsplit_once(':').unwrap_or((&full, "latest"));
    let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
    let done = docker.tag_image(image, Some(options)).await;
    done.map_err(|error| failed(format!("name image {image} {reference}"), error))
}

#[cfg(test)]
mod tests {
    use super::with_tag;

    #[test]
    fn a_reference_without_tag_means_latest() {
        for (given, full) in [
            ("web", "web:latest"),
            ("web:v1", "web:v1"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("web@sha256:ab", "web@sha256:ab"),
        ] {
            assert_eq!(with_tag(given), full);
        }
    }
}
