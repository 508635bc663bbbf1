//! The fuzz targets of the wire contract as ordinary tests.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod fuzz_targets;
#[path = "../../../tests/fuzzing.rs"]
mod fuzzing;

use fuzzing::fuzz;

#[test]
fn messages_mean_the_same_when_encoded_again() {
    fuzz("envelope", fuzz_targets::envelope);
}

#[test]
fn tokens_and_secrets_and_ids_have_one_text_each() {
    fuzz("secret", fuzz_targets::secret);
}
