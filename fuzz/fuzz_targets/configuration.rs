#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpicluster::fuzzing::configuration(bytes));
