//! CRI requests -> our specs. Pure: a field that is malformed in itself is refused here, with
//! its path and value; what needs the host or the pod to be judged is left to the pod's policy.

mod container;
mod field;
mod image;
mod mounts;
mod namespaces;
mod pod;
mod resources;
mod security;
mod signal;

pub(super) use container::container;
pub(super) use field::{argv, choice, id, seconds};
pub(super) use image::{credentials, image_name, reference};
pub(super) use pod::pod;
pub(super) use signal::to_cri as signal_to_cri;

#[cfg(test)]
mod tests;
