//! Replays the corpus of every fuzz target, and a bounded number of mutations of it. Longer runs,
//! guided by coverage: `make fuzz TARGET=… SECONDS=…`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use timonier_tests::fuzz::mutate::mutate;
use timonier_tests::fuzz::{TARGETS, Target};

/// Mutations of one target's corpus…
const MUTATIONS_MAX: u64 = 20_000;
/// …or this long, whichever comes first.
const MUTATING_MAX: Duration = Duration::from_secs(3);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder().join("corpus").join(name);
    let entries = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("the corpus of {name}, {}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("an input can be read")))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    inputs
}

/// Keeps an input that fails, and says how to see it fail again.
fn check((name, target): &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_ok() {
        return;
    }
    let path = folder().join("corpus").join(name).join(format!("found-{:08x}", fnv(input)));
    std::fs::write(&path, input).expect("the corpus can be written");
    panic!("{name} fails on {}; it stays in the corpus until it does not", path.display());
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[test]
fn the_corpus_passes() {
    for target in TARGETS {
        for (_, input) in corpus(target.0) {
            check(target, &input);
        }
    }
}

#[test]
fn mutations_of_the_corpus_pass() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("to replay: SEED={seed} cargo test -p timonier-tests --test fuzz");
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || {
                let inputs = corpus(target.0);
                let mut rng = fastrand::Rng::with_seed(seed);
                let begun = Instant::now();
                for _ in 0..MUTATIONS_MAX {
                    let (_, input) = &inputs[rng.usize(..inputs.len())];
                    let (_, other) = &inputs[rng.usize(..inputs.len())];
                    check(target, &mutate(input, other, &mut rng));
                    if begun.elapsed() > MUTATING_MAX {
                        break;
                    }
                }
            });
        }
    });
}
