#![no_main]

#[path = "../../crates/broker/tests/fuzz_targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::two_clients(bytes));
