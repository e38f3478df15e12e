#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_image::fuzz::listing(bytes));
