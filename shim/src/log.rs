//! The shim's own messages: one line each to stderr, which is `shim.log`.
//!
//! A line that cannot be written is dropped: the containers matter more.

use std::fmt;
use std::io::Write;

use crate::io::stamp::Stamp;

/// Writes one line.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let line = format!("{} {message}\n", Stamp::now());
    let _dropped_if_unwritable = std::io::stderr().write_all(line.as_bytes());
}
