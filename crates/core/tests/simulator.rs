//! Master and slaves in one process, on a virtual clock and network, with every fault that a seed asks for: the same
//! decisions that the product runs on (`core::tasks`, `core::journal`), and checks of what they promise at every step.
//!
//! `SIMULATOR_SEED=7` runs one seed and prints what happens; `SIMULATOR_SEEDS=100000` runs that many.

#[path = "simulator/checks.rs"]
mod checks;
#[path = "simulator/head.rs"]
mod head;
#[path = "simulator/node.rs"]
mod node;
#[path = "simulator/world.rs"]
mod world;

use world::{Bug, World};

/// Seeds of an ordinary run: some seconds in a debug build.
const SEEDS: u64 = 3_000;

/// Seeds among which each planted bug is found.
const BUG_SEEDS: u64 = 3_000;

#[test]
fn every_promise_holds_whatever_fails() {
    if let Some(seed) = number("SIMULATOR_SEED") {
        return World::new(seed, None, true).run().unwrap();
    }
    let seeds = number("SIMULATOR_SEEDS").unwrap_or(SEEDS);
    let (mut steps, mut starts) = (0, 0);
    for seed in 0..seeds {
        let mut world = World::new(seed, None, false);
        if let Err(broken) = world.run() {
            panic!("SIMULATOR_SEED={seed}: {broken}");
        }
        steps += world.steps;
        starts += world.checks.starts();
    }
    assert!(starts > seeds, "hardly anything ran");
    println!("figure: simulator: {seeds} seeds, {steps} steps, {starts} attempts begun, none broke a promise");
}

#[test]
fn a_start_that_is_not_durable_is_found() {
    is_found(Bug::SpawnBeforeSync, "runs again though nobody knows how far it came");
}

#[test]
fn a_result_that_is_acknowledged_before_it_is_written_is_found() {
    is_found(Bug::AckBeforeCommit, "was acknowledged and is not known");
}

#[test]
fn a_restored_master_that_keeps_its_epoch_is_found() {
    is_found(Bug::KeepEpoch, "");
}

#[test]
fn a_lease_that_the_slave_does_not_keep_is_found() {
    is_found(Bug::IgnoreLease, "runs twice at once");
}

/// Some seed breaks that promise (any, if it is empty) when the bug is there.
fn is_found(bug: Bug, promise: &str) {
    let found = (0..BUG_SEEDS)
        .find_map(|seed| World::new(seed, Some(bug), false).run().err().filter(|broken| broken.contains(promise)));
    assert!(found.is_some(), "{bug:?} was not found in {BUG_SEEDS} seeds");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}
