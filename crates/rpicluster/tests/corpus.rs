//! The fuzz target of the configuration as an ordinary test.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

#[path = "../../../tests/fuzzing.rs"]
mod fuzzing;

use fuzzing::fuzz;

#[test]
fn no_configuration_panics_and_what_is_wrong_is_named_with_its_place() {
    fuzz("configuration", rpicluster::fuzzing::configuration);
}
