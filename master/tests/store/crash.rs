//! Crashes: a process that writes is killed at random moments, and everything that it said was
//! acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use timonier_master::store::StoreConfig;

use crate::{config, create, key, open, put, value};

const ROUNDS: usize = 24;
const WRITERS: usize = 8;
const DIR_VARIABLE: &str = "TIMONIER_TEST_CRASH_DIR";
const ROUND_VARIABLE: &str = "TIMONIER_TEST_CRASH_ROUND";

/// Snapshots and new log files come often, so that the kill meets them, too.
fn crash_config(dir: &Path) -> StoreConfig {
    StoreConfig { snapshot_entries: 60, ..config(dir) }
}

/// Not a test of its own: what the killed process runs. Prints a line for each acknowledged write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the crash test as its child"]
async fn child() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    let round = std::env::var(ROUND_VARIABLE).unwrap();
    let store = open(crash_config(Path::new(&dir))).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, round) = (store.clone(), round.clone());
        tasks.spawn(async move {
            let filler = "x".repeat(3000);
            for n in 0.. {
                let name = format!("r{round}-w{writer}-{n}");
                store.commit(create(&name, &filler)).await.unwrap();
                writeln!(std::io::stdout(), "@create {name}").unwrap();
                let counter = format!("counter-{writer}");
                put(&store, &counter, &format!("{round}.{n:09}")).await.unwrap();
                writeln!(std::io::stdout(), "@count {counter} {round}.{n:09}").unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// Runs the child until it has acknowledged so many writes; answers the lines it printed.
fn run_and_kill(dir: &Path, round: usize, lines_max: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, dir)
        .env(ROUND_VARIABLE, format!("{round:03}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut acknowledged = 0;
    while reader.read_line(&mut line).unwrap() > 0 {
        // The test harness prints before the first line and on the same one.
        if let Some(begin) = line.find('@')
            && line.ends_with('\n')
        {
            lines.push(line[begin + 1..].trim_end().to_owned());
            acknowledged += 1;
        }
        line.clear();
        if acknowledged == lines_max {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged >= lines_max, "the child ended by itself after {lines:?}");
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut created = Vec::new();
    let mut counters = BTreeMap::new();
    for round in 0..ROUNDS {
        let lines = run_and_kill(dir.path(), round, fastrand::usize(1..400));
        for line in lines {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["create", name] => created.push(name.to_owned()),
                ["count", counter, n] => {
                    counters.insert(counter.to_owned(), n.to_owned());
                }
                _ => panic!("{line}"),
            }
        }
        let store = open(crash_config(dir.path())).await;
        let snapshot = store.snapshot();
        let lost: Vec<_> = created.iter().filter(|n| snapshot.object(&key(n)).is_none()).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        for (counter, n) in &counters {
            let found = value(&store, counter).unwrap();
            assert!(found >= *n, "round {round}: {counter} went back from {n} to {found}");
        }
        store.shutdown().await.unwrap();
    }
    eprintln!("{} acknowledged creates survived {ROUNDS} kills", created.len());
}
