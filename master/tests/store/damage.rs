//! Damage to the log's files: the torn end of the last write is cut, anything else is refused.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use timonier_master::store::{Store, StoreError};

use crate::{config, create, open, put, value};

const WRITES: usize = 40;
const SECTOR: usize = 512;

/// A store with some writes, each an entry of about 2 KiB; answers its log's file.
async fn written(dir: &Path) -> PathBuf {
    let store = open(config(dir)).await;
    for n in 0..WRITES {
        let filler = "x".repeat(2 << 10);
        store.commit(create(&format!("n{n}"), &format!("{n}-{filler}"))).await.unwrap();
    }
    store.shutdown().await.unwrap();
    dir.join("log").join("000000000001.log")
}

/// Where the records begin.
fn records(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).step_by(8).filter(|&at| bytes[at..].starts_with(b"TmLr")).collect()
}

fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

fn assert_writes(store: &Store, count: usize) {
    assert_eq!(store.snapshot().len(), count);
    for n in 0..count {
        let value = value(store, &format!("n{n}")).unwrap();
        assert!(value.starts_with(&format!("{n}-x")), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_torn_end_of_the_last_write_is_cut() {
    // What of the last record reached the disk: its begin, its end, or nothing but its middle.
    for torn in [0..SECTOR, 1024..4096, SECTOR..1024] {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path()).await;
        let mut bytes = std::fs::read(&path).unwrap();
        let last = *records(&bytes).last().unwrap();
        let first_sector = last.next_multiple_of(SECTOR);
        // The sector that the record begins in holds the end of the one before, too.
        let kept = if torn.start == 0 { last..first_sector } else { last..last };
        for (at, byte) in bytes.iter_mut().enumerate().skip(last) {
            let in_torn = at >= first_sector + torn.start && at < first_sector + torn.end;
            if !in_torn && !kept.contains(&at) {
                *byte = 0;
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let store = open(config(dir.path())).await;
        assert_writes(&store, WRITES - 1);
        put(&store, &format!("n{}", WRITES - 1), &format!("{}-x again", WRITES - 1)).await.unwrap();
        store.shutdown().await.unwrap();
        let store = open(config(dir.path())).await;
        assert_writes(&store, WRITES);
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_is_refused_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let intact = std::fs::read(&path).unwrap();
    let records = records(&intact);
    let (middle, last) = (records[records.len() / 2], *records.last().unwrap());
    // In a header, in a payload, a lost sector, and in the very last record.
    for (at, record) in
        [(middle + 20, middle), (middle + 500, middle), (last + 500, last), (last + 5, last)]
    {
        let mut damaged = intact.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let error = Store::open(config(dir.path())).await.unwrap_err();
        let StoreError::Corrupt { offset, index: Some(index), .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(*offset, record as u64, "{error}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("hint: restore") && text.contains(&format!("index {index}")));
    }
    let mut damaged = intact.clone();
    damaged[middle..middle + 1024].fill(0);
    std::fs::write(&path, &damaged).unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("was written"), "{error}");
    std::fs::write(&path, &intact).unwrap();
    let store = open(config(dir.path())).await;
    assert_writes(&store, WRITES);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_the_log_is_given_up_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let bytes = std::fs::read(&path).unwrap();
    let records = records(&bytes);
    overwrite(&path, records[records.len() - 10] + 100, b"#");
    let error = Store::open(config(dir.path())).await.unwrap_err();
    let StoreError::Corrupt { index: Some(index), .. } = error else { panic!("{error}") };
    // Another index than the damaged one is not taken for it.
    std::fs::write(dir.path().join(format!("log/discard-from-{}", index - 1)), "").unwrap();
    assert!(Store::open(config(dir.path())).await.is_err());
    let marker = dir.path().join(format!("log/discard-from-{index}"));
    std::fs::write(&marker, "").unwrap();
    let store = open(config(dir.path())).await;
    assert_writes(&store, WRITES - 10);
    assert!(!marker.exists(), "the order counts once");
    put(&store, "after", "").await.unwrap();
    store.shutdown().await.unwrap();
    open(config(dir.path())).await.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_cut_short_or_is_missing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path()).await;
    let bytes = std::fs::read(&path).unwrap();
    let records = records(&bytes);
    let middle = records[records.len() / 2] as u64;
    for length in [middle, middle + 100, (bytes.len() - 4096) as u64] {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        let error = Store::open(config(dir.path())).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        std::fs::write(&path, &bytes).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("the file is missing"), "{error}");
}
