//! The broker's fuzz targets as ordinary tests.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod fuzz_targets;
#[path = "../../../tests/fuzzing.rs"]
mod fuzzing;

use fuzzing::fuzz;

#[test]
fn packets_mean_the_same_when_encoded_again() {
    fuzz("packet", fuzz_targets::packet);
}

#[test]
fn sequences_of_one_client_harm_nobody() {
    fuzz("sequence", fuzz_targets::sequence);
}

#[test]
fn sequences_of_two_clients_harm_nobody_and_lose_nothing() {
    fuzz("two_clients", fuzz_targets::two_clients);
}

#[test]
fn filters_that_are_covered_match_nothing_more() {
    fuzz("filters", rpicluster_broker::fuzzing::filters);
}
