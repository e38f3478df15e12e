//! berthctl against a real daemon: what it does, what it prints, how it ends.
#![forbid(unsafe_code)]

mod bad;
mod ctl;
mod images;
mod load;
mod save;
mod terminal;
mod upkeep;
