//! The fuzz targets of access as ordinary tests.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

#[path = "../../../tests/fuzzing.rs"]
mod fuzzing;

use fuzzing::fuzz;

#[test]
fn whatever_is_asked_for_nobody_may_do_more_than_he_should() {
    fuzz("access", rpicluster_master::fuzzing::access);
}

#[test]
fn exactly_those_are_let_in_who_should_be() {
    fuzz("login", rpicluster_master::fuzzing::login);
}
