use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};
use timonier_proto::v1::{ImageOffer, ImageWant};

use super::*;

/// Names an image while it lives.
struct Name(String);

impl Name {
    fn new() -> Self {
        Self(format!("timonier/test-{}:v1", uuid::Uuid::new_v4().simple()))
    }

    fn id(&self) -> Option<String> {
        let args = ["image", "inspect", "--format={{.Id}}", &self.0];
        let output = Command::new("docker").args(args).output().unwrap();
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(id)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.0]).output();
    }
}

fn inspect(image: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["image", "inspect", image])).unwrap()[0].take()
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// What is on top of `WEB`'s layers in an image, and the image.
struct Made {
    offer: ImageOffer,
    layer_id: String,
    /// Without the layers of `WEB`.
    archive: Vec<u8>,
}

fn make(name: &Name) -> Made {
    let layer = archive(&[("unique", name.0.as_bytes())]);
    let layer_id = digest(&layer);
    let below = inspect(WEB)["RootFS"]["Layers"].clone();
    let mut diff_ids: Vec<String> = serde_json::from_value(below).unwrap();
    diff_ids.push(layer_id.clone());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({})).collect::<Vec<_>>(),
    })
    .to_string();
    let image_id = digest(config.as_bytes());
    let config_name = format!("{}.json", &image_id["sha256:".len()..]);
    let layer_names: Vec<String> =
        (0..diff_ids.len()).map(|number| format!("{number}/layer.tar")).collect();
    // Without a name: that is in the offer.
    let manifest = json!([{ "Config": config_name, "RepoTags": null, "Layers": layer_names }]);
    let archive = archive(&[
        (&config_name, config.as_bytes()),
        (layer_names.last().unwrap(), &layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ]);
    let offer = ImageOffer {
        references: vec![name.0.clone()],
        image_id,
        diff_ids,
        size_bytes: archive.len() as u64,
        nodes: Vec::new(),
    };
    Made { offer, layer_id, archive }
}

async fn want(offer: &ImageOffer) -> (Tool, ImageWant) {
    let mut tool = Tool::ask(pod(Vec::new()), Request::Image(offer.clone())).await;
    match tool.hear().await {
        Frame::ImageWant(want) => {
            assert_eq!(want.node, NODE);
            (tool, want)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_with_only_the_layers_that_are_missing() {
    let name = Name::new();
    let Made { offer, layer_id, archive } = make(&name);
    let (tool, wanted) = want(&offer).await;
    assert!(!wanted.has_image);
    assert_eq!(wanted.missing_diff_ids, [layer_id]);
    for piece in archive.chunks(1000) {
        tool.say(data(piece.to_vec())).await;
    }
    tool.say(Frame::HalfClose(true)).await;
    let said = tool.hear_all().await;
    assert_eq!((said.end.exit_code, said.end.error.as_str()), (0, ""));
    assert_eq!(name.id(), Some(offer.image_id.clone()));

    // Again, by another name: nothing to send. The master closes its side at once.
    let other = Name::new();
    let again = ImageOffer { references: vec![other.0.clone()], ..offer.clone() };
    let (mut tool, wanted) = want(&again).await;
    tool.to_agent = None;
    assert!(wanted.has_image && wanted.missing_diff_ids.is_empty(), "{wanted:?}");
    assert_eq!(tool.hear_all().await.end.error, "");
    assert_eq!(other.id(), Some(offer.image_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_says_of_a_bad_archive_is_told() {
    let name = Name::new();
    let Made { offer, .. } = make(&name);
    let (tool, _) = want(&offer).await;
    tool.say(data("this is no archive".repeat(100))).await;
    tool.say(Frame::HalfClose(true)).await;
    let said = tool.hear_all().await;
    assert!(said.end.error.starts_with("cannot load the image: "), "{said:?}");
    assert_eq!(said.end.exit_code, 1);

    let (tool, _) = want(&offer).await;
    tool.say(data(archive(&[("file", b"x")]))).await;
    tool.say(Frame::HalfClose(true)).await;
    let said = tool.hear_all().await;
    assert!(said.end.error.contains("no such file"), "{said:?}");

    let nameless = ImageOffer { image_id: String::new(), ..offer };
    let tool = Tool::ask(pod(Vec::new()), Request::Image(nameless)).await;
    assert!(tool.hear_all().await.end.error.contains("does not say which"));
    assert_eq!(name.id(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_cut_off_leaves_no_image() {
    let name = Name::new();
    let Made { offer, archive, .. } = make(&name);
    let (tool, _) = want(&offer).await;
    tool.say(data(archive[..archive.len() - 1024].to_vec())).await;
    tool.leave().await;
    assert_eq!(Name(offer.image_id).id(), None);
}
