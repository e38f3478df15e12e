//! A layer, plain or compressed, unpacked into a directory: nothing may come to lie outside of
//! it, and it must be as its listing says.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// On tmpfs where there is one, and this process's own.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
    base.join(format!("berth-fuzz-{}", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::create_dir_all(&*SCRATCH).expect("make the scratch directory");
    berth_image::fuzz::layer(bytes, &SCRATCH);
    std::fs::remove_dir(&*SCRATCH).expect("remove the scratch directory");
});
