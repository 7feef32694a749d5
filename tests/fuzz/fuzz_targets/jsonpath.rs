#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| timonier_tests::fuzz::run("jsonpath", data));
