//! The image of the sandbox: the container that holds the network namespace of a pod with several
//! containers. It is made here, from scratch, so that no registry is needed for it.

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use super::init::init_bytes;

const PROGRAM: &str = "timonier-init";

/// The image's name and tag, which change with the init.
pub fn sandbox_image() -> String {
    let digest = hex(&Sha256::digest(init_bytes()));
    format!("timonier/sandbox:{}-{}", env!("CARGO_PKG_VERSION"), &digest[..12])
}

/// The image as an archive for Docker's `load`: the same bytes each time.
pub fn sandbox_image_tar() -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    append(&mut layer, PROGRAM, 0o755, init_bytes());
    let layer = finish(layer);
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Entrypoint": [format!("/{PROGRAM}"), "sandbox"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "timonier" }],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let layer_name = format!("{}/layer.tar", digest(&layer));
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": [sandbox_image()],
        "Layers": [layer_name],
    }])
    .to_string();
    let mut image = Builder::new(Vec::new());
    append(&mut image, &config_name, 0o644, config.as_bytes());
    append(&mut image, &layer_name, 0o644, &layer);
    append(&mut image, "manifest.json", 0o644, manifest.as_bytes());
    finish(image)
}

fn append(archive: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content).expect("writing to memory does not fail");
}

fn finish(archive: Builder<Vec<u8>>) -> Vec<u8> {
    archive.into_inner().expect("writing to memory does not fail")
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
