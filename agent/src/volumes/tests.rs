use serde_json::json;

use super::*;

fn compiled(volumes: serde_json::Value, data: Option<serde_json::Value>) -> CompiledPod {
    let map = data.map(|data| serde_json::from_value(json!({"data": data})).unwrap());
    CompiledPod {
        pod: serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [], "volumes": volumes}
        }))
        .unwrap(),
        config_maps: [("conf".to_owned(), map)].into(),
        ..CompiledPod::default()
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".."))
        .collect();
    names.sort();
    names
}

#[test]
fn a_config_map_changes_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "v", "configMap": {"name": "conf"}}]);
    let paths = prepare(
        dir.path(),
        &compiled(volumes.clone(), Some(json!({"a": "1", "b": "2"}))),
        &NodeFacts::default(),
    )
    .unwrap();
    let root = &paths["v"];
    assert_eq!(entries(root), ["a", "b"]);
    let data = root.join("..data");
    let before = fs::read_link(&data).unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");

    prepare(
        dir.path(),
        &compiled(volumes.clone(), Some(json!({"a": "1", "b": "2"}))),
        &NodeFacts::default(),
    )
    .unwrap();
    assert_eq!(fs::read_link(&data).unwrap(), before, "nothing changed, nothing written");

    prepare(
        dir.path(),
        &compiled(volumes, Some(json!({"a": "3", "c": "4"}))),
        &NodeFacts::default(),
    )
    .unwrap();
    assert_eq!(entries(root), ["a", "c"]);
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
    assert!(!root.join(before).exists(), "the old content is gone");
}

#[test]
fn items_modes_and_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let volume = |map: serde_json::Value| json!([{"name": "v", "configMap": map}]);
    let item = json!({"key": "a", "path": "sub/file", "mode": 0o400});
    let source = volume(json!({"name": "conf", "items": [item]}));
    let paths =
        prepare(dir.path(), &compiled(source, Some(json!({"a": "1"}))), &NodeFacts::default())
            .unwrap();
    let file = paths["v"].join("sub/file");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);

    for (source, data, wanted) in [
        (json!({"name": "conf"}), None, Some("volume \"v\": config map \"conf\" not found")),
        (json!({"name": "conf", "optional": true}), None, None),
        (
            json!({"name": "conf", "items": [{"key": "x", "path": "x"}]}),
            Some(json!({})),
            Some("volume \"v\": config map \"conf\" has no key \"x\""),
        ),
        (
            json!({"name": "conf", "items": [{"key": "a", "path": "../../etc/passwd"}]}),
            Some(json!({"a": "1"})),
            Some("must be relative"),
        ),
        (
            json!({"name": "conf", "items": [{"key": "a", "path": "/etc/passwd"}]}),
            Some(json!({"a": "1"})),
            Some("must be relative"),
        ),
        (
            json!({"name": "conf", "items": [{"key": "a", "path": "..data"}]}),
            Some(json!({"a": "1"})),
            Some("must be relative"),
        ),
    ] {
        let result =
            prepare(dir.path(), &compiled(volume(source.clone()), data), &NodeFacts::default());
        match wanted {
            None => assert!(result.is_ok(), "{source}"),
            Some(text) => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(text), "{source}: {error}");
            }
        }
    }
}

#[test]
fn host_paths_are_what_their_type_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::write(at("file"), "x").unwrap();
    for (path, kind, ok) in [
        ("file", "File", true),
        ("file", "Directory", false),
        ("none", "Directory", false),
        ("none", "File", false),
        ("new", "DirectoryOrCreate", true),
        ("new", "Directory", true),
        ("made", "FileOrCreate", true),
        ("file", "Socket", false),
        ("any", "", true),
    ] {
        let source = json!([{"name": "v", "hostPath": {"path": at(path), "type": kind}}]);
        let result = prepare(dir.path(), &compiled(source, None), &NodeFacts::default());
        assert_eq!(result.is_ok(), ok, "{path} as {kind}: {result:?}");
    }
}

