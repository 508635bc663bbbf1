#![no_main]

#[path = "../../crates/protocol/tests/fuzz_targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::secret(bytes));
