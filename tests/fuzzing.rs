//! Runs a fuzz target as an ordinary test: on its committed corpus, then for a short while on mutations of it. Every
//! `crates/*/tests/corpus.rs` includes this file; its corpora lie beside it, in `corpus/<target>/`. `FUZZ=1m` makes it
//! longer, `SEED=…` repeats a run. `tests/fuzz.sh` gives the same targets and corpora to cargo-fuzz.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;

const BYTES_MAX: usize = 2048;

/// The inputs of a target, in a fixed order.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Replays the corpus, then mutations of it until the time is over. A failure names its input.
pub fn fuzz(name: &str, target: fn(&[u8])) {
    let inputs = corpus(name);
    inputs.iter().for_each(|input| run(target, input, "the corpus"));
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let length = std::env::var("FUZZ").unwrap_or_else(|_| "3s".to_owned());
    let length: Duration = humantime::parse_duration(&length).unwrap();
    let mut random = Rng::with_seed(seed);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < length {
        run(target, &mutated(&inputs, &mut random), &format!("SEED={seed}"));
        count += 1;
    }
    println!("figure: fuzzing {name}: {} inputs of the corpus, {count} mutations of them, SEED={seed}", inputs.len());
}

fn run(target: fn(&[u8]), input: &[u8], origin: &str) {
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    if let Err(panic) = result {
        eprintln!("{origin}, input {}", input.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        resume_unwind(panic);
    }
}

/// An input with a few random changes.
fn mutated(inputs: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut bytes = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..random.usize(1..=8) {
        let at = random.usize(..=bytes.len());
        let to = random.usize(at..=bytes.len().min(at + 32));
        match random.u8(..5) {
            0 => bytes[at..to].iter_mut().take(2).for_each(|byte| *byte ^= 1 << random.u8(..8)),
            1 => bytes[at..to].iter_mut().take(2).for_each(|byte| *byte = random.u8(..)),
            2 => drop(bytes.drain(at..to)),
            3 => drop(
                bytes.splice(at..at, std::iter::repeat_with(|| random.u8(..)).take(to - at + 1).collect::<Vec<_>>()),
            ),
            _ => {
                let other = &inputs[random.usize(..inputs.len())];
                let from = random.usize(..=other.len());
                bytes.splice(at..to, other[from..].iter().take(256).copied());
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}
