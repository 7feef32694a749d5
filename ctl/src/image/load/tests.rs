//! Loading against a scripted master.

use std::io::{Seek, Write};

use expect_test::expect;
use serde_json::json;

use super::*;
use crate::exercise::script::{Script, Scripted, ctx_of, printed};
use crate::image::archive::tests::{config, tar_of};

fn archive_file() -> tempfile::NamedTempFile {
    let manifest = r#"[{"Config":"a.json","RepoTags":["web:v1"],"Layers":["base.tar","top.tar"]}]"#;
    let base = "base".repeat(100_000);
    let mut tar = tar_of(&[
        ("a.json", &config(&["sha256:base", "sha256:top"])),
        ("base.tar", &base),
        ("top.tar", "top"),
        ("manifest.json", manifest),
    ]);
    tar.rewind().unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut tar, &mut file).unwrap();
    file.flush().unwrap();
    file
}

/// What each node lacks (`None`: it has the image), and how its load ends.
async fn master_of(nodes: &[(&str, Option<&[&str]>, &str)]) -> Arc<Scripted> {
    let mut script = Script::default();
    for (name, missing, error) in nodes {
        let missing = missing.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        script.nodes.insert((*name).to_owned(), (missing, (*error).to_owned()));
    }
    let master = script.serve().await;
    for (name, ..) in nodes {
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let addresses =
            json!([{"type": "InternalIP", "address": format!("10.0.0.{}", name.len())}]);
        let status = json!({"conditions": conditions, "addresses": addresses});
        master
            .put(Kind::Node, json!({"kind": "Node", "metadata": {"name": name}, "status": status}));
    }
    master
}

fn args(file: &Path, nodes: &[&str]) -> Args {
    let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
    Args { image: file.display().to_string(), nodes }
}

fn files(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[tokio::test]
async fn each_node_gets_what_some_node_lacks() {
    let file = archive_file();
    let master = master_of(&[
        ("lab-1", Some(&["sha256:top"]), ""),
        ("lab-2", None, ""),
        ("lab-3", Some(&["sha256:top"]), ""),
    ])
    .await;
    let (ctx, captured) = ctx_of(&master);
    run(args(file.path(), &[]), &ctx).await.unwrap();
    let (out, err) = printed(&captured);
    expect![[r#"
        lab-2: already has web:v1
        lab-1: loaded web:v1
        lab-3: loaded web:v1
    "#]]
    .assert_eq(&out);
    expect![[r#"
        sending web:v1 to lab-1, lab-3: 0.0 MiB, 1 of 2 layers
    "#]]
    .assert_eq(&err);
    let offers = master.offers.lock().unwrap();
    assert_eq!(offers[0].diff_ids, ["sha256:base", "sha256:top"]);
    assert!(offers[0].size_bytes > 400_000, "{}", offers[0].size_bytes);
    assert_eq!(files(&master.archives.lock().unwrap()[0]), ["a.json", "top.tar", "manifest.json"]);
}

#[tokio::test]
async fn a_failed_node_is_named_and_the_others_are_loaded() {
    let file = archive_file();
    let all: &[&str] = &["sha256:base", "sha256:top"];
    let master =
        master_of(&[("a", Some(all), "no space left on device"), ("bb", Some(all), "")]).await;
    let (ctx, captured) = ctx_of(&master);
    assert_eq!(run(args(file.path(), &["a", "10.0.0.2"]), &ctx).await, Err(crate::told(1)));
    let (out, err) = printed(&captured);
    assert_eq!(out, "bb: loaded web:v1\n");
    assert!(err.contains("a: failed: no space left on device\n"), "{err}");
    assert_eq!(master.archives.lock().unwrap().len(), 1, "nothing was left out: no second try");
}

#[tokio::test]
async fn a_node_that_cannot_do_without_gets_all_layers() {
    let file = archive_file();
    let master = master_of(&[("lab-1", Some(&["sha256:top"]), "no such file")]).await;
    let (ctx, captured) = ctx_of(&master);
    assert!(run(args(file.path(), &[]), &ctx).await.is_err());
    assert!(printed(&captured).1.contains("lab-1: sending all layers, after: no such file"));
    let archives = master.archives.lock().unwrap();
    assert_eq!(files(&archives[1]), ["a.json", "base.tar", "top.tar", "manifest.json"]);
}

#[tokio::test]
async fn unknown_nodes_and_images_are_refused() {
    let master = master_of(&[("lab-1", None, "")]).await;
    let (ctx, _) = ctx_of(&master);
    let file = archive_file();
    let told = run(args(file.path(), &["lab-9"]), &ctx).await.unwrap_err().to_string();
    assert!(told.contains("no node is named lab-9"), "{told}");
    let told = run(args(Path::new("/"), &[]), &ctx).await.unwrap_err().to_string();
    assert!(told.contains("it is a folder"), "{told}");
    assert!(master.offers.lock().unwrap().is_empty());
}

#[test]
fn from_the_first_missing_layer_upwards_all_are_sent() {
    let ids: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let want = |missing: &[&str], has_image| ImageWant {
        missing_diff_ids: missing.iter().map(|id| (*id).to_owned()).collect(),
        has_image,
        ..Default::default()
    };
    let sent = |wants: &[ImageWant]| wanted(&ids, wants).into_iter().collect::<String>();
    assert_eq!(sent(&[want(&["b"], false)]), "bcd");
    assert_eq!(sent(&[want(&["d"], false), want(&["c"], false)]), "cd");
    assert_eq!(sent(&[want(&["a"], true), want(&[], false)]), "");
}