#[test]
fn empty_dirs_and_parts_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let pod = compiled(json!([{"name": "v", "emptyDir": {}}]), None);
    let paths = prepare(dir.path(), &pod, &NodeFacts::default()).unwrap();
    let container = |sub: &str| -> Container {
        serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/data", "subPath": sub, "readOnly": true}
        ]}))
        .unwrap()
    };
    let mounted = mounts(&container("a/b"), &paths, str::to_owned).unwrap();
    assert_eq!(mounted[0].target, "/data");
    assert!(mounted[0].read_only && mounted[0].source.ends_with("v/a/b"));
    assert!(mounts(&container("../x"), &paths, str::to_owned).is_err());
    std::os::unix::fs::symlink("/etc", paths["v"].join("link")).unwrap();
    assert!(mounts(&container("link"), &paths, str::to_owned).is_err());
    assert!(mounts(&container("link/made"), &paths, str::to_owned).is_err());
    assert!(!Path::new("/etc/made").exists());

    remove(dir.path()).unwrap();
    assert!(!dir.path().exists());
    remove(dir.path()).unwrap();
}

#[test]
fn secrets_lie_in_memory_with_their_modes_and_change_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pod = |data: serde_json::Value, source: serde_json::Value| {
        let mut pod = compiled(json!([{"name": "v", "secret": source}]), None);
        let secret = serde_json::from_value(json!({"data": data})).unwrap();
        pod.secrets = [("s".to_owned(), Some(secret)), ("gone".to_owned(), None)].into();
        pod
    };
    let facts = NodeFacts::default();
    let source = json!({"secretName": "s", "defaultMode": 0o400});
    let before = pod(json!({"a": "b25l", "b": "dHdv"}), source.clone());
    let paths = prepare(dir.path(), &before, &facts).unwrap();
    let root = &paths["v"];
    assert!(tmpfs::is_mounted(root).unwrap());
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "one");
    assert_eq!(fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
    prepare(dir.path(), &pod(json!({"a": "dGhyZWU="}), source), &facts).unwrap();
    assert_eq!(entries(root), ["a"]);
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "three");
    let gone = pod(json!({}), json!({"secretName": "gone"}));
    let error = prepare(dir.path(), &gone, &facts).unwrap_err().to_string();
    assert_eq!(error, "volume \"v\": secret \"gone\" not found");
    prepare(dir.path(), &pod(json!({}), json!({"secretName": "gone", "optional": true})), &facts)
        .unwrap();
    remove(dir.path()).unwrap();
    assert!(!root.exists());
}

#[test]
fn a_projected_volume_shows_several_sources() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "v", "projected": {"defaultMode": 0o440, "sources": [
        {"secret": {"name": "s", "items": [{"key": "k", "path": "sub/key", "mode": 0o400}]}},
        {"configMap": {"name": "conf"}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
            {"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}},
        ]}},
    ]}}]);
    let mut pod = compiled(volumes, Some(json!({"conf": "1"})));
    let secret = serde_json::from_value(json!({"data": {"k": "b25l"}})).unwrap();
    pod.secrets = [("s".to_owned(), Some(secret))].into();
    pod.pod.metadata.labels = Some([("app".to_owned(), "we\"b".to_owned())].into());
    let container = json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}}});
    pod.pod.spec.as_mut().unwrap().containers = vec![serde_json::from_value(container).unwrap()];
    let root = prepare(dir.path(), &pod, &NodeFacts::default()).unwrap().remove("v").unwrap();
    assert_eq!(entries(&root), ["conf", "labels", "memory", "name", "sub"]);
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!((read("sub/key"), read("name")), ("one".to_owned(), "p".to_owned()));
    assert_eq!((read("labels"), read("memory")), ("app=\"we\\\"b\"".to_owned(), "64".to_owned()));
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sub/key"), mode("conf")), (0o400, 0o440));
    remove(dir.path()).unwrap();
}

#[test]
fn a_token_is_replaced_and_one_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = json!({"path": "token", "expirationSeconds": 600});
    let sources = json!([{"serviceAccountToken": source}]);
    let mut pod = compiled(json!([{"name": "v", "projected": {"sources": sources}}]), None);
    let error = prepare(dir.path(), &pod, &NodeFacts::default()).unwrap_err().to_string();
    assert!(error.contains("the masters give no token"), "{error}");
    for text in ["first-token", "second-token"] {
        pod.tokens = [("600 ".to_owned(), text.to_owned())].into();
        let paths = prepare(dir.path(), &pod, &NodeFacts::default()).unwrap();
        assert_eq!(fs::read_to_string(paths["v"].join("token")).unwrap(), text);
    }
    assert!(!format!("{pod:?}").contains("second-token"), "tokens are not in the log");
    remove(dir.path()).unwrap();
}
