//! What went wrong, as a status. kubelet never sees these: they are in plain words for people.

use berth_image::Error;
use tonic::{Code, Status};

use crate::cri::of_image;

/// The status of a failure on images, logged: here is where it is dealt with.
pub(super) fn of(method: &'static str, error: &Error) -> Status {
    let code = match of_image(error.kind()) {
        // CRI's word for a registry that does not answer, which kubelet wants.
        Code::Unknown => Code::Unavailable,
        code => code,
    };
    tracing::info!(method, ?code, error = error.report(), "refused or failed");
    Status::new(code, error.report())
}

/// A request that makes no sense: the field, its value, and what is wrong with it.
pub(super) fn invalid(field: &str, value: &str, reason: &str) -> Status {
    Status::invalid_argument(format!("{field}: {value:?} {reason}"))
}
