//! `berthd`, the daemon, as a library; `main.rs` is its thin command line.
//!
//! - [`pod`]: the heart. One task owns one pod; [`pod::Roster`] is its front.
#![forbid(unsafe_code)]

mod bandwidth;
pub mod config;
pub mod cri;
pub mod daemon;
pub mod metrics;
pub mod pod;
