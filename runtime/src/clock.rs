//! The time of day and the boot, in the forms that records carry.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch; at least 1, as 0 means "never" in the CRI.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// The kernel's id of this boot.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
