//! Encryption at rest: nothing readable on the disk, keys that rotate while writes go on, files of
//! the builds before, and keys that are lost or others.

use std::path::{Path, PathBuf};

use timonier_master::store::{Encryption, Store, StoreConfig, StoreError};

use crate::{config, open, put, until, value};

const SECRET: &str = "correct-horse-battery-staple";

fn with(dir: &Path, encryption: Encryption) -> StoreConfig {
    StoreConfig { encryption, ..config(dir) }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// The files that hold the text.
fn holding(dir: &Path, text: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        std::fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    };
    files(dir).into_iter().filter(holds).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&path, target).unwrap();
    }
}

async fn refusal(config: StoreConfig) -> String {
    let error = Store::open(config).await.unwrap_err();
    assert!(matches!(error, StoreError::Keys { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("hint: "), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let often = || StoreConfig { snapshot_entries: 20, ..config(dir.path()) };
    let store = open(often()).await;
    for n in 0..50 {
        put(&store, &format!("named-object-{n}"), SECRET).await.unwrap();
    }
    until("a snapshot", || store.status().snapshots > 0).await;
    store.shutdown().await.unwrap();
    for text in [SECRET, "named-object", "ConfigMap"] {
        assert_eq!(holding(dir.path(), text), Vec::<PathBuf>::new(), "{text}");
    }
    use std::os::unix::fs::PermissionsExt;
    let keyring = dir.path().join("keys/keyring.json");
    assert_eq!(std::fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    let store = open(often()).await;
    assert_eq!(value(&store, "named-object-49").as_deref(), Some(SECRET));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_builds_before_are_read_and_sealed() {
    for snapshot_entries in [u64::MAX, 15] {
        let dir = tempfile::tempdir().unwrap();
        let plain = StoreConfig { snapshot_entries, ..with(dir.path(), Encryption::Off) };
        let store = open(plain).await;
        for n in 0..40 {
            put(&store, &format!("n{n}"), SECRET).await.unwrap();
        }
        if snapshot_entries == 15 {
            until("a snapshot", || store.status().snapshots > 0).await;
        }
        assert_eq!(store.encryption_status().protection, "off");
        store.shutdown().await.unwrap();
        assert!(!holding(dir.path(), SECRET).is_empty());
        let before = std::fs::exists(dir.path().join("keys")).unwrap();
        assert!(!before, "what is off makes no keys");

        let store = open(config(dir.path())).await;
        assert_eq!(value(&store, "n39").as_deref(), Some(SECRET));
        until("all is sealed", || store.encryption_status().plain_files == 0).await;
        assert_eq!(holding(dir.path(), SECRET), Vec::<PathBuf>::new());
        put(&store, "after", SECRET).await.unwrap();
        store.shutdown().await.unwrap();
        let store = open(config(dir.path())).await;
        assert_eq!(store.snapshot().len(), 41);
        assert_eq!(store.status().snapshots, 0, "a second start finds nothing to do");
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_rotates_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..300 {
                put(&store, &format!("n{n}"), SECRET).await.unwrap();
            }
        })
    };
    for round in 2..5 {
        assert_eq!(store.rotate_key().await.unwrap(), round);
    }
    writer.await.unwrap();
    let keys = store.encryption_status().keys;
    let ids: Vec<_> = keys.iter().map(|(key, files)| (key.id, key.active, *files > 0)).collect();
    assert_eq!(ids, [(4, true, true)], "the old ones are gone: {keys:?}");
    let before = store.snapshot();
    store.shutdown().await.unwrap();
    let store = open(config(dir.path())).await;
    assert_eq!(store.snapshot(), before);
    assert_eq!(store.snapshot().len(), 300);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_its_keys_is_refused_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path())).await;
    put(&store, "a", SECRET).await.unwrap();
    store.shutdown().await.unwrap();
    let keyring = dir.path().join("keys/keyring.json");
    let kept = std::fs::read(&keyring).unwrap();
    std::fs::remove_file(&keyring).unwrap();
    let text = refusal(config(dir.path())).await;
    assert!(text.contains("keyring.json") && text.contains("missing"), "{text}");
    assert!(!keyring.exists(), "no key is made in place of a lost one");

    // Another cluster's keyring.
    let other = tempfile::tempdir().unwrap();
    open(config(other.path())).await.shutdown().await.unwrap();
    std::fs::copy(other.path().join("keys/keyring.json"), &keyring).unwrap();
    let text = refusal(config(dir.path())).await;
    assert!(text.contains("does not open it"), "{text}");
    std::fs::write(&keyring, "{\"format\": 1, \"keys\": \"c2VjcmV0\"}").unwrap();
    let text = refusal(config(dir.path())).await;
    assert!(!text.contains("c2VjcmV0"), "{text}");

    std::fs::write(&keyring, kept).unwrap();
    let store = open(config(dir.path())).await;
    assert_eq!(value(&store, "a").as_deref(), Some(SECRET));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_or_a_passphrase_keeps_the_keys() {
    let plain = tempfile::tempdir().unwrap();
    let store = open(config(plain.path())).await;
    put(&store, "a", SECRET).await.unwrap();
    store.shutdown().await.unwrap();
    let given = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        std::fs::write(given.path().join(name), content).unwrap();
        given.path().join(name)
    };
    let key = file("key", &format!("{}\n", "4f".repeat(32)));
    let other_key = file("other-key", &"5a".repeat(32));
    let passphrase = file("passphrase", "correct horse battery\n");
    let other_passphrase = file("other-passphrase", "wrong horse battery\n");
    for (right, wrong) in [
        (Encryption::KeyFile(key), Encryption::KeyFile(other_key)),
        (Encryption::Passphrase(passphrase), Encryption::Passphrase(other_passphrase)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(plain.path(), dir.path());
        let keyring = dir.path().join("keys/keyring.json");
        let before = std::fs::read_to_string(&keyring).unwrap();
        let raw: serde_json::Value = serde_json::from_str(&before).unwrap();
        let raw = raw["keys"][0]["key"].as_str().unwrap();
        let store = open(with(dir.path(), right.clone())).await;
        assert_eq!(value(&store, "a").as_deref(), Some(SECRET));
        store.rotate_key().await.unwrap();
        store.shutdown().await.unwrap();
        assert_eq!(holding(dir.path(), raw), Vec::<PathBuf>::new(), "the key itself is sealed");
        let text = refusal(with(dir.path(), wrong)).await;
        assert!(text.contains("does not open its keys"), "{text}");
        let text = refusal(config(dir.path())).await;
        assert!(text.contains("start the master with --encryption-"), "{text}");
        let store = open(with(dir.path(), right)).await;
        assert_eq!(value(&store, "a").as_deref(), Some(SECRET));
        store.shutdown().await.unwrap();
    }
    let short = Encryption::Passphrase(file("short", "abc\n"));
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(with(dir.path(), short)).await.contains("shorter than"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_the_keys_can_be_changed() {
    let (dir, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let passphrase = |name: &str, text: &str| {
        std::fs::write(given.path().join(name), text).unwrap();
        Encryption::Passphrase(given.path().join(name))
    };
    let old = passphrase("old", "correct horse battery\n");
    let new = passphrase("new", "another staple altogether\n");
    let other = passphrase("other", "neither of the two of them\n");
    let changed = |from: &Encryption| Encryption::Changed {
        to: Box::new(new.clone()),
        from: Box::new(from.clone()),
    };
    let store = open(with(dir.path(), old.clone())).await;
    put(&store, "a", SECRET).await.unwrap();
    store.shutdown().await.unwrap();
    let text = refusal(with(dir.path(), changed(&other))).await;
    assert!(text.contains("does not open its keys"), "{text}");
    // The second time there is nothing left to change; after that the new one is enough.
    for encryption in [changed(&old), changed(&old), new.clone()] {
        let store = open(with(dir.path(), encryption)).await;
        assert_eq!(value(&store, "a").as_deref(), Some(SECRET));
        store.shutdown().await.unwrap();
    }
    assert!(refusal(with(dir.path(), old)).await.contains("does not open its keys"));
}
